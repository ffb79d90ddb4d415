//! Making the clients of buckets and containers.
//!
//! What is set in several places counts in this order: options, environment, profile. Key, secret and session token
//! come from one place together. The clients' own retries are off: ours must see every failure.

use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::counters::IoCounters;
use super::location::{Family, invalid, shown_url};
use super::options::StoreOptions;
use super::profile;
use super::wire::WireConnector;
use crate::{IoError, IoErrorKind, RetryBudget};

const NO_S3_CREDENTIALS: &str = "no credentials for S3 were found, and this machine has none to give. Set \
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket give --store-option \
    s3.skip_signature=true";
const NO_GCS_CREDENTIALS: &str = "no credentials for Google Cloud Storage were found, and this machine has none to \
    give. Set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run 'gcloud auth application-default login'; for a \
    public bucket give --store-option gs.skip_signature=true";
const NO_AZURE_CREDENTIALS: &str = "no credentials for Azure were found, and this machine has none to give. Set \
    AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN); for a public container \
    give --store-option az.skip_signature=true";

type Settings = BTreeMap<String, String>;

/// The client of the bucket or container of `url`.
pub(crate) fn build(
    family: Family,
    url: &Url,
    options: &StoreOptions,
    counters: &IoCounters,
    answer_timeout: Duration,
    budget: RetryBudget,
) -> Result<Arc<dyn ObjectStore>, IoError> {
    let bucket = url.host_str().unwrap_or_default();
    let connector =
        |no_credentials| WireConnector { counters: counters.clone(), answer_timeout, budget, no_credentials };
    let store: Arc<dyn ObjectStore> = match family {
        Family::S3 => {
            let builder = s3(options)?.with_bucket_name(bucket).with_http_connector(connector(NO_S3_CREDENTIALS));
            Arc::new(builder.build().map_err(|error| failed(url, &error))?)
        }
        Family::Gcs => {
            let builder = gcs(options)?.with_bucket_name(bucket).with_http_connector(connector(NO_GCS_CREDENTIALS));
            Arc::new(builder.build().map_err(|error| failed(url, &error))?)
        }
        Family::Azure => {
            let builder = azure(options, url)?.with_http_connector(connector(NO_AZURE_CREDENTIALS));
            Arc::new(builder.build().map_err(|error| failed(url, &error))?)
        }
        Family::Local | Family::Http => {
            return Err(invalid(format!("{} has no bucket", shown_url(url.as_str()))));
        }
    };
    Ok(store)
}

/// A builder's error. Its text may repeat a value, so only what is known to be harmless is shown.
fn failed(url: &Url, error: &object_store::Error) -> IoError {
    let text = error.to_string();
    let harmless = ["Missing", "not specified", "must be specified", "Unable to open", "account", "region", "bucket"];
    let leaky = ["decode", "parse", "Invalid", "base64", "key"];
    let why = if harmless.iter().any(|part| text.contains(part)) && !leaky.iter().any(|part| text.contains(part)) {
        text
    } else {
        "one of the store options or environment variables has a value that cannot be used".to_owned()
    };
    let message = format!("cannot use {}: {why}. See --store-option and the environment", shown_url(url.as_str()));
    IoError::fatal(IoErrorKind::Invalid, message)
}

fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Bodies take as long as they take: what stalls is noticed by our own timeouts.
fn plain_client() -> ClientOptions {
    ClientOptions::new().with_timeout_disabled()
}

fn is_plain_http(value: Option<&String>) -> bool {
    value.is_some_and(|value| value.to_ascii_lowercase().starts_with("http://"))
}

/// An endpoint that is written with `http://` may be reached so.
fn allow_plain_http(settings: &mut Settings, endpoints: &[&str]) {
    if endpoints.iter().any(|name| is_plain_http(settings.get(*name))) {
        settings.entry("allow_http".to_owned()).or_insert_with(|| "true".to_owned());
    }
}

