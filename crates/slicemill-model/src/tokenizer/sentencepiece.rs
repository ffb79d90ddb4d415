//! Sentencepiece BPE: from text to pieces and back, as the library itself does it.
//!
//! Merges are looked up by the text they make, so two pieces with the same score, or two ways to make one piece, are
//! ordered as the library orders them: best score first, then leftmost. A table of ranked pairs cannot say that.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::normalize::{CharsMap, Normalizer, Prefixes, SPACE};
use super::proto::{Algorithm, Kind, Piece, Proto};

/// A model.
#[derive(Debug, Clone)]
pub(super) struct SentencePiece {
    pieces: Vec<Piece>,
    ids: HashMap<String, u32>,
    unknown: u32,
    /// The ids of the 256 bytes, for what no piece covers.
    bytes: Option<Vec<u32>>,
    normalizer: Normalizer,
    /// Whether the model itself puts a space in front of a text.
    pub dummy_prefix: bool,
    unknown_surface: String,
}

impl SentencePiece {
    /// Reads the bytes of a tokenizer.model; the message says what is wrong with the file.
    pub fn new(bytes: &[u8]) -> Result<Self, String> {
        let proto = Proto::parse(bytes)?;
        if proto.algorithm != Algorithm::Bpe {
            return Err(format!(
                "is a sentencepiece model of the kind {:?}, and LLaMA's are of the kind Bpe; give a tokenizer.json \
                 instead (transformers writes one when the fast tokenizer is saved)",
                proto.algorithm
            ));
        }
        if proto.whitespace_as_suffix {
            return Err(
                "puts spaces at the end of words (treat_whitespace_as_suffix), which is not supported; give a \
                        tokenizer.json instead"
                    .to_owned(),
            );
        }
        let ids = index(&proto.pieces)?;
        let unknown = proto.pieces.iter().position(|piece| piece.kind == Kind::Unknown);
        let unknown = unknown.and_then(|at| u32::try_from(at).ok()).ok_or("has no piece for what is unknown")?;
        let user = proto.pieces.iter().filter(|piece| piece.kind == Kind::UserDefined);
        let charsmap = if proto.charsmap.is_empty() { None } else { Some(CharsMap::parse(&proto.charsmap)?) };
        let byte = |byte: u8| ids.get(&format!("<0x{byte:02X}>")).copied().unwrap_or(unknown);
        Ok(Self {
            bytes: proto.byte_fallback.then(|| (0..=255).map(byte).collect()),
            normalizer: Normalizer {
                charsmap,
                collapse: proto.remove_extra_whitespaces,
                escape: proto.escape_whitespaces,
                user: Prefixes::new(user.map(|piece| piece.text.as_str())),
            },
            dummy_prefix: proto.add_dummy_prefix,
            unknown_surface: proto.unknown_surface,
            pieces: proto.pieces,
            ids,
            unknown,
        })
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The text of a piece.
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize).map(|piece| piece.text.as_str())
    }

    /// The id of a piece.
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// The pieces of a text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let text = self.normalizer.apply(text, self.dummy_prefix);
        let mut ids = Vec::new();
        let mut unknown_before = false;
        for piece in Merging::of(self, &text).pieces() {
            match (self.id(piece), &self.bytes) {
                (Some(id), _) if id != self.unknown => ids.push(id),
                (_, Some(bytes)) => ids.extend(piece.bytes().filter_map(|byte| bytes.get(usize::from(byte)))),
                // What is unknown in a row is one piece.
                _ if unknown_before => {}
                _ => ids.push(self.unknown),
            }
            unknown_before = ids.last() == Some(&self.unknown);
        }
        ids
    }

    /// The piece with this text, if merging may make it.
    fn mergeable(&self, text: &str) -> Option<&Piece> {
        let piece = self.pieces.get(self.id(text)? as usize)?;
        matches!(piece.kind, Kind::Normal | Kind::UserDefined | Kind::Unused).then_some(piece)
    }

    /// The text of pieces that are given as text, as the library joins them.
    pub fn decode(&self, pieces: &[&str]) -> String {
        let mut out = String::new();
        let mut pending = Vec::new();
        let mut at_start = true;
        for &text in pieces {
            let piece = self.id(text).and_then(|id| self.pieces.get(id as usize));
            if piece.is_some_and(|piece| piece.kind == Kind::Byte) {
                pending.extend(byte_of(text));
                continue;
            }
            flush(&mut pending, &mut out);
            at_start &= out.is_empty();
            match piece.map(|piece| piece.kind) {
                Some(Kind::Control) => {}
                Some(Kind::Unknown) => out.push_str(&self.unknown_surface),
                None => out.push_str(text),
                Some(_) => {
                    let strips = at_start && (self.dummy_prefix || self.normalizer.collapse);
                    let rest = text.strip_prefix(SPACE).filter(|_| strips);
                    at_start &= rest.is_none() || self.normalizer.collapse;
                    out.push_str(&rest.unwrap_or(text).replace(SPACE, " "));
                }
            }
        }
        flush(&mut pending, &mut out);
        out
    }
}

