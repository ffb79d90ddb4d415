//! How stores are reached: options of the command line, the environment, profiles. How, not what: nothing of this goes
//! into job files, fingerprints, messages or logs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use object_store::ClientConfigKey;
use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;

use super::location::{Family, invalid};
use crate::IoError;

/// Our own options, which all families take.
const OWN: [(&str, &str); 5] = [
    ("concurrency", "requests in flight at most, per bucket or host"),
    ("concurrency_min", "requests in flight that are left when the store asks to slow down"),
    ("answer_timeout", "seconds until a request must be answered"),
    ("stall_timeout", "seconds without a byte after which a body counts as broken"),
    ("retry_attempts", "tries for one object"),
];

/// Options of one family only.
const OWN_S3: [&str; 1] = ["profile"];
const OWN_AZURE: [&str; 1] = ["blob_urls"];
const OWN_HTTP: [&str; 3] = ["allow_private", "allow_hosts", "redirects"];

/// Options for `--store-option`, by family, to propose near names and for help.
const KNOWN_S3: [&str; 22] = [
    "access_key_id",
    "secret_access_key",
    "session_token",
    "region",
    "endpoint",
    "virtual_hosted_style_request",
    "unsigned_payload",
    "checksum_algorithm",
    "metadata_endpoint",
    "imdsv1_fallback",
    "web_identity_token_file",
    "role_arn",
    "role_session_name",
    "endpoint_url_sts",
    "skip_signature",
    "conditional_put",
    "s3_express",
    "request_payer",
    "server_side_encryption",
    "sse_kms_key_id",
    "sse_bucket_key_enabled",
    "sse_customer_key_base64",
];
const KNOWN_GCS: [&str; 5] =
    ["service_account", "service_account_key", "application_credentials", "base_url", "skip_signature"];
const KNOWN_AZURE: [&str; 14] = [
    "account_name",
    "account_key",
    "client_id",
    "client_secret",
    "tenant_id",
    "authority_host",
    "sas_token",
    "token",
    "use_emulator",
    "endpoint",
    "msi_endpoint",
    "federated_token_file",
    "use_azure_cli",
    "skip_signature",
];
const KNOWN_CLIENT: [&str; 10] = [
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "timeout",
    "user_agent",
    "proxy_url",
    "proxy_ca_certificate",
    "proxy_excludes",
    "http1_only",
    "pool_max_idle_per_host",
];

const REMOTE: [Family; 4] = [Family::S3, Family::Gcs, Family::Azure, Family::Http];

/// Options of stores and the environment that they are read with. Values are secrets: neither `Debug` nor any message
/// shows them.
#[derive(Clone, Default)]
pub struct StoreOptions {
    values: BTreeMap<(Family, String), String>,
    environment: BTreeMap<String, String>,
    home: Option<PathBuf>,
}

impl std::fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.values.keys().map(|(family, name)| format!("{}.{name}", family.name())).collect();
        f.debug_struct("StoreOptions").field("names", &names).finish_non_exhaustive()
    }
}

impl StoreOptions {
    /// No options and no environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads `key=value` pairs, as `s3.endpoint=http://127.0.0.1:9000` or `aws_allow_http=true`. The prefix (`s3.`,
    /// `gs.`, `az.`, `http.`) may be left out where one family only knows the key, or where all do. `Invalid` for
    /// unknown keys, naming near ones, for ambiguous keys, and for values that are not what the key takes.
    pub fn parse(pairs: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, IoError> {
        let mut options = Self::default();
        for pair in pairs {
            let Some((name, value)) = pair.as_ref().split_once('=') else {
                return Err(invalid("a store option has no '='; write it as key=value, say s3.region=eu-west-1"));
            };
            options.set(name.trim(), value)?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), IoError> {
        let lower = name.to_ascii_lowercase();
        let (families, key) = match lower.split_once('.') {
            Some((prefix, key)) => match Family::of(prefix).filter(|family| *family != Family::Local) {
                Some(family) => (vec![family], key),
                None => return Err(unknown(name, &lower)),
            },
            None => (REMOTE.to_vec(), lower.as_str()),
        };
        let known: Vec<_> = families.iter().copied().filter(|family| knows(*family, key)).collect();
        match known.len() {
            0 => return Err(unknown(name, key)),
            1 => {}
            _ if is_common(key) => {}
            _ => {
                let choices: Vec<_> = known.iter().map(|family| format!("{}.{key}", family.name())).collect();
                let message = format!("the store option '{name}' is ambiguous; write {}", choices.join(" or "));
                return Err(invalid(message));
            }
        }
        for family in known {
            if matches!((family, key), (Family::S3, "bucket" | "bucket_name" | "aws_bucket" | "aws_bucket_name"))
                || matches!((family, key), (Family::Gcs, "bucket" | "bucket_name" | "google_bucket"))
                || matches!((family, key), (Family::Azure, "container_name" | "azure_container_name"))
            {
                return Err(invalid(format!("the store option '{name}' is not needed: the URL names the bucket")));
            }
            check_value(name, key, value)?;
            self.values.insert((family, key.to_owned()), value.to_owned());
        }
        Ok(())
    }

    /// The same with the environment's variables, from which credentials, regions and endpoints are taken; the library
    /// itself never reads the environment. `HOME` (or `USERPROFILE`) says where `~/.aws` is.
    #[must_use]
    pub fn with_environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment.extend(variables.into_iter().filter(|(_, value)| !value.is_empty()));
        self.home = self.variable("HOME").or_else(|| self.variable("USERPROFILE")).map(PathBuf::from);
        self
    }

    /// A variable of the environment.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str)
    }

