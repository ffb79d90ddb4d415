//! Tests of `web`: redirects and private addresses.

use super::super::Stores;
use super::super::scripted_server::{Reply, ScriptedServer};
use super::*;
use crate::{InputEntry, IoErrorKind, ObjectFetch, RetryBudget};
use slicemill_core::ErrorClass;

fn entry(url: &str) -> InputEntry {
    InputEntry { estimated: true, ..InputEntry::object("x", url, 10, "") }
}

fn fetch(stores: Stores) -> ObjectFetch {
    ObjectFetch::new(stores, RetryBudget { attempts_max: 2, ..RetryBudget::default() })
}

fn allowing(server: &ScriptedServer) -> Stores {
    Stores::default().allowing([&Url::parse(&server.url("/")).unwrap()])
}

#[tokio::test]
async fn private_servers_are_not_even_asked_unless_the_user_names_them() {
    let server = ScriptedServer::start(|_, _| Reply::ok("secret"));
    let port = server.address().port();
    for url in [
        server.url("/a?b=hunter2"),
        format!("http://localhost:{port}/a"),
        format!("http://[::ffff:127.0.0.1]:{port}/a"),
    ] {
        let error = fetch(Stores::default()).read(&entry(&url)).await.unwrap_err();
        assert_eq!((error.row_error().class, error.attempts), (ErrorClass::LocationRefused, 1), "{}", error.message);
        assert!(error.message.contains("http.allow_hosts") && !error.message.contains("hunter2"), "{}", error.message);
    }
    assert!(server.requests().is_empty());
    assert_eq!(fetch(allowing(&server)).read(&entry(&server.url("/a"))).await.unwrap(), "secret");
    let options = StoreOptions::parse([format!("http.allow_hosts=other:1, localhost:{port}")]).unwrap();
    let url = format!("http://localhost:{port}/a");
    assert_eq!(fetch(Stores::new(options)).read(&entry(&url)).await.unwrap(), "secret");
}

#[tokio::test]
async fn redirects_are_followed_and_every_hop_is_looked_at() {
    let inside = ScriptedServer::start(|_, _| Reply::ok("secret"));
    let target = inside.url("/secret");
    let server = ScriptedServer::start(move |_, request| match request.target.as_str() {
        "/inside" => Reply::status(302).header("location", &target),
        "/file" => Reply::status(302).header("location", "file:///etc/passwd"),
        "/metadata" => Reply::status(302).header("location", "http://169.254.169.254/latest"),
        "/userinfo" => Reply::status(302).header("location", "http://me:pw@8.8.8.8/x"),
        "/nowhere" => Reply::status(302),
        "/a" => Reply::status(301).header("location", "b?c=d"),
        "/b?c=d" => Reply::status(307).header("location", "/c#fragment"),
        _ => Reply::ok("content"),
    });
    let fetch = fetch(allowing(&server));
    assert_eq!(fetch.read(&entry(&server.url("/a"))).await.unwrap(), "content");
    for path in ["/inside", "/file", "/metadata", "/userinfo"] {
        let error = fetch.read(&entry(&server.url(path))).await.unwrap_err();
        assert_eq!((error.row_error().class, error.attempts), (ErrorClass::LocationRefused, 1), "{}", error.message);
    }
    assert!(inside.requests().is_empty());
    let error = fetch.read(&entry(&server.url("/nowhere"))).await.unwrap_err();
    assert!(error.message.contains("nowhere"), "{}", error.message);
}

#[tokio::test]
async fn redirects_end() {
    let server = ScriptedServer::start(|_, _| Reply::status(302).header("location", "/again"));
    let fetch = fetch(allowing(&server));
    let error = fetch.read(&entry(&server.url("/"))).await.unwrap_err();
    assert!(error.message.contains("more than 10 times"), "{}", error.message);
    assert_eq!((server.requests().len(), error.attempts), (11, 1));
    assert_eq!(fetch.stores().counters().snapshot().by_code["redirects"], 1);
}

#[tokio::test]
async fn odd_urls_are_asked_for_as_they_are_written() {
    let server = ScriptedServer::start(|_, request| Reply::ok(request.target.clone()));
    let fetch = fetch(allowing(&server));
    for path in ["/a%20b//c/?x=%2F&y=1+2", "/", "//x", "/%E6%97%A5?q", "/a;b=c,d@e:f!$'()*", "/x%23y%3Fz%25"] {
        assert_eq!(fetch.read(&entry(&server.url(path))).await.unwrap(), path);
        let placed = crate::Place::At { offset: 0, bytes: 1 }.join(&server.url(path));
        let error = fetch.read(&entry(&placed)).await;
        assert_eq!(error.unwrap(), "/", "{path}");
    }
}

#[tokio::test]
async fn objects_are_described_with_head_or_without() {
    let server = ScriptedServer::start(|_, request| match (request.method.as_str(), request.target.as_str()) {
        ("HEAD", "/no-head") => Reply::status(405),
        ("HEAD", "/signed") => Reply::status(403),
        (_, "/missing") => Reply::status(404),
        (_, "/weak") => Reply::ok("abc").header("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT"),
        _ => Reply::ok("abc").header("etag", "\"t\""),
    });
    let fetch = fetch(allowing(&server));
    for (path, tag) in
        [("/a", "\"t\""), ("/no-head", "\"t\""), ("/signed", "\"t\""), ("/weak", "Wed, 21 Oct 2015 07:28:00 GMT")]
    {
        let entry = fetch.describe("x", &server.url(path)).await.unwrap();
        assert_eq!((entry.bytes, entry.tag.as_str(), entry.estimated), (3, tag, false), "{path}");
        assert_eq!(fetch.read(&entry).await.unwrap(), "abc");
    }
    let error = fetch.describe("x", &server.url("/missing")).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::NotFound);
}

#[test]
fn options_that_mean_nothing_for_web_servers_are_refused() {
    let options = StoreOptions::parse(["http.pool_max_idle_per_host=3"]).unwrap();
    let error = Stores::new(options).resolve(&Url::parse("http://example.com/x").unwrap()).unwrap_err();
    assert!(error.message.contains("does nothing"), "{}", error.message);
    for (text, expected) in [("7", 7000), ("500ms", 500), ("2 m", 120_000), ("1.5s", 1500)] {
        assert_eq!(seconds(text), Some(Duration::from_millis(expected)), "{text}");
    }
    assert_eq!(seconds("soon"), None);
}
