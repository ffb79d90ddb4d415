//! Job files: what is refused, where and with which remedy; what is accepted.

use slicemill_core::{TaskKind, TokenDtype};
use slicemill_pipeline::BackendFactory;
use slicemill_pipeline::fake::FakeOptions;

use super::fake;
use crate::JobDraft;
use crate::job::{Job, KEYS, ShardSize, diff};

fn resolve(text: &str, sets: &[&str]) -> Result<Job, String> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let draft = JobDraft::from_text("job.toml", text, &sets).map_err(|error| error.to_string())?;
    draft.resolve(fake(FakeOptions::default()).card()).map_err(|error| error.to_string())
}

const CAPTION: &str = "task = 'caption'\n[input]\npaths = ['photos']\n[output]\npath = 'out'\n";
const ENCODE: &str = "task = 'encode'\n[input]\npaths = ['photos']\n[output]\npath = 'out'\n";
const ASK: &str = "task = 'ask'\n[input]\npaths = ['photos']\n[output]\npath = 'out'\n";

#[test]
fn refusals_name_line_and_remedy() {
    let cases: [(&str, String, &[&str]); 24] = [
        ("not TOML", "task = caption\n".to_owned(), &[]),
        (
            "unknown keys",
            format!("{CAPTION}[slicing]\npolcy = 'whole'\nmax_new_tokens = 3\n[promt]\ntext = 'x'\n"),
            &[],
        ),
        ("bad values", format!("{CAPTION}[slicing]\npolicy = 'hole'\nside = 'x'\nmax_slices = 0\n"), &[]),
        ("bad value in a list", CAPTION.replace("['photos']", "['photos', 7]"), &[]),
        ("no task", CAPTION.replace("task = 'caption'\n", ""), &[]),
        ("no input, no output", "task = 'caption'\n".to_owned(), &[]),
        ("greedy and top_p", format!("{CAPTION}[generation]\ntop_p = 0.9\ntemperature = 0.0\n"), &[]),
        ("beams and temperature", format!("{CAPTION}[generation]\nnum_beams = 3\ntemperature = 0.7\n"), &[]),
        ("beams", format!("{CAPTION}[generation]\nnum_beams = 65\nearly_stopping = 'x'\n"), &[]),
        ("one beam", format!("{CAPTION}[generation]\nlength_penalty = 2\nearly_stopping = true\n"), &[]),
        ("dtype of captions", format!("{CAPTION}[encode]\ndtype = 'f16'\n"), &[]),
        ("questions of captions", format!("{CAPTION}[questions]\nask = ['x']\n"), &[]),
        ("generation of encode", format!("{ENCODE}[generation]\nmax_new_tokens = 3\n[prompt]\ntext = 'x'\n"), &[]),
        ("ask without questions", ASK.to_owned(), &[]),
        ("ask twice", format!("{ASK}[questions]\nask = ['x']\nfile = 'q.csv'\n"), &[]),
        ("template", format!("{ASK}[questions]\nask = ['x']\ntemplate = '{{question'\n"), &[]),
        ("template column", format!("{ASK}[questions]\nask = ['x']\ntemplate = '{{question}} {{hint}}'\n"), &[]),
        ("patch", format!("{CAPTION}[slicing]\npatch = 16\n"), &[]),
        ("side", format!("{CAPTION}[slicing]\nside = 30\n"), &[]),
        ("slices", format!("{CAPTION}[slicing]\npolicy = 'fixed-2x2'\nmax_slices = 3\n"), &[]),
        ("rows", CAPTION.replace("path = 'out'", "path = 'out'\nchunk_rows = 10\nshard_rows = 25"), &[]),
        ("sizes", CAPTION.replace("path = 'out'", "path = 'out'\nshard_bytes = 9000\nshard_rows = 25"), &[]),
        ("context", format!("{CAPTION}[generation]\nmax_new_tokens = 4096\n"), &[]),
        (
            "sets",
            CAPTION.to_owned(),
            &["slicing.polcy=whole", "image.alpha=grey", "generation.seed", "generation.top_k=x"],
        ),
    ];
    let mut shown = String::new();
    for (name, text, sets) in cases {
        let error = resolve(&text, sets).expect_err(name);
        shown.push_str(&format!("--- {name}\n{error}\n"));
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn flags_are_refused_by_their_own_names() {
    let document = "task = 'caption'\n[input]\npaths = ['in']\n[output]\npath = 'out'\n[slicing]\npolicy = 'wole'\n";
    let error = JobDraft::from_flags(document.parse().unwrap()).unwrap_err().to_string();
    assert_eq!(
        error,
        "--policy: \"wole\" is not one of llava-uhd, llava-uhd-raw, llava-uhd-paper, llava-uhd-v2, minicpm-v, pad-square, \
         fixed-2x2, whole\n  did you mean \"whole\"?"
    );
    let document = "task = 'caption'\n[input]\npaths = ['in']\n[output]\npath = 'out'\n[generation]\ntop_k = 4\n";
    let draft = JobDraft::from_flags(document.parse().unwrap()).unwrap();
    let error = draft.resolve(fake(FakeOptions::default()).card()).unwrap_err().to_string();
    assert_eq!(
        error,
        "--top-k: --top-k has no effect at temperature 0, which is greedy\n  remove it, or set --temperature above 0"
    );
}

#[test]
fn defaults_and_overrides() {
    let job = resolve(CAPTION, &[]).unwrap();
    assert_eq!((job.chunk_rows, job.shards), (64, ShardSize::Growing { least: 4096 }));
    assert_eq!(job.prompt.as_deref(), Some("Describe."));
    assert_eq!((job.policy.name.as_str(), job.policy.side), ("llava-uhd-raw", 28));
    assert_eq!(job.generation.unwrap().max_new_tokens, 12);
    let job = resolve(CAPTION, &["slicing.policy=whole", "output.shard_rows=100", "input.paths=['a','b']"]).unwrap();
    assert_eq!((job.policy.name.as_str(), job.policy.side, job.policy.max_slices), ("whole", 28, 0));
    assert_eq!((job.chunk_rows, job.shards), (50, ShardSize::Rows(100)));
    assert_eq!(job.inputs, ["a", "b"]);
    let job = resolve(CAPTION, &["output.shard_bytes=1000000"]).unwrap();
    assert_eq!((job.chunk_rows, job.shards), (64, ShardSize::Bytes(1_000_000)));
    let job = resolve(CAPTION, &["generation.temperature=1", "generation.top_p=0.5", "prompt.text=Count."]).unwrap();
    let generation = job.generation.unwrap();
    assert_eq!((generation.temperature, generation.top_p), (1.0, Some(0.5)));
    assert_eq!(job.prompt.as_deref(), Some("Count."));
    let sets = ["generation.num_beams=5", "generation.length_penalty=0", "generation.early_stopping=true"];
    let generation = resolve(CAPTION, &sets).unwrap().generation.unwrap();
    assert_eq!((generation.num_beams, generation.length_penalty, generation.early_stopping), (5, 0.0, true));
    let job = resolve(ENCODE, &["encode.dtype=f16"]).unwrap();
    assert_eq!((job.task, job.dtype, job.generation), (TaskKind::Encode, Some(TokenDtype::F16), None));
}

#[test]
fn large_visual_tokens_make_small_chunks() {
    let mut factory = std::sync::Arc::into_inner(fake(FakeOptions::default())).unwrap();
    factory.card_mut().width = 1 << 20;
    let draft = JobDraft::from_text("job.toml", ENCODE, &[]).unwrap();
    // Nine views of 4 tokens of 4 MiB: 144 MiB a row.
    assert_eq!(draft.resolve(factory.card()).unwrap().chunk_rows, 1);
    factory.card_mut().width = 1 << 15;
    assert_eq!(draft.resolve(factory.card()).unwrap().chunk_rows, 14);
}

#[test]
fn fingerprints_leave_out_places_and_take_in_choices() {
    let job = resolve(CAPTION, &[]).unwrap();
    let moved = resolve(CAPTION, &["output.path=elsewhere", "input.paths=['x']"]).unwrap();
    assert_eq!(job.fingerprint(), moved.fingerprint());
    assert!(diff(&job, &moved).is_empty());
    let changed = resolve(CAPTION, &["prompt.text=Count.", "slicing.max_slices=3"]).unwrap();
    assert_ne!(job.fingerprint(), changed.fingerprint());
    let shown: Vec<String> = diff(&job, &changed).iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["policy.max_slices: was 7, now 3", "prompt: was \"Describe.\", now \"Count.\""]);
    let one_beam = resolve(CAPTION, &["generation.num_beams=1"]).unwrap();
    assert_eq!(job.fingerprint(), one_beam.fingerprint());
    let beams = resolve(CAPTION, &["generation.num_beams=3"]).unwrap();
    assert_ne!(job.fingerprint(), beams.fingerprint());
    let shown: Vec<String> = diff(&job, &beams).iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["generation.num_beams: was -, now 3"]);
}

