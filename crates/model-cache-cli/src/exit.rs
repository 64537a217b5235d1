//! How the program ends: [`Code`], the exit codes and their names; [`Failure`], an error as it is shown.

use crate::{
    options, output,
    render::{self, Paint},
    talk,
};
use serde_json::{Map, Value, json};
use std::{
    io::{self, Write},
    process::ExitCode,
};
use tabagent_model_cache::{Error, ErrorKind};

/// An exit code. Scripts branch on them; they never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Done,
    Other,
    Usage,
    NotFound,
    Network,
    Integrity,
    NoSpace,
    NotAllowed,
    /// Ctrl-C.
    Interrupted,
    /// SIGTERM.
    Terminated,
}

impl Code {
    fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Other => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Network => 4,
            Self::Integrity => 5,
            Self::NoSpace => 6,
            Self::NotAllowed => 7,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }

    /// Ends the program here and now, without destructors: other threads may still work on the store, which stands a kill at any
    /// point but not the end of its engine under their feet.
    pub(crate) fn leave(self) -> ! {
        // An interrupted writer may hold stdout for good; all others have flushed what they wrote.
        if !matches!(self, Self::Interrupted | Self::Terminated) {
            let _ = io::stdout().flush();
        }
        signal_hook::low_level::exit(i32::from(self.number()))
    }

    /// The name in JSON errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Other => "other",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Network => "network",
            Self::Integrity => "integrity",
            Self::NoSpace => "no_space",
            Self::NotAllowed => "not_allowed",
            Self::Interrupted | Self::Terminated => "interrupted",
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.number())
    }
}

impl From<ErrorKind> for Code {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Usage => Self::Usage,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Network => Self::Network,
            ErrorKind::Integrity => Self::Integrity,
            ErrorKind::NoSpace => Self::NoSpace,
            ErrorKind::NotAllowed => Self::NotAllowed,
            ErrorKind::Interrupted => Self::Interrupted,
            ErrorKind::Other => Self::Other,
        }
    }
}

/// An error, ready to be shown: the thing, then the numbers, then what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    message: String,
    hint: Option<String>,
    more: Box<More>,
}

/// What few errors have.
#[derive(Debug, Default)]
struct More {
    /// Lines that belong to the message.
    details: Vec<String>,
    causes: Vec<String>,
    /// For programs.
    fields: Map<String, Value>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, more: Box::default() }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// `hint`, where the error has none of its own.
    pub(crate) fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert(hint.into());
        self
    }

    /// Its hint, if it has one, as `change` makes it.
    pub(crate) fn change_hint(mut self, change: impl FnOnce(String) -> String) -> Self {
        self.hint = self.hint.map(change);
        self
    }

    /// A line under the message.
    pub(crate) fn detail(mut self, line: impl Into<String>) -> Self {
        self.more.details.push(line.into());
        self
    }

    /// The hint, its commands with the options this one was given.
    fn full_hint(&self) -> Option<String> {
        self.hint.as_deref().map(options::into_hint)
    }

    pub(crate) fn field(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.fields.insert(name.to_owned(), value.into());
        self
    }

    /// What the last event of `--progress json` has beside the library's own fields.
    pub(crate) fn for_event(&self) -> Map<String, Value> {
        let mut fields = self.more.fields.clone();
        fields.insert("code".to_owned(), self.code.name().into());
        fields.insert("hint".to_owned(), self.full_hint().into());
        fields
    }

    /// The name of the last event of `--progress json`.
    pub(crate) fn event(&self) -> &'static str {
        match self.code {
            Code::Interrupted | Code::Terminated => "cancelled",
            _ => "failed",
        }
    }

    /// Shows it as the last event of `--progress json`.
    pub(crate) fn tell_event(&self) -> Code {
        let mut event = self.for_event();
        event.insert("event".to_owned(), self.event().into());
        event.insert("message".to_owned(), self.message().into());
        talk::line(&output::to_json(&event));
        self.code
    }

    /// What went wrong, on one line.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Shows it: on stdout as JSON, else on stderr for people, with its causes if `verbose`. Gives the exit code.
    pub(crate) fn tell(&self, json: bool, verbose: bool) -> Code {
        if json {
            let mut error = Map::new();
            error.insert("code".to_owned(), self.code.name().into());
            error.insert("message".to_owned(), self.message.clone().into());
            error.insert("hint".to_owned(), self.full_hint().into());
            if !self.more.causes.is_empty() {
                error.insert("causes".to_owned(), self.more.causes.clone().into());
            }
            error.extend(self.more.fields.clone());
            if output::json(&json!({ "error": error })).is_ok() {
                return self.code;
            }
        }
        talk::raw(self.text(verbose, Paint(output::stderr_colour())).as_bytes());
        self.code
    }

    pub(crate) fn text(&self, verbose: bool, paint: Paint) -> String {
        let clean = render::clean;
        let mut text = match self.code {
            // Who interrupts knows that it is no error.
            Code::Interrupted | Code::Terminated => format!("{}\n", clean(&self.message)),
            _ => format!("{} {}\n", paint.red("error:"), clean(&self.message)),
        };
        for detail in &self.more.details {
            text += &format!("  {}\n", clean(detail));
        }
        if verbose && self.more.causes.len() > 1 {
            for cause in &self.more.causes {
                text += &format!("  {} {}\n", paint.dim("because:"), clean(cause));
            }
        }
        for line in self.full_hint().iter().flat_map(|hint| hint.lines()) {
            text += &format!("{} {}\n", paint.cyan("hint:"), clean(line));
        }
        text
    }
}

