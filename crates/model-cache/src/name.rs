//! The names of the Hub's world, parsed once at the edge: [`RepoId`], [`Revision`], [`CommitId`], [`RepoSpec`], [`FilePath`].
//!
//! A value of one of these types is valid; nothing inside the crate checks it again.

use crate::error::{Error, Result};
use std::{fmt, str::FromStr};

/// Longest part of a repo name the Hub knows, in bytes.
const MAX_REPO_PART_BYTES: usize = 96;
/// Longest revision accepted, in bytes.
const MAX_REVISION_BYTES: usize = 255;
/// Longest file path accepted, in bytes, so that its escaped key fits libmdbx's key limit for 4 KiB pages (2,022 bytes).
const MAX_PATH_BYTES: usize = 512;

/// A repository's name, `org/name`.
///
/// Parts are `[A-Za-z0-9_.-]`, 1 to 96 bytes, without `--` and `..`, not beginning or ending in `-` or `.`, the last not
/// ending in `.git` (the rules of huggingface_hub's `validate_repo_id`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoId(String);

impl RepoId {
    /// The name as `org/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepoId {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let refuse = |reason| Err(Error::InvalidRepo { name: printable(name), reason });
        let Some((org, model)) = name.split_once('/') else {
            return refuse("a repo is written org/name");
        };
        for part in [org, model] {
            if part.is_empty() {
                return refuse("a repo is written org/name, neither part empty");
            }
            if part.len() > MAX_REPO_PART_BYTES {
                return refuse("each part has at most 96 characters");
            }
            if !part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
                return refuse("only letters, digits, '_', '.' and '-' may stand in org/name");
            }
            if part.contains("--") || part.contains("..") {
                return refuse("'--' and '..' may not stand in a repo name");
            }
            if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
                return refuse("a part may not begin or end with '-' or '.'");
            }
        }
        if model.ends_with(".git") {
            return refuse("a repo name may not end in .git");
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch, tag, commit id or `refs/pr/n`, as a person types it. Default: `main`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(String);

impl Revision {
    /// The revision as typed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The commit id, if this revision already is one (40 hex digits).
    pub fn as_commit(&self) -> Option<CommitId> {
        self.0.parse().ok()
    }
}

impl Default for Revision {
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl FromStr for Revision {
    type Err = Error;

    fn from_str(revision: &str) -> Result<Self> {
        let refuse = |reason| Err(Error::InvalidRevision { revision: printable(revision), reason });
        if revision.is_empty() {
            return refuse("a revision is a branch, a tag, a commit or refs/pr/n");
        }
        if revision.len() > MAX_REVISION_BYTES {
            return refuse("a revision has at most 255 bytes");
        }
        // The characters git itself refuses in a reference name (git-check-ref-format).
        if revision.chars().any(|c| c.is_control() || c == ' ' || "~^:?*[\\@".contains(c)) {
            return refuse("git allows none of space, '~', '^', ':', '?', '*', '[', '\\', '@' and control characters here");
        }
        if revision.split('/').any(|part| part.is_empty() || part.starts_with('.') || part.ends_with(".lock"))
            || revision.contains("..")
            || revision.ends_with('.')
        {
            return refuse("git allows no empty part, '..', leading or final '.', or final '.lock' in a revision");
        }
        // A commit id means the same in either letter case; one spelling keeps one key.
        match revision.parse::<CommitId>() {
            Ok(commit) => Ok(Self(commit.0)),
            Err(_) => Ok(Self(revision.to_owned())),
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A git commit: 40 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(String);

impl CommitId {
    /// All 40 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for CommitId {
    type Err = Error;

    fn from_str(commit: &str) -> Result<Self> {
        if commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(commit.to_ascii_lowercase()))
        } else {
            Err(Error::InvalidRevision { revision: printable(commit), reason: "a commit id is 40 hex digits" })
        }
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a person types where a repo is asked for: `org/name` or `org/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoSpec {
    /// The repo.
    pub repo: RepoId,
    /// The revision, if one was given.
    pub revision: Option<Revision>,
}

impl RepoSpec {
    /// The revision given, else `main`.
    pub fn revision_or_main(&self) -> Revision {
        self.revision.clone().unwrap_or_default()
    }
}

impl FromStr for RepoSpec {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Self> {
        let (repo, revision) = match spec.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision.parse()?)),
            None => (spec, None),
        };
        Ok(Self { repo: repo.parse()?, revision })
    }
}

impl fmt::Display for RepoSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.repo),
            None => write!(f, "{}", self.repo),
        }
    }
}

/// A file's path inside its repo: relative, parts joined by `/`, safe to create below any folder.
///
/// Refused: empty, absolute, `.` and `..` parts, empty parts, drive letters, backslashes, control characters, more than
/// 512 bytes. A `:` elsewhere is allowed (keys escape it).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath(String);

impl FilePath {
    /// The path, parts joined by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl FromStr for FilePath {
    type Err = Error;

    fn from_str(path: &str) -> Result<Self> {
        let refuse = |reason| Err(Error::InvalidPath { path: printable(path), reason });
        if path.is_empty() {
            return refuse("it is empty");
        }
        if path.len() > MAX_PATH_BYTES {
            return refuse("it has more than 512 bytes");
        }
        if path.chars().any(|c| c.is_control()) {
            return refuse("it has a control character");
        }
        if path.contains('\\') {
            return refuse("it has a backslash");
        }
        if path.starts_with('/') {
            return refuse("it is absolute");
        }
        if path.as_bytes()[0].is_ascii_alphabetic() && path.as_bytes().get(1) == Some(&b':') {
            return refuse("it begins with a drive letter");
        }
        for part in path.split('/') {
            match part {
                "" => return refuse("it has an empty part"),
                "." | ".." => return refuse("it has a '.' or '..' part"),
                _ => {}
            }
        }
        Ok(Self(path.to_owned()))
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for FilePath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// `word` as a shell reads it back, for commands that can be pasted: in quotes where it has to be.
///
/// ```
/// assert_eq!(tabagent_model_cache::shell_word("org/name@v1.0"), "org/name@v1.0");
/// assert_eq!(tabagent_model_cache::shell_word("*.json"), "'*.json'");
/// ```
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-/@:+,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// A name for an error message: control characters escaped, cut at 120 characters, so that what a hostile server or a
/// slip of the keyboard sends can't write to somebody's terminal.
pub(crate) fn printable(name: &str) -> String {
    let mut out: String = name
        .chars()
        .take(120)
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if name.chars().nth(120).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repo_names_follow_the_hubs_rules() {
        for good in ["org/name", "TheBloke/Llama-2-7B-GGUF", "a/b.c_d-e", "1/2"] {
            assert_eq!(good.parse::<RepoId>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "name",
            "/name",
            "org/",
            "org/na/me",
            "org/na me",
            "org/..",
            "a--b/c",
            "org/x.git",
            "org/-x",
            "org/x.",
            "ørg/name",
            "org/na\nme",
            "../etc",
        ] {
            assert!(bad.parse::<RepoId>().is_err(), "{bad:?}");
        }
        assert!(format!("o/{}", "n".repeat(97)).parse::<RepoId>().is_err());
    }

    #[test]
    fn revisions_follow_gits_rules_and_commits_are_lower_case() {
        for good in ["main", "v1.0", "refs/pr/12", "feature/x"] {
            assert_eq!(good.parse::<Revision>().unwrap().as_str(), good);
        }
        let commit = "ABCDEF0123456789ABCDEF0123456789ABCDEF01";
        assert_eq!(commit.parse::<Revision>().unwrap().as_str(), commit.to_lowercase());
        for bad in ["", "a b", "a..b", "/a", "a/", "a//b", "a:b", "a\\b", "a\u{7}", "x.lock", ".a", "a@b"] {
            assert!(bad.parse::<Revision>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_spec_splits_at_the_first_at_sign() {
        let spec: RepoSpec = "org/name@refs/pr/1".parse().unwrap();
        assert_eq!(spec.repo.as_str(), "org/name");
        assert_eq!(spec.revision.unwrap().as_str(), "refs/pr/1");
        assert!("org/name@".parse::<RepoSpec>().is_err());
        assert_eq!("org/name".parse::<RepoSpec>().unwrap().revision_or_main().as_str(), "main");
    }

    #[test]
    fn hostile_paths_are_refused() {
        for bad in
            ["", "/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "a/", "C:x", "c:/x", "a\\b", "a\0b", "a\nb", "a\u{1b}[31m"]
        {
            assert!(bad.parse::<FilePath>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(513).parse::<FilePath>().is_err());
        for good in ["a", "onnx/model.onnx", "a b/c:d", "…/ü", "..a/b.."] {
            assert_eq!(good.parse::<FilePath>().unwrap().as_str(), good);
        }
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_below_the_folder_it_is_joined_to(path in "[a-z./\\\\:]{0,24}") {
            if let Ok(path) = path.parse::<FilePath>() {
                let joined = std::path::Path::new("/base").join(path.as_str());
                prop_assert!(joined.starts_with("/base"));
                prop_assert!(joined.components().all(|c| !matches!(c, std::path::Component::ParentDir)));
            }
        }
    }
}
