//! Stores by URL: S3 and compatibles, Google Cloud Storage, Azure, http(s) and local files.

mod clients;
mod location;
mod options;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use url::Url;

pub use location::{Location, object_url, shown_url};
pub use options::StoreOptions;

pub(crate) use location::{Family, SUPPORTED, invalid};

use crate::IoError;
use crate::local_files::{self, LocalFiles};

/// The stores that objects are read from and written to. Clients are made when they are first needed and kept, one for
/// each bucket or container. Cheap to clone; clones share the clients.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    replaced: HashMap<String, Arc<dyn ObjectStore>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    options: StoreOptions,
    clients: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
}

impl Stores {
    /// Stores reached by these options.
    pub fn new(options: StoreOptions) -> Self {
        let shared = Shared { options, clients: Mutex::default() };
        Self { replaced: HashMap::new(), shared: Arc::new(shared) }
    }

    /// Uses `store` for all URLs of `scheme`, in place of what is built in. Paths in it are the URLs' paths, still
    /// percent-encoded.
    #[must_use]
    pub fn with_store(mut self, scheme: &str, store: Arc<dyn ObjectStore>) -> Self {
        self.replaced.insert(scheme.to_owned(), store);
        self
    }

    /// The store of `url` and the object's path in it. The fragment of a URL is never part of the path.
    pub fn resolve(&self, url: &Url) -> Result<(Arc<dyn ObjectStore>, ObjectPath), IoError> {
        let raw_path = || {
            local_files::object_path(url).map_err(|error| IoError::from_store("read", &shown_url(url.as_str()), error))
        };
        if let Some(store) = self.replaced.get(url.scheme()) {
            return Ok((Arc::clone(store), raw_path()?));
        }
        match Family::of(url.scheme()) {
            Some(Family::Local) => Ok((Arc::new(LocalFiles), raw_path()?)),
            Some(family @ (Family::S3 | Family::Gcs | Family::Azure)) => {
                Ok((self.client(family, url)?, location::object_path_of(url)?))
            }
            Some(Family::Http) | None => {
                let shown = shown_url(url.as_str());
                Err(invalid(format!("the scheme '{}' of '{shown}' is not supported; {SUPPORTED}", url.scheme())))
            }
        }
    }

    /// The client of a bucket or container.
    fn client(&self, family: Family, url: &Url) -> Result<Arc<dyn ObjectStore>, IoError> {
        let name = format!("{}://{}@{}", family.name(), url.username(), url.host_str().unwrap_or_default());
        let mut clients = self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&name) {
            return Ok(Arc::clone(client));
        }
        let client = clients::build(family, url, &self.shared.options)?;
        clients.insert(name, Arc::clone(&client));
        Ok(client)
    }
}
