//! From a question and a plan to the sequence the language model sees.
//!
//! ```text
//!   BOS · tokens(template up to {image}) · views and separators · tokens(template from {image}, with the question)
//!
//!   views and separators: slice "," slice "\n" slice "," slice "\n" overview     (LLaVA-UHD's spatial schema)
//! ```
//!
//! The text before and after the image is tokenised apart, without special tokens. Counting the tokens of a prompt and
//! assembling it are the same code, so planned counts are exact.

use slicemill_core::{SlicePlan, ViewKind};
use tokenizers::Tokenizer;

use crate::config::{ModelConfig, PromptConfig};
use crate::error::ModelError;

/// A piece of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text.
    Tokens(Vec<u32>),
    /// The visual tokens of a view: this many.
    View(usize),
}

/// A sequence before it is embedded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// In order.
    pub pieces: Vec<Piece>,
    /// Tokens of all pieces.
    pub tokens: usize,
    /// Leading tokens that are the same for every question about the same image.
    pub shared: usize,
}

/// Tokenizer and template of a model.
#[derive(Debug, Clone)]
pub struct PromptAssembler {
    tokenizer: Tokenizer,
    before: Vec<u32>,
    before_template: String,
    after_template: String,
    bos: Option<u32>,
    column: u32,
    row: u32,
    tokens_per_view: usize,
}

const IMAGE: &str = "{image}";
const QUESTION: &str = "{question}";

impl PromptAssembler {
    /// Reads tokenizer.json and checks it against the model; `origin` names it in errors.
    ///
    /// # Errors
    /// When it cannot be read, when it has ids the model has no embedding for, or when a separator is not one token.
    pub fn new(config: &ModelConfig, tokenizer_json: &[u8], origin: &str) -> Result<Self, ModelError> {
        let problem = |message: String| ModelError::Tokenizer { origin: origin.to_owned(), message };
        let tokenizer = Tokenizer::from_bytes(tokenizer_json)
            .map_err(|e| problem(format!("is not a tokenizer in the format of tokenizers ({e})")))?;
        let (vocab, largest) = (config.decoder.vocab, tokenizer.get_vocab(true).into_values().max().unwrap_or(0));
        if largest as usize >= vocab {
            return Err(problem(format!(
                "has the token id {largest}, and config.json says vocab_size {vocab}; they belong to different models"
            )));
        }
        let PromptConfig { template, separator_column, separator_row, bos, eos, .. } = &config.prompt;
        if let Some(id) = bos.iter().chain(eos).find(|&&id| id as usize >= vocab) {
            return Err(problem(format!("lacks the token id {id} that config.json names as bos or eos")));
        }
        let (before, after) = template.split_once(IMAGE).unwrap_or((template, ""));
        let mut assembler = Self {
            before: Vec::new(),
            before_template: before.to_owned(),
            after_template: after.to_owned(),
            bos: *bos,
            column: 0,
            row: 0,
            tokens_per_view: config.tokens_per_view(),
            tokenizer,
        };
        assembler.column = assembler.single(separator_column).map_err(&problem)?;
        assembler.row = assembler.single(separator_row).map_err(&problem)?;
        assembler.before = assembler.ids(before).map_err(&problem)?;
        Ok(assembler)
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| format!("{text:?} has no tokens: {e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn single(&self, separator: &str) -> Result<u32, String> {
        match self.ids(separator)?.as_slice() {
            [id] => Ok(*id),
            ids => Err(format!("makes {} tokens of the separator {separator:?}; it must be one", ids.len())),
        }
    }

    /// The sequence of `question` about an image with this plan.
    ///
    /// # Errors
    /// When the question cannot be tokenised.
    pub fn assemble(&self, question: &str, plan: &SlicePlan) -> Result<Sequence, String> {
        let question_first = self.before_template.contains(QUESTION);
        let mut text: Vec<u32> = self.bos.into_iter().collect();
        if question_first {
            text.extend(self.ids(&self.before_template.replacen(QUESTION, question, 1))?);
        } else {
            text.extend(&self.before);
        }
        let mut pieces = vec![Piece::Tokens(text)];
        for view in plan.views() {
            pieces.push(Piece::View(self.tokens_per_view));
            if let ViewKind::Slice { col, .. } = view.kind {
                let last = col + 1 == plan.grid.cols;
                pieces.push(Piece::Tokens(vec![if last { self.row } else { self.column }]));
            }
        }
        let image_end = length(&pieces);
        pieces.push(Piece::Tokens(self.ids(&self.after_template.replacen(QUESTION, question, 1))?));
        let tokens = length(&pieces);
        Ok(Sequence { pieces, tokens, shared: if question_first { 0 } else { image_end } })
    }

    /// Text of output tokens, trimmed.
    ///
    /// # Errors
    /// When an id has no text.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        let text = self.tokenizer.decode(ids, true).map_err(|e| format!("the output has no text: {e}"))?;
        Ok(text.trim().to_owned())
    }
}

