//! Unpacking compressed objects, front to back, within limits.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, Bytes};
use slicemill_core::Fate;

use super::kinds::Packing;
use super::object::ReadAt;
use super::spool::SpoolWriter;
use super::tar::Archive;
use crate::{IoError, IoErrorKind};

/// What is read of the compressed object at once.
const PIECE: u64 = 4 << 20;
/// What is unpacked at once.
const STEP: usize = 64 << 10;
/// An object that unpacks to more than this many times its size is no archive of images, once it is larger than
/// [`RATIO_FROM`] bytes. The most that gzip can do is 1032.
const RATIO_MAX: u64 = 1200;
const RATIO_FROM: u64 = 1 << 30;
/// How often an archive is unpacked anew to look at what a member with a false size hides.
const RESTARTS_MAX: u32 = 4;

/// Reads an object from its beginning. What goes wrong is kept, because decoders wrap it.
struct Sequential {
    object: Arc<dyn ReadAt>,
    stream: Option<Box<dyn Read + Send>>,
    at: u64,
    piece: Bytes,
    trouble: Arc<Mutex<Trouble>>,
}

#[derive(Debug, Default)]
struct Trouble {
    error: Option<IoError>,
    /// Compressed bytes taken so far.
    taken: u64,
}

fn locked(trouble: &Mutex<Trouble>) -> std::sync::MutexGuard<'_, Trouble> {
    trouble.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sequential {
    fn fail(&self, error: IoError) -> std::io::Error {
        let message = error.message.clone();
        locked(&self.trouble).error = Some(error);
        std::io::Error::other(message)
    }
}

/// The error that a reader of an object put into another.
fn inner(error: std::io::Error) -> IoError {
    let message = error.to_string();
    let inner = error.into_inner().and_then(|inner| inner.downcast::<IoError>().ok());
    inner.map_or_else(|| IoError::fatal(IoErrorKind::Failed, message), |error| *error)
}

impl Read for Sequential {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some(stream) = &mut self.stream {
            let read = match stream.read(buffer) {
                Ok(read) => read,
                Err(error) => return Err(self.fail(inner(error))),
            };
            locked(&self.trouble).taken += read as u64;
            return Ok(read);
        }
        if self.piece.is_empty() {
            let bytes = self.object.length().saturating_sub(self.at).min(PIECE);
            let bytes = usize::try_from(bytes).unwrap_or(0);
            if bytes == 0 {
                return Ok(0);
            }
            self.piece = self.object.read_at(self.at, bytes).map_err(|error| self.fail(error))?;
            self.at += self.piece.len() as u64;
        }
        let bytes = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..bytes]);
        locked(&self.trouble).taken += bytes as u64;
        Ok(bytes)
    }
}

/// What an object unpacks to: as an archive, or written to a spool.
pub(crate) struct Unpacked {
    object: Arc<dyn ReadAt>,
    packing: Option<Packing>,
    bytes_max: u64,
    decoder: Box<dyn Read + Send>,
    trouble: Arc<Mutex<Trouble>>,
    /// Where `kept` begins, of what was unpacked.
    start: u64,
    kept: Vec<u8>,
    length: Option<u64>,
    damage: Option<String>,
    restarts: u32,
}

impl Unpacked {
    /// Unpacks `object` (as it is, without `packing`) to at most `bytes_max` bytes.
    pub(crate) fn new(object: Arc<dyn ReadAt>, packing: Option<Packing>, bytes_max: u64) -> Result<Self, IoError> {
        let (decoder, trouble) = decoder(&object, packing)?;
        let (kept, length, damage) = Default::default();
        Ok(Self { object, packing, bytes_max, decoder, trouble, start: 0, kept, length, damage, restarts: 0 })
    }

    /// Why what follows the end could not be unpacked.
    pub(crate) fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Writes everything that can be unpacked. Errors of reading have fate `Row`, those of writing are fatal.
    pub(crate) fn copy_to(mut self, writer: &mut SpoolWriter) -> Result<(), IoError> {
        while self.length.is_none() {
            self.start += self.kept.len() as u64;
            self.kept.clear();
            self.step().map_err(|error| error.with_fate(Fate::Row))?;
            writer.append(&self.kept)?;
        }
        Ok(())
    }

