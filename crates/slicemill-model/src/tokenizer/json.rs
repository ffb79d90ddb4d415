//! A `tokenizer.json`, with the tokens that the files beside it add.

use tokenizers::{AddedToken, Tokenizer};

use super::files::Files;

#[derive(Debug, Clone)]
pub(super) struct Json {
    tokenizer: Tokenizer,
    cleans_up: bool,
}

impl Json {
    /// Reads tokenizer.json alone.
    pub fn new(bytes: &[u8]) -> Result<Self, String> {
        let mut tokenizer = Tokenizer::from_bytes(bytes)
            .map_err(|e| format!("is not a tokenizer in the format of tokenizers ({e}); copy it again"))?;
        // Lengths are the caller's business; transformers switches these off as well.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| format!("cannot be used: {e}"))?;
        Ok(Self { tokenizer, cleans_up: false })
    }

    /// Adds the tokens that tokenizer.json lacks, as transformers does.
    pub fn with(mut self, files: &Files) -> Result<Self, String> {
        self.cleans_up = files.cleans_up();
        let special: Vec<&str> = files.special().collect();
        let mut tokens: Vec<AddedToken> = files.added.values().cloned().collect();
        let known = |tokens: &[AddedToken], content: &str| tokens.iter().any(|token| token.content == content);
        let own: Vec<AddedToken> = self.tokenizer.get_added_tokens_decoder().into_values().collect();
        for token in &special {
            if !known(&own, token) && !known(&tokens, token) {
                tokens.push(AddedToken::from(*token, true));
            }
        }
        for token in &mut tokens {
            token.special |= special.contains(&token.content.as_str());
        }
        // One call for each run of the same kind keeps the order, and with it the ids.
        for run in tokens.chunk_by(|a, b| a.special == b.special) {
            let run = run.iter().cloned();
            self.tokenizer.add_tokens(run).map_err(|e| format!("does not take the added tokens: {e}"))?;
        }
        for (&id, token) in &files.added {
            match self.tokenizer.token_to_id(&token.content) {
                Some(own) if own == id => {}
                own => {
                    return Err(format!(
                        "gives the added token {:?} the id {own:?}, and the files beside it say {id}; they belong to \
                         different models",
                        token.content
                    ));
                }
            }
        }
        Ok(self)
    }

    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The largest id + 1.
    pub fn len(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// Whether a text is begun with this token when special tokens are added.
    pub fn begins_with(&self, bos: u32) -> bool {
        self.tokenizer.encode_fast("", true).is_ok_and(|encoding| encoding.get_ids().first() == Some(&bos))
    }

    pub fn ids(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| format!("{text:?} has no tokens: {e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, String> {
        let text = self.tokenizer.decode(ids, skip_special).map_err(|e| format!("the output has no text: {e}"))?;
        Ok(if self.cleans_up { clean_up(text) } else { text })
    }
}

/// Takes the spaces away that English words have in front of punctuation when tokens are joined.
pub(super) fn clean_up(text: String) -> String {
    const SHORTER: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    SHORTER.iter().fold(text, |text, (long, short)| text.replace(long, short))
}
