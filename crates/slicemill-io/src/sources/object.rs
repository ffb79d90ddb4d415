//! Objects that are read here and there, from threads that may wait.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;

use super::spool::read_exact_at;
use super::tar::Archive;
use crate::local_files::modification_tag;
use crate::tables::object::Object;
use crate::{IoError, IoErrorKind};

/// An object.
pub(crate) trait ReadAt: Send + Sync {
    /// The bytes `offset..offset + bytes`, all of which are there.
    fn read_at(&self, offset: u64, bytes: usize) -> Result<Bytes, IoError>;

    /// Length in bytes.
    fn length(&self) -> u64;

    /// What is read at once at least, in bytes.
    fn window(&self) -> usize;

    /// Whether it can only be read from its beginning, with [`reader`](Self::reader).
    fn streamed(&self) -> bool {
        false
    }

    /// All of it in order, where that is better than asking for piece after piece. Errors are [`IoError`]s inside.
    fn reader(&self) -> Option<Box<dyn Read + Send>> {
        None
    }
}

/// A local file.
#[derive(Debug)]
pub(crate) struct LocalObject {
    file: File,
    length: u64,
    shown: String,
}

impl LocalObject {
    /// Opens a regular file; `SourceChanged` when its modification time is not `tag` (unless that is empty).
    pub(crate) fn open(path: &Path, tag: &str) -> Result<Self, IoError> {
        let failed = |error: std::io::Error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => IoErrorKind::NotFound,
                std::io::ErrorKind::PermissionDenied => IoErrorKind::Refused,
                _ => IoErrorKind::Failed,
            };
            IoError::fatal(kind, format!("cannot read '{}': {error}", path.display())).because(error)
        };
        // Opening a pipe would wait for a writer, so the kind is looked at first.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(IoError::fatal(IoErrorKind::Invalid, format!("'{}' is not a file", path.display())));
        }
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let now = modification_tag(&metadata);
        if !tag.is_empty() && now != tag {
            let message =
                format!("'{}' changed after it was listed: it was written at {tag}, now {now}", path.display());
            return Err(IoError::fatal(IoErrorKind::SourceChanged, message));
        }
        Ok(Self { file, length: metadata.len(), shown: path.display().to_string() })
    }
}

impl ReadAt for LocalObject {
    fn read_at(&self, offset: u64, bytes: usize) -> Result<Bytes, IoError> {
        let mut buffer = vec![0; bytes];
        read_exact_at(&self.file, &mut buffer, offset).map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::UnexpectedEof => IoErrorKind::SourceChanged,
                _ => IoErrorKind::Failed,
            };
            let message = format!("cannot read {bytes} bytes at {offset} of '{}': {error}", self.shown);
            IoError::fatal(kind, message).because(error)
        })?;
        Ok(buffer.into())
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn window(&self) -> usize {
        4 << 10
    }
}

/// An object in a store. Only for threads that may wait.
#[derive(Debug)]
pub(crate) struct RemoteObject {
    pub(crate) object: Object,
    /// The server cannot read from the middle, or does not say how long the object is.
    pub(crate) streamed: bool,
}

impl ReadAt for RemoteObject {
    fn read_at(&self, offset: u64, bytes: usize) -> Result<Bytes, IoError> {
        self.object.range(offset..offset.saturating_add(bytes as u64))
    }

    fn length(&self) -> u64 {
        self.object.bytes()
    }

    fn window(&self) -> usize {
        1 << 20
    }

    fn streamed(&self) -> bool {
        self.streamed
    }

    fn reader(&self) -> Option<Box<dyn Read + Send>> {
        Some(Box::new(self.object.reader()))
    }
}

/// An object as an archive: one window of it is in memory.
pub(crate) struct Window<'a> {
    object: &'a dyn ReadAt,
    start: u64,
    bytes: Bytes,
}

impl<'a> Window<'a> {
    pub(crate) fn new(object: &'a dyn ReadAt) -> Self {
        Self { object, start: 0, bytes: Bytes::new() }
    }
}

impl Archive for Window<'_> {
    fn at(&mut self, offset: u64, bytes: usize) -> Result<&[u8], IoError> {
        let left = usize::try_from(self.object.length().saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = bytes.min(left);
        let inside = |window: &Self| {
            let skip = usize::try_from(offset.checked_sub(window.start)?).ok()?;
            skip.checked_add(bytes).filter(|end| *end <= window.bytes.len()).map(|end| skip..end)
        };
        if let Some(range) = inside(self) {
            return Ok(&self.bytes[range]);
        }
        if bytes == 0 {
            return Ok(&[]);
        }
        self.bytes = self.object.read_at(offset, bytes.max(self.object.window()).min(left))?;
        self.start = offset;
        Ok(&self.bytes[..bytes])
    }

    fn length(&self) -> Option<u64> {
        Some(self.object.length())
    }

    fn can_go_back(&self) -> bool {
        true
    }
}
