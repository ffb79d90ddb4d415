//! Tests of `fetch` against servers that misbehave. Each asserts what was read and that the fault happened.

use std::time::Duration;

use slicemill_core::ErrorClass;

use super::*;
use crate::stores::scripted_server::{Reply, Request, ScriptedServer};
use crate::stores::{HttpGuard, StoreOptions};

/// A body of which every byte says where it stands.
fn body() -> Vec<u8> {
    (0..100_000_u32).flat_map(|number| number.to_le_bytes()).collect()
}

fn quick() -> RetryBudget {
    RetryBudget {
        attempts_max: 6,
        pause_first: Duration::from_millis(1),
        pause_max: Duration::from_millis(5),
        pauses_total: Duration::from_secs(20),
        ..RetryBudget::default()
    }
}

fn stores() -> Stores {
    let options = StoreOptions::parse(["http.stall_timeout=0.3", "http.answer_timeout=0.5"]).unwrap();
    Stores::new(options).with_guard(HttpGuard { allow_private: true, ..HttpGuard::default() })
}

fn fetch() -> ObjectFetch {
    ObjectFetch::new(stores(), quick())
}

/// As a manifest lists a URL.
fn unknown(url: &str) -> InputEntry {
    InputEntry { estimated: true, ..InputEntry::object("x", url, 1000, "") }
}

fn count(fetch: &ObjectFetch, code: &str) -> u64 {
    fetch.stores().counters().snapshot().by_code.get(code).copied().unwrap_or(0)
}

/// Serves `body` with a tag, except for the first answers.
fn server(first: Vec<fn(&Request, &[u8]) -> Reply>) -> ScriptedServer {
    let body = body();
    ScriptedServer::start(move |number, request| match first.get(number) {
        Some(reply) => reply(request, &body),
        None => Reply::serve(request, &body).header("etag", "\"v1\""),
    })
}

#[tokio::test]
async fn overloaded_servers_are_tried_again_and_asked_less() {
    let busy = |_: &Request, _: &[u8]| Reply::status(503);
    let too_many = |_: &Request, _: &[u8]| Reply::status(429);
    let server = server(vec![busy, too_many, busy]);
    let fetch = fetch();
    assert_eq!(fetch.read(&unknown(&server.url("/a.jpg?size=big"))).await.unwrap(), body());
    assert_eq!((count(&fetch, "http_503"), count(&fetch, "http_429")), (2, 1));
    let snapshot = fetch.stores().counters().snapshot();
    assert_eq!((snapshot.retries, snapshot.requests, snapshot.bytes_read), (3, 4, 400_000));
    let limit = snapshot.connections.values().next().unwrap();
    assert_eq!((limit.lowest, limit.most, limit.in_flight), (62, 64, 0));
    assert!(server.requests().iter().all(|request| request.target == "/a.jpg?size=big"));
}

#[tokio::test]
async fn a_server_that_says_when_to_come_back_is_obeyed() {
    let server = server(vec![|_, _| Reply::status(503).header("retry-after", "1")]);
    let before = std::time::Instant::now();
    assert_eq!(fetch().read(&unknown(&server.url("/a"))).await.unwrap(), body());
    assert!(before.elapsed() >= Duration::from_secs(1));

    let server = ScriptedServer::start(|_, _| Reply::status(503).header("retry-after", "86400"));
    let before = std::time::Instant::now();
    let error = fetch().read(&unknown(&server.url("/a"))).await.unwrap_err();
    assert_eq!((error.attempts, error.row_error().class), (1, ErrorClass::ReadFailed));
    assert!(error.message.contains("503") && before.elapsed() < Duration::from_secs(10), "{}", error.message);
}

#[tokio::test]
async fn broken_bodies_are_continued_where_they_broke() {
    let cut = |request: &Request, body: &[u8]| Reply::serve(request, body).header("etag", "\"v1\"").cut(150_000);
    let server = server(vec![cut, cut]);
    let fetch = fetch();
    assert_eq!(fetch.read(&unknown(&server.url("/a"))).await.unwrap(), body());
    let snapshot = fetch.stores().counters().snapshot();
    assert_eq!((count(&fetch, "short_body"), snapshot.resumed, snapshot.retries), (2, 2, 2));
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[1].headers["range"], "bytes=150000-399999");
    assert_eq!(requests[1].headers["if-match"], "\"v1\"");
    assert_eq!(requests[2].headers["range"], "bytes=300000-399999");
    assert_eq!(snapshot.bytes_read, 400_000);
}

