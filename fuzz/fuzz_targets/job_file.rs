//! A job file of any text: it is a draft, or it is refused with a message that can be shown.
//!
//! The sources are taken in by path, because the crate they belong to takes half an hour to build for fuzzing.
#![no_main]
#![allow(dead_code, unused_imports, reason = "only a part of the sources is used")]

#[path = "../../crates/slicemill-exec/src/job"]
mod job {
    mod draft;
    mod file;
    mod keys;
    mod problem;

    pub use draft::JobDraft;
}

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // The last line is a `--set`.
    let (text, set) = text.rsplit_once('\u{1}').unwrap_or((text, "model.name=x"));
    match job::JobDraft::from_text("job.toml", text, &[set.to_owned()]) {
        Ok(draft) => {
            let _ = (draft.model_name(), draft.num_beams(), draft.place("input.paths"));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
