//! Results on standard output. A closed pipe (`slicemill sql … | head`) ends the program quietly.

use std::io::{self, Write};

use crate::exit::Failure;

/// Standard output.
#[derive(Debug, Clone, Copy, Default)]
pub struct Printer;

impl Printer {
    /// Writes `text` as it is.
    pub fn text(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::failed(format!("standard output: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// Writes `line` and a line end.
    pub fn line(self, line: &str) -> Result<(), Failure> {
        self.text(&format!("{line}\n"))
    }

    /// Writes a value as indented JSON.
    pub fn json(self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
        self.line(&text)
    }
}
