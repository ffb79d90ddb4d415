//! What can be wrong with an image, before it is known in which stage it was noticed.

use slicemill_core::{ErrorClass, RowError, Stage};

use crate::ImageFormat;

/// A fault of the bytes: its class and, in words, what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) class: ErrorClass,
    pub(crate) what: String,
}

impl Fault {
    fn new(class: ErrorClass, what: impl Into<String>) -> Self {
        Self { class, what: what.into() }
    }

    /// The bytes end too early.
    pub(crate) fn truncated(what: impl Into<String>) -> Self {
        Self::new(ErrorClass::Truncated, what)
    }

    /// The bytes contradict themselves.
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::new(ErrorClass::Corrupt, what)
    }

    /// The header makes no sense.
    pub(crate) fn bad_header(what: impl Into<String>) -> Self {
        Self::new(ErrorClass::BadHeader, what)
    }

    /// A variant of the format that is not decoded.
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::new(ErrorClass::UnsupportedVariant, what)
    }

    /// More pixels than the job accepts.
    pub(crate) fn too_many_pixels(what: impl Into<String>) -> Self {
        Self::new(ErrorClass::TooManyPixels, what)
    }

    /// The plan does not fit the image.
    pub(crate) fn plan_rejected(what: impl Into<String>) -> Self {
        Self::new(ErrorClass::PlanRejected, what)
    }

    /// The machine cannot give this many bytes.
    pub(crate) fn out_of_memory(bytes: usize) -> Self {
        Self::new(ErrorClass::OutOfMemory, format!("no memory for {bytes} bytes"))
    }

    /// The row error: format, what is wrong, remedy.
    pub(crate) fn at(self, stage: Stage, format: ImageFormat) -> RowError {
        let remedy = match self.class {
            ErrorClass::Truncated => "the file is incomplete: copy or download it again",
            ErrorClass::Corrupt => "the file is damaged: copy it again or export it anew",
            ErrorClass::BadHeader => "the file is damaged or not what it claims to be: export it anew",
            ErrorClass::UnsupportedVariant => "convert it, for example to an 8-bit RGB PNG",
            ErrorClass::TooManyPixels => "raise the pixel limit or shrink the image",
            ErrorClass::OutOfMemory => "lower the pixel limit or run fewer images at once",
            _ => "export it anew",
        };
        RowError::new(self.class, stage, format!("{}: {}; {remedy}", format.title(), self.what))
    }
}

/// From this size on, a buffer is asked for before it is taken, because a refused allocation would end the process.
const ASK_BYTES: usize = 64 << 20;

/// A buffer of `len` zeros whose pages are not touched before they are used.
pub(crate) fn zeroed<T: Copy + Default>(len: usize) -> Result<Vec<T>, Fault> {
    let bytes = len.saturating_mul(size_of::<T>());
    if bytes >= ASK_BYTES {
        Vec::<T>::new().try_reserve_exact(len).map_err(|_| Fault::out_of_memory(bytes))?;
    }
    Ok(vec![T::default(); len])
}

/// A fault of a reader: the end of the bytes, or nonsense.
pub(crate) fn io_fault(error: &std::io::Error) -> Fault {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Fault::truncated("the file ends before the image does"),
        _ => Fault::corrupt(error.to_string()),
    }
}
