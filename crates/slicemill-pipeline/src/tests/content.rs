//! What comes out, and what it does not depend on.

use slicemill_core::{Normalisation, OrientationRule, Size, TokenRule};

use super::*;
use crate::{NullFactory, planned_costs};

#[test]
fn outcomes_keep_the_order_of_rows_and_none_is_lost() {
    for task in TASKS {
        let input = Input::with_trouble(task);
        let keys: Vec<String> = input.rows.iter().map(|row| row.key.clone()).collect();
        let rig = Rig::new(task, "cpu", limits(), FakeOptions::default());
        let outcomes = rig.run(input).unwrap();
        assert_eq!(outcomes.iter().map(key_of).collect::<Vec<_>>(), keys);

        let failed = failures(&outcomes);
        assert_eq!(
            (failed[0].key.as_str(), failed[0].error.stage, failed[0].attempts),
            ("truncated.png", Stage::Decode, 1)
        );
        let failed: Vec<_> =
            failed[1..].iter().map(|row| (row.key.as_str(), row.error.class, row.error.stage, row.attempts)).collect();
        assert_eq!(
            failed,
            [
                ("fake.jpg", ErrorClass::NotAnImage, Stage::Header, 1),
                ("empty.jpg", ErrorClass::Empty, Stage::Header, 1),
                ("missing.png", ErrorClass::NotFound, Stage::Fetch, 4),
            ]
        );
        let skipped = |outcome: &&RowOutcome| matches!(outcome, RowOutcome::Skipped(_));
        let skipped: Vec<&str> = outcomes.iter().filter(skipped).map(key_of).collect();
        assert_eq!(skipped, ["notes.txt", "empty"]);

        let progress = rig.progress.snapshot();
        assert_eq!((progress.images_ok, progress.images_failed, progress.images_skipped), (12, 4, 2));
        assert_eq!(progress.images_done(), keys.len() as u64);
        rig.close();
    }
}

#[test]
fn content_does_not_depend_on_limits_and_devices() {
    for task in TASKS {
        let expected = run(task, "cpu", limits(), FakeOptions::default(), Input::with_trouble(task));
        let batch = |views_max| RuntimeLimits { batch: BatchLimits { views_max, ..limits().batch }, ..limits() };
        let many = [
            batch(1),
            batch(7),
            batch(64),
            RuntimeLimits { sequences_max: 1, ..limits() },
            RuntimeLimits { sequences_max: 32, ..limits() },
            RuntimeLimits { window_bytes_max: 1, ..limits() },
            RuntimeLimits { window_bytes_max: 1 << 30, ..limits() },
            RuntimeLimits { prepared_bytes_max: 1, decode_bytes_max: 1, fetch_concurrency: 1, ..limits() },
            RuntimeLimits::default(),
        ];
        for limits in many {
            let got = run(task, "cpu:0,cpu:1", limits, FakeOptions::default(), Input::with_trouble(task));
            assert_eq!(got, expected, "{task:?} with {limits:?}");
        }
    }
}

#[test]
fn chunks_at_the_same_time_equal_chunks_one_by_one() {
    let chunks = || (0..5).map(|number| Input::images(6 + number, TaskKind::Ask)).collect::<Vec<_>>();
    let alone = Rig::new(TaskKind::Ask, "cpu", limits(), FakeOptions::default());
    let expected: Vec<_> = chunks().into_iter().map(|input| content(alone.run(input).unwrap())).collect();
    alone.close();
    for devices in ["cpu", "cpu:0,cpu:1", "cpu:0,cpu:1,cpu:2"] {
        let rig = Rig::new(TaskKind::Ask, devices, limits(), FakeOptions::default());
        let runs = chunks().into_iter().map(|input| {
            let (rows, store) = input.store();
            rig.annotator.annotate_chunk(rows, store)
        });
        let got = wait(futures::future::try_join_all(runs)).unwrap();
        assert_eq!(got.into_iter().map(content).collect::<Vec<_>>(), expected, "on {devices}");
        rig.close();
    }
}

