//! AWS profiles: the files `~/.aws/credentials` and `~/.aws/config`, as far as they hold keys.
//!
//! Read are access key, secret, session token, region, `endpoint_url`, and a role with a web identity token file.
//! SSO, `credential_process`, roles assumed from another profile and `[services …]` sections are not supported; the
//! error says how to turn them into keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::location::{Family, invalid};
use super::options::StoreOptions;
use crate::IoError;

/// Larger files are not profiles.
const FILE_MAX: u64 = 1 << 20;

type Section = BTreeMap<String, String>;

/// What a profile says, by the names of the S3 client's options.
pub(crate) fn read(options: &StoreOptions) -> Result<BTreeMap<String, String>, IoError> {
    let asked = options.own(Family::S3, "profile");
    let asked = asked.or_else(|| options.variable("AWS_PROFILE")).or_else(|| options.variable("AWS_DEFAULT_PROFILE"));
    let name = asked.unwrap_or("default");
    let file = |variable: &str, default: &str| {
        let given = options.variable(variable).map(PathBuf::from);
        given.or_else(|| options.home().map(|home| home.join(".aws").join(default)))
    };
    let (keys, config) = (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), file("AWS_CONFIG_FILE", "config"));
    let mut profile = Section::new();
    let mut found = false;
    for (path, section) in [(&config, config_section(name)), (&keys, name.to_owned())] {
        let sections = path.as_deref().map(sections_of).transpose()?.unwrap_or_default();
        if let Some(section) = sections.get(&section) {
            profile.extend(section.clone());
            found = true;
        }
    }
    if asked.is_some() && !found {
        let files: Vec<_> = [keys, config].into_iter().flatten().map(|path| path.display().to_string()).collect();
        let files = if files.is_empty() { "~/.aws, as HOME is not set".to_owned() } else { files.join(" and ") };
        return Err(invalid(format!("there is no AWS profile '{name}' in {files}")));
    }
    check(name, &profile, options)?;
    let taken = [
        ("aws_access_key_id", "aws_access_key_id"),
        ("aws_secret_access_key", "aws_secret_access_key"),
        ("aws_session_token", "aws_session_token"),
        ("region", "aws_region"),
        ("endpoint_url", "aws_endpoint_url"),
        ("web_identity_token_file", "aws_web_identity_token_file"),
        ("role_arn", "aws_role_arn"),
        ("role_session_name", "aws_role_session_name"),
    ];
    let pairs = taken.into_iter().filter_map(|(key, name)| Some((name.to_owned(), profile.get(key)?.clone())));
    Ok(pairs.collect())
}

/// An error when the profile gets its keys in a way that is not supported, and there are no other keys.
fn check(name: &str, profile: &Section, options: &StoreOptions) -> Result<(), IoError> {
    let has = |key: &str| profile.contains_key(key);
    let keys = has("aws_access_key_id") || (has("role_arn") && has("web_identity_token_file"));
    let elsewhere = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    let elsewhere = elsewhere.iter().any(|variable| options.variable(variable).is_some())
        || options.client_options(Family::S3).any(|(name, _)| {
            matches!(name.trim_start_matches("aws_"), "access_key_id" | "skip_signature" | "web_identity_token_file")
        });
    let unsupported = [
        ("sso_session", "signs in by SSO"),
        ("sso_start_url", "signs in by SSO"),
        ("credential_process", "runs a program for its credentials"),
        ("source_profile", "assumes a role from another profile"),
        ("credential_source", "assumes a role from other credentials"),
        ("login_session", "signs in by a console session"),
    ];
    match unsupported.into_iter().find(|(key, _)| has(key)) {
        Some((_, what)) if !keys && !elsewhere => Err(invalid(format!(
            "the AWS profile '{name}' {what}, which is not supported. Turn it into keys first: \
             eval \"$(aws configure export-credentials --profile {name} --format env)\""
        ))),
        _ => Ok(()),
    }
}

fn config_section(name: &str) -> String {
    if name == "default" { name.to_owned() } else { format!("profile {name}") }
}

