//! Local files as a read-only object store that can name every file.
//!
//! `object_store`'s own local store cannot address names that are not UTF-8, contain control characters or end in `#`
//! and digits, and leaves such files out of listings without a word. Inputs are other people's files, so none of
//! them may be lost. Here an object's path is the path of its `file://` URL, still percent-encoded, and percent
//! encoding can spell any bytes.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use url::Url;

const STORE: &str = "local files";

/// Reads any local file. Only `get` and `head` are there; the etag is the modification time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LocalFiles;

/// The modification time in seconds and nanoseconds: what says that a local file is still the one that was listed.
pub(crate) fn modification_tag(metadata: &std::fs::Metadata) -> String {
    let Ok(modified) = metadata.modified() else { return String::new() };
    match modified.duration_since(UNIX_EPOCH) {
        Ok(after) => format!("{}.{:09}", after.as_secs(), after.subsec_nanos()),
        Err(before) => format!("-{}.{:09}", before.duration().as_secs(), before.duration().subsec_nanos()),
    }
}

/// The object path of a `file://` URL.
pub(crate) fn object_path(url: &Url) -> Result<ObjectPath> {
    Ok(ObjectPath::parse(url.path())?)
}

fn file_path(location: &ObjectPath) -> Result<PathBuf> {
    let url = Url::parse(&format!("file:///{location}")).map_err(|error| generic(error.into()))?;
    url.to_file_path().map_err(|()| generic(format!("{url} is not a local file").into()))
}

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Generic { store: STORE, source }
}

fn io_error(path: &std::path::Path, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound { path: path.display().to_string(), source: error.into() },
        _ => generic(error.into()),
    }
}

/// Opens a regular file. The kind is looked at first, because opening a pipe waits for a writer.
fn open(path: &std::path::Path) -> Result<(std::fs::File, std::fs::Metadata)> {
    let metadata = std::fs::metadata(path).map_err(|error| io_error(path, error))?;
    if !metadata.is_file() {
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "not a regular file");
        return Err(Error::NotFound { path: path.display().to_string(), source: source.into() });
    }
    let file = std::fs::File::open(path).map_err(|error| io_error(path, error))?;
    let metadata = file.metadata().map_err(|error| io_error(path, error))?;
    Ok((file, metadata))
}

fn read_only(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: STORE.to_owned() }
}

impl std::fmt::Display for LocalFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(STORE)
    }
}

#[async_trait]
impl ObjectStore for LocalFiles {
    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let path = file_path(location)?;
        let location = location.clone();
        tokio::task::spawn_blocking(move || {
            let (file, metadata) = open(&path)?;
            let modified = metadata.modified().map_err(|error| io_error(&path, error))?;
            let meta = ObjectMeta {
                location,
                last_modified: modified.into(),
                size: metadata.len(),
                e_tag: Some(modification_tag(&metadata)),
                version: None,
            };
            options.check_preconditions(&meta)?;
            let range = match options.range {
                Some(range) => range.as_range(meta.size).map_err(|error| generic(error.into()))?,
                None => 0..meta.size,
            };
            let payload = GetResultPayload::File(file, path);
            Ok(GetResult { payload, meta, range, attributes: Default::default() })
        })
        .await?
    }

    async fn put_opts(&self, _: &ObjectPath, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(read_only("put"))
    }

    async fn put_multipart_opts(&self, _: &ObjectPath, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(read_only("put"))
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<ObjectPath>>) -> BoxStream<'static, Result<ObjectPath>> {
        futures::stream::iter([Err(read_only("delete"))]).boxed()
    }

    fn list(&self, _: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        futures::stream::iter([Err(read_only("list"))]).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&ObjectPath>) -> Result<ListResult> {
        Err(read_only("list"))
    }

    async fn copy_opts(&self, _: &ObjectPath, _: &ObjectPath, _: CopyOptions) -> Result<()> {
        Err(read_only("copy"))
    }
}
