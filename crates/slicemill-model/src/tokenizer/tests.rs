//! Tokenizers made by hand, and those of the directory in SLICEMILL_GOLDEN.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

/// A piece: text, score, type as the file has it.
type Entry = (&'static str, f32, u64);

const NORMAL: u64 = 1;
const USER: u64 = 4;
const UNUSED: u64 = 5;

/// Writes the bytes of a tokenizer.model.
struct Model {
    pieces: Vec<Entry>,
    kind: u64,
    byte_fallback: bool,
    dummy_prefix: bool,
    collapse: bool,
    charsmap: Vec<u8>,
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}

fn number(field: u64, value: u64, out: &mut Vec<u8>) {
    varint(field << 3, out);
    varint(value, out);
}

fn bytes(field: u64, value: &[u8], out: &mut Vec<u8>) {
    varint(field << 3 | 2, out);
    varint(value.len() as u64, out);
    out.extend(value);
}

impl Model {
    /// `<unk> <s> </s>`, then these.
    fn new(more: &[Entry]) -> Self {
        let mut pieces = vec![("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)];
        pieces.extend(more);
        Self { pieces, kind: 2, byte_fallback: false, dummy_prefix: true, collapse: false, charsmap: Vec::new() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut pieces: Vec<(String, f32, u64)> = self.pieces.iter().map(|&(t, s, k)| (t.to_owned(), s, k)).collect();
        if self.byte_fallback {
            pieces.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
        }
        for (text, score, kind) in pieces {
            let mut piece = Vec::new();
            bytes(1, text.as_bytes(), &mut piece);
            varint(2 << 3 | 5, &mut piece);
            piece.extend(score.to_le_bytes());
            number(3, kind, &mut piece);
            bytes(99, b"a field of the future", &mut piece);
            bytes(1, &piece, &mut out);
        }
        let mut trainer = Vec::new();
        number(3, self.kind, &mut trainer);
        number(35, u64::from(self.byte_fallback), &mut trainer);
        bytes(2, &trainer, &mut out);
        let mut normaliser = Vec::new();
        bytes(2, &self.charsmap, &mut normaliser);
        number(3, u64::from(self.dummy_prefix), &mut normaliser);
        number(4, u64::from(self.collapse), &mut normaliser);
        bytes(3, &normaliser, &mut out);
        varint(77 << 3 | 1, &mut out);
        out.extend([0; 8]);
        out
    }

    fn open(&self, files: &[(&str, Value)]) -> Result<TextTokenizer, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.model"), self.bytes()).unwrap();
        write(dir.path(), files);
        TextTokenizer::open(dir.path(), Prefer::Json)
    }
}

fn write(dir: &Path, files: &[(&str, Value)]) {
    for (name, value) in files {
        std::fs::write(dir.join(name), value.to_string()).unwrap();
    }
}

/// A vocabulary of a few words: 3 is the space, 4 and on are letters, then merges.
fn words() -> Model {
    Model::new(&[
        ("\u{2581}", -20.0, NORMAL),
        ("a", -21.0, NORMAL),
        ("b", -22.0, NORMAL),
        ("aa", -3.0, NORMAL),
        ("ab", -1.0, NORMAL),
        ("\u{2581}ab", -2.0, NORMAL),
        ("\u{2581}\u{2581}", -4.0, NORMAL),
    ])
}

#[test]
fn text_gets_a_space_in_front_where_legacy_says() {
    let legacy = words().open(&[]).unwrap();
    assert_eq!(legacy.ids("ab").unwrap(), [8]);
    assert_eq!(legacy.ids("ab</s>ab").unwrap(), [8, 2, 8]);
    assert_eq!(legacy.ids("</s>ab").unwrap(), [2, 8]);
    assert_eq!(legacy.ids("").unwrap(), [0u32; 0]);
    let new = words().open(&[("tokenizer_config.json", json!({"legacy": false}))]).unwrap();
    assert_eq!(new.ids("ab").unwrap(), [8]);
    assert_eq!(new.ids("ab</s>ab").unwrap(), [8, 2, 7]);
    assert_eq!(new.ids("</s>ab").unwrap(), [2, 7]);
    assert_eq!(new.ids("ab</s> ab").unwrap(), [8, 2, 8]);
    assert_eq!(new.ids("").unwrap(), [0u32; 0]);
}

#[test]
fn what_no_piece_covers_is_bytes_or_one_unknown() {
    let mut model = words();
    let plain = model.open(&[]).unwrap();
    assert_eq!(plain.ids("a\u{20ac}\u{20ac}b").unwrap(), [3, 4, 0, 5]);
    model.byte_fallback = true;
    let bytes = model.open(&[]).unwrap();
    let byte = |value: u32| 10 + value;
    assert_eq!(bytes.ids("\n").unwrap(), [3, byte(0x0a)]);
    assert_eq!(bytes.ids("\u{20ac}").unwrap(), [3, byte(0xe2), byte(0x82), byte(0xac)]);
    let text = bytes.decode(&[8, byte(0xe2), byte(0x82), byte(0xac), byte(0xff), 8], true).unwrap();
    assert_eq!(text, "ab\u{20ac}\u{fffd} ab");
}

#[test]
fn equal_scores_merge_from_the_left() {
    let model = Model::new(&[
        ("\u{2581}", -9.0, NORMAL),
        ("a", -9.0, NORMAL),
        ("b", -9.0, NORMAL),
        ("ab", -1.0, NORMAL),
        ("ba", -1.0, NORMAL),
        ("aa", -1.0, NORMAL),
    ]);
    let tokenizer = model.open(&[]).unwrap();
    assert_eq!(tokenizer.ids("abab").unwrap(), [3, 6, 6]);
    assert_eq!(tokenizer.ids("baba").unwrap(), [3, 7, 7]);
    assert_eq!(tokenizer.ids("aaab").unwrap(), [3, 8, 6]);
}

#[test]
fn user_pieces_are_whole_and_unused_ones_are_taken_apart() {
    let model = Model::new(&[
        ("\u{2581}", -9.0, NORMAL),
        ("a", -9.0, NORMAL),
        ("b", -9.0, NORMAL),
        ("ab", -1.0, UNUSED),
        ("abb", -2.0, NORMAL),
        ("ba!", 0.0, USER),
    ]);
    let tokenizer = model.open(&[]).unwrap();
    assert_eq!(tokenizer.ids("ab").unwrap(), [3, 4, 5]);
    assert_eq!(tokenizer.ids("abb").unwrap(), [3, 7]);
    assert_eq!(tokenizer.ids("aba!b").unwrap(), [3, 4, 8, 5]);
}

#[test]
fn the_character_map_and_spaces_are_the_models() {
    let mut model = words();
    model.collapse = true;
    // One key, `A`, in a trie of two steps; it becomes `a`.
    let mut trie = vec![0u32; 0x142];
    trie[0] = 256 << 10;
    trie[0x141] = 1 << 10 | 1 << 8 | 0x41;
    trie[0x140] = 1 << 31;
    model.charsmap = u32::try_from(trie.len() * 4).unwrap().to_le_bytes().to_vec();
    model.charsmap.extend(trie.iter().flat_map(|unit| unit.to_le_bytes()));
    model.charsmap.extend(b"a\0");
    let tokenizer = model.open(&[]).unwrap();
    assert_eq!(tokenizer.ids("  Ab   ab ").unwrap(), [8, 8]);
    assert_eq!(tokenizer.ids("   ").unwrap(), [0u32; 0]);
    model.charsmap.truncate(9);
    assert!(model.open(&[]).unwrap_err().to_string().contains("precompiled_charsmap"));
}

#[test]
fn text_of_ids_loses_the_first_space() {
    let tokenizer = words().open(&[("tokenizer_config.json", json!({"legacy": false}))]).unwrap();
    assert_eq!(tokenizer.decode(&[8, 8], true).unwrap(), "ab ab");
    assert_eq!(tokenizer.decode(&[1, 8, 2, 8], true).unwrap(), "ab ab");
    assert_eq!(tokenizer.decode(&[1, 8, 2], false).unwrap(), "<s> ab</s>");
    assert_eq!(tokenizer.decode(&[], true).unwrap(), "");
    assert_eq!(tokenizer.decode(&[8, 10, 8], true).unwrap(), "ab ab", "an id without a token has no text");
}

#[test]
fn files_beside_the_vocabulary_add_tokens_and_name_their_roles() {
    let map = json!({"pad_token": {"content": "<pad>"}, "additional_special_tokens": ["<image>"]});
    let files = [("special_tokens_map.json", map), ("added_tokens.json", json!({"<image>": 10, "<note>": 11}))];
    let tokenizer = words().open(&files).unwrap();
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.unk(), tokenizer.pad()),
        (Some(1), Some(2), Some(0), Some(12))
    );
    assert_eq!((tokenizer.vocab_len(), tokenizer.adds_bos()), (13, true));
    assert_eq!(tokenizer.ids("ab<image>ab<note>").unwrap(), [8, 10, 8, 11]);
    assert_eq!((tokenizer.id_of("<note>"), tokenizer.id_of("ab"), tokenizer.id_of("no")), (Some(11), Some(7), None));
    assert_eq!(tokenizer.decode(&[8, 10, 8, 11], true).unwrap(), "ab ab <note>");
    let names: Vec<_> = tokenizer.files().iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["added_tokens.json", "special_tokens_map.json", "tokenizer.model"]);

    let strip = |content: &str| json!({"content": content, "lstrip": true, "rstrip": true, "special": true});
    let config = json!({"added_tokens_decoder": {"1": {"content": "<s>"}, "10": strip("<x>")}, "add_bos_token": false});
    let tokenizer = words().open(&[("tokenizer_config.json", config)]).unwrap();
    assert_eq!(tokenizer.ids("ab <x>  ab").unwrap(), [8, 10, 8]);
    assert!(!tokenizer.adds_bos());
}

