//! How sentencepiece rewrites text before it splits it: character map, spaces, dummy prefix.

use std::collections::HashMap;

/// Stands for a space in pieces.
pub(super) const SPACE: &str = "\u{2581}";

/// Finds the longest of a set of words at the beginning of a text.
#[derive(Debug, Clone, Default)]
pub(super) struct Prefixes {
    /// First byte → words, longest first.
    words: HashMap<u8, Vec<String>>,
}

impl Prefixes {
    pub fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut map: HashMap<u8, Vec<String>> = HashMap::new();
        for word in words {
            if let Some(&first) = word.as_bytes().first() {
                map.entry(first).or_default().push(word.to_owned());
            }
        }
        for words in map.values_mut() {
            words.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
            words.dedup();
        }
        Self { words: map }
    }

    /// Bytes of the longest word that `text` begins with.
    pub fn longest(&self, text: &str) -> Option<usize> {
        let words = self.words.get(text.as_bytes().first()?)?;
        words.iter().find(|word| text.starts_with(word.as_str())).map(String::len)
    }
}

/// A model's rules.
#[derive(Debug, Clone)]
pub(super) struct Normalizer {
    pub charsmap: Option<CharsMap>,
    /// Spaces at the ends go, runs become one.
    pub collapse: bool,
    /// Spaces become [`SPACE`].
    pub escape: bool,
    /// Kept as they are.
    pub user: Prefixes,
}

impl Normalizer {
    /// The text that is split, with a space in front if `prefix`.
    pub fn apply(&self, text: &str, prefix: bool) -> String {
        let space = if self.escape { SPACE } else { " " };
        let mut rest = text;
        while self.collapse && !rest.is_empty() {
            let (taken, with) = self.step(rest);
            if with != " " {
                break;
            }
            rest = rest.get(taken..).unwrap_or("");
        }
        if rest.is_empty() {
            return String::new();
        }
        let mut out = String::with_capacity(text.len() + text.len() / 4 + space.len());
        if prefix {
            out.push_str(space);
        }
        let mut after_space = self.collapse;
        while !rest.is_empty() {
            let (taken, mut with) = self.step(rest);
            rest = rest.get(taken..).unwrap_or("");
            if after_space {
                with = with.trim_start_matches(' ');
            }
            if !with.is_empty() {
                with.split(' ').enumerate().for_each(|(i, word)| {
                    if i > 0 {
                        out.push_str(space);
                    }
                    out.push_str(word);
                });
                after_space = self.collapse && with.ends_with(' ');
            }
        }
        while self.collapse && out.ends_with(space) {
            out.truncate(out.len() - space.len());
        }
        out
    }

    /// How many bytes at the beginning of `text` are replaced, and with what.
    fn step<'a>(&'a self, text: &'a str) -> (usize, &'a str) {
        if let Some(length) = self.user.longest(text) {
            return (length, text.get(..length).unwrap_or(text));
        }
        if let Some(found) = self.charsmap.as_ref().and_then(|map| map.longest(text)) {
            return found;
        }
        let length = text.chars().next().map_or(text.len(), char::len_utf8);
        (length, text.get(..length).unwrap_or(text))
    }
}

/// A compiled map from strings to strings: a double-array trie, then the replacements, each ended by a zero byte.
#[derive(Debug, Clone)]
pub(super) struct CharsMap {
    trie: Vec<u32>,
    replacements: String,
}

impl CharsMap {
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let problem = || "has a broken precompiled_charsmap; copy it again".to_owned();
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(problem)?;
        let size = usize::try_from(u32::from_le_bytes(*size)).map_err(|_| problem())?;
        let (trie, replacements) = rest.split_at_checked(size).ok_or_else(problem)?;
        let (units, odd) = trie.as_chunks::<4>();
        let replacements = std::str::from_utf8(replacements).map_err(|_| problem())?.to_owned();
        if units.is_empty() || !odd.is_empty() {
            return Err(problem());
        }
        Ok(Self { trie: units.iter().map(|&unit| u32::from_le_bytes(unit)).collect(), replacements })
    }

    /// The longest key that `text` begins with: its length and its replacement.
    fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let unit = |at: u32| self.trie.get(at as usize).copied();
        let offset = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let mut node = offset(unit(0)?);
        let mut found = None;
        for (i, &byte) in text.as_bytes().iter().enumerate() {
            node ^= u32::from(byte);
            let Some(here) = unit(node).filter(|unit| unit & 0x8000_00ff == u32::from(byte)) else { break };
            node ^= offset(here);
            if here & (1 << 8) != 0 {
                found = Some((i + 1, unit(node)? & 0x7fff_ffff));
            }
        }
        let (length, at) = found?;
        let replacement = self.replacements.get(at as usize..)?;
        text.is_char_boundary(length).then(|| (length, replacement.split('\0').next().unwrap_or("")))
    }
}