#[tokio::test]
async fn stalled_bodies_and_answers_are_cut() {
    fn stalled(request: &Request, body: &[u8]) -> Reply {
        let reply = Reply::serve(request, body).header("etag", "\"v1\"").cut(1000);
        Reply { stall: Some(Duration::from_secs(3)), ..reply }
    }
    fn silent(request: &Request, body: &[u8]) -> Reply {
        std::thread::sleep(Duration::from_secs(2));
        stalled(request, body)
    }
    let server = server(vec![stalled, silent]);
    let fetch = fetch();
    assert_eq!(fetch.read(&unknown(&server.url("/a"))).await.unwrap(), body());
    assert_eq!((count(&fetch, "stalled"), count(&fetch, "timeout")), (1, 1));
    assert_eq!(server.requests()[2].headers["range"], "bytes=1000-399999");
}

#[tokio::test]
async fn hung_up_connections_are_tried_again() {
    let hang_up = |_: &Request, _: &[u8]| Reply { hang_up: true, ..Reply::ok("") };
    let server = server(vec![hang_up, hang_up]);
    let fetch = fetch();
    assert_eq!(fetch.read(&unknown(&server.url("/a"))).await.unwrap(), body());
    assert_eq!(count(&fetch, "connection_reset"), 2);
}

#[tokio::test]
async fn wrong_ranges_are_noticed() {
    let cut = |request: &Request, body: &[u8]| Reply::serve(request, body).header("etag", "\"v1\"").cut(100);
    let wrong = |_: &Request, body: &[u8]| {
        let range = format!("bytes 0-299/{}", body.len());
        let reply = Reply { status: 206, body: body[..300].to_vec(), ..Reply::default() };
        reply.header("content-range", &range).header("etag", "\"v1\"")
    };
    let bare = |_: &Request, body: &[u8]| Reply { status: 206, ..Reply::ok(&body[100..]) }.header("etag", "\"v1\"");
    let server = server(vec![cut, wrong, bare]);
    let fetch = fetch();
    assert_eq!(fetch.read(&unknown(&server.url("/a"))).await.unwrap(), body());
    assert_eq!((count(&fetch, "wrong_range"), count(&fetch, "short_body")), (2, 1));
}

#[tokio::test]
async fn servers_that_ignore_ranges_are_read_from_the_beginning() {
    let body = body();
    let whole = body.clone();
    let server = ScriptedServer::start(move |number, _| {
        let reply = Reply::ok(whole.clone()).header("etag", "\"v1\"");
        if number == 0 { reply.cut(100_000) } else { reply }
    });
    let fetch = fetch();
    assert_eq!(fetch.read(&unknown(&server.url("/a"))).await.unwrap(), body);
    assert_eq!((count(&fetch, "range_ignored"), count(&fetch, "short_body")), (1, 1));
    // A member of an archive on such a server.
    let place = Place::At { offset: 40, bytes: 400 }.join(&server.url("/a.tar"));
    assert_eq!(fetch.read(&unknown(&place)).await.unwrap(), body[40..440]);
    assert_eq!(count(&fetch, "range_ignored"), 2);
}