#[test]
fn a_damaged_model_says_so_and_nothing_panics() {
    let whole = words().bytes();
    let end = whole.len() - 10;
    for length in 0..end {
        let error = SentencePiece::new(&whole[..length]).unwrap_err();
        assert!(error.contains("copy it again") || error.contains("no pieces"), "{length}: {error}");
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        if let Ok(model) = SentencePiece::new(&damaged) {
            model.encode("ab a\u{20ac}b");
        }
    }
    let mut unigram = words();
    unigram.kind = 1;
    let error = unigram.open(&[]).unwrap_err().to_string();
    assert!(error.contains("tokenizer.model: is a sentencepiece model of the kind Unigram"), "{error}");
    let error = SentencePiece::new(b"version https://git-lfs.github.com/spec/v1\n").unwrap_err();
    assert!(error.contains("git lfs pull"), "{error}");
    let error = words().open(&[("tokenizer_config.json", json!({"tokenizer_class": "T5Tokenizer"}))]).unwrap_err();
    assert!(error.to_string().contains("belongs to a T5Tokenizer"), "{error}");
    let error = words().open(&[("tokenizer_config.json", json!([1]))]).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: is not as expected"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let error = TextTokenizer::open(dir.path(), Prefer::Model).unwrap_err().to_string();
    assert!(error.contains("holds neither tokenizer.json nor tokenizer.model"), "{error}");
}

