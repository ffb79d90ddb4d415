//! Tests of stores against an S3 server, and of Google Cloud Storage against a server that answers like its XML
//! interface.

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::ObjectStoreExt as _;

use super::s3_server::{ACCESS_KEY, S3Server, SECRET_KEY};
use super::scripted_server::{Reply, ScriptedServer};
use super::*;
use crate::sink::{Existing, ObjectSink};
use crate::{InputEntry, IoErrorKind, ObjectFetch, OutputLock, OutputStore};

fn stores(server: &S3Server) -> Stores {
    Stores::new(StoreOptions::parse(server.options()).unwrap())
}

fn output(_: &S3Server, stores: &Stores) -> OutputStore {
    OutputStore::create(&Location::parse("s3://bucket/jobs/one").unwrap(), stores).unwrap()
}

#[tokio::test]
async fn odd_keys_are_listed_and_read_back() {
    let server = S3Server::start().await;
    let stores = stores(&server);
    let root = Location::parse("s3://bucket").unwrap();
    let (store, _) = stores.resolve(root.url()).unwrap();
    let keys = [
        "plain.jpg",
        "a b.jpg",
        "100%.jpg",
        "%20.jpg",
        "é/日本.png",
        "a#b?c=d&e.jpg",
        "a+b.jpg",
        "x=y;z:@!$'()*,~.jpg",
    ];
    for key in keys {
        let path = ObjectPath::parse(key).unwrap();
        store.put(&path, Bytes::from(key.to_owned()).into()).await.unwrap();
    }
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    assert_eq!(listed.len(), keys.len());
    let fetch = ObjectFetch::new(stores.clone(), RetryBudget::default());
    for meta in listed {
        let url = object_url(&root.store_url(), &meta.location);
        let entry = InputEntry::object("x", &url, meta.size, meta.e_tag.clone().unwrap_or_default());
        assert_eq!(fetch.read(&entry).await.unwrap(), meta.location.as_ref(), "{url}");
        assert_eq!(fetch.read_prefix(&entry, 2).await.unwrap(), meta.location.as_ref().as_bytes()[..2]);
        let now = fetch.describe("x", &url).await.unwrap();
        assert_eq!((now.bytes, now.tag.is_empty()), (entry.bytes, false));
        // Listed by its time only.
        let entry = InputEntry { tag: meta.last_modified.to_rfc3339(), ..entry };
        assert_eq!(fetch.read(&entry).await.unwrap(), meta.location.as_ref(), "{url}");
    }
    let missing = InputEntry::object("x", "s3://bucket/none.jpg", 1, "");
    let error = fetch.read(&missing).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (IoErrorKind::NotFound, 1));
    // One client for the bucket.
    let again = stores.resolve(&Url::parse("s3://bucket/other").unwrap()).unwrap().0;
    assert!(Arc::ptr_eq(&store, &again));
}

#[tokio::test]
async fn wrong_keys_are_access_denied_and_never_shown() {
    let server = S3Server::start().await;
    let options = StoreOptions::parse([
        format!("s3.endpoint={}", server.endpoint()),
        format!("s3.access_key_id={ACCESS_KEY}"),
        "s3.secret_access_key=hunter2".to_owned(),
    ]);
    let fetch = ObjectFetch::new(Stores::new(options.unwrap()), RetryBudget::default());
    let error = fetch.read(&InputEntry::object("x", "s3://bucket/x", 1, "")).await.unwrap_err();
    assert_eq!(error.row_error().class, slicemill_core::ErrorClass::AccessDenied, "{}", error.message);
    assert!(error.message.contains("SignatureDoesNotMatch"), "{}", error.message);
    for secret in ["hunter2", ACCESS_KEY, SECRET_KEY] {
        assert!(!error.message.contains(secret), "{}", error.message);
    }
}

