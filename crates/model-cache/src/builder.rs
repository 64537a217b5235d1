//! How a cache is opened: [`ModelCacheBuilder`].

use crate::{
    cache::{Inner, ModelCache},
    download::{BUFFER_BYTES, Connections},
    error::{Error, Result},
    hub::{HubClient, HubConfig, RetryPolicy, Token, Vars, parse_endpoint, variable},
    limit::{check_memory_budget, check_rate, parse_memory_budget, parse_rate},
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
/// What the HTTP client holds for one connection, its allocator's waste included: its buffer grows to 408 KiB, and of those one is
/// with us, one on its way, one being read into. Measured: docs/performance.md, "A pull, per GiB".
const CLIENT_BYTES: u64 = 1920 << 10;
/// Buffers beside the one each connection gathers in: those being written.
const SPARE_BUFFERS: usize = 4;
/// What a pull takes beside its connections and buffers: what checks and hashes, the threads' stacks, the listing.
const BASE_BYTES: u64 = 4 << 20;
/// The budget of who names none.
const DEFAULT_BUDGET_BYTES: u64 = 40 << 20;
/// The environment's limit of the rate, where the builder was given none.
pub(crate) const LIMIT_RATE: &str = "MODEL_CACHE_LIMIT_RATE";
/// The environment's memory budget, where the builder was given none.
pub(crate) const MEMORY_BUDGET: &str = "MODEL_CACHE_MEMORY_BUDGET";

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
    memory_budget_bytes: Option<u64>,
    read_timeout: Option<Duration>,
    metadata_timeout: Option<Duration>,
    retry_waits: Option<(Duration, Duration)>,
    side_by_side: bool,
    check_reads: bool,
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
            memory_budget_bytes: None,
            read_timeout: None,
            metadata_timeout: None,
            retry_waits: None,
            side_by_side: cfg!(target_os = "linux"),
            check_reads: false,
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
    /// answers that it is asked too much; small files, which wait more than they transfer, are asked for up to 32 at once
    /// of each host.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = Some(connections);
        self
    }

    /// Most bytes of files a second, over all connections and pulls of this cache; at least 1024. Default: `MODEL_CACHE_LIMIT_RATE`
    /// (as [`parse_rate`] reads it), else no limit.
    pub fn limit_rate(mut self, bytes_per_second: u64) -> Self {
        self.limit_rate = Some(bytes_per_second);
        self
    }

    /// Most private memory one pull takes for its data, 8 MiB or more. Default: `MODEL_CACHE_MEMORY_BUDGET`, else 40 MiB, which
    /// are enough for 16 connections.
    ///
    /// 4 MiB go to checking, to the threads and the listing. The rest is shared out before the pull begins: a connection takes
    /// up to 1.9 MiB within the HTTP client and a buffer of 256 KiB; 4 more buffers are those being written. Buffers come from a pool
    /// of that many and are waited for, and fewer connections are used where the budget is too small for all. The size of the
    /// files does not matter.
    pub fn memory_budget_bytes(mut self, bytes: u64) -> Self {
        self.memory_budget_bytes = Some(bytes);
        self
    }

    /// The longest wait for a file's next byte; then the connection is made anew. So it is where six such times bring less than 4 KiB:
    /// a server that drips a byte before each timeout would have no end. Default: `HF_HUB_DOWNLOAD_TIMEOUT`, else 10 s.
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.read_timeout = Some(timeout);
        self
    }

    /// The same for answers that describe files: what a repo is, its listing, where a file's bytes are. Default:
    /// `HF_HUB_ETAG_TIMEOUT`, else 10 s.
    pub fn metadata_timeout(mut self, timeout: Duration) -> Self {
        self.metadata_timeout = Some(timeout);
        self
    }

    /// The longest wait after the first failure of a request, doubled by each further one up to `most`; the wait is a random part of
    /// that. Where a server says how long to wait, its word counts, up to 310 s. Default: 0.5 s and 8 s.
    pub fn retry_waits(mut self, first: Duration, most: Duration) -> Self {
        self.retry_waits = Some((first, most));
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

    /// Whether every file is held against the CRC32Cs of its blocks, as it is in memory, when this cache opens it for the first time; a
    /// damaged one is an error then. Default: no; [`ModelFile::checked`](crate::ModelFile::checked) and
    /// [`checked_reader`](crate::ModelFile::checked_reader) check what is read alone, when it is read.
    ///
    /// Costs one read of each file, 0.1 CPU-seconds a GiB.
    pub fn check_reads(mut self, check_reads: bool) -> Self {
        self.check_reads = check_reads;
        self
    }

    /// Opens the store, creating it where missing.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for an option or an environment variable that can't be, before anything is touched (for
    /// `MODEL_CACHE_LIMIT_RATE` and `MODEL_CACHE_MEMORY_BUDGET` once something is pulled: nothing else needs them);
    /// [`Error::Storage`] for a store that can't be opened: read-only, on a network file system, a file, open in another
    /// container; [`Error::StoreFormat`] for one of a newer version; [`Error::NoSpace`].
    pub fn open(self) -> Result<ModelCache> {
        let refuse = |name, value: String, reason: &str| Err(Error::InvalidOption { name, value, reason: reason.to_owned() });
        if let Some(connections) = self.connections.filter(|number| !(1..=MOST_CONNECTIONS).contains(number)) {
            return refuse("connections", connections.to_string(), "it must be 1 to 64");
        }
        if let Some(rate) = self.limit_rate {
            check_rate("limit_rate", rate, &rate.to_string())?;
        }
        if let Some(bytes) = self.memory_budget_bytes {
            check_memory_budget("memory_budget_bytes", bytes, &bytes.to_string())?;
        }
        for (name, timeout) in [("read_timeout", self.read_timeout), ("metadata_timeout", self.metadata_timeout)] {
            if timeout.is_some_and(|timeout| timeout.is_zero()) {
                return refuse(name, "0".to_owned(), "it must be longer than nothing");
            }
        }
        if self.store.as_os_str().is_empty() {
            return refuse("store", String::new(), "it must name a folder");
        }
        let mut config = self.hub_config()?;
        let means = match limits(self.limit_rate, self.memory_budget_bytes, &|name| std::env::var_os(name)) {
            Ok((limit_rate, budget_bytes)) => {
                config.limit_rate = limit_rate;
                Ok(Means::new(connections(self.connections, affordable_connections(budget_bytes), limit_rate)))
            }
            Err(Error::InvalidOption { name, value, reason }) => Err(BadVariable { name, value, reason }),
            Err(other) => return Err(other),
        };
        if !self.create && !Store::is_in(&self.store) {
            return Err(Error::NoStore { path: self.store });
        }
        let registry = self.registry.unwrap_or_else(|| Arc::new(StorageRegistry::new(&self.store)));
        let store = Store::open(&registry, &self.store)?;
        let checked = self.check_reads.then(Default::default);
        let hub = HubClient::new(config);
        Ok(ModelCache::from_inner(Inner { store, hub, means, side_by_side: self.side_by_side, checked }))
    }

    /// The folder of the store, as given.
    pub(crate) fn store_folder(&self) -> &Path {
        &self.store
    }

    /// The settings the Hub is asked with: those given, else those of the environment.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for an option or a variable that can't be; [`Error::Io`] for a token file that can't be read.
    pub(crate) fn hub_config(&self) -> Result<HubConfig> {
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
        if let Some(timeout) = self.metadata_timeout {
            config.metadata_timeout = timeout;
        }
        if let Some((first_wait, max_wait)) = self.retry_waits {
            config.retry = RetryPolicy { first_wait, max_wait, ..config.retry };
        }
        Ok(config)
    }
}

