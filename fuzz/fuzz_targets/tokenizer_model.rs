//! A sentencepiece `tokenizer.model` of any bytes; one that is accepted encodes and decodes some text.
//!
//! The sources are taken in by path, because the crate they belong to takes half an hour to build for fuzzing.
#![no_main]
#![allow(dead_code, unused_imports, reason = "only a part of the sources is used")]

#[path = "../../crates/slicemill-model/src/tokenizer"]
mod tokenizer {
    mod normalize;
    mod proto;
    mod sentencepiece;

    pub fn run(bytes: &[u8]) {
        let Ok(model) = sentencepiece::SentencePiece::new(bytes) else { return };
        let mut text = "<s> Hello,  world\u{3000}ﬁ ½ \u{1F600}\n".to_owned();
        text.extend(bytes.iter().rev().take(64).map(|&byte| char::from(byte)));
        let ids = model.encode(&text);
        let pieces: Vec<&str> = ids.iter().map(|&id| model.piece(id).expect("an id the model gave itself")).collect();
        let _ = model.decode(&pieces);
    }
}

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tokenizer::run(bytes));