#[tokio::test]
async fn the_environment_and_profiles_give_credentials() {
    let server = S3Server::start().await;
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    let credentials = format!("[mine]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
    let config = format!("[profile mine]\nregion = eu-west-1\nendpoint_url = {}\n", server.endpoint());
    std::fs::write(home.path().join(".aws/config"), config).unwrap();
    let endpoint = server.endpoint();
    let home = home.path().display().to_string();
    for variables in [
        vec![
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_ENDPOINT_URL", &endpoint),
            ("AWS_REGION", "us-east-1"),
        ],
        vec![("HOME", home.as_str()), ("AWS_PROFILE", "mine")],
    ] {
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let stores = Stores::new(StoreOptions::new().with_environment(variables));
        output(&server, &stores).put("x.json", Bytes::from_static(b"x")).await.unwrap();
    }
}

#[tokio::test]
async fn objects_are_created_once_and_known_again() {
    let server = S3Server::start().await;
    let stores = stores(&server);
    let output = output(&server, &stores);
    let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"two"));
    output.put_if_absent("a/x.json", one.clone()).await.unwrap();
    output.put_if_absent("a/x.json", one.clone()).await.unwrap();
    let error = output.put_if_absent("a/x.json", two.clone()).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::Conflict);
    assert!(error.message.contains("s3://bucket/jobs/one/a/x.json"), "{}", error.message);
    assert_eq!(std::fs::read(server.folder().join("jobs/one/a/x.json")).unwrap(), b"one");
    output.put("a/x.json", two.clone()).await.unwrap();
    assert_eq!(output.get("a/x.json").await.unwrap(), two);
    let names: Vec<_> = output.list("a").await.unwrap().into_iter().map(|meta| meta.location.to_string()).collect();
    assert_eq!(names, ["a/x.json"]);
    output.delete("a/x.json").await.unwrap();
    output.delete("a/x.json").await.unwrap();
    assert_eq!(output.find("a/x.json").await.unwrap(), None);
    let counted = stores.counters().snapshot();
    assert!(counted.bytes_written >= 6 && counted.by_code.is_empty(), "{counted:?}");
}

#[tokio::test]
async fn large_objects_are_uploaded_in_parts() {
    let server = S3Server::start().await;
    let output = output(&server, &stores(&server));
    let bytes: Bytes = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    for round in 0..2 {
        let mut sink = ObjectSink::new(output.clone(), "big.parquet", 5 << 20);
        for piece in bytes.chunks(1 << 20) {
            sink.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        let (written, _) = sink.finish(Existing::MustBeEqual).await.unwrap();
        assert_eq!(written, 12_000_000, "{round}");
    }
    assert_eq!(output.get("big.parquet").await.unwrap(), bytes);
    let mut sink = ObjectSink::new(output, "big.parquet", 5 << 20);
    sink.write(Bytes::from(vec![0; 6 << 20])).await.unwrap();
    assert_eq!(sink.finish(Existing::MustBeEqual).await.unwrap_err().kind, IoErrorKind::Conflict);
}

#[tokio::test]
async fn a_lease_keeps_a_second_process_out_of_a_bucket() {
    let server = S3Server::start().await;
    let quick = Duration::from_millis(150);
    let opened = || output(&server, &stores(&server)).with_lease_period(quick);
    let (first, second) = (opened(), opened());
    let name = "_slicemill/lease.json";
    let held = lease::Lease::take(&first, name).await.unwrap();
    let before = std::fs::read_to_string(server.folder().join("jobs/one").join(name)).unwrap();
    let error = lease::Lease::take(&second, name).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::Locked);
    tokio::time::sleep(quick * 3).await;
    assert_ne!(std::fs::read_to_string(server.folder().join("jobs/one").join(name)).unwrap(), before, "not renewed");
    first.put("x.json", Bytes::from_static(b"x")).await.unwrap();
    held.release().await.unwrap();
    let whole = second.lock().await.unwrap();
    whole.release().await.unwrap();
    OutputLock::take_part(&second, "1-of-2").await.unwrap().release().await.unwrap();
    assert_eq!(second.list("_slicemill").await.unwrap().len(), 0);
}

/// A server that stores one object and knows no conditions.
fn forgetful(answer: fn(bool) -> u16) -> ScriptedServer {
    let stored = Mutex::new(None::<Vec<u8>>);
    ScriptedServer::start(move |_, request| {
        let mut stored = stored.lock().unwrap();
        match (request.method.as_str(), stored.as_ref()) {
            ("PUT", _) => {
                let status = answer(request.headers.contains_key("if-none-match"));
                if status == 200 {
                    *stored = Some(request.body.clone());
                }
                Reply::status(status).header("etag", "\"t\"")
            }
            (_, Some(body)) => Reply::serve(request, body)
                .header("etag", "\"t\"")
                .header("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT"),
            (_, None) => Reply::status(404),
        }
    })
}

fn at(server: &ScriptedServer, options: &[&str]) -> OutputStore {
    let mut pairs = vec![format!("s3.endpoint={}", server.url("")), "s3.skip_signature=true".to_owned()];
    pairs.extend(options.iter().map(|option| (*option).to_owned()));
    let stores = Stores::new(StoreOptions::parse(pairs).unwrap());
    OutputStore::create(&Location::parse("s3://bucket").unwrap(), &stores).unwrap()
}

