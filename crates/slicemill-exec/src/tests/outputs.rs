//! What is planned, reported and queried of an output.

use slicemill_pipeline::fake::FakeOptions;

use super::{Place, cpus, fake, png, run, stores};
use crate::{ExecError, Report, RunOptions, StopSignal, measure_rate, plan_job, query_output, read_report};

#[tokio::test]
async fn planned_tokens_are_the_run_s() {
    let place = Place::new();
    // A file that is cut off is planned by its header and fails in the run.
    std::fs::remove_file(place.input().join("broken/cut.png")).unwrap();
    for (task, more) in [("caption", ""), ("ask", "questions.ask = ['How many?', 'Where?']\n"), ("encode", "")] {
        let job = place.job(task, task, more);
        let planned =
            plan_job(&job, fake(FakeOptions::default()), &RunOptions { fetches: Some(3), ..RunOptions::default() })
                .await
                .unwrap();
        let counts = run(&job).await.unwrap().total;
        assert_eq!(planned.inputs, counts.inputs);
        assert_eq!((planned.images, planned.skipped), (counts.ok, counts.skipped));
        assert_eq!(planned.failed, counts.failed_by_class);
        assert_eq!(planned.visual_tokens_in_rows, counts.visual_tokens);
        assert_eq!(planned.content_rows, counts.content_rows);
        assert_eq!(planned.prompt_tokens, counts.prompt_tokens);
        assert_eq!(planned.flops_max.vision, counts.flops.vision);
        assert_eq!(planned.flops_max.projector, counts.flops.projector);
        assert_eq!(planned.flops_max.prefill, counts.flops.prefill);
        assert!(planned.flops_max.decode >= counts.flops.decode);
        let report = read_report(&place.at(task), &stores()).await.unwrap();
        assert_eq!(planned.visual_tokens, report.visual_tokens_encoded);
        assert_eq!(planned.slices, report.slices);
        assert_eq!(planned.views, report.timings.views, "every view is in one encode batch");
    }
}

#[tokio::test]
async fn a_sample_gives_a_time() {
    let place = Place::new();
    let job = place.job("caption", "out", "");
    let mut summary = plan_job(&job, fake(FakeOptions::default()), &RunOptions::default()).await.unwrap();
    assert!(summary.to_text().contains("not measured"));
    let factory = fake(FakeOptions::default());
    let rate = measure_rate(&job, &summary, 5, &cpus(1), factory, StopSignal::new()).await.unwrap();
    assert_eq!(rate.rows, 5);
    assert!(rate.images > 0 && rate.elapsed_s > 0.0 && rate.job_s > 0.0, "{rate:?}");
    summary.measured = Some(rate);
    assert!(summary.to_text().contains("measured:"), "{}", summary.to_text());
    let back: crate::PlanSummary = serde_json::from_str(&serde_json::to_string(&summary).unwrap()).unwrap();
    assert_eq!(back.visual_tokens, summary.visual_tokens);
    assert!(!place.path("out").exists(), "a plan writes nothing");
}

#[tokio::test]
async fn a_plan_is_a_table_of_figures() {
    let place = Place::new();
    let job = place.job("caption", "out", "");
    let mut summary = plan_job(&job, fake(FakeOptions::default()), &RunOptions::default()).await.unwrap();
    // Names of temporary folders have different lengths, and PNG encoders differ.
    (summary.output_bytes_estimate, summary.input_bytes) = (5000, 36_952);
    insta::assert_snapshot!(summary.to_text());
}

