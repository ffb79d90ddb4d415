//! The command line of slicemill, and the one place where sources, plan, model and sinks are wired together.
//!
//! ```text
//!  flags ─▶ job document ─▶ Job (slicemill-exec) ─▶ run ─▶ exit code
//!            │                 ▲
//!            ▼                 │ policy, defaults
//!          model name ─▶ BackendFactory (slicemill-model)
//! ```

mod args;
mod commands;
mod document;
mod exit;
mod memory;
mod metrics;
mod models;
mod printing;
mod progress;
mod size;
mod telemetry;

use std::ffi::OsString;

use clap::{CommandFactory, Parser};
use indicatif::MultiProgress;

use args::{Cli, ModelVerb, Verb};
use exit::Failure;
use printing::Printer;

pub use exit::Exit;
pub use memory::configure as configure_memory;

/// Runs the program with these arguments, the first of which is its name.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let help =
                matches!(error.kind(), clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion);
            // Without a standard error there is nobody to tell.
            drop(error.print());
            return if help { Exit::Done } else { Exit::Usage };
        }
    };
    let bars = MultiProgress::new();
    telemetry::start(&cli.output, &bars);
    match dispatch(&cli, &bars) {
        Ok(exit) => exit,
        Err(failure) => {
            let exit = failure.exit.code();
            match cli.output.log_format {
                args::LogFormat::Json => tracing::error!(target: "slicemill", exit, "{}", failure.message),
                args::LogFormat::Text => tracing::error!(target: "slicemill", "{}", failure.message),
            }
            failure.exit
        }
    }
}

fn dispatch(cli: &Cli, bars: &MultiProgress) -> Result<Exit, Failure> {
    let printer = Printer;
    let session = commands::annotate::Session { flags: &cli.output, bars };
    match &cli.verb {
        Verb::Caption(args) => session.run_flags(document::caption(args), &args.run, &args.share),
        Verb::Ask(args) => session.run_flags(document::ask(args), &args.run, &args.share),
        Verb::Encode(args) => session.run_flags(document::encode(args), &args.run, &args.share),
        Verb::Run(args) => session.run_file(args),
        Verb::Retry(args) => session.retry(args),
        Verb::Plan(args) => commands::plan::run(args, &cli.output, printer),
        Verb::Verify(args) => commands::inspect::verify(args, &cli.output, printer),
        Verb::Report(args) => commands::inspect::report(args, &cli.output, printer),
        Verb::Sql(args) => commands::inspect::sql(args, &cli.output, printer),
        Verb::Sidecars(args) => commands::inspect::sidecars(args, &cli.output, printer),
        Verb::Schema(args) => commands::inspect::schema(args, printer),
        Verb::Slices(args) => commands::slices::run(args, &printer),
        Verb::Compare(args) => commands::compare::run(args, &cli.output, printer),
        Verb::Model(ModelVerb::Inspect(args)) => commands::model::inspect(args, printer),
        Verb::Model(ModelVerb::Check(args)) => commands::model::check(args, printer),
        Verb::Doctor(args) => commands::doctor::run(args, printer),
        Verb::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "slicemill", &mut script);
            printer.text(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Done)
        }
    }
}