fn sections_of(path: &Path) -> Result<BTreeMap<String, Section>, IoError> {
    let failed = |error: std::io::Error| invalid(format!("cannot read {}: {error}", path.display())).because(error);
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.is_file() || metadata.len() > FILE_MAX => {
            return Err(invalid(format!("{} is not a file of AWS profiles", path.display())));
        }
        Ok(_) => {}
    }
    Ok(parse(&std::fs::read_to_string(path).map_err(failed)?))
}

/// Sections and their `key = value` lines. Indented lines belong to the key above and are left out, as is what follows
/// ` #` or ` ;`.
fn parse(text: &str) -> BTreeMap<String, Section> {
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in text.lines() {
        let nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if nested || line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(name, _)| name) {
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ").replace(['"', '\''], "");
            sections.entry(name.clone()).or_default();
            current = Some(name);
        } else if let (Some(section), Some((key, value))) = (&current, line.split_once('=')) {
            let value = value.split(" #").next().unwrap_or_default().split(" ;").next().unwrap_or_default().trim();
            if let Some(section) = sections.get_mut(section) {
                section.insert(key.trim().to_ascii_lowercase(), value.to_owned());
            }
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "
# comment
[default]
aws_access_key_id = AKDEFAULT
aws_secret_access_key=a=b/c+ # note
[work]
AWS_ACCESS_KEY_ID = AKWORK
aws_secret_access_key = s3cret
aws_session_token = t0ken
";
    const CONFIG: &str = "
[default]
region = eu-west-1
s3 =
  max_concurrent_requests = 20
  region = nowhere
[profile work]
region = us-east-2
endpoint_url = http://127.0.0.1:9000
[profile sso]
sso_session = main
region = eu-west-3
[profile \"role\"]
role_arn = arn:aws:iam::1:role/x
source_profile = work
[profile web]
role_arn = arn:aws:iam::1:role/x
web_identity_token_file = /token
";

    fn options(folder: &Path, pairs: &[&str], variables: &[(&str, &str)]) -> StoreOptions {
        let aws = folder.join(".aws");
        std::fs::create_dir_all(&aws).unwrap();
        std::fs::write(aws.join("credentials"), CREDENTIALS).unwrap();
        std::fs::write(aws.join("config"), CONFIG).unwrap();
        let home = ("HOME".to_owned(), folder.display().to_string());
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        StoreOptions::parse(pairs).unwrap().with_environment(variables.chain([home]))
    }

    #[test]
    fn profiles_give_keys_region_and_endpoint() {
        let folder = tempfile::tempdir().unwrap();
        let profile = read(&options(folder.path(), &[], &[])).unwrap();
        assert_eq!(profile["aws_access_key_id"], "AKDEFAULT");
        assert_eq!(profile["aws_secret_access_key"], "a=b/c+");
        assert_eq!(profile["aws_region"], "eu-west-1");
        for chosen in [
            options(folder.path(), &[], &[("AWS_PROFILE", "work")]),
            options(folder.path(), &["s3.profile=work"], &[("AWS_PROFILE", "default")]),
        ] {
            let profile = read(&chosen).unwrap();
            assert_eq!(
                (profile["aws_access_key_id"].as_str(), profile["aws_session_token"].as_str()),
                ("AKWORK", "t0ken")
            );
            assert_eq!(profile["aws_endpoint_url"], "http://127.0.0.1:9000");
        }
        let web = read(&options(folder.path(), &["s3.profile=web"], &[])).unwrap();
        assert_eq!(web["aws_web_identity_token_file"], "/token");
    }

    #[test]
    fn profiles_that_cannot_be_used_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        for (name, part) in [("sso", "SSO"), ("role", "another profile"), ("none", "no AWS profile 'none'")] {
            let error = read(&options(folder.path(), &[&format!("s3.profile={name}")], &[])).unwrap_err();
            assert!(error.message.contains(part), "{}", error.message);
            assert_eq!(error.message.contains("export-credentials"), name != "none", "{}", error.message);
        }
        let keys = [("AWS_PROFILE", "sso"), ("AWS_ACCESS_KEY_ID", "x")];
        assert_eq!(read(&options(folder.path(), &[], &keys)).unwrap()["aws_region"], "eu-west-3");
        assert!(read(&StoreOptions::new()).unwrap().is_empty());
    }
}