#[test]
fn an_image_is_encoded_once_however_many_questions_it_has() {
    let rig = Rig::new(TaskKind::Ask, "cpu", limits(), FakeOptions::default());
    let outcomes = rig.run(Input::images(10, TaskKind::Ask)).unwrap();
    let shape = rig.factory.card().shape;
    for outcome in &outcomes {
        let RowOutcome::Ok { rows, timing } = outcome else { panic!("{outcome:?}") };
        let plan = small_policy().plan(Size::new(rows[0].width, rows[0].height)).unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[0].flops.vision, shape.vision_flops(&plan));
        assert_eq!(rows[0].flops.projector, shape.projector_flops(&plan));
        for (number, row) in rows.iter().enumerate() {
            let (prompt, output) = (u64::from(row.prompt_tokens), u64::from(row.output_tokens));
            assert_eq!(row.question_id, Some(number as u32));
            assert_eq!(row.question.as_deref(), Some(&*prompts(TaskKind::Ask)[number].question));
            assert_eq!(row.flops.prefill, shape.prefill_flops(prompt));
            assert_eq!(row.flops.decode, shape.decode_flops(prompt, output));
            assert_eq!(row.token_ids.as_ref().map(Vec::len), Some(output as usize));
            assert!(number == 0 || (row.flops.vision, row.flops.projector) == (0, 0));
        }
        assert_eq!((timing.prefill_ms, timing.decode_ms), (0.75, 1.5));
        assert!(timing.batch_views > rows[0].slices && timing.batch_fill > 0.0);
    }
    let counts = rig.close();
    assert_eq!(counts.encoded.len(), 10);
    assert!(counts.encoded.values().all(|&times| times == 1));
    assert_eq!(counts.finished, 30);
}

#[test]
fn a_question_has_the_same_answer_alone_and_among_others() {
    let together = run(TaskKind::Ask, "cpu", limits(), FakeOptions::default(), Input::images(6, TaskKind::Ask));
    for question in 0..3 {
        let mut input = Input::images(6, TaskKind::Ask);
        for row in &mut input.rows {
            row.prompts = Arc::new([row.prompts[question].clone()]);
        }
        let alone = run(TaskKind::Ask, "cpu", limits(), FakeOptions::default(), input);
        for (alone, together) in alone.iter().zip(&together) {
            let (RowOutcome::Ok { rows: alone, .. }, RowOutcome::Ok { rows: together, .. }) = (alone, together) else {
                panic!("a row failed");
            };
            assert_eq!(alone[0].text, together[question].text);
        }
    }
}

#[test]
fn planned_tokens_are_the_tokens_of_the_rows() {
    for task in TASKS {
        let rig = Rig::new(task, "cpu", limits(), FakeOptions::default());
        let outcomes = rig.run(Input::images(20, task)).unwrap();
        let mut visual_tokens = 0;
        for outcome in &outcomes {
            let RowOutcome::Ok { rows, .. } = outcome else { panic!("{outcome:?}") };
            let size = Size::new(rows[0].width, rows[0].height);
            let planned = planned_costs(size, &prompts(task), &spec(task), &*rig.factory).unwrap();
            assert!(rows.iter().all(|row| row.visual_tokens == planned.visual_tokens));
            if task == TaskKind::Encode {
                assert_eq!(rows[0].tokens.as_ref().unwrap().len(), planned.visual_tokens as usize * 3);
                assert_eq!((rows[0].prompt_tokens, rows[0].finish_reason.as_str()), (0, "none"));
            } else {
                assert_eq!(rows.iter().map(|row| row.prompt_tokens).collect::<Vec<_>>(), planned.prompt_tokens);
            }
            let sum = |stage: fn(&ContentRow) -> u64| rows.iter().map(stage).sum::<u64>();
            assert_eq!(sum(|row| row.flops.vision), planned.flops_max.vision);
            assert_eq!(sum(|row| row.flops.prefill), planned.flops_max.prefill);
            assert!(sum(|row| row.flops.decode) <= planned.flops_max.decode);
            visual_tokens += u64::from(planned.visual_tokens);
        }
        let progress = rig.progress.snapshot();
        assert_eq!(progress.visual_tokens, visual_tokens);
        assert_eq!(progress.views_encoded, progress.views_planned);
        let output: u64 = rows_of(&outcomes).iter().map(|row| u64::from(row.output_tokens)).sum();
        assert_eq!(progress.output_tokens, output);
        rig.close();
    }
}