/// A stretch of text that is a piece, or on its way to become one.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: usize,
    next: usize,
    frozen: bool,
}

impl Symbol {
    fn size(&self) -> usize {
        self.end - self.start
    }
}

const NONE: usize = usize::MAX;

/// A merge that may be made: the best is the largest.
struct Merge {
    left: usize,
    right: usize,
    score: f32,
    size: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

/// A text while its symbols are merged.
struct Merging<'a> {
    model: &'a SentencePiece,
    text: &'a str,
    symbols: Vec<Symbol>,
    agenda: BinaryHeap<Merge>,
    /// What a piece that may not be used was last seen to be made of: the length of its first part.
    apart: HashMap<&'a str, usize>,
}

impl<'a> Merging<'a> {
    fn of(model: &'a SentencePiece, text: &'a str) -> Self {
        let symbols = symbols(model, text);
        let agenda = BinaryHeap::with_capacity(symbols.len());
        let mut merging = Self { model, text, symbols, agenda, apart: HashMap::new() };
        (0..merging.symbols.len()).for_each(|left| merging.consider(left));
        merging
    }

    /// Notes the merge of a symbol with the one after it, if it makes a piece.
    fn consider(&mut self, left: usize) {
        let Some(a) = self.symbols.get(left).filter(|symbol| !symbol.frozen) else { return };
        let Some(b) = self.symbols.get(a.next).filter(|symbol| !symbol.frozen) else { return };
        let Some(whole) = self.text.get(a.start..b.end) else { return };
        let Some(piece) = self.model.mergeable(whole) else { return };
        self.agenda.push(Merge { left, right: a.next, score: piece.score, size: whole.len() });
        if piece.kind == Kind::Unused {
            self.apart.insert(whole, a.size());
        }
    }

    /// Merges as long as there is something to merge.
    fn pieces(mut self) -> Vec<&'a str> {
        while let Some(Merge { left, right, size, .. }) = self.agenda.pop() {
            let (Some(&a), Some(&b)) = (self.symbols.get(left), self.symbols.get(right)) else { continue };
            if a.size() == 0 || b.size() == 0 || a.size() + b.size() != size {
                continue;
            }
            if let Some(symbol) = self.symbols.get_mut(left) {
                (symbol.end, symbol.next) = (b.end, b.next);
            }
            if let Some(symbol) = self.symbols.get_mut(right) {
                symbol.end = symbol.start;
            }
            if let Some(symbol) = self.symbols.get_mut(b.next) {
                symbol.previous = left;
            }
            self.consider(a.previous);
            self.consider(left);
        }
        let mut pieces = Vec::new();
        for symbol in self.symbols.iter().filter(|symbol| symbol.size() > 0) {
            self.take_apart(self.text.get(symbol.start..symbol.end).unwrap_or(""), &mut pieces);
        }
        pieces
    }

    fn take_apart(&self, whole: &'a str, pieces: &mut Vec<&'a str>) {
        let mut open = vec![whole];
        while let Some(part) = open.pop() {
            match self.apart.get(part).and_then(|&at| part.split_at_checked(at)) {
                Some((left, right)) => open.extend([right, left]),
                None => pieces.push(part),
            }
        }
    }
}

/// Characters, and pieces that users defined as a whole.
fn symbols(model: &SentencePiece, text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
    let mut start = 0;
    while let Some(rest) = text.get(start..).filter(|rest| !rest.is_empty()) {
        let user = model.normalizer.user.longest(rest);
        let length = user.unwrap_or_else(|| rest.chars().next().map_or(rest.len(), char::len_utf8));
        let (at, end) = (symbols.len(), start + length);
        let (previous, next) = (at.checked_sub(1).unwrap_or(NONE), if end < text.len() { at + 1 } else { NONE });
        symbols.push(Symbol { start, end, previous, next, frozen: user.is_some() });
        start = end;
    }
    symbols
}

fn index(pieces: &[Piece]) -> Result<HashMap<String, u32>, String> {
    let mut ids = HashMap::with_capacity(pieces.len());
    for (id, piece) in pieces.iter().enumerate() {
        let id = u32::try_from(id).map_err(|_| "has more pieces than ids".to_owned())?;
        if ids.insert(piece.text.clone(), id).is_some() {
            return Err(format!("has the piece {:?} twice; it is not a complete sentencepiece model", piece.text));
        }
    }
    Ok(ids)
}

/// The byte of a piece like `<0x0A>`.
fn byte_of(piece: &str) -> Option<u8> {
    u8::from_str_radix(piece.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

/// Appends bytes as text; each that belongs to no character becomes U+FFFD.
fn flush(bytes: &mut Vec<u8>, out: &mut String) {
    let mut rest = bytes.as_slice();
    while let Some((_, tail)) = rest.split_first() {
        let character = (1..=4).find_map(|length| std::str::from_utf8(rest.get(..length)?).ok());
        out.push_str(character.unwrap_or("\u{fffd}"));
        rest = character.map_or(tail, |character| rest.get(character.len()..).unwrap_or(tail));
    }
    bytes.clear();
}