#[tokio::test]
async fn two_versions_are_never_mixed() {
    let body = body();
    let new: Vec<u8> = body.iter().map(|byte| byte ^ 0xff).collect();
    let (old, newer) = (body.clone(), new.clone());
    let server = ScriptedServer::start(move |number, request| match number {
        0 => Reply::serve(request, &old).header("etag", "\"v1\"").cut(1000),
        _ if request.headers.get("if-match").is_some_and(|tag| tag != "\"v2\"") => Reply::status(412),
        _ => Reply::serve(request, &newer).header("etag", "\"v2\""),
    });
    // Nothing was known about it: whatever is there, in one piece.
    assert_eq!(fetch().read(&unknown(&server.url("/a"))).await.unwrap(), new);

    // The server does not look at the condition, but says the new tag.
    let (old, newer) = (body.clone(), new);
    let server = ScriptedServer::start(move |number, request| match number {
        0 => Reply::serve(request, &old).header("etag", "\"v1\"").cut(1000),
        _ => Reply::serve(request, &newer).header("etag", "\"v2\""),
    });
    let listed = InputEntry::object("x", server.url("/a"), 400_000, "v1");
    let error = fetch().read(&listed).await.unwrap_err();
    assert_eq!(error.row_error().class, ErrorClass::SourceChanged, "{}", error.message);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn objects_that_are_not_as_listed_are_not_read() {
    let server = server(vec![]);
    for (bytes, tag, expected) in
        [(400_000, "\"v1\"", true), (400_000, "v1", true), (400_000, "v2", false), (7, "v1", false)]
    {
        let entry = InputEntry::object("x", server.url("/a"), bytes, tag);
        let read = fetch().read(&entry).await;
        assert_eq!(read.is_ok(), expected, "{bytes} {tag}");
        if let Err(error) = read {
            assert_eq!((error.row_error().class, error.attempts), (ErrorClass::SourceChanged, 1));
        }
    }
}

#[tokio::test]
async fn bodies_without_a_length_are_read_to_their_end_and_no_further_than_the_limit() {
    let body = body();
    let chunked = body.clone();
    let server = ScriptedServer::start(move |number, _| {
        let reply = Reply { chunked: true, ..Reply::ok(chunked.clone()) };
        if number == 0 { reply.cut(5000) } else { reply }
    });
    let fetch = fetch();
    assert_eq!(fetch.read(&unknown(&server.url("/a"))).await.unwrap(), body);
    assert_eq!(count(&fetch, "short_body"), 1);
    assert_eq!(fetch.read_prefix(&unknown(&server.url("/a")), 10).await.unwrap(), body[..10]);
    let entry = fetch.describe("x", &server.url("/a")).await.unwrap();
    assert!(entry.estimated);

    for chunked in [true, false] {
        let server = ScriptedServer::start(move |_, _| Reply { chunked, endless: true, ..Reply::ok(vec![7; 1 << 16]) });
        let limited = self::fetch().with_bytes_max(1 << 20);
        let error = limited.read(&unknown(&server.url("/a"))).await.unwrap_err();
        assert_eq!((error.row_error().class, error.attempts), (ErrorClass::ObjectTooLarge, 1), "{}", error.message);
        assert!(limited.stores().counters().snapshot().bytes_read < 2 << 20);
        assert_eq!(limited.read_prefix(&unknown(&server.url("/a")), 100).await.unwrap(), [7; 100].as_slice());
    }
}

#[tokio::test]
async fn a_body_that_drips_ends_when_the_time_is_up() {
    let server = ScriptedServer::start(|_, request| {
        // Some bytes for every request, so that each try gets on a little.
        std::thread::sleep(Duration::from_millis(200));
        Reply::serve(request, &vec![1; 1 << 16]).header("etag", "\"v1\"").cut(1)
    });
    let budget = RetryBudget { attempts_max: 1000, time_total: Duration::from_secs(1), ..quick() };
    let fetch = ObjectFetch::new(stores(), budget);
    let before = std::time::Instant::now();
    let error = fetch.read(&unknown(&server.url("/a"))).await.unwrap_err();
    assert!(before.elapsed() < Duration::from_secs(3));
    assert!(error.message.contains("took more than 1 s"), "{}", error.message);
    assert_eq!(error.row_error().class, ErrorClass::ReadFailed);
}

#[tokio::test]
async fn statuses_become_classes_and_secrets_stay_out_of_messages() {
    for (status, class, attempts) in [
        (401, ErrorClass::AccessDenied, 1),
        (403, ErrorClass::AccessDenied, 1),
        (404, ErrorClass::NotFound, 1),
        (410, ErrorClass::NotFound, 1),
        (418, ErrorClass::ReadFailed, 1),
        (500, ErrorClass::ReadFailed, 6),
        (504, ErrorClass::ReadFailed, 6),
    ] {
        let server = ScriptedServer::start(move |_, _| Reply { status, ..Reply::ok("token=hunter2") });
        let error = fetch().read(&unknown(&server.url("/a.jpg?sig=hunter2"))).await.unwrap_err();
        assert_eq!((error.row_error().class, error.attempts, error.fate), (class, attempts, Fate::Row), "{status}");
        assert!(error.message.contains("/a.jpg?…") && !error.message.contains("hunter2"), "{}", error.message);
    }
}

#[tokio::test]
async fn places_in_objects_are_ranged_reads() {
    let body = body();
    let server = server(vec![]);
    let fetch = fetch();
    let place = |offset, bytes| Place::At { offset, bytes }.join(&server.url("/a.tar?x=1"));
    let member =
        |url: String, bytes, tag: &str| InputEntry { container: 5, ..InputEntry::object("a.tar/m", url, bytes, tag) };
    assert_eq!(fetch.read(&member(place(512, 100), 100, "v1")).await.unwrap(), body[512..612]);
    assert_eq!(fetch.read_prefix(&member(place(512, 100), 100, "v1"), 10).await.unwrap(), body[512..522]);
    assert_eq!(fetch.read(&member(place(399_999, 1), 1, "")).await.unwrap(), body[399_999..]);
    assert_eq!(fetch.read(&member(place(512, 0), 0, "v1")).await.unwrap(), "");
    let requests = server.requests();
    assert_eq!(requests[0].headers["range"], "bytes=512-611");
    assert_eq!((requests[1].headers["range"].as_str(), requests.len()), ("bytes=512-521", 3));

    for (entry, class) in [
        (member(place(512, 100), 100, "v2"), ErrorClass::SourceChanged),
        (member(place(399_990, 100), 100, ""), ErrorClass::SourceChanged),
        (member(place(0, 3 << 30), 3 << 30, "v1"), ErrorClass::ObjectTooLarge),
        (member(Place::Unpacked { offset: 0, bytes: 1 }.join("file:///x"), 1, ""), ErrorClass::ReadFailed),
    ] {
        let error = fetch.read(&entry).await.unwrap_err();
        assert_eq!((error.row_error().class, error.fate), (class, Fate::Row), "{}", error.message);
    }
    let described = fetch.describe("a.tar/m", &place(512, 100)).await.unwrap();
    assert_eq!((described.bytes, described.tag.as_str(), described.url), (100, "\"v1\"", place(512, 100)));
}

#[tokio::test]
async fn inputs_that_were_refused_when_listed_fail_at_once() {
    let refused = Place::Refused { class: ErrorClass::BadRecord, why: "line 3: no brace".to_owned() };
    let entry = InputEntry::object("x", refused.join("file:///list.jsonl"), 0, "");
    for error in [fetch().read(&entry).await.unwrap_err(), fetch().read_prefix(&entry, 4).await.unwrap_err()] {
        assert_eq!((error.row_error().class, error.attempts, error.fate), (ErrorClass::BadRecord, 1, Fate::Row));
        assert_eq!(
            (error.row_error().stage, error.message),
            (slicemill_core::Stage::Fetch, "line 3: no brace".to_owned())
        );
    }
    assert_eq!(fetch().describe("x", &entry.url).await.unwrap().url, entry.url);
}

#[derive(Debug)]
struct Cells;

impl InnerReader for Cells {
    fn read<'a>(&'a self, _: &'a InputEntry, place: &'a Place, _: u64) -> BoxFuture<'a, Result<Bytes, IoError>> {
        let text = format!("{place:?}");
        Box::pin(async move { Ok(text.into()) })
    }
}

