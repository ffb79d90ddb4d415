//! From what the user names to a directory: on the disk, in the hub's cache, or fetched from the hub.

use std::path::{Path, PathBuf};

use super::fetch::{Fetch, Stopped};
use super::files::{self, Need, capped};
use super::hub::{Client, Failure, HubOptions, OnProgress, is_commit};
use crate::error::ModelError;

const MAIN: &str = "main";
const ID_MAX: usize = 96;
/// Names of OpenAI's vision towers start with this; checkpoints often keep only the last part of where theirs was.
const CLIP: &str = "clip-vit-";

/// Where a checkpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Its directory.
    pub dir: PathBuf,
    /// Its repository and commit, when it came from the hub or its cache.
    pub source: Option<(String, String)>,
}

impl Located {
    const fn local(dir: PathBuf) -> Self {
        Self { dir, source: None }
    }
}

/// A repository of the hub and a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HubId {
    repo: String,
    revision: String,
}

impl HubId {
    /// `org/name`, `org/name@revision`.
    fn parse(text: &str) -> Option<Self> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (org, name) = repo.split_once('/')?;
        let is_part = |part: &str| {
            let ends = |c: char| c == '-' || c == '.';
            let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            !part.is_empty() && part.bytes().all(is_allowed) && !part.starts_with(ends) && !part.ends_with(ends)
        };
        let is_id =
            repo.len() <= ID_MAX && is_part(org) && is_part(name) && !repo.contains("--") && !repo.contains("..");
        let is_revision = revision.split('/').all(|part| is_part(part) && !part.contains(".."));
        (is_id && is_revision).then(|| Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }

    fn folder(&self, hub: &HubOptions) -> PathBuf {
        hub.cache.join(format!("models--{}", self.repo.replace('/', "--")))
    }
}

/// The directory of a model: `model` itself when it is one, or a repository folder of the hub's cache; else
/// `org/name` or `org/name@revision` in the cache; else the same, fetched from the hub.
///
/// A revision that is complete in the cache is used as it is, without asking the hub.
///
/// # Errors
/// With what was looked at and what helps.
pub fn locate(model: &str, hub: &HubOptions, progress: OnProgress<'_>) -> Result<Located, ModelError> {
    let path = Path::new(model);
    if path.is_dir() {
        return directory(path);
    }
    if path.is_file() {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Err(problem(model, format!("is a file; give its directory, {}", dir.display())));
    }
    let Some(id) = HubId::parse(model) else {
        let hint = if model.starts_with('~') { "; the shell did not replace ~: give the full path" } else { "" };
        let message = "there is no such directory, and it is not the name of a model on the hub (org/name, or \
                       org/name@revision)";
        return Err(problem(model, format!("{message}{hint}")));
    };
    on_hub(model, &id, Need::Model, hub, progress)
}

/// The directory of a vision tower that a checkpoint's config.json names: a path relative to the checkpoint, an absolute
/// path, a directory of the same name in or beside the checkpoint, or a name on the hub.
///
/// # Errors
/// With what was looked at and what helps.
pub fn locate_tower(
    reference: &str,
    checkpoint: &Path,
    hub: &HubOptions,
    progress: OnProgress<'_>,
) -> Result<Located, ModelError> {
    let Some(last) = last_part(reference) else {
        return Err(problem(reference, "is not the name of a vision tower; set mm_vision_tower in config.json".into()));
    };
    let places = tower_places(reference, checkpoint);
    if let Some(dir) = places.iter().find(|dir| dir.is_dir()) {
        return directory(dir);
    }
    let alias = || last.starts_with(CLIP).then(|| format!("openai/{last}"));
    let id = HubId::parse(reference).or_else(|| HubId::parse(&alias()?));
    let places: Vec<String> = places.iter().map(|dir| dir.display().to_string()).collect();
    let looked = format!("looked for the vision tower in {}", places.join(", "));
    let Some(id) = id else {
        let remedy = "put its directory beside the checkpoint, or set mm_vision_tower in config.json";
        return Err(problem(reference, format!("{looked}; {remedy}")));
    };
    on_hub(&format!("{}@{}", id.repo, id.revision), &id, Need::Tower, hub, progress).map_err(|e| match e {
        ModelError::File { origin, message } => problem(&origin, format!("{message} ({looked})")),
        other => other,
    })
}

