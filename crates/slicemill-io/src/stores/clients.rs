//! Making the clients of buckets and containers.

use std::str::FromStr as _;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::location::{Family, shown_url};
use super::options::StoreOptions;
use crate::{IoError, IoErrorKind};

/// The client of the bucket or container of `url`.
pub(crate) fn build(family: Family, url: &Url, options: &StoreOptions) -> Result<Arc<dyn ObjectStore>, IoError> {
    let bucket = url.host_str().unwrap_or_default();
    let failed = |error: object_store::Error| {
        let message = format!("the client of {} cannot be made: {error}", shown_url(url.as_str()));
        IoError::fatal(IoErrorKind::Invalid, message)
    };
    let store: Arc<dyn ObjectStore> = match family {
        Family::S3 => Arc::new(s3(options)?.with_bucket_name(bucket).build().map_err(failed)?),
        Family::Gcs => Arc::new(gcs(options)?.with_bucket_name(bucket).build().map_err(failed)?),
        Family::Azure => Arc::new(azure(options, url)?.build().map_err(failed)?),
        Family::Local | Family::Http => {
            return Err(super::invalid(format!("{} has no bucket", shown_url(url.as_str()))));
        }
    };
    Ok(store)
}

/// No retries: ours rule, and must see every failure.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Bodies of any length: what stalls is noticed by our own timeouts.
fn plain_client() -> ClientOptions {
    ClientOptions::new().with_timeout_disabled()
}

fn s3(options: &StoreOptions) -> Result<AmazonS3Builder, IoError> {
    let mut builder = AmazonS3Builder::new().with_retry(no_retries()).with_client_options(plain_client());
    let option = options.client_options(Family::S3).map(|(name, value)| (name.to_owned(), value));
    for (name, value) in options.variables("AWS_").chain(option) {
        if let Ok(key) = AmazonS3ConfigKey::from_str(&name) {
            builder = builder.with_config(key, value);
        }
    }
    Ok(builder)
}

fn gcs(options: &StoreOptions) -> Result<GoogleCloudStorageBuilder, IoError> {
    let mut builder = GoogleCloudStorageBuilder::new().with_retry(no_retries()).with_client_options(plain_client());
    let option = options.client_options(Family::Gcs).map(|(name, value)| (name.to_owned(), value));
    for (name, value) in options.variables("GOOGLE_").chain(option) {
        if let Ok(key) = GoogleConfigKey::from_str(&name) {
            builder = builder.with_config(key, value);
        }
    }
    Ok(builder)
}

fn azure(options: &StoreOptions, url: &Url) -> Result<MicrosoftAzureBuilder, IoError> {
    let mut builder = MicrosoftAzureBuilder::new().with_retry(no_retries()).with_client_options(plain_client());
    let option = options.client_options(Family::Azure).map(|(name, value)| (name.to_owned(), value));
    for (name, value) in options.variables("AZURE_").chain(option) {
        if let Ok(key) = AzureConfigKey::from_str(&name) {
            builder = builder.with_config(key, value);
        }
    }
    let mut container = url.clone();
    container.set_path("/");
    Ok(match url.scheme() {
        "azure" => builder.with_container_name(url.host_str().unwrap_or_default()),
        _ => builder.with_url(container.as_str()),
    })
}

#[allow(dead_code, reason = "used by the http client")]
fn connect_timeout_key() -> ClientConfigKey {
    ClientConfigKey::ConnectTimeout
}
