//! What is wrong, and what to do: [`ModelCacheBuilder::examine`] looks at settings, machine, store and Hub, and changes none of them.
//!
//! It never opens the store: what the records hold is read in a copy of them ([`storage::copy_environment`]), what the extents hold at the
//! places the records name. So it works beside processes that use the store, on one that is damaged, on a full disk, and where there is
//! none.

mod files;
mod hub;
mod machine;
mod settings;
mod store;
mod temporary;

pub(crate) use store::store_id;

use crate::{
    builder::ModelCacheBuilder,
    download::blocking,
    error::{Error, ErrorKind},
};

/// What an examination found, in the order it looked.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Examination {
    /// The findings, those that all is well among them.
    pub findings: Vec<Finding>,
}

/// One thing an examination found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What it is about.
    pub area: Area,
    /// Whether something has to be done.
    pub severity: Severity,
    /// What was found, with its numbers. Never a token.
    pub what: String,
    /// What to do: each line a command that can be pasted, or a sentence. Problems have one wherever something is known to help.
    pub hint: Option<String>,
    /// Of a problem: what kind of error it would end a command with.
    pub kind: Option<ErrorKind>,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Area {
    /// Environment variables and options.
    Settings,
    /// The kernel, and how this program was built.
    Machine,
    /// Who may read and write the store's files, and whether they are its own.
    Files,
    /// What is in the store.
    Store,
    /// The processes that use it.
    Processes,
    /// The disk it lies on.
    Space,
    /// The Hub, the way to it, and the token.
    Hub,
}

/// Whether something has to be done about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Severity {
    /// It is as it should be.
    Fine,
    /// Worth knowing.
    Note,
    /// It works, but not as well, or not as safely, as it could.
    Warning,
    /// Something does not work, or is damaged.
    Problem,
}

impl Area {
    /// The area as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Machine => "machine",
            Self::Files => "files",
            Self::Store => "store",
            Self::Processes => "processes",
            Self::Space => "space",
            Self::Hub => "hub",
        }
    }
}

impl Severity {
    /// The severity as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

impl Examination {
    /// The kind of the first problem, if there is one: damage before all others, since it is what can't wait.
    pub fn kind(&self) -> Option<ErrorKind> {
        let kinds = || self.findings.iter().filter_map(|finding| finding.kind);
        kinds().find(|kind| *kind == ErrorKind::Integrity).or_else(|| kinds().next())
    }
}

/// Findings of one area as they are made.
struct Findings<'a> {
    area: Area,
    found: &'a mut Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, severity: Severity, what: impl Into<String>, hint: Option<String>, kind: Option<ErrorKind>) {
        self.found.push(Finding { area: self.area, severity, what: what.into(), hint, kind });
    }

    fn fine(&mut self, what: impl Into<String>) {
        self.add(Severity::Fine, what, None, None);
    }

    fn note(&mut self, what: impl Into<String>) {
        self.add(Severity::Note, what, None, None);
    }

    /// A note of what can be done about something.
    fn advise(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Note, what, Some(hint.into()), None);
    }

    fn warn(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Warning, what, Some(hint.into()), None);
    }

    fn problem(&mut self, kind: ErrorKind, what: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Problem, what, Some(hint.into()), Some(kind));
    }

    /// A problem that is an error already.
    fn error(&mut self, error: &Error) {
        self.add(Severity::Problem, error.chain(), error.hint(), Some(error.kind()));
    }
}

impl ModelCacheBuilder {
    /// Looks at everything a cache of these options would need: settings, the machine, the store's files and records, who uses it, its disk,
    /// and, unless offline, the Hub and whose the token is.
    ///
    /// Changes nothing and opens nothing to write, so it works on a store that can't be opened, that is damaged or in use, and where there is none.
    /// Nothing that is wrong is an error here: it is a finding. The records are copied to the folder for temporary files
    /// for it, and what an examination that was killed left there is removed. Data is not read: [`ModelCache::verify`](crate::ModelCache::verify)
    /// does. Cost: one read of the records, a read of 4 KiB for each chunk, one request to the Hub.
    pub async fn examine(self) -> Examination {
        let mut found = Vec::new();
        let config = settings::examine(&self, &mut Findings { area: Area::Settings, found: &mut found });
        let folder = self.store_folder().to_owned();
        let local = blocking::run(move || {
            let mut found = Vec::new();
            machine::examine(&mut Findings { area: Area::Machine, found: &mut found });
            let mut files = Findings { area: Area::Files, found: &mut found };
            files::look_beside(&folder, &mut files);
            if files::examine(&folder, &mut files) {
                store::examine(&folder, &mut found);
            }
            Ok(found)
        });
        match local.await {
            Ok(more) => found.extend(more),
            Err(error) => Findings { area: Area::Store, found: &mut found }.error(&error),
        }
        hub::examine(config, &mut Findings { area: Area::Hub, found: &mut found }).await;
        Examination { findings: found }
    }
}
