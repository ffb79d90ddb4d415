//! An S3 server over a temporary folder, which checks signatures and keeps the promises on which exactly-once rests.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ETAG, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use hyper::{Method, Request, Response, StatusCode};
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::sync::RwLock;

use super::serving::{Serving, serve_http};

const BUCKET: &str = "slicemill";
const ACCESS_KEY: &str = "AKIDEXAMPLETESTS";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYTESTSECRET";
const LOCKS: usize = 64;

/// An S3 server with one bucket, a folder on disk: what is written there is served, what is put can be read there.
///
/// Objects that were put have their tags kept beside them, so a test that changes an object must do so by a file that it
/// wrote itself. Keys are at most about 170 bytes long, because the tag of an object is in a file named after it.
#[derive(Debug)]
pub struct S3Server {
    serving: Serving,
    root: TempDir,
}

impl S3Server {
    /// Starts a server that answers signed requests alone.
    pub fn start() -> Self {
        Self::serve(true)
    }

    /// Starts a server that answers everyone, for clients that cannot sign.
    pub fn start_open() -> Self {
        Self::serve(false)
    }

    fn serve(signed: bool) -> Self {
        let root = tempfile::tempdir().expect("folder");
        fs::create_dir(root.path().join(BUCKET)).expect("bucket");
        let mut builder = S3ServiceBuilder::new(FileSystem::new(root.path()).expect("a folder to serve"));
        if signed {
            builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        }
        let locks = (0..LOCKS).map(|_| RwLock::new(())).collect();
        let store = Arc::new(Store { service: builder.build(), locks });
        let serving = Serving::start(move |stream| {
            let store = Arc::clone(&store);
            async move { serve_http(stream, |request| store.answer(request)).await }
        });
        Self { serving, root }
    }

    /// URL of an object or a prefix.
    pub fn url(&self, key: &str) -> String {
        format!("s3://{BUCKET}/{key}")
    }

    /// Where the server listens.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.serving.address())
    }

    /// The folder that holds the objects of the bucket.
    pub fn bucket(&self) -> PathBuf {
        self.root.path().join(BUCKET)
    }

    /// The folder whose files have the paths of the server's URLs.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// What a child process needs in its environment to reach the server.
    pub fn env(&self) -> Vec<(String, String)> {
        environment(&self.endpoint(), ACCESS_KEY, SECRET_KEY)
    }
}

/// The environment of a client of an S3 server at `endpoint`.
pub fn environment(endpoint: &str, access_key: &str, secret_key: &str) -> Vec<(String, String)> {
    let pairs = [
        ("AWS_ACCESS_KEY_ID", access_key),
        ("AWS_SECRET_ACCESS_KEY", secret_key),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("NO_PROXY", "127.0.0.1"),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

struct Store {
    service: S3Service,
    /// The file server looks whether an object is there and then puts it; S3 does both at once. Writers of a key are
    /// alone with it, and so readers never see the bytes of one version with the tag of another.
    locks: Vec<RwLock<()>>,
}

impl Store {
    async fn answer(self: &Store, request: Request<Incoming>) -> Response<Body> {
        let mut hasher = DefaultHasher::new();
        request.uri().path().hash(&mut hasher);
        let lock = &self.locks[hasher.finish() as usize % LOCKS];
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let condition = |name: HeaderName| request.headers().get(name).filter(|_| reads).cloned();
        let (if_match, if_none_match) = (condition(IF_MATCH), condition(IF_NONE_MATCH));
        let call = self.service.call(request.map(Body::from));
        let answered = if reads {
            let _shared = lock.read().await;
            call.await
        } else {
            let _alone = lock.write().await;
            call.await
        };
        let Ok(response) = answered else { return empty(StatusCode::INTERNAL_SERVER_ERROR, None) };
        conditional(response, if_match.as_ref(), if_none_match.as_ref())
    }
}

/// The conditions of a read, which the file server leaves out.
fn conditional(response: Response<Body>, same: Option<&HeaderValue>, other: Option<&HeaderValue>) -> Response<Body> {
    if !response.status().is_success() {
        return response;
    }
    let tag = response.headers().get(ETAG).cloned();
    if same.is_some_and(|wanted| Some(wanted) != tag.as_ref()) {
        return empty(StatusCode::PRECONDITION_FAILED, None);
    }
    if other.is_some_and(|known| Some(known) == tag.as_ref()) {
        return empty(StatusCode::NOT_MODIFIED, tag);
    }
    response
}

fn empty(status: StatusCode, tag: Option<HeaderValue>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if let Some(tag) = tag {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::client::send;

    #[test]
    fn requests_without_a_signature_are_refused() {
        let server = S3Server::start();
        fs::write(server.bucket().join("a.txt"), "hello").expect("written");
        let answer = send(&server.endpoint(), "GET", "/slicemill/a.txt", &[], b"");
        assert_eq!(answer.status, 403, "{answer:?}");
        assert!(answer.text().contains("AccessDenied"), "{answer:?}");
    }

    #[test]
    fn objects_are_files_of_the_bucket() {
        let server = S3Server::start_open();
        fs::create_dir(server.bucket().join("in")).expect("folder");
        fs::write(server.bucket().join("in/a b.txt"), "0123456789").expect("written");
        let get = |headers: &[(&str, &str)]| send(&server.endpoint(), "GET", "/slicemill/in/a%20b.txt", headers, b"");
        let whole = get(&[]);
        assert_eq!((whole.status, whole.text().as_str()), (200, "0123456789"));
        let part = get(&[("range", "bytes=2-4")]);
        assert_eq!((part.status, part.text().as_str()), (206, "234"));
        assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
        let tag = whole.header("etag").expect("a tag").to_owned();
        assert_eq!(get(&[("if-match", &tag)]).status, 200);
        assert_eq!(get(&[("if-match", "\"another\"")]).status, 412);
        assert_eq!(get(&[("if-none-match", &tag)]).status, 304);
        assert_eq!(send(&server.endpoint(), "PUT", "/slicemill/out/b.txt", &[], b"put").status, 200);
        assert_eq!(fs::read(server.bucket().join("out/b.txt")).expect("an object"), b"put");
    }

    /// What exactly-once rests on: of many writers of one new key, one wins.
    #[test]
    fn one_of_many_writers_of_a_key_wins() {
        let server = S3Server::start_open();
        let endpoint = server.endpoint();
        for round in 0..5 {
            let key = format!("/slicemill/contested-{round}");
            let put = |body: String| send(&endpoint, "PUT", &key, &[("if-none-match", "*")], body.as_bytes()).status;
            let statuses: Vec<u16> = std::thread::scope(|scope| {
                let writers: Vec<_> =
                    (0..8).map(|writer| scope.spawn(move || put(format!("writer {writer}")))).collect();
                writers.into_iter().map(|writer| writer.join().expect("an answer")).collect()
            });
            assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
            assert_eq!(statuses.iter().filter(|status| **status == 412).count(), 7, "{statuses:?}");
        }
    }
}