#[tokio::test]
async fn servers_that_cannot_create_are_looked_at_first() {
    for answer in [|conditional| if conditional { 501 } else { 200 }, |conditional| if conditional { 400 } else { 200 }]
    {
        let server = forgetful(answer);
        let output = at(&server, &[]);
        let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"two"));
        output.put_if_absent("x.json", one.clone()).await.unwrap();
        output.put_if_absent("x.json", one).await.unwrap();
        assert_eq!(output.put_if_absent("x.json", two).await.unwrap_err().kind, IoErrorKind::Conflict);
        let puts: Vec<_> = server.requests().into_iter().filter(|request| request.method == "PUT").collect();
        // Asked once whether it can, never again.
        assert_eq!(puts.iter().filter(|put| put.headers.contains_key("if-none-match")).count(), 1);
        assert_eq!(puts.len(), 2);
    }
}

#[tokio::test]
async fn a_put_that_is_reported_failed_though_it_succeeded_is_recognised() {
    let stored = Mutex::new(None::<Vec<u8>>);
    let server = ScriptedServer::start(move |_, request| {
        let mut stored = stored.lock().unwrap();
        match (request.method.as_str(), stored.as_ref()) {
            ("PUT", None) => {
                *stored = Some(request.body.clone());
                Reply::status(500)
            }
            ("PUT", Some(_)) => Reply::status(412),
            (_, Some(body)) => {
                Reply::ok(body.clone()).header("etag", "\"t\"").header("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT")
            }
            (_, None) => Reply::status(404),
        }
    });
    let once = at(&server, &["s3.retry_attempts=1"]);
    once.put_if_absent("x.json", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(server.requests().len(), 2);
    at(&server, &[]).put_if_absent("x.json", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(once.put_if_absent("x.json", Bytes::from_static(b"y")).await.unwrap_err().kind, IoErrorKind::Conflict);
}

#[tokio::test]
async fn full_stores_say_what_to_do() {
    let server = ScriptedServer::start(|_, _| Reply::status(507));
    let error = at(&server, &[]).put("x.json", Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!((error.kind, error.fate), (IoErrorKind::StorageFull, slicemill_core::Fate::Fatal));
    assert!(error.message.contains("run the same command again"), "{}", error.message);
}

#[tokio::test]
async fn web_servers_cannot_be_outputs() {
    let error = OutputStore::create(&Location::parse("https://host/x").unwrap(), &Stores::default()).unwrap_err();
    assert!(error.message.contains("s3://"), "{}", error.message);
}

/// Parts of an upload fail and are sent again; the client above never knows.
#[tokio::test]
async fn parts_of_an_upload_are_tried_again() {
    let server = ScriptedServer::start(|number, request| match (request.method.as_str(), request.target.as_str()) {
        ("POST", target) if target.contains("uploads") => {
            Reply::ok("<InitiateMultipartUploadResult><UploadId>7</UploadId></InitiateMultipartUploadResult>")
        }
        ("PUT", _) if number % 2 == 1 => Reply::status(503),
        ("PUT", _) => Reply::ok("").header("etag", "\"p\""),
        ("POST", _) if number % 2 == 1 => Reply::ok("<Error><Code>InternalError</Code></Error>"),
        ("POST", _) => Reply::ok("<CompleteMultipartUploadResult><ETag>\"t\"</ETag></CompleteMultipartUploadResult>"),
        _ => Reply::status(404),
    });
    let output = at(&server, &[]);
    let mut sink = ObjectSink::new(output, "big.parquet", 1000);
    sink.write(Bytes::from(vec![1; 2500])).await.unwrap();
    sink.finish(Existing::Replace).await.unwrap();
    let sent = server.requests();
    let parts: Vec<_> = sent.iter().filter(|request| request.method == "PUT").collect();
    let done = |part: &str| parts.iter().filter(|put| put.target.contains(&format!("partNumber={part}"))).count();
    assert!(parts.len() > 3 && (1..=3).all(|part| done(&part.to_string()) >= 1), "{parts:?}");
}

/// A key made for this test.
const KEY_FILE: &str = include_str!("../../../../tests/data/gcs_service_account.json");

/// The claims of a token, when the key of the key file has signed it for its account (RS256, RFC 7518).
fn claims(authorization: &str) -> Option<serde_json::Value> {
    let token = authorization.strip_prefix("Bearer ")?;
    let (message, _) = token.rsplit_once('.')?;
    let mut parts = token.split('.');
    let [head, claims, signature] = [parts.next()?, parts.next()?, parts.next()?].map(base64);
    let head: serde_json::Value = serde_json::from_slice(&head).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let signed = public_key().verify(message.as_bytes(), &signature).is_ok();
    (signed && head["alg"] == "RS256" && head["kid"] == "test" && claims["iss"] == "test@test.iam.gserviceaccount.com")
        .then_some(claims)
}

/// The public half of the key file's key.
fn public_key() -> ring::signature::UnparsedPublicKey<Vec<u8>> {
    let file: serde_json::Value = serde_json::from_str(KEY_FILE).unwrap();
    let pem = file["private_key"].as_str().unwrap().lines().filter(|line| !line.starts_with('-')).collect::<String>();
    let der = base64(pem.trim_end_matches('=').replace('+', "-").replace('/', "_").as_str());
    let pair = ring::signature::RsaKeyPair::from_pkcs8(&der).unwrap();
    let public = ring::signature::KeyPair::public_key(&pair).as_ref().to_vec();
    ring::signature::UnparsedPublicKey::new(&ring::signature::RSA_PKCS1_2048_8192_SHA256, public)
}

#[test]
fn a_token_of_another_signature_is_none() {
    // {"alg":"RS256","kid":"test"} and {"iss":"test@test.iam.gserviceaccount.com"}, and no signature of theirs.
    let (head, body) =
        ("eyJhbGciOiJSUzI1NiIsImtpZCI6InRlc3QifQ", "eyJpc3MiOiJ0ZXN0QHRlc3QuaWFtLmdzZXJ2aWNlYWNjb3VudC5jb20ifQ");
    assert_eq!(claims(&format!("Bearer {head}.{body}.{}", "A".repeat(342))), None);
}

/// Base64 for URLs, without padding.
fn base64(text: &str) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for byte in text.bytes() {
        bits = bits << 6 | u32::try_from(alphabet.iter().position(|letter| *letter == byte).unwrap()).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 255).unwrap());
        }
    }
    bytes
}

