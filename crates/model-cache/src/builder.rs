//! How a cache is opened: [`ModelCacheBuilder`].

use crate::{
    cache::{Inner, ModelCache},
    download::Connections,
    error::{Error, Result},
    hub::{HubClient, HubConfig, Token, parse_endpoint},
    limit::check_rate,
    store::Store,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use storage::StorageRegistry;

/// Most connections a pull may be given.
const MOST_CONNECTIONS: usize = 64;
/// Most connections a pull takes by itself.
const MOST_ADAPTIVE: usize = 16;
/// What a connection has to bring, where the rate is limited, for another one to be worth it.
const CONNECTION_RATE: u64 = 256 << 10;
/// What one connection takes: two buffers to gather and write, and what the HTTP client holds.
const CONNECTION_BYTES: u64 = 2 * crate::download::BUFFER_BYTES as u64 + (1 << 20);
/// What a pull takes beside its connections: the buffers that check and hash.
const BASE_BYTES: u64 = 8 << 20;

/// The options of a [`ModelCache`]. Every one has a default that is right for a laptop.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache = tabagent_model_cache::ModelCache::builder("./models").offline(true).open()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct ModelCacheBuilder {
    store: PathBuf,
    registry: Option<Arc<StorageRegistry>>,
    endpoint: Option<String>,
    token: Option<Secret>,
    offline: Option<bool>,
    connections: Option<usize>,
    limit_rate: Option<u64>,
    memory_budget_bytes: u64,
    read_timeout: Option<Duration>,
    side_by_side: bool,
    create: bool,
}

/// A token as given; its `Debug` shows nothing.
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(not shown)")
    }
}

impl ModelCacheBuilder {
    pub(crate) fn new(store: PathBuf) -> Self {
        Self {
            store,
            registry: None,
            endpoint: None,
            token: None,
            offline: None,
            connections: None,
            limit_rate: None,
            memory_budget_bytes: 48 << 20,
            read_timeout: None,
            side_by_side: cfg!(target_os = "linux"),
            create: true,
        }
    }

    /// The registry that opens the store's environments. Default: one of its own; all registries of a process share what is open.
    pub fn registry(mut self, registry: Arc<StorageRegistry>) -> Self {
        self.registry = Some(registry);
        self
    }

    /// The Hub's address. Default: `HF_ENDPOINT`, else `https://huggingface.co`.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// The token sent to the Hub, and to no other host. Default: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`,
    /// `$HF_HOME/token`; none if `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Secret(token.into()));
        self
    }

    /// Whether the network is forbidden. Default: `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`, else no.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = Some(offline);
        self
    }

    /// Connections of one pull at once, over all its files: 1 to 64. Default: as many as pay, 1 to 16. Such a pull begins with 4, takes
    /// more where more bring more, as where a server limits each connection, and fewer where fewer do as well, or the server
    /// answers that it is asked too much; small files, which wait more than they transfer, are asked for up to 32 at once.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = Some(connections);
        self
    }

    /// Most bytes of files a second, over all connections and pulls of this cache; at least 1024. Default: `MODEL_CACHE_LIMIT_RATE`
    /// (as [`parse_rate`](crate::parse_rate) reads it), else no limit.
    pub fn limit_rate(mut self, bytes_per_second: u64) -> Self {
        self.limit_rate = Some(bytes_per_second);
        self
    }

    /// Most private memory one pull should take for its data. Fewer connections are used where the budget is too small for
    /// all of them: each takes about 2 MiB, and 8 MiB go to checking. Default: 48 MiB.
    pub fn memory_budget_bytes(mut self, bytes: u64) -> Self {
        self.memory_budget_bytes = bytes;
        self
    }

    /// The longest wait for a file's next byte; then the connection is made anew. Default: `HF_HUB_DOWNLOAD_TIMEOUT`, else 10 s.
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.read_timeout = Some(timeout);
        self
    }

    /// Whether chunks are mapped side by side into one slice. Default: yes on Linux. Where not, files are read chunk by chunk without
    /// a copy, and asking for one slice copies.
    pub fn side_by_side(mut self, side_by_side: bool) -> Self {
        self.side_by_side = side_by_side;
        self
    }

    /// Whether a store is made where there is none. Default: yes. Where not, opening nothing is [`Error::NoStore`].
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Opens the store, creating it where missing.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for an option or an environment variable that can't be, before anything is touched;
    /// [`Error::Storage`] for a store that can't be opened: read-only, on a network file system, a file, open in another
    /// container; [`Error::StoreFormat`] for one of a newer version; [`Error::NoSpace`].
    pub fn open(self) -> Result<ModelCache> {
        let refuse = |name, value: String, reason: &str| Err(Error::InvalidOption { name, value, reason: reason.to_owned() });
        if let Some(connections) = self.connections.filter(|number| !(1..=MOST_CONNECTIONS).contains(number)) {
            return refuse("connections", connections.to_string(), "it must be 1 to 64");
        }
        if let Some(rate) = self.limit_rate {
            check_rate("limit_rate", rate)?;
        }
        if self.memory_budget_bytes < BASE_BYTES + CONNECTION_BYTES {
            return refuse("memory_budget_bytes", self.memory_budget_bytes.to_string(), "it must be at least 10 MiB");
        }
        if self.read_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return refuse("read_timeout", "0".to_owned(), "it must be longer than nothing");
        }
        if self.store.as_os_str().is_empty() {
            return refuse("store", String::new(), "it must name a folder");
        }
        let affordable = (self.memory_budget_bytes - BASE_BYTES) / CONNECTION_BYTES;
        let mut config = HubConfig::from_env(&|name| std::env::var_os(name))?;
        if let Some(endpoint) = &self.endpoint {
            config.endpoint = parse_endpoint("endpoint", endpoint)?;
        }
        if let Some(Secret(token)) = &self.token {
            config.token = Some(Token::new(token, "token", "the token option")?);
        }
        if let Some(offline) = self.offline {
            config.offline = offline;
        }
        if let Some(timeout) = self.read_timeout {
            config.read_timeout = timeout;
        }
        config.limit_rate = self.limit_rate.or(config.limit_rate);
        let connections = connections(self.connections, affordable, config.limit_rate);
        if !self.create && !Store::is_in(&self.store) {
            return Err(Error::NoStore { path: self.store });
        }
        let registry = self.registry.unwrap_or_else(|| Arc::new(StorageRegistry::new(&self.store)));
        let store = Store::open(&registry, &self.store)?;
        Ok(ModelCache::from_inner(Inner { store, hub: HubClient::new(config), connections, side_by_side: self.side_by_side }))
    }
}

