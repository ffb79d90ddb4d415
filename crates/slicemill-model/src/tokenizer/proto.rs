//! A sentencepiece `tokenizer.model`: the few fields of its protobuf message that matter here.
//!
//! The reader skips fields it does not know, copies no more than the file holds, and says where a file that was cut off
//! ends.

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made by merging.
    Normal,
    /// Stands for what no piece covers.
    Unknown,
    /// Never made from text.
    Control,
    /// Found in the text as a whole, before anything is merged.
    UserDefined,
    /// Made by merging, then taken apart again.
    Unused,
    /// A byte of what no piece covers.
    Byte,
}

/// A token of the model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// How a model was trained; decides how it splits text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Unigram,
    Bpe,
    Word,
    Char,
}

/// A model file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Proto {
    pub pieces: Vec<Piece>,
    pub algorithm: Algorithm,
    pub byte_fallback: bool,
    pub whitespace_as_suffix: bool,
    pub unknown_surface: String,
    pub charsmap: Vec<u8>,
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
}

impl Proto {
    /// Reads a model; the message says what is wrong with the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() {
            return Err("is empty; copy it again".to_owned());
        }
        if bytes.starts_with(b"version https://git-lfs") {
            return Err("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`".to_owned());
        }
        let mut proto = Self::empty();
        let (mut trained, mut normalised) = (false, false);
        for field in Fields::of(bytes) {
            match field.map_err(|what| format!("is not a complete sentencepiece model ({what}); copy it again"))? {
                (1, Value::Bytes(piece)) => {
                    let number = proto.pieces.len();
                    let piece = parse_piece(piece).map_err(|what| format!("has a broken piece {number} ({what})"))?;
                    proto.pieces.push(piece);
                }
                (2, Value::Bytes(spec)) => {
                    proto.train(spec).map_err(|what| format!("has a broken trainer_spec ({what})"))?;
                    trained = true;
                }
                (3, Value::Bytes(spec)) => {
                    proto.normalise(spec).map_err(|what| format!("has a broken normalizer_spec ({what})"))?;
                    normalised = true;
                }
                _ => {}
            }
        }
        match (proto.pieces.is_empty(), trained, normalised) {
            (true, ..) => Err("has no pieces; it is not a sentencepiece model".to_owned()),
            (_, true, true) => Ok(proto),
            (_, trained, _) => {
                let what = if trained { "normalizer_spec" } else { "trainer_spec" };
                let pieces = proto.pieces.len();
                Err(format!("has {pieces} pieces and no {what}, so it was cut off; copy it again"))
            }
        }
    }

    /// What the format says of fields that are absent.
    fn empty() -> Self {
        Self {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            byte_fallback: false,
            whitespace_as_suffix: false,
            unknown_surface: " \u{2047} ".to_owned(),
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }

    fn train(&mut self, spec: &[u8]) -> Result<(), String> {
        for field in Fields::of(spec) {
            match field? {
                (3, Value::Varint(kind)) => {
                    self.algorithm = match kind {
                        1 => Algorithm::Unigram,
                        2 => Algorithm::Bpe,
                        3 => Algorithm::Word,
                        4 => Algorithm::Char,
                        other => return Err(format!("unknown model_type {other}")),
                    }
                }
                (24, Value::Varint(on)) => self.whitespace_as_suffix = on != 0,
                (35, Value::Varint(on)) => self.byte_fallback = on != 0,
                (44, Value::Bytes(text)) => self.unknown_surface = utf8(text)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn normalise(&mut self, spec: &[u8]) -> Result<(), String> {
        for field in Fields::of(spec) {
            match field? {
                (2, Value::Bytes(map)) => self.charsmap = map.to_vec(),
                (3, Value::Varint(on)) => self.add_dummy_prefix = on != 0,
                (4, Value::Varint(on)) => self.remove_extra_whitespaces = on != 0,
                (5, Value::Varint(on)) => self.escape_whitespaces = on != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

fn parse_piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    for field in Fields::of(bytes) {
        match field? {
            (1, Value::Bytes(text)) => piece.text = utf8(text)?,
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Varint(kind)) => {
                piece.kind = match kind {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    other => return Err(format!("unknown type {other}")),
                }
            }
            _ => {}
        }
    }
    match (piece.text.is_empty(), piece.score.is_nan()) {
        (true, _) => Err("no text".to_owned()),
        (_, true) => Err("its score is not a number".to_owned()),
        _ => Ok(piece),
    }
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "text that is not UTF-8".to_owned())
}

enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of a message, with their numbers; ends after the first error.
struct Fields<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Fields<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, length: bytes.len() }
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed64)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let at = self.length - self.rest.len();
        let field = self.field();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or_else(|| format!("the field at byte {at} of {} is broken or cut off", self.length)))
    }
}
