//! The program `slicemill`.

use std::process::ExitCode;

fn main() -> ExitCode {
    slicemill_cli::configure_memory();
    slicemill_cli::run(std::env::args_os()).into()
}
