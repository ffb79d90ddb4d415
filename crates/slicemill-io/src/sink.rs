//! Writing an object piece by piece with bounded memory.

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use object_store::{MultipartUpload, ObjectStoreExt as _};
use sha2::{Digest as _, Sha256};

use crate::schema::hex;
use crate::{IoError, OutputStore};

/// Size of the parts of a large object. S3 wants at least 5 MiB, equal parts, and at most 10,000 of them.
pub(crate) const PART_BYTES: usize = 8 << 20;

/// What to do when the object is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Accept it when its bytes are the same, else `Conflict`.
    MustBeEqual,
    /// Replace it.
    Replace,
}

/// One object being written. Nothing is visible before [`finish`](Self::finish). Objects below one part are put at
/// once; larger ones are uploaded in parts, where stores know no put-if-absent: then an existing object is compared
/// before the upload is completed.
#[derive(Debug)]
pub(crate) struct ObjectSink {
    output: OutputStore,
    name: String,
    part_bytes: usize,
    pending: BytesMut,
    upload: Option<Box<dyn MultipartUpload>>,
    bytes: u64,
    digest: Sha256,
}

impl ObjectSink {
    pub(crate) fn new(output: OutputStore, name: impl Into<String>, part_bytes: usize) -> Self {
        let (pending, digest) = (BytesMut::new(), Sha256::new());
        Self { output, name: name.into(), part_bytes: part_bytes.max(1), pending, upload: None, bytes: 0, digest }
    }

    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), IoError> {
        self.digest.update(&bytes);
        self.bytes += bytes.len() as u64;
        self.pending.extend_from_slice(&bytes);
        while self.pending.len() >= self.part_bytes {
            let part = self.pending.split_to(self.part_bytes).freeze();
            self.put_part(part).await?;
        }
        Ok(())
    }

    /// Parts are tried again below the stores' clients, where their numbers are; see `stores::wire`.
    async fn put_part(&mut self, part: Bytes) -> Result<(), IoError> {
        self.output.lease_watch().check()?;
        let (output, name) = (&self.output, &self.name);
        let failed = |error| IoError::from_store("write", &output.show(name), error);
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => {
                let path = output.object_path(name)?;
                let begun = output
                    .retrying(name, || async { output.object_store().put_multipart(&path).await.map_err(failed) });
                none.insert(begun.await?)
            }
        };
        let put = upload.put_part(part.into()).await.map_err(failed);
        if put.is_err() {
            self.abort().await;
        }
        put
    }

    /// Gives up the upload, so that the store keeps no parts. That the store may be gone is why one is given up.
    async fn abort(&mut self) {
        if let Some(mut upload) = self.upload.take()
            && let Err(error) = upload.abort().await
        {
            tracing::debug!(%error, object = self.name, "an upload could not be given up");
        }
    }

    /// Makes the object visible. Returns its size and SHA-256 (hex).
    pub(crate) async fn finish(mut self, existing: Existing) -> Result<(u64, String), IoError> {
        let digest = hex(&self.digest.clone().finalize());
        if self.upload.is_some() {
            self.complete(existing, &digest).await?;
        } else {
            let bytes = std::mem::take(&mut self.pending).freeze();
            match existing {
                Existing::MustBeEqual => self.output.put_if_absent(&self.name, bytes).await?,
                Existing::Replace => self.output.put(&self.name, bytes).await?,
            }
        }
        Ok((self.bytes, digest))
    }

    async fn complete(&mut self, existing: Existing, digest: &str) -> Result<(), IoError> {
        if !self.pending.is_empty() {
            let part = std::mem::take(&mut self.pending).freeze();
            self.put_part(part).await?;
        }
        let there = match existing {
            Existing::MustBeEqual => digest_of_existing(&self.output, &self.name).await?,
            Existing::Replace => None,
        };
        match there {
            Some(there) => {
                self.abort().await;
                if there == digest { Ok(()) } else { Err(self.output.conflict(&self.name)) }
            }
            None => {
                self.output.lease_watch().check()?;
                let Some(mut upload) = self.upload.take() else { return Ok(()) };
                let Err(error) = upload.complete().await else { return Ok(()) };
                // The answer may have been lost: what stands there says so.
                let done = digest_of_existing(&self.output, &self.name).await;
                if done.is_ok_and(|there| there.as_deref() == Some(digest)) {
                    return Ok(());
                }
                self.upload = Some(upload);
                self.abort().await;
                Err(IoError::from_store("write", &self.output.show(&self.name), error))
            }
        }
    }
}

async fn digest_of_existing(output: &OutputStore, name: &str) -> Result<Option<String>, IoError> {
    if !output.exists(name).await? {
        return Ok(None);
    }
    digest_of(output, name).await.map(Some)
}

/// SHA-256 of an object, hex, read with bounded memory.
pub(crate) async fn digest_of(output: &OutputStore, name: &str) -> Result<String, IoError> {
    let failed = |error| IoError::from_store("read", &output.show(name), error);
    let path = output.object_path(name)?;
    output
        .retrying_long(name, || async {
            let mut body = output.object_store().get(&path).await.map_err(failed)?.into_stream();
            let mut digest = Sha256::new();
            while let Some(piece) = body.try_next().await.map_err(failed)? {
                digest.update(&piece);
            }
            Ok(hex(&digest.finalize()))
        })
        .await
}