/// A tokenizer.json of single letters.
fn letters() -> Value {
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"<unk>": 0, "a": 1, "b": 2, " ": 3, ".": 4, "<e>": 5}, "merges": []}
    })
}

#[test]
fn a_tokenizer_json_takes_the_tokens_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let added = |id: &str| json!({id: {"content": "<image>", "special": true}});
    let config = json!({"added_tokens_decoder": added("6"), "eos_token": "<e>", "tokenizer_class": "Qwen2Tokenizer",
        "pad_token": null, "unk_token": null});
    write(dir.path(), &[("tokenizer.json", letters()), ("tokenizer_config.json", config)]);
    let tokenizer = TextTokenizer::open(dir.path(), Prefer::Model).unwrap();
    assert_eq!(tokenizer.ids("ab<image>ab<e>").unwrap(), [1, 2, 6, 1, 2, 5], "neither cut nor padded");
    assert_eq!((tokenizer.eos(), tokenizer.pad(), tokenizer.bos()), (Some(5), None, None));
    assert_eq!((tokenizer.vocab_len(), tokenizer.adds_bos()), (7, false));
    assert_eq!(tokenizer.decode(&[1, 6, 3, 4, 5], true).unwrap(), "a .");
    assert_eq!(tokenizer.decode(&[1, 5], false).unwrap(), "a<e>");

    write(dir.path(), &[("tokenizer_config.json", json!({"added_tokens_decoder": added("9")}))]);
    let error = TextTokenizer::open(dir.path(), Prefer::Json).unwrap_err().to_string();
    assert!(error.contains("different models"), "{error}");
    write(dir.path(), &[("tokenizer_config.json", json!({"eos_token": "<e>"}))]);
    let tokenizer = TextTokenizer::open(dir.path(), Prefer::Json).unwrap();
    assert_eq!(tokenizer.decode(&[1, 3, 4], true).unwrap(), "a.", "cleaned up unless the files say otherwise");
    let alone = TextTokenizer::from_json(letters().to_string().as_bytes(), "the model").unwrap();
    assert_eq!((alone.decode(&[1, 3, 4], true).unwrap().as_str(), alone.files().len()), ("a .", 0));
    let error = TextTokenizer::from_json(b"{}", "the model").unwrap_err().to_string();
    assert!(error.starts_with("the model: is not a tokenizer"), "{error}");
}

/// A checkpoint of the golden directory; says so and returns nothing when there is none.
fn golden(name: &str) -> Option<(PathBuf, Value)> {
    #[allow(clippy::disallowed_methods, reason = "tests find their golden data by the environment")]
    let Ok(root) = std::env::var("SLICEMILL_GOLDEN") else {
        println!("skipped: set SLICEMILL_GOLDEN to the directory that holds e2e/{name}");
        return None;
    };
    let dir = PathBuf::from(root).join("e2e").join(name);
    let index = serde_json::from_slice(&std::fs::read(dir.join("expected/index.json")).unwrap()).unwrap();
    Some((dir.join("checkpoint"), index))
}

