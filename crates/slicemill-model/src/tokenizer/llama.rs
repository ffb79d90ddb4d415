//! LLaMA's tokenizer around a sentencepiece model, as transformers' own (not its `Fast` twin) applies it.
//!
//! ```text
//!   text ─ split at added tokens ─▶ "…" <token> "…" ─ sentencepiece, each stretch apart ─▶ ids
//! ```
//!
//! Where a space is put in front is what `legacy` says: in front of every stretch (true, or not said), or once in front
//! of the whole text (false). Both give one token `▁` before a line break that begins a text.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokenizers::AddedToken;

use super::files::Files;
use super::normalize::{Prefixes, SPACE};
use super::sentencepiece::SentencePiece;

#[derive(Debug, Clone)]
pub(super) struct Llama {
    model: SentencePiece,
    legacy: bool,
    /// Id → added token.
    added: BTreeMap<u32, AddedToken>,
    ids: HashMap<String, u32>,
    contents: Prefixes,
    /// Tokens with a role, and further special ones.
    special: HashSet<String>,
    special_ids: HashSet<u32>,
    /// Added tokens that text is joined around, with spaces, when ids become text.
    apart: HashSet<String>,
    unknown: String,
}

impl Llama {
    pub fn new(mut model: SentencePiece, files: &Files) -> Self {
        let legacy = files.flag("legacy").unwrap_or(true);
        model.dummy_prefix &= legacy;
        let mut llama = Self {
            legacy,
            added: files.added.clone(),
            ids: files.added.iter().map(|(id, token)| (token.content.clone(), *id)).collect(),
            contents: Prefixes::default(),
            special: files.special().map(str::to_owned).collect(),
            special_ids: HashSet::new(),
            apart: HashSet::new(),
            unknown: files.role("unk_token").unwrap_or("<unk>").to_owned(),
            model,
        };
        for token in files.special() {
            llama.add(token);
        }
        llama.contents = Prefixes::new(llama.ids.keys().map(String::as_str));
        llama.special_ids = llama.special.iter().filter_map(|token| llama.id_of(token)).collect();
        let outside = |token: &&String| llama.ids.get(*token).is_some_and(|&id| id as usize >= llama.model.len());
        llama.apart = llama.ids.keys().filter(|token| !llama.special.contains(*token)).cloned().collect();
        llama.apart.extend(files.additional.iter().filter(outside).cloned());
        llama
    }

    /// Adds a special token: the piece with this text, or a new id.
    fn add(&mut self, token: &str) {
        if self.ids.contains_key(token) {
            return;
        }
        let id = self.model.id(token).unwrap_or_else(|| self.vocabulary());
        self.added.insert(id, AddedToken::from(token, true));
        self.ids.insert(token.to_owned(), id);
    }