#[tokio::test]
async fn a_report_says_what_is_there() {
    let place = Place::new();
    run(&place.job("ask", "out", "questions.ask = ['How many?', 'Where?']\n")).await.unwrap();
    let report = read_report(&place.at("out"), &stores()).await.unwrap();
    assert!(report.complete);
    assert_eq!(report.inputs, 13);
    assert_eq!(report.counts.content_rows, 18);
    assert_eq!(report.slices.values().sum::<u64>(), 9, "images, not answers");
    assert_eq!(report.formats.get("png"), Some(&9));
    assert_eq!(report.finish_reasons.values().sum::<u64>(), 18);
    assert_eq!(report.failed.get("truncated").unwrap()[0].key, "broken/cut.png");
    assert_eq!(report.skipped, ["notes.txt"]);
    assert_eq!(report.timings.images, 9);
    assert!(report.timings.batch_fill > 0.0 && report.timings.batch_fill <= 1.0);
    assert_eq!((report.runs.len(), report.runs[0].rows), (1, 13));
    let back: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(back.counts, report.counts);
    let text = report.to_text();
    for part in
        ["(complete)", "answers           18", "truncated", "broken/cut.png (decode)", "run 1: 13 rows", "cpu:0"]
    {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
}

#[tokio::test]
async fn outputs_can_be_queried_and_not_changed() {
    let place = Place::new();
    run(&place.job("caption", "out", "output.columns = ['+token_ids']\n")).await.unwrap();
    let query = async |sql: &str| query_output(&place.at("out"), sql, &stores()).await;
    for (sql, csv) in [
        ("SELECT count(*) AS n, count(DISTINCT key) AS keys FROM captions", "n,keys\n9,9\n"),
        (
            "SELECT class, count(*) AS n FROM failed GROUP BY class ORDER BY class",
            "class,n\nempty,1\nnot_an_image,1\ntruncated,1\n",
        ),
        ("SELECT key FROM skipped", "key\nnotes.txt\n"),
        ("SELECT count(*) AS n FROM answers", "n\n0\n"),
        ("SELECT count(*) AS n FROM tokens WHERE visual_tokens > 1", "n\n0\n"),
        ("SELECT count(*) AS n FROM captions JOIN timings USING (key)", "n\n9\n"),
        ("SELECT sum(output_tokens) = sum(cardinality(token_ids)) AS same FROM captions", "same\ntrue\n"),
        ("SELECT key FROM captions WHERE width > 9999", "key\n"),
    ] {
        assert_eq!(query(sql).await.unwrap().to_csv().unwrap(), csv, "{sql}");
    }
    let result = query("SELECT width, height FROM captions WHERE key = 'even/image-0.png'").await.unwrap();
    assert_eq!(result.to_json().unwrap(), r#"[{"width":40,"height":30}]"#);
    assert!(result.to_text().unwrap().contains("| 40    | 30     |"), "{}", result.to_text().unwrap());
    assert_eq!(query("SELECT key FROM answers").await.unwrap().to_json().unwrap(), "[]");
    for sql in ["DROP TABLE captions", "COPY captions TO 'x.csv'", "SELECT nothing FROM captions", "SELEC 1"] {
        assert!(matches!(query(sql).await, Err(ExecError::Query(_))), "{sql}");
    }
    let stranger = query_output(&place.at("in"), "SELECT 1", &stores()).await;
    assert!(matches!(stranger, Err(ExecError::NotAnOutput(_))), "{stranger:?}");
}

#[tokio::test]
async fn estimated_output_is_near_the_real_one() {
    let place = Place::new();
    for number in 0..600 {
        place.write(&format!("many/picture-{number:05}.png"), &png(20 + number % 13, 20 + number % 7, number));
    }
    let answers = "output.chunk_rows = 64\noutput.shard_rows = 256\nquestions.ask = ['How many?', 'Where?']\n";
    for (task, more, within) in
        [("caption", "output.chunk_rows = 64\noutput.shard_rows = 4096\n", 0.6..1.7), ("ask", answers, 0.4..2.5)]
    {
        let job = place.job_with(task, task, more);
        let planned = plan_job(&job, fake(FakeOptions::default()), &RunOptions::default()).await.unwrap();
        run(&job).await.unwrap();
        let report = read_report(&place.at(task), &stores()).await.unwrap();
        let real: u64 = report.sizes.values().map(|size| size.bytes).sum();
        let estimate = planned.output_bytes_estimate;
        let ratio = estimate as f64 / real as f64;
        assert!(within.contains(&ratio), "{task}: {estimate} estimated, {real} real: {:?}", report.sizes);
    }
}

/// A size in bytes becomes rows when inputs are frozen, and the files come out near it.
#[tokio::test]
async fn files_reach_their_size() {
    let place = Place::new();
    for number in 0..600 {
        place.write(&format!("many/picture-{number:05}.png"), &png(60 + number % 43, 60 + number % 37, number));
    }
    let whole = place.job_with("encode", "whole", "output.chunk_rows = 4\noutput.shard_rows = 4096");
    let planned = plan_job(&whole, fake(FakeOptions::default()), &RunOptions::default()).await.unwrap();
    assert_eq!(planned.shards, 1);
    let wanted = planned.output_bytes_estimate / 5;
    let more = format!("output.chunk_rows = 4\noutput.shard_bytes = {wanted}");
    let job = place.job_with("encode", "files", &more);
    let planned = plan_job(&job, fake(FakeOptions::default()), &RunOptions::default()).await.unwrap();
    run(&job).await.unwrap();
    let files = place.content("files");
    let sizes: Vec<usize> =
        files.iter().filter(|(name, _)| name.starts_with("tokens/")).map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(sizes.len() as u64, planned.shards, "{sizes:?}");
    assert!((4..=6).contains(&sizes.len()), "{sizes:?} for {wanted}");
    for size in &sizes[..sizes.len() - 1] {
        assert!((0.7..1.4).contains(&(*size as f64 / wanted as f64)), "{sizes:?} for {wanted}");
    }
    // The same size is the same job, and no size is another one.
    assert!(run(&job).await.unwrap().already_done);
    let other = place.job_with("encode", "files", "output.chunk_rows = 4");
    let refused = run(&other).await.unwrap_err().to_string();
    assert!(refused.contains("shards.bytes: was"), "{refused}");
}

#[tokio::test]
async fn the_job_of_another_version_is_called_so() {
    let place = Place::new();
    run(&place.job("caption", "out", "")).await.unwrap();
    std::fs::write(place.path("out/_slicemill/job.json"), "{\"format\": 2, \"job\": {\"shard_rows\": 8}}").unwrap();
    let said = read_report(&place.at("out"), &stores()).await.unwrap_err().to_string();
    assert!(said.contains("format 2") && said.contains("version that wrote it"), "{said}");
}
