//! Keys on disk, as functions of values.
//!
//! ```text
//! file:<repo>:<path>:chunk:<n>   a chunk's bytes            <repo>  org/name@<commit>, or org/name for an import
//! meta:<repo>:<path>             a file's metadata          <path>  with '%' as %25 and ':' as %3A
//! blob:<digest>                  a blob's row, or import:<blob id> while an import has no digest yet,
//!                                or derived:<digest>:<recipe> of what was made of the blob with that digest
//! manifest:<repo>                what a commit offers
//! ref:<org/name>:<revision>      which commit a revision is
//! access:<blob id>               when a blob was last opened
//! ```
//! A repo has no ':' and a path none that is not escaped, so no name can split a key in another place.

use crate::{
    digest::Digest,
    error::{Error, Result},
    name::{CommitId, FilePath, RepoId, Revision},
};
use std::{fmt, str::FromStr};

/// A repo pinned to a commit, or an import, which has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PinnedRepo {
    pub(crate) repo: RepoId,
    pub(crate) commit: Option<CommitId>,
}

impl PinnedRepo {
    pub(crate) fn new(repo: RepoId, commit: CommitId) -> Self {
        Self { repo, commit: Some(commit) }
    }

    pub(crate) fn import(repo: RepoId) -> Self {
        Self { repo, commit: None }
    }
}

/// Reads back what `Display` wrote.
impl FromStr for PinnedRepo {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.split_once('@') {
            Some((repo, commit)) => Self::new(repo.parse()?, commit.parse()?),
            None => Self::import(text.parse()?),
        })
    }
}

impl fmt::Display for PinnedRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.commit {
            Some(commit) => write!(f, "{}@{commit}", self.repo),
            None => write!(f, "{}", self.repo),
        }
    }
}

/// The name a blob's chunks are keyed by: `<repo>:<path>` of the file that first fetched it.
pub(crate) fn home(repo: &PinnedRepo, path: &FilePath) -> String {
    format!("{repo}:{}", escape(path.as_str()))
}

/// The home a blob takes where `home` is taken by another: `<repo>~<blob id>:<path>`.
pub(crate) fn apart(home: &str, id: u64) -> String {
    match home.split_once(':') {
        Some((repo, path)) => format!("{repo}~{id}:{path}"),
        None => format!("{home}~{id}"),
    }
}

/// The repo and path of a home, its own or one apart.
pub(crate) fn parse_home(home: &str) -> Option<(PinnedRepo, FilePath)> {
    let (repo, path) = home.split_once(':')?;
    let repo = repo.split_once('~').map_or(repo, |(repo, _)| repo);
    Some((repo.parse().ok()?, unescape(path).parse().ok()?))
}

pub(crate) fn chunk(home: &str, index: u32) -> String {
    format!("file:{home}:chunk:{index}")
}

/// The home within a chunk's key.
pub(crate) fn home_of_chunk(key: &str) -> Option<&str> {
    let (home, index) = key.strip_prefix("file:")?.rsplit_once(":chunk:")?;
    index.parse::<u32>().ok().map(|_| home)
}

pub(crate) fn meta(repo: &PinnedRepo, path: &FilePath) -> String {
    format!("meta:{}", home(repo, path))
}

/// What every metadata key of one pinned repo begins with.
pub(crate) fn meta_prefix(repo: &PinnedRepo) -> String {
    format!("meta:{repo}:")
}

/// The repo and path of a metadata key.
pub(crate) fn parse_meta(key: &str) -> Option<(PinnedRepo, FilePath)> {
    parse_home(key.strip_prefix("meta:")?)
}

pub(crate) fn blob(digest: &Digest) -> String {
    format!("blob:{digest}")
}

/// What the keys of unfinished imports begin with.
pub(crate) const IMPORTS: &str = "import:";

pub(crate) fn import(id: u64) -> String {
    format!("{IMPORTS}{id}")
}

/// The row of what `recipe` makes of the blob at `source_key`.
pub(crate) fn derived(source_key: &str, recipe: &str) -> String {
    format!("{}{recipe}", derived_prefix(source_key))
}

/// What the keys of everything made of the blob at `source_key` begin with.
pub(crate) fn derived_prefix(source_key: &str) -> String {
    format!("{DERIVED}{}:", source_key.strip_prefix("blob:").unwrap_or(source_key))
}

/// The key of the blob that the derived value at `derived_key` was made of; `None` for another blob's key.
pub(crate) fn source_of_derived(derived_key: &str) -> Option<String> {
    let (digest, _) = derived_key.strip_prefix(DERIVED)?.rsplit_once(':')?;
    Some(format!("blob:{digest}"))
}