#[test]
fn columns_of_a_row_say_what_was_read() {
    let mut input = Input::default();
    input.add("a/b.png", Some(png(100, 50, 1)), TaskKind::Caption);
    let mut spec = spec(TaskKind::Caption);
    spec.token_ids = false;
    spec.image.orientation = OrientationRule::Ignore;
    let factory = Arc::new(FakeFactory::new(small_policy(), FakeOptions::default()));
    let rig = Rig::with_factory(factory, spec, "cpu:3", limits());
    let outcomes = rig.run(input).unwrap();
    let RowOutcome::Ok { rows, timing } = &outcomes[0] else { panic!("{outcomes:?}") };
    let row = &rows[0];
    assert_eq!((row.key.as_str(), row.source.as_str()), ("a/b.png", "memory:///a/b.png"));
    assert_eq!((row.width, row.height, row.orientation_applied, row.format.as_str()), (100, 50, 1, "png"));
    assert_eq!(row.policy, "llava-uhd-raw");
    assert_eq!(row.slices, row.grid_cols * row.grid_rows);
    assert_eq!(row.visual_tokens, 4 * (row.slices + 1));
    assert_eq!((row.question_id, &row.question, &row.token_ids, &row.tokens), (None, &None, &None, &None));
    assert!(row.finish_reason == "stop" || row.finish_reason == "length");
    assert_eq!((timing.key.as_str(), timing.device.as_str()), ("a/b.png", "cpu:3"));
    // SHA-256 of the same bytes by another path.
    assert_eq!(row.sha256.len(), 64);
    let digest = <sha2::Sha256 as sha2::Digest>::digest(png(100, 50, 1));
    assert_eq!(row.sha256, digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    rig.close();
}

#[test]
fn the_null_model_counts_and_says_nothing() {
    for task in TASKS {
        let null = NullFactory::new(small_policy(), TokenRule::Queries(64), Normalisation::CLIP);
        let factory: Arc<dyn BackendFactory> = Arc::new(null);
        let pool = Arc::new(DevicePool::start(&factory, &parse_devices("cpu").unwrap()).unwrap());
        let host = Arc::new(HostPool::new(2).unwrap());
        let annotator = Annotator::new(factory, pool, host, spec(task), limits(), Arc::default()).unwrap();
        let (rows, store) = Input::with_trouble(task).store();
        let outcomes = wait(annotator.annotate_chunk(rows, store)).unwrap();
        assert_eq!((outcomes.len(), failures(&outcomes).len()), (18, 4));
        for row in rows_of(&outcomes) {
            assert_eq!(row.visual_tokens, 64 * (row.slices + 1));
            assert_eq!((&row.text, row.finish_reason.as_str(), row.output_tokens), (&None, "none", 0));
            assert_eq!(row.flops, slicemill_core::Flops::default());
            match task {
                TaskKind::Encode => assert_eq!((row.prompt_tokens, &row.tokens), (0, &Some(Vec::new()))),
                _ => assert_eq!((row.prompt_tokens, &row.tokens), (row.visual_tokens, &None)),
            }
        }
    }
}

#[test]
fn templates_and_own_prompts_reach_the_model() {
    let item = |prompt: Option<&str>| PromptItem {
        question_id: Some(0),
        question: "How many?".into(),
        prompt: prompt.map(Into::into),
    };
    let mut spec = spec(TaskKind::Ask);
    assert_eq!(spec.prompt(&item(None)), "How many?");
    spec.prompt_template = Some("Question: {question} Answer:".into());
    assert_eq!(spec.prompt(&item(None)), "Question: How many? Answer:");
    assert_eq!(spec.prompt(&item(Some("as it is"))), "as it is");
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<AnnotateSpec>(&json).unwrap(), spec);
}

#[test]
fn a_chunk_without_rows_or_prompts_needs_no_device() {
    let rig = Rig::new(TaskKind::Ask, "cpu", limits(), FakeOptions::default());
    assert_eq!(rig.run(Input::default()).unwrap(), []);
    let mut input = Input::images(2, TaskKind::Ask);
    input.rows[0].prompts = Arc::new([]);
    input.rows[1].prompts = Arc::new([]);
    let outcomes = rig.run(input).unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, RowOutcome::Skipped(_))));
    assert_eq!(rig.close().encoded.len(), 0);
}
