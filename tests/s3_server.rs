//! An S3 server in the test's own process: `s3s` with files in a temporary folder behind it. Signatures are checked.
//! Included by tests with `#[path]`.

#![allow(dead_code, reason = "each test that includes this uses a part of it")]

use std::net::SocketAddr;
use std::path::PathBuf;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

/// Access key of every server.
pub const ACCESS_KEY: &str = "AKTESTTESTTEST";
/// Its secret.
pub const SECRET_KEY: &str = "secret/of+the=test";
/// The bucket that every server has.
pub const BUCKET: &str = "bucket";

/// A running server; ends when dropped.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    folder: tempfile::TempDir,
    connections: tokio::task::JoinSet<()>,
}

impl S3Server {
    /// Starts a server on a free port of the loopback address.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = tokio::task::JoinSet::new();
        connections.spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                open.spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
                while open.try_join_next().is_some() {}
            }
        });
        Self { address, folder, connections }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address that the server listens on.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the objects of the bucket are.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join(BUCKET)
    }

    /// What `--store-option` has to say to reach it.
    pub fn options(&self) -> Vec<String> {
        vec![
            format!("s3.endpoint={}", self.endpoint()),
            format!("s3.access_key_id={ACCESS_KEY}"),
            format!("s3.secret_access_key={SECRET_KEY}"),
            "s3.region=us-east-1".to_owned(),
        ]
    }
}