#[tokio::test]
async fn what_stands_inside_files_is_read_by_who_knows_them() {
    let fetch = fetch().with_inner(Arc::new(Cells));
    let place = Place::Cell { row: 7, column: "image".to_owned() };
    let entry = unknown(&place.join("file:///t.parquet"));
    assert_eq!(fetch.read(&entry).await.unwrap(), format!("{place:?}"));
    assert_eq!(fetch.read_prefix(&entry, 4).await.unwrap(), "Cell");
    let error = fetch.with_bytes_max(3).read(&entry).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::TooLarge);
}

#[tokio::test]
async fn many_faults_at_once_change_no_byte() {
    let body = body();
    let served = body.clone();
    let server = ScriptedServer::start(move |number, request| match number % 7 {
        1 => Reply::status(503),
        3 => Reply::serve(request, &served).header("etag", "\"v1\"").cut(10_000),
        5 => Reply { hang_up: true, ..Reply::ok("") },
        _ => Reply::serve(request, &served).header("etag", "\"v1\""),
    });
    let budget = RetryBudget { attempts_max: 20, ..quick() };
    let fetch = ObjectFetch::new(stores(), budget);
    let entries: Vec<_> = (0..60).map(|number| unknown(&server.url(&format!("/{number}")))).collect();
    let reads = futures::stream::iter(&entries).map(|entry| fetch.read(entry)).buffered(16);
    let bytes: Vec<_> = reads.collect().await;
    assert!(bytes.into_iter().all(|bytes| bytes.unwrap() == body));
    for code in ["http_503", "short_body", "connection_reset"] {
        assert!(count(&fetch, code) >= 5, "{code}: {:?}", fetch.stores().counters().snapshot());
    }
}
