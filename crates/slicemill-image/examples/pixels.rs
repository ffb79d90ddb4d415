//! Pixels for comparisons: `tests/reference/image_collections.py` runs it beside Pillow.
//!
//! Reads paths from standard input, one a line. For each it answers with the line `ok WIDTH HEIGHT FORMAT TRUNCATED` and
//! the RGB bytes, or with the line `error CLASS MESSAGE`. The argument `drop` drops alpha instead of compositing on
//! white, `allow` decodes truncated images as far as they go.
#![allow(clippy::print_stderr, reason = "a tool for comparisons")]

use std::error::Error;
use std::io::{BufRead, Write};

use slicemill_core::{Alpha, ImageOptions, Truncated};
use slicemill_image::{decode, read_header};

fn main() -> Result<(), Box<dyn Error>> {
    let mut options = ImageOptions::default();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "drop" => options.alpha = Alpha::Drop,
            "allow" => options.truncated = Truncated::Allow,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let mut out = std::io::stdout().lock();
    for path in std::io::stdin().lock().lines() {
        let path = path?;
        let bytes = std::fs::read(&path)?;
        let read = read_header(&bytes, &path, &options);
        match read.and_then(|header| decode(&bytes, &header, &options).map(|decoded| (header, decoded))) {
            Ok((header, decoded)) => {
                let (size, format) = (decoded.image.size(), header.format.as_str());
                writeln!(out, "ok {} {} {format} {}", size.width, size.height, decoded.truncated)?;
                out.write_all(decoded.image.as_bytes())?;
            }
            Err(error) => writeln!(out, "error {} {}", error.class, error.message.replace('\n', " "))?,
        }
        out.flush()?;
    }
    Ok(())
}
