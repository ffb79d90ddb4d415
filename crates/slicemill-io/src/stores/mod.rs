//! Stores by URL: S3 and compatibles, Google Cloud Storage, Azure, http(s) and local files.
//!
//! ```text
//!   URL ─▶ Stores ─▶ GatedStore ─▶ object_store's client ─▶ WireService ─▶ network
//!            │        limits in flight,   signs, lists,        counts, times out,
//!            │        cuts stalled bodies uploads              types errors
//!            └─▶ http(s): GatedStore ─▶ WebServer ─▶ HttpGuard at every hop ─▶ network
//! ```
//!
//! What was proven on real servers: S3 by the tests of this crate, which run one in process. Google Cloud Storage is
//! proven as far as that is possible without Google: configuration, signing of the token request, headers, errors.

mod below;
mod clients;
mod counters;
mod gate;
mod gated;
mod guard;
pub(crate) mod lease;
mod location;
mod options;
mod profile;
mod web;
pub(crate) mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use url::Url;

pub use counters::{ConnectionLimit, IoCounters, IoSnapshot};
pub use guard::HttpGuard;
pub use location::{Location, object_url, shown_url};
pub use options::StoreOptions;

pub(crate) use below::Below;
pub(crate) use location::{Family, invalid};
pub(crate) use web::{UNKNOWN_SIZE, no_output};

use crate::local_files::{self, LocalFiles};
use crate::{IoError, RetryBudget};
use gate::{CONCURRENCY_MAX, Gate};
use gated::GatedStore;
use web::{Web, WebServer};

/// Wait for the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait for the next piece of a body.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Web servers of which the state is kept. A manifest may name any number.
const SERVERS_MAX: usize = 4096;

/// The stores that objects are read from and written to. Clients are made when they are first needed and kept, one for
/// each bucket, container or web server. Cheap to clone; clones share clients and counters.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    replaced: HashMap<String, Arc<dyn ObjectStore>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    options: StoreOptions,
    guard: HttpGuard,
    counters: IoCounters,
    clients: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    web: OnceLock<Arc<Web>>,
}

impl Stores {
    /// Stores reached by these options.
    pub fn new(options: StoreOptions) -> Self {
        let mut guard =
            HttpGuard { allow_private: options.own_flag(Family::Http, "allow_private"), ..Default::default() };
        let hosts = options.own(Family::Http, "allow_hosts").unwrap_or_default();
        guard.allowed_hosts.extend(hosts.split(',').map(|host| host.trim().to_ascii_lowercase()));
        let shared = Shared { options, guard, ..Shared::default() };
        Self { replaced: HashMap::new(), shared: Arc::new(shared) }
    }

