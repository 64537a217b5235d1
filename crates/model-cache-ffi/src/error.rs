//! What can go wrong, its code, and its text.

use std::{error::Error as _, ffi::CStr};
use tabagent_model_cache::ErrorKind;

/// The result of what a C function does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call from C failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pointer that must lead somewhere is NULL.
    #[error("{function}: {argument} is NULL")]
    Null {
        /// The function called.
        function: &'static str,
        /// The argument's name in the header.
        argument: &'static str,
    },
    /// A text that is not UTF-8.
    #[error("{function}: {argument} is not UTF-8: byte {at} of \"{shown}\"")]
    NotUtf8 {
        /// The function called.
        function: &'static str,
        /// The argument's name in the header.
        argument: &'static str,
        /// The first byte that is not, counted from 0.
        at: usize,
        /// The text, what is not UTF-8 replaced.
        shown: String,
    },
    /// A panic of ours, caught before it could reach C.
    #[error("{function} failed inside: {panic}; this is a bug")]
    Panicked {
        /// The function called.
        function: &'static str,
        /// What the panic said.
        panic: String,
    },
    /// The store's own error.
    #[error(transparent)]
    Cache(#[from] tabagent_model_cache::Error),
}

/// `mc_code`: what a caller branches on. The numbers and names are those of the program's exit codes; they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// It went well.
    Ok = 0,
    /// Everything without a code of its own.
    Other = 1,
    /// The request itself is wrong.
    Usage = 2,
    /// No such store, repo, revision or file.
    NotFound = 3,
    /// The network or the Hub.
    Network = 4,
    /// Bytes that are not what they should be.
    Integrity = 5,
    /// No room on the disk.
    NoSpace = 6,
    /// Token missing, refused, or not on the list.
    NotAllowed = 7,
    /// Cancelled by the caller.
    Interrupted = 130,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::Other,
        Self::Usage,
        Self::NotFound,
        Self::Network,
        Self::Integrity,
        Self::NoSpace,
        Self::NotAllowed,
        Self::Interrupted,
    ];

    /// Its name, as the program's JSON has it.
    pub fn name(self) -> &'static CStr {
        match self {
            Self::Ok => c"done",
            Self::Other => c"other",
            Self::Usage => c"usage",
            Self::NotFound => c"not_found",
            Self::Network => c"network",
            Self::Integrity => c"integrity",
            Self::NoSpace => c"no_space",
            Self::NotAllowed => c"not_allowed",
            Self::Interrupted => c"interrupted",
        }
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

impl Error {
    /// What a caller branches on.
    pub fn code(&self) -> Code {
        match self {
            Self::Null { .. } | Self::NotUtf8 { .. } => Code::Usage,
            Self::Panicked { .. } => Code::Other,
            Self::Cache(error) => error.kind().into(),
        }
    }

    /// What a person reads: what went wrong, what it came from, and on lines of their own what to do next.
    pub fn text(&self) -> String {
        let mut text = self.to_string();
        // What it came from tells most; libraries below like to repeat what they wrap.
        let causes = std::iter::successors(self.source(), |&cause| cause.source());
        if let Some(root) = causes.last() {
            text += &format!(": {root}");
        }
        if let Self::Cache(error) = self
            && let Some(hint) = error.hint()
        {
            hint.lines().for_each(|line| text += &format!("\nhint: {line}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_text_has_the_root_cause_on_its_first_line_and_the_hint_on_its_second() {
        let source = std::io::Error::other("the cable is cut");
        let url = "http://h/".to_owned();
        let error = Error::from(tabagent_model_cache::Error::Network { action: "reach", url, source: source.into() });
        let text = error.text();
        let (first, second) = text.split_once('\n').unwrap();
        assert_eq!(first, "could not reach http://h/: the cable is cut");
        assert!(second.starts_with("hint: check the network"), "{second}");
        assert_eq!(error.code(), Code::Network);
    }

    #[test]
    fn an_error_without_cause_and_hint_is_one_line() {
        let error = Error::from(tabagent_model_cache::Error::Cancelled);
        assert_eq!((error.text().as_str(), error.code()), ("cancelled", Code::Interrupted));
    }

    #[test]
    fn a_missing_store_is_not_found_and_says_what_makes_it() {
        let error = Error::from(tabagent_model_cache::Error::NoStore { path: PathBuf::from("/none") });
        assert_eq!(error.code(), Code::NotFound);
        assert_eq!(error.text(), "there is no store at \"/none\"\nhint: the first pull or import makes it");
    }

    #[test]
    fn numbers_and_names_of_codes_are_those_of_the_programs_exit_codes() {
        let numbers: Vec<_> = Code::ALL.iter().map(|code| (*code as i32, code.name().to_str().unwrap())).collect();
        let table = [
            (0, "done"),
            (1, "other"),
            (2, "usage"),
            (3, "not_found"),
            (4, "network"),
            (5, "integrity"),
            (6, "no_space"),
            (7, "not_allowed"),
            (130, "interrupted"),
        ];
        assert_eq!(numbers, table);
    }
}
