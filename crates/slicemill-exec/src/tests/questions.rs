//! Questions files through whole jobs.

use std::sync::Arc;

use slicemill_pipeline::fake::FakeOptions;

use super::{Place, cpus, fake, png, run, run_with, stores};
use crate::{ExecError, RunOptions, StopSignal, plan_job, query_output, retry_job, verify_output};

const QUESTIONS: &str = r#"{"key": "even/image-0.png", "question": "How many?", "hint": "count"}
{"key": "even/image-0.png", "question": "Where?", "hint": "left or right"}
{"key": "odd/image-3.png", "question": "What colour?", "hint": "one word"}
{"key": "broken/cut.png", "question": "What is it?", "hint": ""}
"#;

fn more(place: &Place) -> String {
    format!("questions.file = '{}'\nquestions.template = '{{question}} ({{hint}})'\n", place.at("questions.jsonl"))
}

#[tokio::test]
async fn images_are_asked_their_own_questions() {
    let place = Place::new();
    std::fs::write(place.path("questions.jsonl"), QUESTIONS).unwrap();
    let job = place.job("ask", "out", &more(&place));
    let planned = plan_job(&job, fake(FakeOptions::default()), &RunOptions::default()).await.unwrap();
    // The cut image's header is whole, so it is planned.
    assert_eq!((planned.inputs, planned.images, planned.content_rows, planned.unasked), (3, 3, 4, 10));
    let summary = run(&job).await.unwrap();
    assert_eq!(
        (summary.total.inputs, summary.total.content_rows, summary.total.failed, summary.unasked),
        (3, 3, 1, 10)
    );
    let verification = verify_output(&place.at("out"), &stores()).await.unwrap();
    assert!(verification.passed(), "{}", verification.to_text());
    let answers =
        query_output(&place.at("out"), "SELECT key, question_id, question FROM answers", &stores()).await.unwrap();
    assert_eq!(
        answers.to_csv().unwrap(),
        "key,question_id,question\neven/image-0.png,0,How many?\neven/image-0.png,1,Where?\nodd/image-3.png,0,What colour?\n",
        "the question stands in the output, not the prompt around it"
    );
    place.write("broken/cut.png", &png(50, 50, 77));
    let retried =
        retry_job(&place.at("out"), None, &cpus(1), fake(FakeOptions::default()), StopSignal::new(), Arc::new(()))
            .await
            .unwrap();
    assert_eq!((retried.rows, retried.total.ok, retried.total.content_rows), (1, 3, 4));
    let verification = verify_output(&place.at("out"), &stores()).await.unwrap();
    assert!(verification.passed(), "{}", verification.to_text());
}

#[tokio::test]
async fn other_questions_are_another_job() {
    let place = Place::new();
    std::fs::write(place.path("questions.jsonl"), QUESTIONS).unwrap();
    let job = place.job("ask", "out", &more(&place));
    run(&job).await.unwrap();
    assert!(run(&job).await.unwrap().already_done);
    std::fs::write(place.path("questions.jsonl"), QUESTIONS.replace("Where?", "Where is it?")).unwrap();
    let error = run(&job).await.unwrap_err().to_string();
    assert!(error.contains("questions: was 4 questions about 3 images"), "{error}");
    // Questions about further images are further inputs.
    let further = format!("{QUESTIONS}{{\"key\": \"odd/image-1.png\", \"question\": \"Why?\", \"hint\": \"\"}}\n");
    std::fs::write(place.path("questions.jsonl"), further).unwrap();
    let error = run(&job).await.unwrap_err().to_string();
    assert!(error.contains("1 new (odd/image-1.png)") && error.contains("--extend"), "{error}");
    let extend = RunOptions { extend: true, ..cpus(1) };
    let summary = run_with(&job, &extend, fake(FakeOptions::default())).await.unwrap();
    assert_eq!((summary.total.inputs, summary.total.content_rows), (4, 4));
    let verification = verify_output(&place.at("out"), &stores()).await.unwrap();
    assert!(verification.passed(), "{}", verification.to_text());
    assert!(run(&job).await.unwrap().already_done);
}

#[tokio::test]
async fn keys_that_no_input_has_are_refused() {
    let place = Place::new();
    std::fs::write(place.path("questions.jsonl"), QUESTIONS.replace("even/image-0", "image-0")).unwrap();
    let error = run(&place.job("ask", "out", &more(&place))).await.unwrap_err();
    assert!(matches!(error, ExecError::Questions(_)), "{error:?}");
    assert!(error.to_string().contains("first image-0.png (line 1); keys look like broken/cut.png"), "{error}");
    assert!(!place.path("out/_slicemill/job.json").exists(), "nothing was done");
}