/// Where a vision tower that a checkpoint names may lie without the hub; nowhere when it is not a name.
pub fn tower_places(reference: &str, checkpoint: &Path) -> Vec<PathBuf> {
    let Some(last) = last_part(reference) else { return Vec::new() };
    let beside = checkpoint.canonicalize().ok().and_then(|dir| Some(dir.parent()?.join(last)));
    // `join` leaves an absolute reference as it is.
    [Some(checkpoint.join(reference)), Some(checkpoint.join(last)), beside].into_iter().flatten().collect()
}

/// The last component of a path or a name.
fn last_part(reference: &str) -> Option<&str> {
    let last = reference.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next()?;
    (!["", ".", ".."].contains(&last)).then_some(last)
}

fn problem(origin: &str, message: String) -> ModelError {
    ModelError::File { origin: origin.to_owned(), message }
}

/// A directory, or the snapshot of one that is a repository folder of the hub's cache.
fn directory(dir: &Path) -> Result<Located, ModelError> {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(repo) = name.strip_prefix("models--").filter(|_| dir.join("snapshots").is_dir()) else {
        return Ok(Located::local(dir.to_owned()));
    };
    let snapshots = dir.join("snapshots");
    let commit = read_ref(dir, MAIN).or_else(|| only_name(&snapshots)).filter(|commit| snapshots.join(commit).is_dir());
    let Some(commit) = commit else {
        let origin = dir.display().to_string();
        let message = "is a folder of the hub's cache whose refs/main names no snapshot; give one of its snapshots";
        return Err(problem(&origin, message.to_owned()));
    };
    Ok(Located { dir: snapshots.join(&commit), source: Some((repo.replace("--", "/"), commit)) })
}

fn only_name(dir: &Path) -> Option<String> {
    let mut entries = std::fs::read_dir(dir).ok()?;
    let first = entries.next()?.ok()?;
    if entries.next().is_some() { None } else { first.file_name().into_string().ok() }
}

/// The commit of a revision in the cache.
fn read_ref(folder: &Path, revision: &str) -> Option<String> {
    let text = std::fs::read_to_string(folder.join("refs").join(revision)).ok()?;
    Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
}

/// What the cache has of a model.
struct Cached {
    commit: String,
    dir: PathBuf,
    missing: Vec<String>,
}

fn cached(id: &HubId, folder: &Path, need: Need) -> Option<Cached> {
    let commit = read_ref(folder, &id.revision).or_else(|| Some(id.revision.clone()).filter(|r| is_commit(r)))?;
    let dir = folder.join("snapshots").join(&commit);
    if !dir.is_dir() {
        return None;
    }
    // An index that cannot be read is a matter for those who open the weights: fetching does not mend it.
    let missing = files::incomplete(&dir, need).unwrap_or_default();
    Some(Cached { commit, dir, missing })
}

fn on_hub(
    asked: &str,
    id: &HubId,
    need: Need,
    hub: &HubOptions,
    progress: OnProgress<'_>,
) -> Result<Located, ModelError> {
    let folder = id.folder(hub);
    let cached = cached(id, &folder, need);
    if let Some(found) = cached.as_ref().filter(|found| found.missing.is_empty()) {
        return Ok(Located { dir: found.dir.clone(), source: Some((id.repo.clone(), found.commit.clone())) });
    }
    let looked = match &cached {
        Some(found) => {
            format!("there is no such directory, and {} lacks {}", found.dir.display(), capped(&found.missing, 6))
        }
        None => format!("there is no such directory, and {} has no revision {}", folder.display(), id.revision),
    };
    if hub.offline {
        let remedy = "HF_HUB_OFFLINE forbids to fetch it: unset it, or give a directory that is complete";
        return Err(problem(asked, format!("{looked}; {remedy}")));
    }
    let explain = |stopped: Stopped| problem(asked, format!("{looked}; {}", explain(&stopped, id, hub)));
    let client = Client::new(hub).map_err(|failure| explain(failure.into()))?;
    let fetch = Fetch { options: hub, client, repo: &id.repo, folder: folder.clone(), progress };
    // A snapshot that was begun is completed, even when the branch has moved on; unless it is no longer on the hub.
    let begun = cached.map(|found| fetch.revision(&found.commit, need));
    let fetched = match begun {
        Some(Err(Stopped { file: None, failure: Failure::Status(404, ..) })) | None => {
            fetch.revision(&id.revision, need)
        }
        Some(result) => result,
    };
    let (commit, dir) = fetched.map_err(explain)?;
    Ok(Located { dir, source: Some((id.repo.clone(), commit)) })
}

