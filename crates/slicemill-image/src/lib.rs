//! Bytes to headers, and bytes with a plan to normalised slices.
//!
//! ```text
//!   bytes ─ sniff ─▶ format ─ read_header ─▶ Header ─▶ (planning, in slicemill-core)
//!     │                                        │                  │
//!     └──────────────── decode ◀───────────────┘                  │
//!                 pixels · alpha · orientation                    │
//!                          │                                      │
//!                       RgbImage ── cut_views ◀─── SlicePlan ◀────┘
//!                                       │
//!                       RgbImage per view ── normalise ──▶ NormalisedView per view
//! ```
//!
//! CPU only. Nothing panics: decoders that do are caught and the image is `corrupt`. The limit on pixels is checked on
//! the header, before anything is allocated for pixels. A broken image is an error of its row, with class, stage and a
//! message that names format, fault and remedy; it is a half-grey picture only when the job allows that, and then marked.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking"))]

mod alpha;
mod decode;
mod exif;
mod fault;
mod format;
mod header;
mod jpeg;
mod kernel;
mod normalise;
mod orientation;
mod pixels;
mod prepare;
mod resize;
mod slices;
mod window;
mod xmp;

pub use decode::{DecodedImage, decode};
pub use format::{IMAGE_EXTENSIONS, ImageFormat, has_image_extension, sniff, sniff_unsupported};
pub use header::{HEADER_PREFIX_BYTES, Header, HeaderRead, read_header, read_header_partial};
pub use normalise::{NormalisationTable, NormalisedView, normalise};
pub use orientation::Orientation;
pub use pixels::RgbImage;
pub use prepare::{Prepared, prepare};
pub use resize::resize_bicubic;
pub use slices::{cut_views, pad_colour};