    pub(crate) const fn home(&self) -> Option<&PathBuf> {
        self.home.as_ref()
    }

    /// The options of a family that its client takes, by lower-case name.
    pub(crate) fn client_options(&self, family: Family) -> impl Iterator<Item = (&str, &str)> {
        self.values
            .iter()
            .filter(move |((of, name), _)| *of == family && !is_own(family, name))
            .map(|((_, name), value)| (name.as_str(), value.as_str()))
    }

    /// The variables whose name begins with `prefix`, by lower-case name.
    pub(crate) fn variables(&self, prefix: &'static str) -> impl Iterator<Item = (String, &str)> {
        let with_prefix = self.environment.iter().filter(move |(name, _)| name.starts_with(prefix));
        with_prefix.map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
    }

    /// One of our own options.
    pub(crate) fn own(&self, family: Family, name: &str) -> Option<&str> {
        self.values.get(&(family, name.to_owned())).map(String::as_str)
    }

    pub(crate) fn own_number(&self, family: Family, name: &str) -> Option<u32> {
        self.own(family, name).and_then(|value| value.parse().ok())
    }

    pub(crate) fn own_seconds(&self, family: Family, name: &str) -> Option<Duration> {
        let seconds = self.own(family, name).and_then(|value| value.parse().ok())?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    pub(crate) fn own_flag(&self, family: Family, name: &str) -> bool {
        self.own(family, name).is_some_and(|value| flag(value) == Some(true))
    }
}

fn flag(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn check_value(name: &str, key: &str, value: &str) -> Result<(), IoError> {
    let (fits, what) = match key {
        "concurrency" | "concurrency_min" | "retry_attempts" => {
            (value.parse::<u32>().is_ok_and(|number| number > 0), "a number from 1")
        }
        "redirects" => (value.parse::<u32>().is_ok_and(|number| number <= 10), "a number from 0 to 10"),
        "answer_timeout" | "stall_timeout" => {
            (value.parse::<f64>().is_ok_and(|seconds| seconds > 0.0 && seconds < 1e6), "seconds")
        }
        "allow_private" | "blob_urls" => (flag(value).is_some(), "true or false"),
        // What the stores' clients take is looked at when the first client is made.
        _ => (true, ""),
    };
    if fits { Ok(()) } else { Err(invalid(format!("the store option '{name}' takes {what}"))) }
}

fn is_own(family: Family, key: &str) -> bool {
    OWN.iter().any(|(name, _)| *name == key)
        || match family {
            Family::S3 => OWN_S3.contains(&key),
            Family::Azure => OWN_AZURE.contains(&key),
            Family::Http => OWN_HTTP.contains(&key),
            Family::Gcs | Family::Local => false,
        }
}

/// Options that mean the same for every family.
fn is_common(key: &str) -> bool {
    OWN.iter().any(|(name, _)| *name == key) || ClientConfigKey::from_str(key).is_ok()
}

fn knows(family: Family, key: &str) -> bool {
    is_own(family, key)
        || match family {
            Family::S3 => AmazonS3ConfigKey::from_str(key).is_ok(),
            Family::Gcs => GoogleConfigKey::from_str(key).is_ok(),
            Family::Azure => AzureConfigKey::from_str(key).is_ok(),
            Family::Http => ClientConfigKey::from_str(key).is_ok(),
            Family::Local => false,
        }
}

/// All names that can be written, with prefix where it is needed.
fn all_names() -> impl Iterator<Item = String> {
    let prefixed = |family: Family, names: &'static [&'static str]| {
        names.iter().map(move |name| format!("{}.{name}", family.name()))
    };
    let common = OWN.iter().map(|(name, _)| *name).chain(KNOWN_CLIENT).map(str::to_owned);
    common
        .chain(prefixed(Family::S3, &KNOWN_S3))
        .chain(prefixed(Family::S3, &OWN_S3))
        .chain(prefixed(Family::Gcs, &KNOWN_GCS))
        .chain(prefixed(Family::Azure, &KNOWN_AZURE))
        .chain(prefixed(Family::Azure, &OWN_AZURE))
        .chain(prefixed(Family::Http, &OWN_HTTP))
}

fn unknown(name: &str, key: &str) -> IoError {
    let bare = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let key = bare(key);
    let key = ["aws_", "google_", "azure_storage_", "azure_"].iter().find_map(|p| key.strip_prefix(p)).unwrap_or(&key);
    let prefix = name.to_ascii_lowercase().split_once('.').map(|(prefix, _)| format!("{prefix}."));
    let elsewhere = |known: &str| prefix.as_deref().is_some_and(|prefix| !known.starts_with(prefix));
    let mut near: Vec<_> = all_names().map(|known| (distance(key, &bare(&known)), elsewhere(&known), known)).collect();
    near.sort();
    let far = 3.max(key.len() / 3);
    let near: Vec<_> = near.iter().filter(|near| near.0 <= far).take(4).map(|near| near.2.as_str()).collect();
    let hint = match near.as_slice() {
        [] => "known are, among others, s3.endpoint, s3.region, allow_http, az.account_name, gs.service_account"
            .to_owned(),
        near => format!("did you mean {}?", near.join(", ")),
    };
    invalid(format!("unknown store option '{name}'; {hint}"))
}

/// Edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(pair: &str) -> String {
        let error = StoreOptions::parse([pair]).unwrap_err();
        assert!(!error.message.contains("hunter2"), "{}", error.message);
        error.message
    }

    #[test]
    fn options_go_to_the_families_that_know_them() {
        let options = StoreOptions::parse([
            "s3.endpoint=http://127.0.0.1:9000",
            "aws_allow_http=true",
            "connect_timeout=3s",
            "az.Account_Name=me",
            "service_account=/x.json",
            "concurrency=7",
            "http.allow_private=true",
            "s3a.region=a=b",
        ])
        .unwrap();
        let of = |family| options.client_options(family).collect::<Vec<_>>();
        assert_eq!(
            of(Family::S3),
            [
                ("aws_allow_http", "true"),
                ("connect_timeout", "3s"),
                ("endpoint", "http://127.0.0.1:9000"),
                ("region", "a=b")
            ]
        );
        assert_eq!(of(Family::Gcs), [("connect_timeout", "3s"), ("service_account", "/x.json")]);
        assert_eq!(of(Family::Azure), [("account_name", "me"), ("connect_timeout", "3s")]);
        assert_eq!(of(Family::Http), [("connect_timeout", "3s")]);
        assert_eq!(options.own_number(Family::Azure, "concurrency"), Some(7));
        assert!(options.own_flag(Family::Http, "allow_private"));
    }

    #[test]
    fn options_that_cannot_be_used_say_what_was_meant() {
        for (pair, part) in [
            ("s3.endpiont=hunter2", "did you mean s3.endpoint"),
            ("s3.secret_acess_key=hunter2", "s3.secret_access_key"),
            ("aws_acces_key_id=hunter2", "s3.access_key_id"),
            ("nonsense_of_all_kinds=hunter2", "known are"),
            ("token=hunter2", "write s3.token or az.token"),
            ("endpoint=hunter2", "ambiguous"),
            ("ftp.user=hunter2", "unknown store option 'ftp.user'"),
            ("hunter2", "no '='"),
            ("concurrency=hunter2", "a number from 1"),
            ("http.allow_private=hunter2", "true or false"),
            ("s3.stall_timeout=-hunter2", "seconds"),
            ("s3.bucket=hunter2", "the URL names the bucket"),
        ] {
            let message = refused(pair);
            assert!(message.contains(part), "{pair}: {message}");
        }
    }

    #[test]
    fn values_are_never_shown() {
        let options = StoreOptions::parse(["s3.secret_access_key=hunter2"])
            .unwrap()
            .with_environment([("AWS_SESSION_TOKEN".to_owned(), "hunter3".to_owned())]);
        let shown = format!("{options:?}");
        assert!(shown.contains("s3.secret_access_key") && !shown.contains("hunter"), "{shown}");
    }

    #[test]
    fn every_known_name_is_taken() {
        for name in all_names() {
            let value = match name.rsplit('.').next().unwrap() {
                "allow_private" | "blob_urls" => "true",
                _ => "5",
            };
            StoreOptions::parse([format!("{name}={value}")]).unwrap();
        }
    }
}
