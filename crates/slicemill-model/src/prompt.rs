//! From a question and a plan to the sequence the language model sees.
//!
//! ```text
//!   BOS · tokens(template up to {image}) · views · tokens(template from {image}, with the question)
//!
//!   views     slice "," slice "\n" slice "," slice "\n" overview                               (LLaVA-UHD)
//!             <image_id>0</image_id><image>overview</image><slice>…</slice><slice>…</slice>"\n"<slice>…   (MiniCPM-V)
//!             overview                                                                       (LLaVA-1.5)
//! ```
//!
//! The text before and after the image is tokenised apart, as the reference code does: LLaVA tokenises the chunks around
//! `<image>` one by one, and MiniCPM-V's tags are special tokens, at which text is split anyway. Counting the tokens of
//! a prompt and assembling it are the same code, so planned counts are exact.

use slicemill_core::{SlicePlan, TokenRule, View, ViewKind};

use crate::chat_template::{ChatOptions, ChatTemplate, Message};
use crate::config::{ModelConfig, Separator, Template, ViewTokens};
use crate::error::ModelError;
use crate::tokenizer::TextTokenizer;

/// A piece of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text.
    Tokens(Vec<u32>),
    /// The visual tokens of a view: this many.
    View(usize),
}

impl Piece {
    /// Its tokens.
    pub const fn tokens(&self) -> usize {
        match self {
            Self::Tokens(ids) => ids.len(),
            Self::View(tokens) => *tokens,
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::Tokens(ids) => ids.truncate(len),
            Self::View(tokens) => *tokens = (*tokens).min(len),
        }
    }
}

/// A sequence before it is embedded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// In order.
    pub pieces: Vec<Piece>,
    /// Tokens of all pieces.
    pub tokens: usize,
    /// Tokens beyond the longest prompt of the model, which were cut off at the end.
    pub cut: usize,
    /// Leading tokens that are the same for every question about the same image.
    pub shared: usize,
}

/// Tokenizer and template of a model.
#[derive(Debug)]
pub struct PromptAssembler {
    tokenizer: TextTokenizer,
    wording: Wording,
    /// Tokens before the image when they do not depend on the question.
    before: Vec<u32>,
    bos: Option<u32>,
    eos: Vec<u32>,
    between: Between,
    token_rule: TokenRule,
    tokens_max: usize,
    skip_zero: bool,
}

/// Text around the image and the question.
#[derive(Debug)]
enum Wording {
    Text { before: String, after: String },
    Chat(Box<ChatTemplate>),
}

/// Tokens between views.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Between {
    Separators { column: u32, row: u32 },
    Tags { first: Vec<u32>, image: (u32, u32), slice: (u32, u32), row: Vec<u32> },
    Nothing,
}

const IMAGE: &str = "{image}";
const QUESTION: &str = "{question}";
/// What stands for the image in the text of a chat message.
const IMAGE_TAG: &str = "(<image>./</image>)";

impl PromptAssembler {
    /// Checks a tokenizer, which `origin` names in errors, against its model.
    ///
    /// # Errors
    /// When it has ids the model has no embedding for, lacks a tag, or does not make a separator one token.
    pub fn new(
        config: &ModelConfig,
        tokenizer: TextTokenizer,
        chat: Option<ChatTemplate>,
        origin: &str,
    ) -> Result<Self, ModelError> {
        let problem = |message: String| ModelError::Tokenizer { origin: origin.to_owned(), message };
        let vocab = config.decoder.vocab;
        let largest = tokenizer.vocab_len().saturating_sub(1);
        if largest >= vocab {
            return Err(problem(format!(
                "has the token id {largest}, and config.json says vocab_size {vocab}; they belong to different models"
            )));
        }
        let prompt = &config.prompt;
        let named = prompt.eos_names.iter().filter_map(|name| tokenizer.id_of(name));
        let mut eos: Vec<u32> = prompt.eos.iter().copied().chain(named).collect();
        eos.sort_unstable();
        eos.dedup();
        if let Some(id) = prompt.bos.iter().chain(&eos).find(|&&id| id as usize >= vocab) {
            return Err(problem(format!(
                "lacks the token id {id}, which config.json or generation_config.json names as bos or eos"
            )));
        }
        same_ends(config, &tokenizer).map_err(&problem)?;
        let between = Between::new(&prompt.views, &tokenizer, vocab).map_err(&problem)?;
        let mut assembler = Self {
            wording: wording(&prompt.template, chat).map_err(&problem)?,
            before: Vec::new(),
            bos: match prompt.template {
                Template::Text(_) => prompt.bos,
                // The whole text is tokenised at once there, with what the tokenizer puts in front.
                Template::Chat => tokenizer.bos().filter(|_| tokenizer.adds_bos()),
            },
            eos,
            between,
            token_rule: config.token_rule(),
            tokens_max: config.prompt_tokens_max.unwrap_or(usize::MAX),
            skip_zero: prompt.skip_zero,
            tokenizer,
        };
        let (before, _) = assembler.around("").map_err(&problem)?;
        assembler.before = assembler.tokenizer.ids(&before).map_err(&problem)?;
        Ok(assembler)
    }

