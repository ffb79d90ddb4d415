//! Files of the output: there, no others, the bytes and the schema that were committed.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStoreExt};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use sha2::{Digest, Sha256};
use slicemill_io::{Dataset, FileRecord, Ledger, OutputStore, ParquetObject, dataset_parts, schema_sha256};

use crate::ExecError;
use crate::freeze::FrozenJob;
use crate::job::hex;

use super::Check;
use super::check::Finding;

/// Key of the schema's digest in the metadata of a file.
const SCHEMA_KEY: &str = "slicemill.schema_sha256";

/// The checks of all files.
pub(super) async fn check(output: &OutputStore, job: &FrozenJob, ledger: &Ledger) -> Result<Vec<Check>, ExecError> {
    let files = ledger.files().await?;
    let mut bytes = Finding::new("files are the bytes that were committed");
    let mut schemas = Finding::new("files have the schema of this job");
    let mut total = 0;
    for file in files.values() {
        let Some(object) = output.head(&file.name).await? else {
            bytes.wrong(|| format!("{} is missing", file.name));
            continue;
        };
        total += object.size;
        match digest(output, &object).await {
            Ok(now) => bytes.expect(now == file.sha256 && object.size == file.bytes, || changed(file, &object, &now)),
            Err(error) => bytes.wrong(|| format!("{}: {error}", file.name)),
        }
        check_schema(output, job, file, &object, &mut schemas).await;
    }
    let mut strangers = Finding::new("there are no other files");
    let known: BTreeSet<&str> = files.keys().map(String::as_str).collect();
    for dataset in Dataset::ALL {
        for part in dataset_parts(output, *dataset).await? {
            let name = format!("{}/{}", dataset.name(), part.location.filename().unwrap_or_default());
            strangers.expect(known.contains(name.as_str()), || format!("{name} is not in the ledger"));
        }
    }
    Ok(vec![
        bytes.done(format!("{} files, {total} bytes", files.len())),
        schemas.done(format!("{} files", files.len())),
        strangers.done(format!("{} files", files.len())),
    ])
}

fn changed(file: &FileRecord, object: &ObjectMeta, now: &str) -> String {
    format!(
        "{} has {} bytes (SHA-256 {now}), committed were {} (SHA-256 {})",
        file.name, object.size, file.bytes, file.sha256
    )
}

/// SHA-256 of an object, hex, read as a stream.
async fn digest(output: &OutputStore, object: &ObjectMeta) -> Result<String, object_store::Error> {
    let mut hash = Sha256::new();
    let mut bytes = output.object_store().get(&object.location).await?.into_stream();
    while let Some(part) = bytes.try_next().await? {
        hash.update(&part);
    }
    Ok(hex(&hash.finalize()))
}

async fn check_schema(
    output: &OutputStore,
    job: &FrozenJob,
    file: &FileRecord,
    object: &ObjectMeta,
    schemas: &mut Finding,
) {
    let Some(dataset) = file.name.split('/').next().and_then(Dataset::parse) else {
        return schemas.wrong(|| format!("{} belongs to no dataset", file.name));
    };
    let mut reader = ParquetObject::new(output.clone(), object);
    let metadata = ArrowReaderMetadata::load_async(&mut reader, ArrowReaderOptions::new()).await;
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(error) => return schemas.wrong(|| format!("{} is not Parquet: {error}", file.name)),
    };
    let footer = metadata.metadata().file_metadata();
    let pairs = footer.key_value_metadata().map_or(&[][..], Vec::as_slice);
    let value = |key: &str| pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
    let expected = schema_sha256(dataset, &job.content_spec());
    schemas.expect(value(SCHEMA_KEY).as_ref() == Some(&expected), || format!("{} has another schema", file.name));
    let fingerprint = value("slicemill.job");
    schemas.expect(fingerprint.as_ref() == Some(&job.fingerprint), || format!("{} is of another job", file.name));
    let rows = u64::try_from(footer.num_rows()).unwrap_or_default();
    schemas.expect(rows == file.rows, || format!("{} has {rows} rows, committed were {}", file.name, file.rows));
}