    /// Number of different tokens, which is the id that is given next.
    fn vocabulary(&self) -> u32 {
        let pieces = (0u32..).map_while(|id| self.model.piece(id).map(|piece| (id, piece)));
        let shown = pieces.map(|(id, piece)| self.added.get(&id).map_or(piece, |token| &token.content));
        let all: HashSet<&str> = shown.chain(self.ids.keys().map(String::as_str)).collect();
        u32::try_from(all.len()).unwrap_or(u32::MAX)
    }

    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied().or_else(|| self.model.id(token))
    }

    /// The largest id + 1.
    pub fn len(&self) -> usize {
        let added = self.added.keys().next_back().map_or(0, |id| *id as usize + 1);
        added.max(self.model.len())
    }

    pub fn ids(&self, text: &str) -> Vec<u32> {
        if self.legacy || text.is_empty() {
            return self.tokens(text).into_iter().map(|(id, _)| id).collect();
        }
        let tokens = self.tokens(&format!("{SPACE}{}", text.replace(SPACE, " ")));
        let drops = match tokens.as_slice() {
            [(space, false), (special, true), ..] => {
                let special = self.added.get(special).is_some_and(|token| self.special.contains(&token.content));
                special && self.model.piece(*space) == Some(SPACE)
            }
            _ => false,
        };
        tokens.into_iter().skip(usize::from(drops)).map(|(id, _)| id).collect()
    }

    /// Ids, and whether each is of an added token.
    fn tokens(&self, text: &str) -> Vec<(u32, bool)> {
        let mut tokens = Vec::new();
        for stretch in self.split(text) {
            match self.ids.get(&stretch) {
                Some(&id) => tokens.push((id, true)),
                None => tokens.extend(self.stretch(&stretch).into_iter().map(|id| (id, false))),
            }
        }
        tokens
    }

    /// The pieces of a text without added tokens.
    fn stretch(&self, text: &str) -> Vec<u32> {
        if self.legacy || !text.starts_with([' ', '\u{2581}']) {
            return self.model.encode(text);
        }
        // Something in front, and taken away again, keeps the library from stripping the space.
        let before = self.model.encode(&self.unknown).len();
        let mut ids = self.model.encode(&format!("{}{text}", self.unknown));
        if ids.len() >= before {
            ids.drain(..before);
        }
        ids
    }

    /// Cuts a text at added tokens: the leftmost, and the longest of those.
    fn split(&self, text: &str) -> Vec<String> {
        let mut parts = Vec::new();
        let (mut start, mut at) = (0, 0);
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            let Some(length) = self.contents.longest(rest) else {
                at += rest.chars().next().map_or(rest.len(), char::len_utf8);
                continue;
            };
            parts.extend(text.get(start..at).filter(|part| !part.is_empty()).map(str::to_owned));
            parts.extend(rest.get(..length).map(str::to_owned));
            at += length;
            start = at;
        }
        parts.extend(text.get(start..).filter(|part| !part.is_empty()).map(str::to_owned));
        for at in 0..parts.len() {
            self.strip(&mut parts, at);
        }
        parts.retain(|part| !part.is_empty());
        parts
    }

    /// What the added token at `at` does to the text beside it.
    fn strip(&self, parts: &mut [String], at: usize) {
        let Some(token) = parts.get(at).and_then(|part| self.added.get(self.ids.get(part)?)) else { return };
        let Some((before, [here, after @ ..])) = parts.split_at_mut_checked(at) else { return };
        let mut left = before.last_mut().filter(|left| !left.is_empty());
        let mut right = after.first_mut().filter(|right| !right.is_empty());
        let joins_left = token.single_word && left.as_ref().is_some_and(|left| !left.ends_with(' '));
        let joins_right = token.single_word && right.as_ref().is_some_and(|right| !right.starts_with(' '));
        if let Some(right) = right.as_mut().filter(|_| token.rstrip) {
            **right = right.trim_start_matches(is_space).to_owned();
        }
        if let Some(left) = left.as_mut().filter(|_| token.lstrip) {
            left.truncate(left.trim_end_matches(is_space).len());
        }
        match (left.filter(|_| joins_left), right.filter(|_| joins_right)) {
            (Some(left), _) => left.push_str(&std::mem::take(here)),
            (None, Some(right)) => right.insert_str(0, &std::mem::take(here)),
            (None, None) => {}
        }
    }

    /// The text of ids. Ids that only the embedding table has (it is often padded) have none, as with tokenizer.json.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut texts = Vec::new();
        let mut run = Vec::new();
        for &id in ids.iter().filter(|&id| !(skip_special && self.special_ids.contains(id))) {
            let added = self.added.get(&id).map(|token| token.content.as_str());
            let Some(token) = added.or_else(|| self.model.piece(id)) else { continue };
            if !self.apart.contains(token) {
                run.push(token);
                continue;
            }
            texts.extend(Some(self.join(&std::mem::take(&mut run))).filter(|text| !text.is_empty()));
            texts.push(token.to_owned());
        }
        if !run.is_empty() {
            texts.push(self.join(&run));
        }
        texts.join(" ")
    }

    /// Text of tokens; special ones stay as they are.
    fn join(&self, tokens: &[&str]) -> String {
        let mut tokens = tokens.to_vec();
        if let Some(first) = tokens.first_mut() {
            *first = first.strip_prefix(SPACE).unwrap_or(first);
        }
        let mut out = String::new();
        let mut run = Vec::new();
        let mut after_special = false;
        for (i, token) in tokens.into_iter().enumerate() {
            if !self.special.contains(token) {
                run.push(token);
                after_special = false;
                continue;
            }
            if !after_special && i > 0 && self.legacy {
                out.push(' ');
            }
            out.push_str(&self.model.decode(&run));
            out.push_str(token);
            run.clear();
            after_special = true;
        }
        out + &self.model.decode(&run)
    }
}

/// White space as Python's `str.strip` has it.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}