fn length(pieces: &[Piece]) -> usize {
    pieces
        .iter()
        .map(|piece| match piece {
            Piece::Tokens(ids) => ids.len(),
            Piece::View(tokens) => *tokens,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use slicemill_core::Size;

    use super::*;

    fn assembler(change: impl Fn(&mut ModelConfig)) -> Result<PromptAssembler, ModelError> {
        let mut config = ModelConfig::parse(include_bytes!("../embedded/config.json"), "config.json").unwrap();
        change(&mut config);
        PromptAssembler::new(&config, include_bytes!("../embedded/tokenizer.json"), "tokenizer.json")
    }

    fn plan(width: u32, height: u32) -> SlicePlan {
        let config = ModelConfig::parse(include_bytes!("../embedded/config.json"), "config.json").unwrap();
        config.policy.plan(Size::new(width, height)).unwrap()
    }

    #[test]
    fn separators_follow_slices_and_nothing_follows_the_overview() {
        let assembler = assembler(|_| {}).unwrap();
        let plan = plan(300, 200);
        assert_eq!((plan.grid.cols, plan.grid.rows), (3, 2));
        let sequence = assembler.assemble("What is this?", &plan).unwrap();
        let (comma, newline) = (assembler.single(",").unwrap(), assembler.single("\n").unwrap());
        let separators: Vec<u32> = sequence.pieces[1..sequence.pieces.len() - 1]
            .iter()
            .filter_map(|piece| if let Piece::Tokens(ids) = piece { Some(ids[0]) } else { None })
            .collect();
        assert_eq!(separators, [comma, comma, newline, comma, comma, newline]);
        assert_eq!(sequence.pieces[sequence.pieces.len() - 2], Piece::View(16));
        let text = |piece: &Piece| match piece {
            Piece::Tokens(ids) => assembler.tokenizer.decode(ids, false).unwrap(),
            Piece::View(_) => panic!("a view"),
        };
        assert_eq!(text(&sequence.pieces[0]), "<s>USER: ");
        assert_eq!(text(sequence.pieces.last().unwrap()), "\nWhat is this? ASSISTANT:");
        assert_eq!(sequence.tokens, length(&sequence.pieces));
    }

    #[test]
    fn only_an_overview_has_no_separators() {
        let assembler = assembler(|_| {}).unwrap();
        let sequence = assembler.assemble("?", &plan(100, 90)).unwrap();
        assert_eq!(sequence.pieces.len(), 3);
        assert_eq!(sequence.shared, sequence.tokens - length(&sequence.pieces[2..]));
    }

    #[test]
    fn a_question_before_the_image_shares_nothing_and_braces_are_text() {
        let assembler = assembler(|c| c.prompt.template = "{question} {image} A:".to_owned()).unwrap();
        let sequence = assembler.assemble("{image}", &plan(100, 90)).unwrap();
        assert_eq!(sequence.shared, 0);
        assert_eq!(sequence.pieces.iter().filter(|piece| matches!(piece, Piece::View(_))).count(), 1);
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let error = assembler(|c| c.decoder.vocab = 100).unwrap_err().to_string();
        assert!(error.contains("different models"), "{error}");
        let error = assembler(|c| c.prompt.separator_row = "red blue".to_owned()).unwrap_err().to_string();
        assert!(error.contains("it must be one"), "{error}");
        let config = ModelConfig::parse(include_bytes!("../embedded/config.json"), "config.json").unwrap();
        let error = PromptAssembler::new(&config, b"{}", "dir/tokenizer.json").unwrap_err().to_string();
        assert!(error.starts_with("dir/tokenizer.json: "), "{error}");
    }
}