/// What a pull works with.
pub(crate) struct Means {
    pub(crate) connections: Connections,
    /// How many buffers it may gather bytes in.
    pub(crate) buffers: usize,
}

impl Means {
    fn new(connections: Connections) -> Self {
        Self { connections, buffers: connections.most() + SPARE_BUFFERS }
    }
}

/// A variable of pulls that can't be: who pulls nothing never hears of it.
pub(crate) struct BadVariable {
    name: &'static str,
    value: String,
    reason: String,
}

impl BadVariable {
    pub(crate) fn error(&self) -> Error {
        Error::InvalidOption { name: self.name, value: self.value.clone(), reason: self.reason.clone() }
    }
}

/// The rate and the memory budget of pulls: those given; else, and only then, those of the environment; else the defaults.
pub(crate) fn limits(limit_rate: Option<u64>, memory_budget_bytes: Option<u64>, vars: Vars<'_>) -> Result<(Option<u64>, u64)> {
    let limit_rate = match limit_rate {
        Some(given) => Some(given),
        None => variable(vars, LIMIT_RATE)?.map(|text| parse_rate(LIMIT_RATE, &text)).transpose()?,
    };
    let memory_budget_bytes = match memory_budget_bytes {
        Some(given) => given,
        None => match variable(vars, MEMORY_BUDGET)? {
            Some(text) => parse_memory_budget(MEMORY_BUDGET, &text)?,
            None => DEFAULT_BUDGET_BYTES,
        },
    };
    Ok((limit_rate, memory_budget_bytes))
}