    /// The same where the web servers of these URLs may be in private networks, because the user named them.
    #[must_use]
    pub fn allowing<'a>(self, urls: impl IntoIterator<Item = &'a Url>) -> Self {
        let mut guard = self.shared.guard.clone();
        urls.into_iter().filter(|url| matches!(url.scheme(), "http" | "https")).for_each(|url| guard.allow(url));
        self.with_guard(guard)
    }

    /// Another rule for web servers in private networks. Clients made before are not taken over.
    #[must_use]
    pub fn with_guard(self, guard: HttpGuard) -> Self {
        let (options, counters) = (self.shared.options.clone(), self.shared.counters.clone());
        let shared = Shared { options, guard, counters, ..Shared::default() };
        Self { replaced: self.replaced, shared: Arc::new(shared) }
    }

    /// Uses `store` for all URLs of `scheme`, in place of what is built in. Paths in it are the URLs' paths, still
    /// percent-encoded.
    #[must_use]
    pub fn with_store(mut self, scheme: &str, store: Arc<dyn ObjectStore>) -> Self {
        self.replaced.insert(scheme.to_owned(), store);
        self
    }

    /// What was counted so far, by all clones together.
    pub fn counters(&self) -> &IoCounters {
        &self.shared.counters
    }

    /// Requests that one bucket or web server is asked at the same time at most: what a reader need not go beyond.
    pub fn connections_max(&self) -> u32 {
        let families = [Family::S3, Family::Gcs, Family::Azure, Family::Http];
        let most = families.iter().map(|family| self.most(*family)).max();
        most.unwrap_or(CONCURRENCY_MAX)
    }

    fn most(&self, family: Family) -> u32 {
        self.shared.options.own_number(family, "concurrency").unwrap_or(CONCURRENCY_MAX)
    }

    /// `budget` with what the options say about this store.
    pub fn budget(&self, url: &Url, budget: RetryBudget) -> RetryBudget {
        let family = Family::of(url.scheme()).unwrap_or(Family::Local);
        let attempts = self.shared.options.own_number(family, "retry_attempts");
        let stall_timeout = self.shared.options.own_seconds(family, "stall_timeout");
        RetryBudget {
            attempts_max: attempts.unwrap_or(budget.attempts_max),
            stall_timeout: stall_timeout.unwrap_or(budget.stall_timeout),
            ..budget
        }
    }

    /// The store of `url` and the object's path in it. The fragment of a URL is never part of the path.
    ///
    /// Web servers are stores that can only be read; where one does not say how long an object is, its size is
    /// `u64::MAX` and reading it to the end tells.
    pub fn resolve(&self, url: &Url) -> Result<(Arc<dyn ObjectStore>, ObjectPath), IoError> {
        let raw_path = || {
            local_files::object_path(url).map_err(|error| IoError::from_store("read", &shown_url(url.as_str()), error))
        };
        if let Some(store) = self.replaced.get(url.scheme()) {
            return Ok((Arc::clone(store), raw_path()?));
        }
        match Family::of(url.scheme()) {
            Some(Family::Local) => Ok((Arc::new(LocalFiles), raw_path()?)),
            Some(Family::Http) if self.is_azure_blob(url) => {
                let key = url.path().trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
                let mut inside = url.clone();
                inside.set_path(key);
                Ok((self.client(Family::Azure, url)?, location::object_path_of(&inside)?))
            }
            Some(Family::Http) => Ok((self.client(Family::Http, url)?, web::web_path(url))),
            Some(family) => Ok((self.client(family, url)?, location::object_path_of(url)?)),
            None => {
                let shown = shown_url(url.as_str());
                let message =
                    format!("the scheme '{}' of '{shown}' is not supported; {}", url.scheme(), location::SUPPORTED);
                Err(invalid(message))
            }
        }
    }

    /// `https://account.blob.core.windows.net/container/…`, where `az.blob_urls` says that these are read with the
    /// account's credentials.
    pub(crate) fn is_azure_blob(&self, url: &Url) -> bool {
        url.scheme() == "https"
            && url.query().is_none()
            && url.host_str().is_some_and(|host| host.ends_with(".blob.core.windows.net"))
            && self.shared.options.own_flag(Family::Azure, "blob_urls")
    }

    fn answer_timeout(&self, family: Family) -> Duration {
        self.shared.options.own_seconds(family, "answer_timeout").unwrap_or(ANSWER_TIMEOUT)
    }

    fn stall_timeout(&self, family: Family) -> Duration {
        self.shared.options.own_seconds(family, "stall_timeout").unwrap_or(STALL_TIMEOUT)
    }

    /// The client of a bucket, container or web server.
    fn client(&self, family: Family, url: &Url) -> Result<Arc<dyn ObjectStore>, IoError> {
        let name = name_of(family, url);
        let shared = &self.shared;
        let mut clients = shared.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&name) {
            return Ok(Arc::clone(client));
        }
        if clients.len() >= SERVERS_MAX {
            // Those in use live on with whoever uses them; what is lost is what was learnt about the others' limits.
            clients.retain(|_, client| Arc::strong_count(client) > 1);
        }
        let (options, counters) = (&shared.options, &shared.counters);
        let inner: Arc<dyn ObjectStore> = match family {
            Family::Http => Arc::new(WebServer::new(self.web()?, url)),
            _ => {
                let budget = self.budget(url, RetryBudget::default());
                clients::build(family, url, options, counters, self.answer_timeout(family), budget)?
            }
        };
        let least = options.own_number(family, "concurrency_min").unwrap_or(1);
        let client: Arc<dyn ObjectStore> = Arc::new(GatedStore {
            inner,
            gate: Gate::new(name.clone(), least, self.most(family), counters.clone()),
            counters: counters.clone(),
            stall_timeout: self.stall_timeout(family),
        });
        clients.insert(name, Arc::clone(&client));
        Ok(client)
    }

    fn web(&self) -> Result<Arc<Web>, IoError> {
        let shared = &self.shared;
        if let Some(web) = shared.web.get() {
            return Ok(Arc::clone(web));
        }
        let timeout = self.answer_timeout(Family::Http);
        let web = Web::new(&shared.options, shared.guard.clone(), shared.counters.clone(), timeout)?;
        Ok(Arc::clone(shared.web.get_or_init(|| Arc::new(web))))
    }
}

/// The name of this machine.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "this host".to_owned() } else { name.trim().to_owned() }
}

/// The name of a bucket or server, for the map of clients and for reports.
fn name_of(family: Family, url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match (family, url.scheme()) {
        (Family::Http, _) => format!("{}://{}", url.scheme(), guard::host_port(url).unwrap_or_default()),
        (Family::Azure, "https") => {
            let container = url.path_segments().and_then(|mut parts| parts.next()).unwrap_or_default();
            format!("az://{container}@{host}")
        }
        (Family::Azure, "abfs" | "abfss") if !url.username().is_empty() => format!("az://{}@{host}", url.username()),
        _ => format!("{}://{host}", family.name()),
    }
}

#[cfg(test)]
#[path = "../../../../tests/s3_server.rs"]
pub(crate) mod s3_server;
#[cfg(test)]
#[path = "../../../../tests/scripted_server.rs"]
pub(crate) mod scripted_server;
#[cfg(test)]
mod tests;