#[tokio::test]
async fn google_gets_tokens_signed_with_the_account_s_key() {
    use slicemill_core::ErrorClass;
    let time = "Wed, 21 Oct 2015 07:28:00 GMT";
    let server = ScriptedServer::start(move |_, request| {
        let scoped = request.headers.get("authorization").and_then(|value| claims(value));
        if !scoped.is_some_and(|claims| {
            claims["scope"].as_str().is_some_and(|scope| scope.starts_with("https://www.googleapis.com/auth/"))
        }) {
            return Reply::status(401);
        }
        let tagged = |reply: Reply| reply.header("etag", "\"t\"").header("last-modified", time);
        match (request.method.as_str(), request.target.as_str()) {
            ("GET", "/bucket/a%20b.jpg" | "/bucket/a%20b%2Ejpg") => tagged(Reply::serve(request, b"content")),
            ("GET", "/bucket/denied") => Reply { status: 403, ..Reply::ok("<Error><Code>AccessDenied</Code></Error>") },
            ("PUT", _) => match request.headers.get("x-goog-if-generation-match").map(String::as_str) {
                Some("0") => Reply::status(412),
                _ => tagged(Reply::ok("")).header("x-goog-generation", "1"),
            },
            ("GET", target) if target.starts_with("/bucket/out%2Fx") => tagged(Reply::ok("x")),
            _ => Reply::status(404),
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.json");
    std::fs::write(&file, KEY_FILE).unwrap();
    let variables = [("GOOGLE_APPLICATION_CREDENTIALS".to_owned(), file.display().to_string())];
    let options = StoreOptions::parse([format!("gs.base_url={}", server.url(""))]).unwrap().with_environment(variables);
    let stores = Stores::new(options);
    let fetch = ObjectFetch::new(stores.clone(), RetryBudget::default());
    let read = fetch.read(&InputEntry::object("x", "gs://bucket/a%20b.jpg", 7, "t")).await;
    assert_eq!(read.unwrap(), "content");
    let error = fetch.read(&InputEntry::object("x", "gs://bucket/denied", 1, "")).await.unwrap_err();
    assert_eq!(error.row_error().class, ErrorClass::AccessDenied);
    assert!(error.message.contains("AccessDenied") && !error.message.contains("Bearer"), "{}", error.message);
    let output = OutputStore::create(&Location::parse("gs://bucket/out").unwrap(), &stores).unwrap();
    output.put_if_absent("x.json", Bytes::from_static(b"x")).await.unwrap();
    let error = output.put_if_absent("x.json", Bytes::from_static(b"y")).await.unwrap_err();
    assert_eq!(error.kind, IoErrorKind::Conflict);
}