/// Why the hub did not help, and what does.
fn explain(stopped: &Stopped, id: &HubId, hub: &HubOptions) -> String {
    let HubId { repo, revision } = id;
    let endpoint = &hub.endpoint;
    let what = stopped.file.as_ref().map_or_else(|| repo.clone(), |file| format!("{file} of {repo}"));
    match &stopped.failure {
        Failure::Status(status, code, message) => {
            let said = message.as_ref().map_or_else(String::new, |message| format!(" ({message})"));
            let why = refusal(*status, code.as_deref(), id, hub);
            format!("{endpoint} answered {status} for {what}{said}: {why}")
        }
        Failure::Network(why) => format!(
            "{what} could not be fetched from {endpoint}: {why}. Check the network, HF_ENDPOINT and the proxy and run it \
             again (it goes on where it ended), or fetch the model elsewhere and give its directory"
        ),
        Failure::Answer(why) => format!("{what} at {endpoint}, revision {revision}: {why}"),
        Failure::Disk(path, e) => {
            let remedy = match e.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    "there is no space left: free some, or set HF_HUB_CACHE to a larger disk, and run it again (it goes \
                     on where it ended)"
                }
                _ => "set HF_HUB_CACHE to a directory that can be written",
            };
            format!("{} cannot be written: {e}; {remedy}", path.display())
        }
    }
}

fn refusal(status: u16, code: Option<&str>, id: &HubId, hub: &HubOptions) -> String {
    let HubId { repo, revision } = id;
    let token = if hub.token.is_some() { "the token that was given is" } else { "without a token one is" };
    match (status, code) {
        (_, Some("RevisionNotFound")) => format!("the repository has no revision {revision}; check it"),
        (_, Some("EntryNotFound")) => "the repository no longer has this file; give another revision".to_owned(),
        (_, Some("GatedRepo")) | (403, _) => format!(
            "the repository is gated and {token} not let in: ask for access on its page {}/{repo}, then set HF_TOKEN to a \
             token of that account",
            hub.endpoint
        ),
        (401, _) => format!(
            "the repository does not exist, or it is private or gated and {token} not let in: check the name; for a \
             private or gated one set HF_TOKEN"
        ),
        (404, _) => format!("there is no such repository or revision ({revision}); check the name"),
        (429 | 500..=599, _) => "the hub is busy or down; try again later".to_owned(),
        _ => "it refused; check HF_ENDPOINT and the name".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub() {
        let id = |text: &str| HubId::parse(text).map(|id| (id.repo, id.revision));
        let some = |repo: &str, revision: &str| Some((repo.to_owned(), revision.to_owned()));
        assert_eq!(id("openai/clip-vit-large-patch14-336"), some("openai/clip-vit-large-patch14-336", "main"));
        assert_eq!(id("a/b.c_d@refs/pr/1"), some("a/b.c_d", "refs/pr/1"));
        for text in ["", "a", "/a/b", "./a", "../a", "a/b/c", "a/", "a//b", "a/b@", "a/b@../x", "a/b@/x", "a/..", "~/m"]
        {
            assert_eq!(id(text), None, "{text:?}");
        }
        assert_eq!(id("a/x--y"), None, "its folder in the cache would be another's");
    }

    #[test]
    fn a_full_disk_is_named() {
        let failure = Failure::Disk("/cache/blob".into(), std::io::ErrorKind::StorageFull.into());
        let id = HubId { repo: "a/b".to_owned(), revision: MAIN.to_owned() };
        let message = explain(&failure.into(), &id, &HubOptions::new("/cache"));
        assert!(message.contains("no space left") && message.contains("HF_HUB_CACHE"), "{message}");
    }
}
