//! Everything that can go wrong, as one enum: what was attempted, on what, with which numbers; [`Error::hint`] says what to do next.

use crate::{digest::Digest, name::*};
use std::{io, path::PathBuf, time::Duration};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. [`Error::kind`] groups the variants for callers that only branch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // -- bad input, told before anything is touched --------------------------------------------------------------
    /// Not a repo name.
    #[error("\"{name}\" is not a repo name: {reason}")]
    InvalidRepo {
        /// The text, control characters escaped.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Not a revision.
    #[error("\"{revision}\" is not a revision: {reason}")]
    InvalidRevision {
        /// The text, control characters escaped.
        revision: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Not a file path within a repo.
    #[error("\"{path}\" is not a file path within a repo: {reason}")]
    InvalidPath {
        /// The text, control characters escaped.
        path: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Not a digest.
    #[error("\"{digest}\" is not a digest: it is written sha256:<64 hex> or git-sha1:<40 hex>")]
    InvalidDigest {
        /// The text, control characters escaped.
        digest: String,
    },
    /// Not a glob.
    #[error("\"{glob}\" is not a glob")]
    InvalidGlob {
        /// The text.
        glob: String,
        /// What the glob parser says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A byte range that does not lie in the file.
    #[error("range {start}..{end} does not lie in {path}, which has {size_bytes} bytes")]
    InvalidRange {
        /// The file.
        path: String,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// The file's size.
        size_bytes: u64,
    },
    /// A tensor that can't be read as a slice of numbers in place.
    #[error("tensor \"{tensor}\" can't be read as a slice of {element}: {reason}")]
    NotASlice {
        /// The tensor's name, control characters escaped.
        tensor: String,
        /// The number asked for, as Rust calls it.
        element: &'static str,
        /// The tensor's type, or where its bytes begin.
        reason: String,
    },
    /// An option or environment variable that cannot be.
    #[error("{name}=\"{value}\" can't be used: {reason}")]
    InvalidOption {
        /// The option's or variable's name.
        name: &'static str,
        /// Its value (never a token's).
        value: String,
        /// What it should be.
        reason: String,
    },

    // -- not found -----------------------------------------------------------------------------------------------
    /// The Hub knows no such repo, or hides it from this token.
    #[error("no repo {repo} at {endpoint}, or it is private{}", match .token_source { Some(source) => format!(" and the token from {source} may not see it"), None => " and no token was sent".to_owned() })]
    RepoNotFound {
        /// The repo.
        repo: RepoId,
        /// The Hub asked.
        endpoint: String,
        /// Where the token that was sent came from.
        token_source: Option<String>,
    },
    /// The repo has no such branch, tag or commit.
    #[error("{repo} has no revision {revision}")]
    RevisionNotFound {
        /// The repo.
        repo: RepoId,
        /// The revision.
        revision: Revision,
    },
    /// The repo has no such file.
    #[error("{repo} has no file {path}{}", match .commit { Some(commit) => format!(" at {}", commit.short()), None => String::new() })]
    FileNotFound {
        /// The repo.
        repo: RepoId,
        /// The commit looked at.
        commit: Option<CommitId>,
        /// The path or glob.
        path: String,
    },
    /// The repo offers no such quant.
    #[error("{repo} offers no quant {quant:?}; it offers {}", if .offered.is_empty() { "none".to_owned() } else { .offered.join(", ") })]
    QuantNotFound {
        /// The repo.
        repo: RepoId,
        /// What was asked for.
        quant: String,
        /// What there is.
        offered: Vec<String>,
    },
    /// One part of a split GGUF, for a loader that takes it for the whole model.
    #[error("{path} of {repo} is part {} of {count} of a split GGUF, and this loader reads the one file it is given", .index.saturating_add(1))]
    SplitGguf {
        /// The repo, with its revision if one was given.
        repo: RepoSpec,
        /// The file.
        path: FilePath,
        /// Which part it is, from 0.
        index: u64,
        /// Of how many.
        count: u64,
    },
    /// Several quants, and none was chosen.
    #[error("{repo} {}", match .offered.len() { 0 => "has no files to pull".to_owned(), several => format!("offers {several} quants; say which") })]
    QuantNotChosen {
        /// The repo.
        repo: RepoId,
        /// Each quant and its size in bytes.
        offered: Vec<(String, u64)>,
    },
    /// Files of a pull were removed by somebody else before it was done.
    #[error("{}", match .count { 1 => format!("{path} of {repo} was removed while it was pulled"), _ => format!("{count} of the files of {repo} were removed while it was pulled, {path} among them") })]
    RemovedMeanwhile {
        /// The repo.
        repo: RepoId,
        /// How many files.
        count: usize,
        /// One of them.
        path: FilePath,
    },
    /// The repo is known here, and this file of it is not here, or not all of it.
    #[error("{path} of {repo} {}", match .landed_percent { Some(percent) => format!("is {}: {percent} % of it is here", if *.is_pulled { "being pulled" } else { "not complete" }), None => "is not in the store".to_owned() })]
    NotHere {
        /// The repo, with its revision if one was given.
        repo: RepoSpec,
        /// The file.
        path: FilePath,
        /// How much of it has landed, if it was begun.
        landed_percent: Option<u64>,
        /// Whether some process pulls it now.
        is_pulled: bool,
        /// Whether the Hub has it, as far as was written down.
        is_at_hub: bool,
    },
    /// Nothing of this repo is in the store.
    #[error("nothing of {repo} is in the store")]
    NotInStore {
        /// The repo, with its revision if one was given.
        repo: RepoSpec,
    },
    /// The file has no such tensor.
    #[error("no tensor \"{}\" among the {count} of the file", crate::name::printable(.name))]
    TensorNotFound {
        /// What was asked for.
        name: String,
        /// How many tensors there are.
        count: usize,
        /// The name most like it, if one is.
        nearest: Option<String>,
    },

    /// An ONNX graph names a data file that is not in the store, or not yet.
    #[error("{repo} {graph} has its weights in {path}, which is not in the store{}", match .landed { Some((landed, size)) => format!(" yet: {} of {} are here", crate::units::iec(*landed), crate::units::iec(*size)), None => String::new() })]
    MissingData {
        /// The repo.
        repo: RepoId,
        /// The graph.
        graph: FilePath,
        /// The file it names.
        path: FilePath,
        /// Where it was begun: how many bytes of it are here, and how many it has.
        landed: Option<(u64, u64)>,
        /// Whether the graph was imported, so that the Hub can't give the rest.
        is_imported: bool,
    },

    // -- the Hub and the way to it -------------------------------------------------------------------------------
    /// The licence was not accepted by the owner of this token, or no token was sent.
    #[error("{repo} is gated and {}", match .token_source { Some(source) => format!("the Hub refused the token from {source}"), None => "no token was sent".to_owned() })]
    Gated {
        /// The repo.
        repo: RepoId,
        /// Where the token came from.
        token_source: Option<String>,
    },
    /// The Hub does not know this token.
    #[error("{endpoint} does not accept the token from {token_source}")]
    BadToken {
        /// The Hub asked.
        endpoint: String,
        /// Where the token came from.
        token_source: String,
    },
    /// The Hub's operators switched this repo off.
    #[error("access to {repo} is disabled by the Hub")]
    Disabled {
        /// The repo.
        repo: RepoId,
    },
    /// The rate limit stayed exhausted through every retry.
    #[error("{endpoint} limits the rate of requests{}", match .retry_after { Some(wait) => format!("; it asks to wait {} s", wait.as_secs()), None => String::new() })]
    RateLimited {
        /// The server.
        endpoint: String,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
    },
    /// The server answered with an error no rule explains.
    #[error("{url} answered {status}{}", if .message.is_empty() { String::new() } else { format!(": {}", .message) })]
    HubStatus {
        /// What was asked, without query (signed URLs carry secrets there).
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's own words, cut short.
        message: String,
        /// Its id for this request, for a support ticket.
        request_id: Option<String>,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
    },
    /// The answer is not what the Hub's protocol allows.
    #[error("{url} gave an answer that can't be used: {reason}")]
    BadAnswer {
        /// What was asked, without query.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// No connection, or one that broke, through every retry.
    #[error("could not {action} {url}")]
    Network {
        /// "reach", "read from".
        action: &'static str,
        /// What was asked, without query.
        url: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing arrived for too long, or so little that it has no end, through every retry.
    #[error("{url} sent {} {} s", match .bytes { 0 => "nothing for".to_owned(), few => format!("no more than {few} bytes in") }, .after.as_secs())]
    Stalled {
        /// What was asked, without query.
        url: String,
        /// The time waited.
        after: Duration,
        /// What came in it.
        bytes: u64,
    },
    /// The server can't show that it is the one that was asked.
    #[error("{url} has a certificate that can't be trusted")]
    Certificate {
        /// What was asked, without query.
        url: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Offline mode, and the store does not have it.
    #[error("offline: can't {action}")]
    Offline {
        /// What would have needed the network.
        action: String,
    },

    // -- integrity -----------------------------------------------------------------------------------------------
    /// The server now gives another file than the one that was listed.
    #[error("{repo} {path} changed on the server while it was pulled: {what} was {expected}, is now {found}")]
    ContentChanged {
        /// The repo.
        repo: RepoId,
        /// The file.
        path: FilePath,
        /// "size", "digest", "commit".
        what: &'static str,
        /// As listed.
        expected: String,
        /// As served.
        found: String,
    },
    /// The bytes that arrived are not the file the Hub promised.
    #[error("{name} is not what was promised: expected {expected}, found {found} over {size_bytes} bytes")]
    DigestMismatch {
        /// The file, `repo path`.
        name: String,
        /// The Hub's digest.
        expected: Digest,
        /// That of the bytes here.
        found: Digest,
        /// How many bytes were hashed.
        size_bytes: u64,
    },
    /// Another process or task is at it right now; nothing is wrong with it.
    #[error("{what} is busy: {reason}")]
    Busy {
        /// File or content.
        what: String,
        /// Who is at what.
        reason: &'static str,
    },
    /// A file is not what its format says it should be, or lies about itself.
    #[error("not a usable {format} file: {reason} (offset {offset})")]
    BadFormat {
        /// "GGUF", "safetensors", "ONNX".
        format: &'static str,
        /// Where in the file, in bytes.
        offset: u64,
        /// What is wrong, with its numbers.
        reason: String,
    },
    /// Stored bytes no longer match their CRC32C, or a record contradicts the extents it speaks of.
    #[error("{what} is damaged: {reason}")]
    Damaged {
        /// File, chunk, block or record.
        what: String,
        /// Expected and found.
        reason: String,
    },

    // -- the machine ---------------------------------------------------------------------------------------------
    /// The disk has no room; told before the first byte is fetched.
    #[error("no space for {what}: needs {} more, {} free on the store's disk", crate::units::iec(*.needed_bytes), crate::units::iec(*.free_bytes))]
    NoSpace {
        /// What was to be stored.
        what: String,
        /// What is missing of it.
        needed_bytes: u64,
        /// What the disk has.
        free_bytes: u64,
    },
    /// The disk an export, a backup or a restored store goes to has no room, or that of a store not even enough to open it.
    #[error("no space for {path:?}: needs {}, {} free on its disk", crate::units::iec(*.needed_bytes), crate::units::iec(*.free_bytes))]
    TargetFull {
        /// The file or folder to be written.
        path: PathBuf,
        /// Its size.
        needed_bytes: u64,
        /// What its disk has.
        free_bytes: u64,
    },
    /// There is no store in this folder, and none was to be made.
    #[error("there is no store at {path:?}")]
    NoStore {
        /// The folder.
        path: PathBuf,
    },
    /// A file changed while it was imported.
    #[error("{path:?} changed while it was imported")]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// There is a store in this folder, and it was not to be replaced.
    #[error("there is a store at {path:?}")]
    StoreExists {
        /// The folder.
        path: PathBuf,
    },
    /// A store that is to be replaced is open.
    #[error("the store {path:?} is in use{}", by(.processes))]
    StoreInUse {
        /// Its folder.
        path: PathBuf,
        /// The processes that have it open, as far as this one may look.
        processes: Vec<u32>,
    },
    /// In the folder of a store that is to be replaced lies what is not the store's, and would go with it.
    #[error("files that are not the store's lie in its folder {path:?}, and would go with it: {}", some(.others))]
    OthersInStore {
        /// The store's folder.
        path: PathBuf,
        /// Their names in it; folders end in "/".
        others: Vec<String>,
    },
    /// A store with nothing in it was to be backed up over the snapshots of one that had files.
    #[error(
        "the store {store:?} is empty, and snapshot {snapshot} of the backup {path:?} has {files} files: no snapshot was made"
    )]
    EmptyStore {
        /// The store's folder.
        store: PathBuf,
        /// The backup's folder.
        path: PathBuf,
        /// The backup's newest snapshot.
        snapshot: u64,
        /// Files in that.
        files: u64,
    },
    /// The newest snapshot of a backup was to take the place of a store that it is not of, and nobody chose it.
    #[error("snapshot {snapshot}, the newest of the backup {path:?}, is of another store than {store:?}; nothing was restored")]
    AnotherStore {
        /// The folder of the store that was to be replaced.
        store: PathBuf,
        /// The backup's folder.
        path: PathBuf,
        /// The backup's newest snapshot.
        snapshot: u64,
        /// The newest one that is of this store.
        own: Option<u64>,
    },
    /// A backup does not have this snapshot.
    #[error("the backup {path:?} has no snapshot {snapshot}, but {}", numbers(.there))]
    NoSnapshot {
        /// The backup's folder.
        path: PathBuf,
        /// The number asked for.
        snapshot: u64,
        /// Those it has.
        there: Vec<u64>,
    },
    /// This folder is no backup, or has no whole snapshot.
    #[error("there is no backup at {path:?}: {reason}")]
    NoBackup {
        /// The folder.
        path: PathBuf,
        /// What it lacks.
        reason: String,
    },
    /// The backup was written by a later version of this program, or its folder says nothing this one understands.
    #[error("the backup {path:?} has format {found}; this program reads format {supported}")]
    BackupFormat {
        /// The backup's folder.
        path: PathBuf,
        /// The format it says it has, control characters escaped.
        found: String,
        /// The format of this build.
        supported: u32,
    },
    /// Files of a backup are not what they were.
    #[error("the backup {path:?} is damaged in {count} files, among them {file}: {reason}; nothing was restored")]
    BackupDamaged {
        /// The backup's folder.
        path: PathBuf,
        /// How many of its files.
        count: usize,
        /// The first of them.
        file: String,
        /// What is wrong with it.
        reason: String,
        /// The snapshot that was to be restored.
        snapshot: u64,
        /// Whether anything in it is sound, so that it can be restored without the rest.
        is_partly_sound: bool,
        /// Where nothing is: the newest other snapshot that is whole, if one is.
        whole_snapshot: Option<u64>,
    },
    /// The store was written by another version of this program.
    #[error("the store {store:?} has format {found}; this program reads format {supported}")]
    StoreFormat {
        /// The store's folder.
        store: PathBuf,
        /// The format on disk.
        found: u32,
        /// The format of this build.
        supported: u32,
    },
    /// A write-back error made this fill untrustworthy, or the engine failed below us.
    #[error("{action}")]
    Storage {
        /// What was attempted.
        action: String,
        /// The engine's error.
        #[source]
        source: storage::Error,
    },
    /// The operating system refused.
    #[error("could not {action} {path:?}")]
    Io {
        /// "read", "write", "create".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The target of an export exists and was not to be replaced.
    #[error("{path:?} exists")]
    TargetExists {
        /// The file.
        path: PathBuf,
    },
    /// Removing this loses what cannot be fetched again, and nobody confirmed it.
    #[error("{repo} was imported and can't be fetched again; nothing was removed")]
    NotConfirmed {
        /// The repo.
        repo: RepoId,
    },
    /// The caller cancelled; the store keeps every block that landed.
    #[error("cancelled")]
    Cancelled,
}

/// What to do about damage that can be mended.
const MEND: &str = "what else is damaged, and to mend it:\nmodel-cache verify\nmodel-cache repair";
/// The way back where it can't.
pub(crate) const FROM_BACKUP: &str = "model-cache restore DIR --replace";

/// What a caller branches on; the CLI's exit code is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong.
    Usage,
    /// No such repo, revision, file or quant.
    NotFound,
    /// The network or the Hub.
    Network,
    /// Bytes that are not what they should be.
    Integrity,
    /// No room on the disk.
    NoSpace,
    /// Token missing, refused, or not on the list.
    NotAllowed,
    /// Cancelled by the caller.
    Interrupted,
    /// Everything else.
    Other,
}

impl ErrorKind {
    /// The kind as programs read it: `not_found`, `no_space`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Network => "network",
            Self::Integrity => "integrity",
            Self::NoSpace => "no_space",
            Self::NotAllowed => "not_allowed",
            Self::Interrupted => "interrupted",
            Self::Other => "other",
        }
    }
}

impl Error {
    /// The operating system's number at the root of this error, if it has one.
    pub fn raw_os_error(&self) -> Option<i32> {
        let causes = std::iter::successors(std::error::Error::source(self), |cause| cause.source());
        causes.filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error()).last()
    }

    /// The group this error belongs to.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidRepo { .. }
            | Self::InvalidRevision { .. }
            | Self::InvalidPath { .. }
            | Self::InvalidDigest { .. }
            | Self::InvalidGlob { .. }
            | Self::InvalidRange { .. }
            | Self::InvalidOption { .. }
            | Self::NotASlice { .. }
            | Self::SplitGguf { .. }
            | Self::NotConfirmed { .. }
            | Self::StoreExists { .. }
            | Self::AnotherStore { .. }
            | Self::QuantNotChosen { .. } => ErrorKind::Usage,
            Self::RepoNotFound { .. }
            | Self::RevisionNotFound { .. }
            | Self::FileNotFound { .. }
            | Self::QuantNotFound { .. }
            | Self::NotHere { .. }
            | Self::MissingData { .. }
            | Self::NotInStore { .. }
            | Self::TensorNotFound { .. }
            | Self::NoBackup { .. }
            | Self::NoSnapshot { .. }
            | Self::NoStore { .. } => ErrorKind::NotFound,
            Self::Gated { .. } | Self::BadToken { .. } | Self::Disabled { .. } => ErrorKind::NotAllowed,
            Self::RateLimited { .. }
            | Self::HubStatus { .. }
            | Self::BadAnswer { .. }
            | Self::Network { .. }
            | Self::Stalled { .. }
            | Self::Certificate { .. }
            | Self::Offline { .. } => ErrorKind::Network,
            Self::ContentChanged { .. }
            | Self::DigestMismatch { .. }
            | Self::BadFormat { .. }
            | Self::BackupDamaged { .. }
            | Self::Damaged { .. } => ErrorKind::Integrity,
            Self::NoSpace { .. } | Self::TargetFull { .. } => ErrorKind::NoSpace,
            Self::Storage { source, .. } if source.is_no_space() => ErrorKind::NoSpace,
            Self::Storage { source, .. } if source.is_corruption() => ErrorKind::Integrity,
            Self::Cancelled => ErrorKind::Interrupted,
            Self::StoreFormat { .. }
            | Self::StoreInUse { .. }
            | Self::OthersInStore { .. }
            | Self::EmptyStore { .. }
            | Self::BackupFormat { .. }
            | Self::Storage { .. }
            | Self::Io { .. }
            | Self::RemovedMeanwhile { .. }
            | Self::Busy { .. }
            | Self::SourceChanged { .. }
            | Self::TargetExists { .. } => ErrorKind::Other,
        }
    }

    /// Whether the thing asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        self.kind() == ErrorKind::NotFound
    }

    /// Whether bytes are not what they should be.
    pub fn is_corruption(&self) -> bool {
        self.kind() == ErrorKind::Integrity
    }

    /// Whether the same call may succeed later without anybody changing anything: the retry policy's predicate.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Network { .. } | Self::Stalled { .. } | Self::RateLimited { .. } => true,
            Self::HubStatus { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether the cache was opened before a fork, and used in the child.
    pub fn is_forked(&self) -> bool {
        matches!(self, Self::Storage { source: storage::Error::Forked { .. }, .. })
    }

    /// The error and its causes, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }

    /// What to do next; none where nothing is known to help. Each line is a sentence, or a command that can be pasted as it stands.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InvalidRepo { .. } => {
                Some("for example:\nmodel-cache scan bartowski/Llama-3.2-3B-Instruct-GGUF".to_owned())
            }
            Self::InvalidRevision { .. } => Some("name it as in org/name@main, or leave out the @ and what follows".to_owned()),
            Self::RepoNotFound { token_source: None, .. } => {
                Some("check the spelling; for a private repo set HF_TOKEN".to_owned())
            }
            Self::RepoNotFound { .. } => Some("check the spelling and what the token may read".to_owned()),
            Self::RevisionNotFound { repo, .. } => Some(format!("model-cache scan {repo}")),
            Self::FileNotFound { repo, .. } => Some(format!("model-cache scan {repo}")),
            Self::MissingData { repo, is_imported: true, .. } => {
                Some(format!("import the folder of the graph, with all its files:\nmodel-cache import {repo} FOLDER"))
            }
            Self::MissingData { repo, path, .. } => Some(format!("model-cache pull {repo} --file {}", shell_word(path.as_str()))),
            Self::QuantNotFound { repo, offered, .. } => {
                offered.first().map(|quant| format!("model-cache pull {repo} --quant {}", shell_word(quant)))
            }
            Self::QuantNotChosen { repo, offered } => {
                offered.first().map(|(quant, _)| format!("model-cache pull {repo} --quant {}", shell_word(quant)))
            }
            Self::SplitGguf { repo, .. } => Some(format!(
                "load its first part by path, where it finds the others: from a mount, without a copy, or an export\n\
                 model-cache mount DIR\nmodel-cache export {repo} --to DIR"
            )),
            Self::NotHere { repo, path, is_at_hub: true, .. } => {
                Some(format!("model-cache pull {repo} --file {}", shell_word(path.as_str())))
            }
            Self::NotHere { repo, .. } => Some(format!("model-cache ls {repo}")),
            Self::NotInStore { repo } => {
                Some(format!("model-cache scan {repo}\nmodel-cache ls"))
            }
            Self::Gated { repo, token_source: None } => {
                Some(format!("accept the licence on the page of {repo}, set HF_TOKEN, then pull again"))
            }
            Self::Gated { repo, .. } => {
                Some(format!("accept the licence on the page of {repo} with the account of this token, then pull again"))
            }
            Self::BadToken { token_source, .. } => Some(format!("renew or remove the token in {token_source}")),
            Self::RateLimited { .. } => Some("pull again later: what has landed is kept; a token raises the limit".to_owned()),
            Self::Network { .. } | Self::Stalled { .. } => Some(
                "check the network, HF_ENDPOINT and the proxy variables, then try again; a pull goes on from what has landed"
                    .to_owned(),
            ),
            Self::Certificate { .. } => Some(
                "check HF_ENDPOINT and this machine's clock; where a proxy has an authority of its own, SSL_CERT_FILE names its certificate"
                    .to_owned(),
            ),
            Self::HubStatus { status: 408 | 500..=599, .. } => {
                Some("the server is in trouble: pull again later; a pull goes on from what has landed".to_owned())
            }
            Self::HubStatus { .. } | Self::BadAnswer { .. } => Some(
                "a proxy or a network's login page may answer in the server's place: check HF_ENDPOINT and the proxy variables, then try \
                 again; a pull goes on from what has landed"
                    .to_owned(),
            ),
            Self::Offline { .. } => Some("run it once without --offline, HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE".to_owned()),
            Self::ContentChanged { repo, .. } => Some(format!("look at it anew, then pull again:\nmodel-cache scan {repo}")),
            Self::DigestMismatch { .. } => Some("the bytes were dropped; pull again to fetch them anew".to_owned()),
            Self::NotASlice { .. } => Some("read its bytes, or copy them to where they are aligned".to_owned()),
            Self::TensorNotFound { nearest, .. } => {
                nearest.as_ref().map(|name| format!("did you mean \"{}\"?", crate::name::printable(name)))
            }
            Self::BadFormat { .. } => Some(
                "whether it is the file that was published; if so, take another one:\nmodel-cache verify --digest".to_owned(),
            ),
            Self::Damaged { .. } => Some(MEND.to_owned()),
            Self::NoSpace { .. } => Some("what could go, and to free it at once:\nmodel-cache ls\nmodel-cache rm REPO".to_owned()),
            Self::TargetFull { path, .. } => {
                let folder = shell_word(&path.to_string_lossy());
                Some(format!("make room on the disk of {folder}, or name a folder on another one"))
            }
            Self::Storage { source, .. } => match source {
                storage::Error::BadRecord { .. } | storage::Error::BadExtent { .. } => Some(MEND.to_owned()),
                // None of it can be read then.
                storage::Error::BadEnvironment { action: "open", .. } => Some(format!(
                    "a backup brings it back:\n{FROM_BACKUP}\n\
                     without one, move the store's folder away; the next pull makes a new one"
                )),
                storage::Error::BadEnvironment { .. } => Some(format!(
                    "what can be read can be saved, and a backup brings all of it back:\n\
                     model-cache export REPO --to DIR\n{FROM_BACKUP}"
                )),
                other => other.hint().map(str::to_owned),
            },
            Self::OthersInStore { .. } => Some("move them elsewhere first; --to DIR makes another store".to_owned()),
            Self::EmptyStore { .. } => Some(
                "is it the right store? --store or MODEL_CACHE_HOME names another; to back up an empty one, name another DIR".to_owned(),
            ),
            Self::AnotherStore { path, own: Some(own), .. } => {
                let backup = shell_word(&path.to_string_lossy());
                Some(format!("the newest of this store:\nmodel-cache restore {backup} --replace --snapshot {own}"))
            }
            Self::AnotherStore { snapshot, .. } => {
                Some(format!("the backup has none of this store; --snapshot {snapshot} takes that one all the same"))
            }
            Self::NoSnapshot { .. } => Some("without --snapshot it is the newest".to_owned()),
            Self::StoreExists { .. } => Some("--replace puts the backup in its place, --to DIR makes another store".to_owned()),
            Self::StoreInUse { .. } => Some("end what has it open (a mount, a server, a pull) first".to_owned()),
            Self::NoBackup { .. } => Some("name the folder of one, or make one:\nmodel-cache backup DIR".to_owned()),
            Self::BackupFormat { .. } => Some("use the version of model-cache that wrote it, or a later one".to_owned()),
            Self::BackupDamaged { path, snapshot, is_partly_sound, whole_snapshot, .. } => {
                let backup = shell_word(&path.to_string_lossy());
                Some(match whole_snapshot {
                    _ if *is_partly_sound => format!(
                        "to list them; --skip-damaged restores what is sound:\nmodel-cache restore --check {backup} --snapshot {snapshot}"
                    ),
                    Some(whole) => format!("one that is whole:\nmodel-cache restore {backup} --snapshot {whole}"),
                    None => format!(
                        "no snapshot of it is whole; what is damaged, and what can be done:\n\
                         model-cache restore --check {backup} --snapshot {snapshot}"
                    ),
                })
            }
            Self::NoStore { .. } => Some("the first pull or import makes it".to_owned()),
            Self::SourceChanged { .. } => Some("import it again once nobody writes to it".to_owned()),
            Self::Busy { .. } => Some("try again in a moment".to_owned()),
            Self::RemovedMeanwhile { .. } => Some("pull again to have them back".to_owned()),
            Self::Io { path, source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                let path = shell_word(&path.to_string_lossy());
                Some(format!("who may use it, and the folders above it:\nls -ld {path}"))
            }
            Self::TargetExists { .. } => Some("remove it, or export with --force".to_owned()),
            Self::NotConfirmed { repo } => Some(format!("model-cache rm {repo} --yes")),
            _ => None,
        }
    }
}

/// The first of these names, and how many more there are.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| crate::name::printable(name)).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

fn numbers(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

/// ` by process 1, 2`, where any is known.
fn by(processes: &[u32]) -> String {
    if processes.is_empty() {
        return String::new();
    }
    format!(" by process {}", processes.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))
}

/// Puts what was attempted beside an engine error.
pub(crate) trait Attempted<T> {
    fn attempted(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Attempted<T> for std::result::Result<T, storage::Error> {
    fn attempted(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Storage { action: action(), source })
    }
}