/// An option of the library as it is typed here. Variables, arguments and what has its dashes already are called as they are.
fn typed(name: &str) -> String {
    match name {
        "memory_budget_bytes" => "--memory-budget".to_owned(),
        option if option.starts_with(|c: char| c.is_ascii_lowercase()) => format!("--{}", option.replace('_', "-")),
        other => other.to_owned(),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut failure = Self::new(error.kind().into(), error.to_string());
        failure.hint = error.hint();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            // Libraries below like to repeat what they wrap.
            let text = cause.to_string();
            if failure.more.causes.last() != Some(&text) {
                failure.more.causes.push(text);
            }
            source = cause.source();
        }
        // What it came from tells most; what lies between is for -v.
        if let Some(root) = failure.more.causes.last() {
            failure.message += &format!(": {root}");
        }
        match &error {
            Error::QuantNotChosen { repo, offered } if offered.is_empty() => {
                failure.message = format!("{repo} has no file that looks like a model's weights");
                failure.hint = Some(format!("every file, or some of them by --file GLOB:\nmodel-cache pull {repo} --all"));
            }
            Error::QuantNotChosen { offered, .. } => {
                let each = offered.iter().map(|(quant, bytes)| format!("{quant} {}", render::size(*bytes)));
                failure.more.details = render::wrap_list(each, 76);
                let offered: Vec<_> =
                    offered.iter().map(|(quant, bytes)| json!({ "quant": quant, "size_bytes": bytes })).collect();
                failure.more.fields.insert("offered".to_owned(), offered.into());
            }
            Error::InvalidOption { name, .. } => failure.message = failure.message.replacen(name, &typed(name), 1),
            _ => {}
        }
        failure
    }
}