    /// Tokens that end the output.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Text before and after the image.
    fn around(&self, question: &str) -> Result<(String, String), String> {
        match &self.wording {
            Wording::Text { before, after } => {
                Ok((before.replacen(QUESTION, question, 1), after.replacen(QUESTION, question, 1)))
            }
            Wording::Chat(template) => {
                let text = template.render(
                    &[Message::new("user", format!("{IMAGE_TAG}\n{question}"))],
                    &ChatOptions::answer().with("enable_thinking", false),
                )?;
                let (before, after) = text
                    .split_once(IMAGE_TAG)
                    .ok_or_else(|| format!("the chat template leaves out the image {IMAGE_TAG}: {text:?}"))?;
                Ok((before.to_owned(), after.to_owned()))
            }
        }
    }

    /// The sequence of `question` about an image with this plan.
    ///
    /// # Errors
    /// When the question cannot be tokenised.
    pub fn assemble(&self, question: &str, plan: &SlicePlan) -> Result<Sequence, String> {
        let (before, after) = self.around(question)?;
        let before = self.tokenizer.ids(&before)?;
        let same_before = before == self.before;
        let mut pieces = Pieces::default();
        pieces.extend(self.bos);
        pieces.extend(before);
        self.between.views(&plan.views(), self.token_rule, &mut pieces);
        let image_end = length(&pieces.0);
        pieces.extend(self.tokenizer.ids(&after)?);
        let mut pieces = pieces.0;
        let all = length(&pieces);
        let tokens = all.min(self.tokens_max);
        truncate(&mut pieces, tokens);
        Ok(Sequence { pieces, tokens, cut: all - tokens, shared: if same_before { image_end.min(tokens) } else { 0 } })
    }

    /// Text of output tokens, trimmed.
    ///
    /// # Errors
    /// When an id has no text.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        let kept: Vec<u32> = ids.iter().copied().filter(|&id| !(self.skip_zero && id == 0)).collect();
        let text = self.tokenizer.decode(&kept, true).map_err(|e| format!("the output has no text: {e}"))?;
        Ok(text.trim().to_owned())
    }
}

fn wording(template: &Template, chat: Option<ChatTemplate>) -> Result<Wording, String> {
    let split = |text: &str| {
        let (before, after) = text.split_once(IMAGE).unwrap_or((text, ""));
        Wording::Text { before: before.to_owned(), after: after.to_owned() }
    };
    match (template, chat) {
        (Template::Text(text), _) => Ok(split(text)),
        (Template::Chat, Some(template)) => Ok(Wording::Chat(Box::new(template))),
        (Template::Chat, None) => {
            Err("has no chat template, without which prompts would differ from the model's; put tokenizer_config.json of the checkpoint beside it".to_owned())
        }
    }
}