/// Settings of S3, by the full names of the client's keys.
fn s3_settings(options: &StoreOptions) -> Result<Settings, IoError> {
    let name_of = |name: &str| {
        AmazonS3ConfigKey::from_str(name).ok().map(|key| match key {
            AmazonS3ConfigKey::Client(key) => key.as_ref().to_owned(),
            key => key.as_ref().to_owned(),
        })
    };
    let given: Settings = options
        .client_options(Family::S3)
        .filter_map(|(name, value)| Some((name_of(name)?, value.to_owned())))
        .collect();
    let environment: Settings =
        options.variables("AWS_").filter_map(|(name, value)| Some((name_of(&name)?, value.to_owned()))).collect();
    let profile = profile::read(options)?;
    let profile: Settings = profile.into_iter().filter_map(|(name, value)| Some((name_of(&name)?, value))).collect();
    let key = "aws_access_key_id";
    // A profile that is asked for by option comes before the environment's keys.
    let asked = options.own(Family::S3, "profile").is_some();
    let order = if asked { [&given, &profile, &environment] } else { [&given, &environment, &profile] };
    let keys_from = order.iter().position(|source| source.contains_key(key));
    let credentials = [key, "aws_secret_access_key", "aws_session_token"];
    let mut settings = Settings::new();
    for (index, source) in order.iter().enumerate() {
        for (name, value) in source.iter() {
            if !credentials.contains(&name.as_str()) || keys_from == Some(index) {
                settings.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    if let Some(region) = settings.remove("aws_default_region") {
        settings.entry("aws_region".to_owned()).or_insert(region);
    }
    // The endpoint for S3 alone goes before the general one, in the same place or an earlier one.
    if given.contains_key("aws_endpoint") && !given.contains_key("aws_endpoint_url_s3") {
        settings.remove("aws_endpoint_url_s3");
    }
    allow_plain_http(&mut settings, &["aws_endpoint", "aws_endpoint_url_s3"]);
    Ok(settings)
}

fn s3(options: &StoreOptions) -> Result<AmazonS3Builder, IoError> {
    let mut builder = AmazonS3Builder::new().with_retry(no_retries()).with_client_options(plain_client());
    for (name, value) in s3_settings(options)? {
        if let Ok(key) = AmazonS3ConfigKey::from_str(&name)
            && !matches!(key, AmazonS3ConfigKey::Bucket)
        {
            builder = builder.with_config(key, value);
        }
    }
    Ok(builder)
}

fn gcs(options: &StoreOptions) -> Result<GoogleCloudStorageBuilder, IoError> {
    let mut builder = GoogleCloudStorageBuilder::new().with_retry(no_retries()).with_client_options(plain_client());
    let given = options.client_options(Family::Gcs).map(|(name, value)| (name.to_owned(), value.to_owned()));
    let environment = options.variables("GOOGLE_").map(|(name, value)| (name, value.to_owned()));
    let mut settings: Settings = environment.chain(given).collect();
    allow_plain_http(&mut settings, &["base_url", "google_base_url"]);
    for (name, value) in settings {
        if let Ok(key) = GoogleConfigKey::from_str(&name)
            && !matches!(key, GoogleConfigKey::Bucket)
        {
            builder = builder.with_config(key, value);
        }
    }
    Ok(builder)
}

/// Settings of Azure, by the full names of the client's keys.
fn azure_settings(options: &StoreOptions) -> Settings {
    let name_of = |name: &str| {
        AzureConfigKey::from_str(name).ok().map(|key| match key {
            AzureConfigKey::Client(key) => key.as_ref().to_owned(),
            key => key.as_ref().to_owned(),
        })
    };
    let mut settings = Settings::new();
    let mut add = |name: &str, value: &str| {
        if let Some(name) = name_of(name) {
            settings.entry(name).or_insert_with(|| value.to_owned());
        }
    };
    for (name, value) in options.client_options(Family::Azure) {
        add(name, value);
    }
    for (name, value) in options.variables("AZURE_") {
        add(&name, value);
    }
    // As the az program and the SDKs call them.
    for (variable, name) in [
        ("AZURE_STORAGE_ACCOUNT", "account_name"),
        ("AZURE_STORAGE_KEY", "account_key"),
        ("IDENTITY_ENDPOINT", "msi_endpoint"),
    ] {
        if let Some(value) = options.variable(variable) {
            add(name, value);
        }
    }
    for (name, value) in options.variable("AZURE_STORAGE_CONNECTION_STRING").map(connection_string).unwrap_or_default()
    {
        add(&name, &value);
    }
    allow_plain_http(&mut settings, &["azure_storage_endpoint"]);
    settings
}

/// `AccountName=…;AccountKey=…;BlobEndpoint=…`, by the names of the client's keys.
fn connection_string(text: &str) -> Vec<(String, String)> {
    let pairs: BTreeMap<String, &str> = text
        .split(';')
        .filter_map(|part| part.split_once('='))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim()))
        .collect();
    let mut settings = Vec::new();
    let mut put = |name: &str, value: String| settings.push((name.to_owned(), value));
    for (from, to) in [
        ("accountname", "account_name"),
        ("accountkey", "account_key"),
        ("blobendpoint", "endpoint"),
        ("sharedaccesssignature", "sas_token"),
    ] {
        if let Some(value) = pairs.get(from) {
            put(to, (*value).to_owned());
        }
    }
    if let (None, Some(suffix), Some(account)) =
        (pairs.get("blobendpoint"), pairs.get("endpointsuffix"), pairs.get("accountname"))
    {
        let protocol = pairs.get("defaultendpointsprotocol").copied().unwrap_or("https");
        put("endpoint", format!("{protocol}://{account}.blob.{suffix}"));
    }
    if pairs.get("usedevelopmentstorage").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        put("use_emulator", "true".to_owned());
    }
    settings
}