/// How many connections a memory budget is enough for, with their buffers and all else.
fn affordable_connections(budget_bytes: u64) -> u64 {
    let buffer_bytes = BUFFER_BYTES as u64;
    budget_bytes.saturating_sub(BASE_BYTES + SPARE_BUFFERS as u64 * buffer_bytes) / (CLIENT_BYTES + buffer_bytes)
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
    use crate::limit::LEAST_BUDGET_BYTES;

    #[test]
    fn the_default_budget_is_enough_for_16_connections_and_the_least_for_one() {
        assert_eq!(affordable_connections(DEFAULT_BUDGET_BYTES), 16);
        assert_eq!(affordable_connections(LEAST_BUDGET_BYTES), 1);
        for budget_bytes in (LEAST_BUDGET_BYTES..256 << 20).step_by(1 << 20) {
            let connections = affordable_connections(budget_bytes);
            let buffers = connections + SPARE_BUFFERS as u64;
            assert!(BASE_BYTES + connections * CLIENT_BYTES + buffers * BUFFER_BYTES as u64 <= budget_bytes);
        }
    }

    #[test]
    fn what_is_given_wins_and_a_variable_is_looked_at_only_where_nothing_is() {
        let set = |rate: &'static str, budget: &'static str| {
            move |name: &str| match name {
                LIMIT_RATE => Some(rate.into()),
                MEMORY_BUDGET => Some(budget.into()),
                _ => None,
            }
        };
        assert_eq!(limits(None, None, &|_| None).unwrap(), (None, DEFAULT_BUDGET_BYTES));
        assert_eq!(limits(None, None, &set("", " ")).unwrap(), (None, DEFAULT_BUDGET_BYTES));
        assert_eq!(limits(None, None, &set(" ", "")).unwrap(), (None, DEFAULT_BUDGET_BYTES));
        assert_eq!(limits(None, None, &set("10M", "24MiB")).unwrap(), (Some(10 << 20), 24 << 20));
        assert_eq!(limits(Some(5000), Some(9 << 20), &set("fast", "little")).unwrap(), (Some(5000), 9 << 20));
        for (rate, budget, named, shown) in [("0", "24M", LIMIT_RATE, "0"), ("10M", "1M", MEMORY_BUDGET, "1M")] {
            let error = limits(None, None, &set(rate, budget)).unwrap_err();
            assert!(matches!(&error, Error::InvalidOption { name, value, .. } if *name == named && value == shown), "{error}");
        }
    }

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