/// Pieces under construction: neighbouring tokens are one piece.
#[derive(Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    fn extend(&mut self, ids: impl IntoIterator<Item = u32>) {
        let mut ids = ids.into_iter().peekable();
        if ids.peek().is_none() {
            return;
        }
        match self.0.last_mut() {
            Some(Piece::Tokens(known)) => known.extend(ids),
            _ => self.0.push(Piece::Tokens(ids.collect())),
        }
    }
}

impl Between {
    fn new(views: &ViewTokens, tokenizer: &TextTokenizer, vocab: usize) -> Result<Self, String> {
        match views {
            ViewTokens::Nothing => Ok(Self::Nothing),
            ViewTokens::Separators { column, row } => {
                let id = |separator: &Separator| match separator {
                    Separator::Text(text) => single(tokenizer, text),
                    Separator::Id(id, text) => {
                        let found = tokenizer.decode(&[*id], false).unwrap_or_default();
                        if (*id as usize) < vocab && found.trim_matches(' ') == *text {
                            return Ok(*id);
                        }
                        Err(format!(
                            "has {found:?} as the token {id}, where LLaVA-UHD's separator {text:?} must be; it belongs to \
                             another model"
                        ))
                    }
                };
                Ok(Self::Separators { column: id(column)?, row: id(row)? })
            }
            ViewTokens::Tags(tags) => {
                let id = |tag: &String| {
                    tokenizer.id_of(tag).ok_or_else(|| format!("lacks the tag {tag:?}, which stands between views"))
                };
                let pair = |(open, close): &(String, String)| Ok::<_, String>((id(open)?, id(close)?));
                let mut first = Vec::new();
                if let Some(number) = &tags.image_id {
                    let (open, close) = pair(number)?;
                    first.push(open);
                    // One image per question, whose number is 0.
                    first.extend(tokenizer.ids("0")?);
                    first.push(close);
                }
                let (image, slice) = (pair(&tags.image)?, pair(&tags.slice)?);
                Ok(Self::Tags { first, image, slice, row: tokenizer.ids(&tags.row)? })
            }
        }
    }

    fn views(&self, views: &[View], rule: TokenRule, pieces: &mut Pieces) {
        let slices = views.iter().filter(|view| matches!(view.kind, ViewKind::Slice { .. })).count();
        let last_column = views.iter().map(column).max().unwrap_or(0);
        let mut seen = 0;
        if let Self::Tags { first, .. } = self {
            pieces.extend(first.iter().copied());
        }
        for view in views {
            let is_slice = matches!(view.kind, ViewKind::Slice { .. });
            let row_ends = is_slice && column(view) == last_column;
            seen += usize::from(is_slice);
            let piece = Piece::View(rule.tokens(view) as usize);
            match self {
                Self::Nothing => pieces.0.push(piece),
                Self::Separators { column, row } => {
                    pieces.0.push(piece);
                    pieces.extend(is_slice.then_some(if row_ends { *row } else { *column }));
                }
                Self::Tags { image, slice, row, .. } => {
                    let (open, close) = if is_slice { slice } else { image };
                    pieces.extend([*open]);
                    pieces.0.push(piece);
                    pieces.extend([*close]);
                    if row_ends && seen < slices {
                        pieces.extend(row.iter().copied());
                    }
                }
            }
        }
    }
}

const fn column(view: &View) -> u32 {
    match view.kind {
        ViewKind::Slice { col, .. } => col,
        ViewKind::Overview => 0,
    }
}

/// Where prompts begin with the config's own token, a tokenizer that says another begins or ends sequences belongs to
/// another model.
fn same_ends(config: &ModelConfig, tokenizer: &TextTokenizer) -> Result<(), String> {
    if config.prompt.template == Template::Chat {
        return Ok(());
    }
    let other = |role: &str, has: u32, says: &[u32]| {
        format!("has the {role} token {has}, and config.json says {says:?}; they belong to different models")
    };
    let (bos, eos) = (config.prompt.bos.as_slice(), config.prompt.eos.as_slice());
    match (tokenizer.bos(), tokenizer.eos()) {
        (Some(id), _) if !bos.is_empty() && !bos.contains(&id) => Err(other("first", id, bos)),
        (_, Some(id)) if !eos.is_empty() && !eos.contains(&id) => Err(other("last", id, eos)),
        _ => Ok(()),
    }
}

