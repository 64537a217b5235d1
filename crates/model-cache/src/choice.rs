//! Which files a person means: [`Globs`] over paths.

use crate::{
    error::{Error, Result},
    name::{CommitId, RepoId, printable},
};
use globset::{GlobBuilder, GlobMatcher};

/// Globs as people give them on a command line.
///
/// `*` matches `/` too, as `--include` of the Hub's own tool has it: `*.json` is every JSON file in any folder.
pub(crate) struct Globs {
    globs: Vec<Glob>,
}

/// One of them.
pub(crate) struct Glob {
    text: String,
    matcher: GlobMatcher,
}

impl Glob {
    /// As it was given, safe to show.
    pub(crate) fn shown(&self) -> String {
        printable(&self.text)
    }

    /// A path written out matches itself, whatever signs it has.
    pub(crate) fn matches(&self, path: &str) -> bool {
        self.text == path || self.matcher.is_match(path)
    }
}

impl Globs {
    pub(crate) fn new(globs: &[String]) -> Result<Self> {
        let compile = |glob: &String| {
            if glob.is_empty() {
                return Err(Error::InvalidGlob { glob: String::new(), source: "it is empty, so it is no file's".into() });
            }
            let matcher = GlobBuilder::new(glob).literal_separator(false).build();
            let matcher = matcher.map_err(|source| Error::InvalidGlob { glob: printable(glob), source: Box::new(source) })?;
            Ok(Glob { text: glob.clone(), matcher: matcher.compile_matcher() })
        };
        Ok(Self { globs: globs.iter().map(compile).collect::<Result<_>>()? })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.globs.is_empty()
    }

    /// Whether any glob matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        self.globs.iter().any(|glob| glob.matches(path))
    }

    /// The first glob that matches none of `paths`.
    pub(crate) fn first_unmatched<'a>(&self, paths: impl Iterator<Item = &'a str> + Clone) -> Option<&Glob> {
        self.globs.iter().find(|glob| !paths.clone().any(|path| glob.matches(path)))
    }

    /// The error for the first glob that matches none of `paths`.
    pub(crate) fn each_matches<'a>(
        &self,
        repo: &RepoId,
        commit: Option<&CommitId>,
        paths: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<()> {
        match self.first_unmatched(paths) {
            None => Ok(()),
            Some(glob) => Err(Error::FileNotFound { repo: repo.clone(), commit: commit.cloned(), path: glob.shown() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_crosses_folders_and_a_literal_path_matches_itself() {
        let globs = Globs::new(&["*.json".into(), "a[1].bin".into()]).unwrap();
        for path in ["config.json", "onnx/config.json", "a[1].bin", "a1.bin"] {
            assert!(globs.matches(path), "{path}");
        }
        assert!(!globs.matches("config.jsonl"));
        let repo = "a/b".parse().unwrap();
        assert!(globs.each_matches(&repo, None, ["x.json"].into_iter()).is_err());
        for bad in ["[", ""] {
            assert!(matches!(Globs::new(&["*".into(), bad.into()]), Err(Error::InvalidGlob { glob, .. }) if glob == bad));
        }
    }
}
