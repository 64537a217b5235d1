//! What every command works with: the options, the open store, the interrupt.

use crate::{
    args::{Global, ProgressMode},
    exit::{Code, Failure},
    interrupt::Interrupt,
    output,
    render::Paint,
    talk,
};
use std::{future::Future, path::PathBuf};
use tabagent_model_cache::{Error, ModelCache, default_store};
use tokio::task::JoinError;

pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) interrupt: Interrupt,
}

impl Context {
    pub(crate) fn new(global: Global) -> Result<Self, Failure> {
        let interrupt =
            Interrupt::listen().map_err(|error| Failure::new(Code::Other, format!("can't listen for signals: {error}")))?;
        Ok(Self { global, interrupt })
    }

    /// The store's folder.
    pub(crate) fn store(&self) -> Result<PathBuf, Failure> {
        match &self.global.store {
            Some(store) => Ok(store.clone()),
            None => Ok(default_store()?),
        }
    }

    /// Opens the store the options name.
    pub(crate) async fn open(&self) -> Result<ModelCache, Failure> {
        self.open_with(None).await
    }

    pub(crate) async fn open_with(&self, connections: Option<usize>) -> Result<ModelCache, Failure> {
        let mut builder = ModelCache::builder(self.store()?);
        if let Some(endpoint) = &self.global.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if self.global.offline {
            builder = builder.offline(true);
        }
        if let Some(connections) = connections {
            builder = builder.connections(connections);
        }
        self.blocking(move || builder.open()).await
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
            self.say(&format!("{} {command}", Paint(output::stderr_colour()).cyan("hint:")));
        }
    }

    /// Says what the user should know although all went well.
    pub(crate) fn warn(&self, line: &str) {
        self.say(&format!("{} {line}", Paint(output::stderr_colour()).yellow("warning:")));
    }
}