impl From<model_cache_mount::Error> for Failure {
    fn from(error: model_cache_mount::Error) -> Self {
        let error = match error {
            model_cache_mount::Error::Store(error) => return error.into(),
            other => other,
        };
        let mut failure = Self::new(error.kind().into(), error.to_string());
        failure.hint = error.hint();
        if let Some(cause) = std::error::Error::source(&error) {
            failure.message += &format!(": {cause}");
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tabagent_model_cache::{Digest, FilePath, RepoId, RepoSpec};

    #[test]
    fn a_choice_left_open_lists_what_there_is_between_error_and_hint() {
        let error = Error::QuantNotChosen {
            repo: "a/b".parse().unwrap(),
            offered: vec![("Q4_K_M".to_owned(), 2 << 30), ("Q8_0".to_owned(), 3 << 30)],
        };
        let failure = Failure::from(error);
        assert_eq!(failure.code, Code::Usage);
        assert_eq!(
            failure.text(false, Paint(false)),
            "error: a/b offers 2 quants; say which\n  Q4_K_M 2.00 GiB, Q8_0 3.00 GiB\nhint: model-cache pull a/b --quant Q4_K_M\n"
        );
    }

    #[test]
    fn causes_are_shown_one_a_line_and_only_when_asked_for() {
        let broke = Broke(std::io::Error::other("the cable is cut"));
        let failure = Failure::from(Error::Network { action: "reach", url: "http://h/".to_owned(), source: broke.into() });
        let first = "error: could not reach http://h/: the cable is cut\n";
        let hint = format!("hint: {}\n", failure.hint.as_deref().unwrap());
        assert_eq!(failure.text(false, Paint(false)), format!("{first}{hint}"));
        let causes = "  because: it broke\n  because: the cable is cut\n";
        assert_eq!(failure.text(true, Paint(false)), format!("{first}{causes}{hint}"));
    }

    /// A cause with a cause.
    #[derive(Debug)]
    struct Broke(std::io::Error);

    impl std::fmt::Display for Broke {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("it broke")
        }
    }

    impl std::error::Error for Broke {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn what_was_interrupted_ends_with_another_event_than_what_failed() {
        for (code, event) in [(Code::Interrupted, "cancelled"), (Code::Terminated, "cancelled"), (Code::Network, "failed")] {
            assert_eq!(Failure::new(code, "").event(), event);
        }
    }

    #[test]
    fn nothing_a_server_says_reaches_the_terminal_raw() {
        let failure = Failure::new(Code::Network, "it said \u{1b}[31mred\u{7}").hint("\u{9b}2J");
        assert!(failure.text(true, Paint(false)).chars().all(|c| c == '\n' || !c.is_control()));
    }

    #[test]
    fn an_option_is_named_as_it_was_typed() {
        use clap::CommandFactory;
        let cli = crate::args::Cli::command();
        let shown = |name: &'static str| {
            let error = Error::InvalidOption { name, value: name.to_owned(), reason: "no".to_owned() };
            Failure::from(error).message().split_once('=').unwrap().0.to_owned()
        };
        let commands: Vec<_> = cli.get_subcommands().chain([&cli]).collect();
        let arguments = || commands.iter().flat_map(|command| command.get_arguments());
        for name in ["connections", "endpoint", "store", "keep", "to", "limit_rate", "memory_budget_bytes", "--memory-budget"] {
            let flag = shown(name);
            let is_known = arguments().any(|argument| argument.get_long().is_some_and(|long| flag == format!("--{long}")));
            assert!(is_known, "{name} is shown as {flag}");
        }
        for name in ["DIR", "PATH"] {
            let is_known = arguments().any(|argument| argument.is_positional() && *argument.get_id() == *name.to_lowercase());
            assert!(is_known && shown(name) == name, "{name} is shown as {}", shown(name));
        }
        assert_eq!(shown("HF_ENDPOINT"), "HF_ENDPOINT");
    }

    #[test]
    fn every_hint_of_the_library_can_be_pasted() {
        let (repo, path): (RepoId, FilePath) = ("a/b".parse().unwrap(), "it's a.gguf".parse().unwrap());
        let spec: RepoSpec = "a/b@v1".parse().unwrap();
        let (text, folder) = (String::new, || PathBuf::from("/my store"));
        let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let source = |is_imported| Error::MissingData {
            repo: repo.clone(),
            graph: path.clone(),
            path: path.clone(),
            landed: None,
            is_imported,
        };
        let not_here = |is_at_hub| Error::NotHere {
            repo: spec.clone(),
            path: path.clone(),
            landed_percent: None,
            is_pulled: false,
            is_at_hub,
        };
        let backup_damaged = |is_partly_sound, whole_snapshot| {
            let (path, file, reason) = (folder(), text(), text());
            Error::BackupDamaged { path, count: 1, file, reason, snapshot: 2, is_partly_sound, whole_snapshot }
        };
        let errors = [
            Error::InvalidRepo { name: text(), reason: "no" },
            Error::InvalidRevision { revision: text(), reason: "no" },
            Error::InvalidGlob { glob: text(), source: "no".into() },
            Error::RepoNotFound { repo: repo.clone(), endpoint: text(), token_source: None },
            Error::RepoNotFound { repo: repo.clone(), endpoint: text(), token_source: Some(text()) },
            Error::RevisionNotFound { repo: repo.clone(), revision: "v1".parse().unwrap() },
            Error::FileNotFound { repo: repo.clone(), commit: None, path: text() },
            source(true),
            source(false),
            Error::QuantNotFound { repo: repo.clone(), quant: text(), offered: vec!["Q4 x".to_owned()] },
            Error::QuantNotChosen { repo: repo.clone(), offered: vec![("Q4 x".to_owned(), 1)] },
            Error::QuantNotChosen { repo: repo.clone(), offered: Vec::new() },
            Error::SplitGguf { repo: spec.clone(), path: path.clone(), index: 0, count: 2 },
            not_here(true),
            not_here(false),
            Error::NotInStore { repo: spec.clone() },
            Error::Gated { repo: repo.clone(), token_source: None },
            Error::Gated { repo: repo.clone(), token_source: Some(text()) },
            Error::BadToken { endpoint: text(), token_source: text() },
            Error::RateLimited { endpoint: text(), retry_after: None },
            Error::Network { action: "reach", url: text(), source: "no".into() },
            Error::Certificate { url: text(), source: "no".into() },
            Error::HubStatus { url: text(), status: 500, message: text(), request_id: None, retry_after: None },
            Error::BadAnswer { url: text(), reason: text() },
            Error::Offline { action: text() },
            Error::ContentChanged { repo: repo.clone(), path: path.clone(), what: "size", expected: text(), found: text() },
            Error::DigestMismatch { name: text(), expected: digest, found: digest, size_bytes: 1 },
            Error::NotASlice { tensor: text(), element: "f32", reason: text() },
            Error::TensorNotFound { name: text(), count: 1, nearest: Some("x".to_owned()) },
            Error::BadFormat { format: "GGUF", offset: 0, reason: text() },
            Error::Damaged { what: text(), reason: text() },
            Error::NoSpace { what: text(), needed_bytes: 1, free_bytes: 0 },
            Error::TargetFull { path: folder(), needed_bytes: 1, free_bytes: 0 },
            Error::OthersInStore { path: folder(), others: vec!["x".to_owned()] },
            Error::EmptyStore { store: folder(), path: folder(), snapshot: 1, files: 1 },
            Error::AnotherStore { store: folder(), path: folder(), snapshot: 2, own: Some(1) },
            Error::AnotherStore { store: folder(), path: folder(), snapshot: 2, own: None },
            Error::NoSnapshot { path: folder(), snapshot: 1, there: vec![2] },
            Error::StoreExists { path: folder() },
            Error::StoreInUse { path: folder(), processes: vec![1] },
            Error::NoBackup { path: folder(), reason: text() },
            Error::BackupFormat { path: folder(), found: text(), supported: 1 },
            backup_damaged(true, None),
            backup_damaged(false, None),
            backup_damaged(false, Some(1)),
            Error::StoreFormat { store: folder(), found: 9, supported: 2 },
            Error::NoStore { path: folder() },
            Error::SourceChanged { path: folder() },
            Error::Busy { what: text(), reason: "no" },
            Error::RemovedMeanwhile { repo: repo.clone(), count: 1, path: path.clone() },
            Error::TargetExists { path: folder() },
            Error::NotConfirmed { repo: repo.clone() },
        ];
        for error in errors {
            let failure = Failure::from(error);
            let hint = failure.hint.clone().unwrap_or_default();
            assert!(options::is_pastable(&hint), "{}: {hint}", failure.message);
        }
        let mounts = [
            model_cache_mount::Error::NoFuse { path: folder() },
            model_cache_mount::Error::NoFusermount { path: folder() },
            model_cache_mount::Error::NotUnmounted { path: folder(), reason: text() },
        ];
        assert!(mounts.iter().all(|error| options::is_pastable(&error.hint().unwrap())));
    }
}