/// The only token of a text.
fn single(tokenizer: &TextTokenizer, text: &str) -> Result<u32, String> {
    match tokenizer.ids(text)?.as_slice() {
        [id] => Ok(*id),
        ids => Err(format!("makes {} tokens of the separator {text:?}; it must be one", ids.len())),
    }
}

fn length(pieces: &[Piece]) -> usize {
    pieces.iter().map(Piece::tokens).sum()
}

/// Keeps the first `tokens` tokens.
fn truncate(pieces: &mut Vec<Piece>, tokens: usize) {
    let mut left = tokens;
    for piece in pieces.iter_mut() {
        piece.truncate(left);
        left -= piece.tokens();
    }
    pieces.retain(|piece| piece.tokens() > 0);
}

#[cfg(test)]
mod tests {
    use slicemill_core::Size;

    use super::*;

    fn assembler(change: impl Fn(&mut ModelConfig)) -> Result<PromptAssembler, ModelError> {
        let mut config = ModelConfig::parse(include_bytes!("../embedded/config.json"), "config.json").unwrap();
        change(&mut config);
        PromptAssembler::new(&config, tokenizer(), None, "dir/tokenizer.json")
    }

    fn tokenizer() -> TextTokenizer {
        TextTokenizer::from_json(include_bytes!("../embedded/tokenizer.json"), "tokenizer.json").unwrap()
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
        let (comma, newline) = (single(&tokenizer(), ",").unwrap(), single(&tokenizer(), "\n").unwrap());
        let separators: Vec<u32> = sequence.pieces[1..sequence.pieces.len() - 1]
            .iter()
            .filter_map(|piece| if let Piece::Tokens(ids) = piece { Some(ids[0]) } else { None })
            .collect();
        assert_eq!(separators, [comma, comma, newline, comma, comma, newline]);
        assert_eq!(sequence.pieces[sequence.pieces.len() - 2], Piece::View(16));
        let text = |piece: &Piece| match piece {
            Piece::Tokens(ids) => tokenizer().decode(ids, false).unwrap(),
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
        let assembler = assembler(|c| c.prompt.template = Template::Text("{question} {image} A:".to_owned())).unwrap();
        let sequence = assembler.assemble("{image}", &plan(100, 90)).unwrap();
        assert_eq!(sequence.shared, 0);
        assert_eq!(sequence.pieces.iter().filter(|piece| matches!(piece, Piece::View(_))).count(), 1);
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let error = assembler(|c| c.decoder.vocab = 100).unwrap_err().to_string();
        assert!(error.contains("different models") && error.starts_with("dir/tokenizer.json: "), "{error}");
        let column = Separator::Text(",".to_owned());
        let views = |row| ViewTokens::Separators { column: column.clone(), row };
        let error = assembler(|c| c.prompt.views = views(Separator::Text("red blue".to_owned()))).unwrap_err();
        assert!(error.to_string().contains("it must be one"), "{error}");
        let error = assembler(|c| c.prompt.views = views(Separator::Id(29892, ","))).unwrap_err().to_string();
        assert!(error.contains("the token 29892, where LLaVA-UHD's separator"), "{error}");
        let error = assembler(|c| c.prompt.template = Template::Chat).unwrap_err().to_string();
        assert!(error.contains("no chat template"), "{error}");
    }

    #[test]
    fn a_prompt_beyond_the_longest_is_cut_at_its_end() {
        let whole = assembler(|_| {}).unwrap().assemble("What is this?", &plan(300, 200)).unwrap();
        let cut = assembler(|c| c.prompt_tokens_max = Some(30)).unwrap();
        let cut = cut.assemble("What is this?", &plan(300, 200)).unwrap();
        assert_eq!((cut.tokens, cut.cut, length(&cut.pieces)), (30, whole.tokens - 30, 30));
        assert!(cut.shared <= 30 && matches!(cut.pieces.last(), Some(Piece::View(1..16))));
    }
}