#[test]
fn the_table_of_keys_is_the_job_file() {
    // Every key is accepted by the typed form with a value of its kind, so the table has no key that the form lacks.
    for key in KEYS {
        let value = match key.kind {
            crate::job::Kind::Text => "'x'".to_owned(),
            crate::job::Kind::TextList => "['x']".to_owned(),
            crate::job::Kind::Choice(words) => format!("'{}'", words[0]),
            crate::job::Kind::ChoiceList(words) => format!("['{}']", words[0]),
            crate::job::Kind::Switch => "true".to_owned(),
            crate::job::Kind::Count { min, .. } => min.to_string(),
            crate::job::Kind::Real { min, .. } => format!("{min:?}"),
        };
        let text = format!("{} = {value}\n", key.path);
        let draft = JobDraft::from_text("job.toml", &text, &[]).unwrap_or_else(|error| panic!("{}: {error}", key.path));
        let written = toml::Table::try_from(&draft.file).unwrap();
        let path: Vec<&str> = key.path.split('.').collect();
        let found = path.iter().try_fold(toml::Value::Table(written), |table, name| table.get(name).cloned());
        assert!(found.is_some(), "{} is lost", key.path);
    }
}

#[test]
fn the_pipelines_of_the_repository_are_jobs() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
    let mut jobs = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let draft = JobDraft::from_text(&path.display().to_string(), &text, &[]).unwrap_or_else(|e| panic!("{e}"));
        let job = draft.resolve(fake(FakeOptions::default()).card()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(job.output, format!("out/{}", job.task.dataset()));
        jobs += 1;
    }
    assert!(jobs >= 3);
}