fn numbers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

fn runs(index: &Value) -> impl Iterator<Item = &Value> {
    index["cases"].as_array().unwrap().iter().flat_map(|case| case["runs"].as_array().unwrap())
}

/// The output has the text of the reference.
fn check_output(tokenizer: &TextTokenizer, run: &Value) {
    let output: Vec<u32> = numbers(&run["output_ids"]).iter().map(|&id| u32::try_from(id).unwrap()).collect();
    assert_eq!(tokenizer.decode(&output, true).unwrap().trim(), run["text_out"].as_str().unwrap().trim());
}

/// The ids of the stretches of a prompt, with the image between them, are those of the reference.
fn check_prompt(tokenizer: &TextTokenizer, stretches: &[&str], slot: i64, run: &Value) {
    let mut ids: Vec<i64> = tokenizer.bos().into_iter().map(i64::from).collect();
    for (i, stretch) in stretches.iter().enumerate() {
        ids.extend((i > 0).then_some(slot));
        ids.extend(tokenizer.ids(stretch).unwrap().into_iter().map(i64::from));
    }
    assert_eq!(ids, numbers(&run["prompt_ids"]));
}

const VICUNA: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives \
    helpful, detailed, and polite answers to the user's questions. USER: ";

#[test]
fn prompts_and_outputs_of_llava_uhd_have_the_ids_and_text_of_the_reference() {
    for name in ["jul-1", "jul-2", "bridge-1"] {
        let Some((dir, index)) = golden(name) else { return };
        for prefer in [Prefer::Model, Prefer::Json] {
            let tokenizer = TextTokenizer::open(&dir, prefer).unwrap();
            for run in runs(&index) {
                check_output(&tokenizer, run);
                let after = format!("\n{} ASSISTANT:", run["text"].as_str().unwrap());
                check_prompt(&tokenizer, &[VICUNA, &after], -200, run);
            }
        }
    }
}

#[test]
fn prompts_and_outputs_of_llava_have_the_ids_and_text_of_the_reference() {
    let Some((dir, index)) = golden("llava15-1") else { return };
    for prefer in [Prefer::Model, Prefer::Json] {
        let tokenizer = TextTokenizer::open(&dir, prefer).unwrap();
        let ids = (tokenizer.id_of("<image>"), tokenizer.pad(), tokenizer.vocab_len());
        assert_eq!(ids, (Some(2000), Some(2001), 2002));
        for run in runs(&index) {
            let prompt = run["full_prompt"].as_str().unwrap();
            let (before, after) = prompt.split_once("<image>").unwrap();
            // LLaVA's own code reads tokenizer.model, the processor of transformers reads tokenizer.json.
            match (prompt.starts_with(VICUNA), prefer) {
                (true, _) => check_prompt(&tokenizer, &[before, after], 2000, run),
                (false, Prefer::Json) => check_prompt(&tokenizer, &[prompt], 2000, run),
                (false, Prefer::Model) => continue,
            }
            if prompt.starts_with(VICUNA) == (prefer == Prefer::Model) {
                check_output(&tokenizer, run);
            }
        }
    }
}

#[test]
fn chat_prompts_have_the_ids_and_text_of_the_reference() {
    let Some((dir, index)) = golden("minicpmv26-1") else { return };
    let tokenizer = TextTokenizer::open(&dir, Prefer::Json).unwrap();
    let template = crate::chat_template::ChatTemplate::open(&dir).unwrap().unwrap();
    for run in runs(&index) {
        let question = format!("(<image>./</image>)\n{}", run["text"].as_str().unwrap());
        let message = crate::chat_template::Message::new("user", question);
        let text = template.render(&[message], &crate::chat_template::ChatOptions::answer()).unwrap();
        assert_eq!(text, run["chat_text"].as_str().unwrap());
        let ids: Vec<u32> = numbers(&run["prompt_ids"]).iter().map(|&id| u32::try_from(id).unwrap()).collect();
        let (before, after) = text.split_once("(<image>./</image>)").unwrap();
        assert!(ids.starts_with(&tokenizer.ids(before).unwrap()), "{before:?}");
        assert!(ids.ends_with(&tokenizer.ids(after).unwrap()), "{after:?}");
        // The reference drops what ends an answer, and every id 0, and shows other special tokens.
        let keep = |id: &i64| ![0, 1200, 1202].contains(id);
        let output: Vec<u32> =
            numbers(&run["output_ids"]).into_iter().filter(keep).map(|id| u32::try_from(id).unwrap()).collect();
        assert_eq!(tokenizer.decode(&output, false).unwrap().trim(), run["text_out"].as_str().unwrap());
        let shown = tokenizer.decode(&ids, false).unwrap();
        assert_eq!(tokenizer.ids(&shown).unwrap(), ids, "special tokens are found in text");
    }
}
