//! Log lines on standard error, in text or JSON, that do not tear the progress bar.

use std::io::{self, Write};

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::args::{LogFormat, OutputFlags};

/// Writes above the progress bars.
#[derive(Clone)]
struct AboveBars(MultiProgress);

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl MakeWriter<'_> for AboveBars {
    type Writer = Self;

    fn make_writer(&self) -> Self::Writer {
        self.clone()
    }
}

/// Starts logging. `-q` leaves errors, `-v` adds the program's own debug lines, `-vv` everything.
pub fn start(flags: &OutputFlags, bars: &MultiProgress) {
    let filter = match (flags.quiet, flags.verbose) {
        (true, _) => "error",
        (false, 0) => "warn,slicemill=info",
        (false, 1) => "info,slicemill=debug",
        (false, _) => "debug",
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(AboveBars(bars.clone()))
        .with_target(flags.verbose > 0);
    // A second start, as in tests, keeps the first subscriber.
    let started = match flags.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.without_time().with_ansi(console_colours()).try_init(),
    };
    drop(started);
}

/// Colours only where a person looks.
fn console_colours() -> bool {
    use std::io::IsTerminal;
    io::stderr().is_terminal()
}
