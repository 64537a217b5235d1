//! What every command works with: the options, the open store, the interrupt.

use crate::{
    args::{Global, ProgressMode},
    exit::{Code, Failure},
    interrupt::Interrupt,
    options, output,
    render::{self, Paint},
    talk,
};
use std::{future::Future, path::PathBuf};
use tabagent_model_cache::{Error, ModelCache, ModelCacheBuilder, default_store, parse_memory_budget, parse_rate};
use tokio::task::JoinError;

pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) interrupt: Interrupt,
}

/// How the network and memory are used, where a command has options for it.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) connections: Option<usize>,
    pub(crate) limit_rate: Option<String>,
    pub(crate) memory_budget: Option<String>,
}

impl Context {
    /// Fails if an interrupt came already.
    pub(crate) fn new(global: Global, interrupt: Interrupt) -> Result<Self, Failure> {
        if interrupt.is_heard() { Err(interrupt.failure()) } else { Ok(Self { global, interrupt }) }
    }

    /// The store's folder.
    pub(crate) fn store(&self) -> Result<PathBuf, Failure> {
        match &self.global.store {
            Some(store) => Ok(store.clone()),
            None => Ok(default_store()?),
        }
    }

    /// Opens the store the options name, to add to it: made where missing.
    pub(crate) async fn open(&self) -> Result<ModelCache, Failure> {
        self.open_with(Network::default()).await
    }

    pub(crate) async fn open_with(&self, network: Network) -> Result<ModelCache, Failure> {
        let mut builder = self.builder()?;
        if let Some(connections) = network.connections {
            builder = builder.connections(connections);
        }
        if let Some(rate) = &network.limit_rate {
            builder = builder.limit_rate(parse_rate("--limit-rate", rate)?);
        }
        if let Some(budget) = &network.memory_budget {
            builder = builder.memory_budget_bytes(parse_memory_budget("--memory-budget", budget)?);
        }
        self.blocking(move || builder.open()).await
    }

    /// Opens the store the options name, which must be there.
    pub(crate) async fn open_there(&self) -> Result<ModelCache, Failure> {
        let builder = self.builder()?.create(false);
        self.blocking(move || builder.open()).await
    }

    /// Opens the store the options name if it is there; else says so.
    pub(crate) async fn open_if_there(&self) -> Result<Option<ModelCache>, Failure> {
        let builder = self.builder()?.create(false);
        let opened = self.blocking(move || match builder.open() {
            Err(Error::NoStore { .. }) => Ok(None),
            opened => opened.map(Some),
        });
        let opened = opened.await?;
        if opened.is_none() {
            let store = render::clean(&self.store()?.to_string_lossy());
            self.say(&format!("There is no store at {store} yet."));
        }
        Ok(opened)
    }

    pub(crate) fn builder(&self) -> Result<ModelCacheBuilder, Failure> {
        let mut builder = ModelCache::builder(self.store()?);
        if let Some(endpoint) = &self.global.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if self.global.offline {
            builder = builder.offline(true);
        }
        Ok(builder)
    }

    /// Runs what may wait for the disk, so that an interrupt is heard meanwhile.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Failure> {
        self.settle(self.interrupt.during(tokio::task::spawn_blocking(work)).await)
    }

    /// Runs what can be dropped at any point, until it ends or an interrupt comes.
    pub(crate) async fn task<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Failure> {
        self.settle(self.interrupt.during(tokio::spawn(work)).await)
    }

    fn settle<T>(&self, ended: Option<Result<Result<T, Error>, JoinError>>) -> Result<T, Failure> {
        match ended {
            None | Some(Ok(Err(Error::Cancelled))) => Err(self.interrupt.failure()),
            Some(Ok(result)) => Ok(result?),
            // The hook of `talk` said what happened.
            Some(Err(_)) => Err(Failure::new(Code::Other, "model-cache failed inside; this is a bug")),
        }
    }

    /// Colours for stdout.
    pub(crate) fn paint(&self) -> Paint {
        Paint(output::stdout_colour())
    }

    /// Whether a program reads events on stderr, line by line.
    pub(crate) fn says_events(&self) -> bool {
        self.global.progress == ProgressMode::Json
    }

    /// Says something to the user, on stderr; not where a program reads it line by line.
    pub(crate) fn say(&self, line: &str) {
        if !self.says_events() {
            talk::line(line);
        }
    }

    /// Suggests what to do next.
    pub(crate) fn suggest(&self, command: &str) {
        if !self.global.json {
            for line in options::into_hint(command).lines() {
                self.say(&format!("{} {line}", Paint(output::stderr_colour()).cyan("hint:")));
            }
        }
    }

    /// Says what the user should know although all went well.
    pub(crate) fn warn(&self, line: &str) {
        self.say(&format!("{} {line}", Paint(output::stderr_colour()).yellow("warning:")));
    }
}