/// What the keys of derived values begin with.
pub(crate) const DERIVED: &str = "derived:";

/// The home of the derived value at `derived_key`. No repo's name begins with '~'.
pub(crate) fn derived_home(derived_key: &str) -> String {
    format!("~{derived_key}")
}

pub(crate) fn is_derived_home(home: &str) -> bool {
    home.starts_with('~')
}

pub(crate) fn manifest(repo: &PinnedRepo) -> String {
    format!("manifest:{repo}")
}

/// The repo of a manifest's key.
pub(crate) fn parse_manifest(key: &str) -> Option<PinnedRepo> {
    key.strip_prefix("manifest:")?.parse().ok()
}

/// What the manifest keys of every commit of a repo begin with.
pub(crate) fn manifest_prefix(repo: &RepoId) -> String {
    format!("manifest:{repo}@")
}

pub(crate) fn reference(repo: &RepoId, revision: &Revision) -> String {
    format!("ref:{repo}:{revision}")
}

/// The repo and revision of a ref's key.
pub(crate) fn parse_reference(key: &str) -> Option<(RepoId, Revision)> {
    let (repo, revision) = key.strip_prefix("ref:")?.split_once(':')?;
    Some((repo.parse().ok()?, revision.parse().ok()?))
}

/// What the ref keys of a repo begin with.
pub(crate) fn reference_prefix(repo: &RepoId) -> String {
    format!("ref:{repo}:")
}

pub(crate) fn access(id: u64) -> String {
    format!("access:{id}")
}

/// The id of the blob whose last use is at `key`.
pub(crate) fn parse_access(key: &str) -> Option<u64> {
    key.strip_prefix("access:")?.parse().ok()
}

/// The marker of a blob that waits to be freed.
pub(crate) fn doomed(id: u64) -> String {
    format!("doomed:{id}")
}

fn escape(path: &str) -> String {
    path.replace('%', "%25").replace(':', "%3A")
}

fn unescape(path: &str) -> String {
    path.replace("%3A", ":").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repo() -> PinnedRepo {
        PinnedRepo::new("org/name".parse().unwrap(), "0123456789abcdef0123456789abcdef01234567".parse().unwrap())
    }

    #[test]
    fn keys_are_those_of_the_design() {
        let path = "onnx/a:b%.onnx".parse().unwrap();
        let home = home(&repo(), &path);
        assert_eq!(chunk(&home, 3), "file:org/name@0123456789abcdef0123456789abcdef01234567:onnx/a%3Ab%25.onnx:chunk:3");
        assert_eq!(home_of_chunk(&chunk(&home, 3)), Some(home.as_str()));
        assert_eq!(apart(&home, 9), "org/name@0123456789abcdef0123456789abcdef01234567~9:onnx/a%3Ab%25.onnx");
        assert_eq!(parse_home(&apart(&home, 9)), Some((repo(), path)));
        let derived = derived("blob:sha256:00ff", "1234");
        assert_eq!(derived, "derived:sha256:00ff:1234");
        assert!(derived.starts_with(&derived_prefix("blob:sha256:00ff")));
        assert_eq!(source_of_derived(&derived).as_deref(), Some("blob:sha256:00ff"));
        assert_eq!(source_of_derived("blob:sha256:00ff"), None);
        assert!(is_derived_home(&derived_home(&derived)) && is_derived_home(&apart(&derived_home(&derived), 9)));
        assert!(!is_derived_home(&home) && parse_home(&derived_home(&derived)).is_none());
        assert_eq!(meta(&PinnedRepo::import("a/b".parse().unwrap()), &"c".parse().unwrap()), "meta:a/b:c");
        assert_eq!(parse_manifest(&manifest(&repo())), Some(repo()));
        let (repo, revision) = ("a/b".parse().unwrap(), "refs/pr/1".parse().unwrap());
        assert_eq!(parse_reference(&reference(&repo, &revision)), Some((repo, revision)));
    }

    proptest! {
        #[test]
        fn a_metadata_key_gives_back_the_names_it_was_made_of(path in "[a-z%:3A25./]{1,30}") {
            if let Ok(path) = path.parse::<FilePath>() {
                for repo in [repo(), PinnedRepo::import("a/b".parse().unwrap())] {
                    prop_assert_eq!(parse_meta(&meta(&repo, &path)), Some((repo, path.clone())));
                }
            }
        }

        #[test]
        fn different_paths_have_different_keys(a in "[a%:3A25]{1,12}", b in "[a%:3A25]{1,12}") {
            prop_assert_eq!(escape(&a) == escape(&b), a == b);
        }
    }
}