/// The connections of a pull: as asked for, or as many as pay; never more than memory allows for, and by themselves no more than a
/// limited rate can use.
fn connections(asked: Option<usize>, affordable: u64, limit_rate: Option<u64>) -> Connections {
    let within = |most: usize, limit: u64| most.min(usize::try_from(limit).unwrap_or(usize::MAX)).max(1);
    match asked {
        Some(number) => Connections::Fixed(within(number, affordable)),
        None => {
            let useful = limit_rate.map_or(u64::MAX, |rate| rate / CONNECTION_RATE);
            Connections::Adaptive { most: within(MOST_ADAPTIVE, affordable.min(useful)) }
        }
    }
}

/// The store used where none is named: `$MODEL_CACHE_HOME`, else `$XDG_CACHE_HOME/tabagent/model-cache`, else
/// `~/.cache/tabagent/model-cache`.
///
/// # Errors
/// [`Error::InvalidOption`] if none of the three variables, nor `HOME`, is set.
pub fn default_store() -> Result<PathBuf> {
    default_store_from(&|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
}

fn default_store_from(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    let below = Path::new("tabagent/model-cache");
    if let Some(store) = variable("MODEL_CACHE_HOME") {
        return Ok(store);
    }
    // The XDG base directory specification: a path that is not absolute is to be ignored.
    if let Some(cache) = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute()) {
        return Ok(cache.join(below));
    }
    match variable("HOME") {
        Some(home) => Ok(home.join(".cache").join(below)),
        None => Err(Error::InvalidOption {
            name: "MODEL_CACHE_HOME",
            value: String::new(),
            reason: "it must name the store's folder where neither XDG_CACHE_HOME nor HOME is set".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_those_asked_for_or_as_many_as_pay_within_memory_and_rate() {
        assert_eq!(connections(None, 100, None), Connections::Adaptive { most: 16 });
        assert_eq!(connections(None, 10, None), Connections::Adaptive { most: 10 });
        assert_eq!(connections(None, 0, None), Connections::Adaptive { most: 1 });
        assert_eq!(connections(None, 100, Some(1 << 20)), Connections::Adaptive { most: 4 });
        assert_eq!(connections(None, 100, Some(1 << 10)), Connections::Adaptive { most: 1 });
        assert_eq!(connections(Some(64), 100, Some(1 << 10)), Connections::Fixed(64));
        assert_eq!(connections(Some(64), 10, None), Connections::Fixed(10));
    }

    #[test]
    fn the_store_is_where_the_first_variable_says() {
        let with = |set: &[(&str, &str)]| {
            let set: Vec<_> = set.iter().map(|(name, value)| ((*name).to_owned(), PathBuf::from(value))).collect();
            default_store_from(&|name| set.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()))
        };
        let home = ("HOME", "/home/u");
        assert_eq!(with(&[home]).unwrap(), Path::new("/home/u/.cache/tabagent/model-cache"));
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "/x")]).unwrap(), Path::new("/x/tabagent/model-cache"));
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "x")]).unwrap(), Path::new("/home/u/.cache/tabagent/model-cache"));
        assert_eq!(with(&[home, ("MODEL_CACHE_HOME", "/m")]).unwrap(), Path::new("/m"));
        assert!(with(&[]).is_err());
    }
}