fn azure(options: &StoreOptions, url: &Url) -> Result<MicrosoftAzureBuilder, IoError> {
    let mut builder = MicrosoftAzureBuilder::new().with_retry(no_retries()).with_client_options(plain_client());
    for (name, value) in azure_settings(options) {
        if let Ok(key) = AzureConfigKey::from_str(&name)
            && !matches!(key, AzureConfigKey::ContainerName)
        {
            builder = builder.with_config(key, value);
        }
    }
    let host = url.host_str().unwrap_or_default();
    Ok(match url.scheme() {
        "abfs" | "abfss" => {
            let mut container = url.clone();
            container.set_path("/");
            builder.with_url(container.as_str())
        }
        // https://account.blob.core.windows.net/container/…
        "https" => {
            let container = url.path_segments().and_then(|mut parts| parts.next()).unwrap_or_default();
            builder.with_account(host.split('.').next().unwrap_or_default()).with_container_name(container)
        }
        _ => builder.with_container_name(host),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[&str], variables: &[(&str, &str)]) -> StoreOptions {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        StoreOptions::parse(pairs).unwrap().with_environment(variables)
    }

    #[test]
    fn keys_come_from_one_place_together() {
        let environment = [
            ("AWS_ACCESS_KEY_ID", "env"),
            ("AWS_SECRET_ACCESS_KEY", "env-secret"),
            ("AWS_SESSION_TOKEN", "env-token"),
            ("AWS_DEFAULT_REGION", "eu-north-1"),
        ];
        let settings = s3_settings(&options(&[], &environment)).unwrap();
        assert_eq!(settings["aws_session_token"], "env-token");
        assert_eq!(settings["aws_region"], "eu-north-1");
        let given = ["s3.access_key_id=opt", "s3.secret_access_key=opt-secret", "s3.region=x"];
        let settings = s3_settings(&options(&given, &environment)).unwrap();
        assert_eq!((settings["aws_access_key_id"].as_str(), settings.get("aws_session_token")), ("opt", None));
        assert_eq!((settings["aws_secret_access_key"].as_str(), settings["aws_region"].as_str()), ("opt-secret", "x"));
    }

    #[test]
    fn plain_http_is_allowed_where_an_endpoint_asks_for_it() {
        let settings = s3_settings(&options(&["s3.endpoint=http://127.0.0.1:9000"], &[])).unwrap();
        assert_eq!(settings["allow_http"], "true");
        let settings = s3_settings(&options(&[], &[("AWS_ENDPOINT_URL", "https://x")])).unwrap();
        assert_eq!(settings.get("allow_http"), None);
    }

    #[test]
    fn connection_strings_and_other_names_of_azure_are_read() {
        let text = "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=a2V5==;EndpointSuffix=core.example";
        let settings = azure_settings(&options(&[], &[("AZURE_STORAGE_CONNECTION_STRING", text)]));
        assert_eq!(settings["azure_storage_account_name"], "me");
        assert_eq!(settings["azure_storage_account_key"], "a2V5==");
        assert_eq!(settings["azure_storage_endpoint"], "https://me.blob.core.example");
        let variables =
            [("AZURE_STORAGE_ACCOUNT", "you"), ("AZURE_STORAGE_KEY", "key"), ("AZURE_STORAGE_CONNECTION_STRING", text)];
        let settings = azure_settings(&options(&[], &variables));
        assert_eq!(settings["azure_storage_account_name"], "you");
    }

    #[test]
    fn values_that_cannot_be_used_are_not_repeated() {
        for (pair, url) in [
            ("s3.conditional_put=hunter2", "s3://bucket/x"),
            ("az.account_key=hunter2", "az://container/x"),
            ("gs.service_account_key=hunter2", "gs://bucket/x"),
            ("s3.allow_http=hunter2", "s3://bucket/x"),
        ] {
            let url = Url::parse(url).unwrap();
            let family = Family::of(url.scheme()).unwrap();
            let options = options(&[pair, "az.account_name=me"], &[]);
            let error = build(family, &url, &options, &IoCounters::new(), Duration::from_secs(1), RetryBudget::ONCE)
                .unwrap_err();
            assert!(!error.to_string().contains("hunter2") && error.source.is_none(), "{error}");
            assert!(error.message.contains(url.host_str().unwrap()), "{error}");
        }
    }
}