    /// Unpacks a little more, or finds the end.
    fn step(&mut self) -> Result<(), IoError> {
        let before = self.kept.len();
        let end = self.start + before as u64;
        let room = usize::try_from(self.bytes_max.saturating_sub(end)).unwrap_or(usize::MAX);
        self.kept.resize(before + STEP.min(room.max(1)), 0);
        let read = self.decoder.read(&mut self.kept[before..]);
        let taken = locked(&self.trouble).taken;
        let read = match read {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
                self.kept.truncate(before);
                return Ok(());
            }
            Err(error) => {
                self.kept.truncate(before);
                if let Some(error) = locked(&self.trouble).error.take() {
                    return Err(error);
                }
                let name = self.packing.map_or("data", Packing::name);
                self.damage =
                    Some(format!("the {name} data is damaged or cut off after {end} unpacked bytes ({error})"));
                self.length = Some(end);
                return Ok(());
            }
        };
        if read > room {
            self.kept.truncate(before);
            self.damage = Some(format!(
                "it unpacks to more than {} bytes, half of the room for temporary files; give them more room, or \
                 unpack it beforehand",
                self.bytes_max
            ));
            self.length = Some(end);
            return Ok(());
        }
        self.kept.truncate(before + read);
        let end = end + read as u64;
        if read == 0 {
            self.length = Some(end);
        } else if end > RATIO_FROM && end > taken.saturating_mul(RATIO_MAX) && self.packing.is_some() {
            self.damage = Some(format!(
                "{taken} bytes unpack to more than {end}: that is no archive of images but a decompression bomb"
            ));
            self.length = Some(end);
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<(), IoError> {
        self.restarts += 1;
        (self.decoder, self.trouble) = decoder(&self.object, self.packing)?;
        self.start = 0;
        self.kept.clear();
        Ok(())
    }
}

type Decoder = (Box<dyn Read + Send>, Arc<Mutex<Trouble>>);

fn decoder(object: &Arc<dyn ReadAt>, packing: Option<Packing>) -> Result<Decoder, IoError> {
    let trouble = Arc::<Mutex<Trouble>>::default();
    let stream = object.reader();
    let input =
        Sequential { stream, object: Arc::clone(object), at: 0, piece: Bytes::new(), trouble: Arc::clone(&trouble) };
    let decoder: Box<dyn Read + Send> = match packing {
        None => Box::new(input),
        Some(Packing::Gzip) => Box::new(flate2::read::MultiGzDecoder::new(input)),
        Some(Packing::Zstd) => Box::new(zstd::Decoder::new(input).map_err(|error| {
            IoError::fatal(IoErrorKind::Failed, format!("cannot begin to unpack: {error}")).because(error)
        })?),
    };
    Ok((decoder, trouble))
}

impl Archive for Unpacked {
    fn at(&mut self, offset: u64, bytes: usize) -> Result<&[u8], IoError> {
        if offset < self.start {
            self.restart()?;
        }
        // The end that was found before stays the end, also after a restart.
        let found = self.length;
        let target = offset.saturating_add(bytes as u64).min(found.unwrap_or(u64::MAX));
        loop {
            let end = self.start + self.kept.len() as u64;
            if end >= target || (found.is_none() && self.length.is_some()) {
                break;
            }
            // What lies before `offset` is not needed any more.
            let passed = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.kept.len());
            if passed >= STEP || passed == self.kept.len() {
                self.kept.drain(..passed);
                self.start += passed as u64;
            }
            let before = self.kept.len();
            self.step()?;
            if self.kept.len() == before && self.length.is_some() {
                break;
            }
        }
        let skip = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.kept.len());
        Ok(&self.kept[skip..skip.saturating_add(bytes).min(self.kept.len())])
    }

    fn length(&self) -> Option<u64> {
        self.length
    }

    fn can_go_back(&self) -> bool {
        self.restarts < RESTARTS_MAX
    }
}
