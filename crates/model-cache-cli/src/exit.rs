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
        if let Some(hint) = self.full_hint() {
            text += &format!("{} {}\n", paint.cyan("hint:"), clean(&hint));
        }
        text
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
                failure.hint = Some(format!("model-cache pull {repo} --all takes every file, --file GLOB some"));
            }
            Error::QuantNotChosen { offered, .. } => {
                let each = offered.iter().map(|(quant, bytes)| format!("{quant} {}", render::size(*bytes)));
                failure.more.details = render::wrap_list(each, 76);
                let offered: Vec<_> =
                    offered.iter().map(|(quant, bytes)| json!({ "quant": quant, "size_bytes": bytes })).collect();
                failure.more.fields.insert("offered".to_owned(), offered.into());
            }
            // By the name of the option, which the library calls without the dashes.
            Error::InvalidOption { name: "connections" | "endpoint" | "store" | "keep", .. } => {
                failure.message.insert_str(0, "--");
            }
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
}
