//! What people type, and keys: what is understood is written as it is understood, and no two names have one key.

use super::{check_error, check_text, lines};
use crate::{
    digest::Digest,
    error::Result,
    hub, key,
    key::PinnedRepo,
    name::{CommitId, FilePath, RepoId, RepoSpec, Revision, printable, shell_word},
    onnx::beside,
};
use std::{fmt, path::Path, str::FromStr};

/// What libmdbx allows a key in pages of 4 KiB.
const MAX_KEY_BYTES: usize = 2022;

/// Names, two of each, and a key: a line for each.
///
/// ```text
/// repo[@revision] \n path \n another path \n key \n digest
/// ```
pub fn names(input: &[u8]) {
    let lines = lines(input);
    let line = |at: usize| lines.get(at).map_or("", String::as_str);
    let spec = reads_back::<RepoSpec>(line(0));
    reads_back::<RepoId>(line(0));
    reads_back::<Revision>(line(0));
    reads_back::<CommitId>(line(0));
    let (one, other) = (reads_back::<FilePath>(line(1)), reads_back::<FilePath>(line(2)));
    if let Some(digest) = reads_back::<Digest>(line(4)) {
        assert!(key::blob(&digest).len() <= MAX_KEY_BYTES);
    }
    for line in &lines {
        check_text(&printable(line));
        check_word(line);
    }
    check_key(line(3));

    for path in one.iter().chain(&other) {
        let joined = Path::new("/base").join(path.as_str());
        assert!(joined.starts_with("/base") && joined.file_name().is_some_and(|name| name == path.file_name()));
        assert_eq!(joined.components().count(), 2 + path.as_str().split('/').count());
        if let Ok(found) = beside(path, line(2)) {
            let folder = path.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
            assert!(Path::new(found.as_str()).starts_with(folder), "{found} is not beside {path}");
        }
    }
    let (Some(spec), Some(one)) = (spec, one) else { return };
    hub::fuzz::check_urls(&spec.repo, &spec.revision_or_main(), &one);
    let commit = "0123456789abcdef0123456789abcdef01234567".parse().expect("a commit");
    for repo in [PinnedRepo::new(spec.repo.clone(), commit), PinnedRepo::import(spec.repo.clone())] {
        check_keys(&repo, &one);
        if let Some(other) = &other {
            assert_eq!(key::home(&repo, &one) == key::home(&repo, other), one == *other);
        }
    }
    let reference = key::reference(&spec.repo, &spec.revision_or_main());
    assert!(reference.starts_with(&key::reference_prefix(&spec.repo)) && reference.len() <= MAX_KEY_BYTES);
}

/// What is understood, written and understood again, is the same.
fn reads_back<T: FromStr<Err = crate::Error> + fmt::Display + PartialEq + fmt::Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let written = value.to_string();
            check_text(&written);
            let again: Result<T> = written.parse();
            assert!(again.is_ok_and(|again| again == value), "{text:?} was understood as {written:?}");
            Some(value)
        }
        Err(error) => {
            check_error(&error);
            None
        }
    }
}

/// Every key of a name leads back to it, and is short enough for its table.
fn check_keys(repo: &PinnedRepo, path: &FilePath) {
    let named = Some((repo.clone(), path.clone()));
    let meta = key::meta(repo, path);
    assert_eq!(key::parse_meta(&meta), named);
    assert!(meta.starts_with(&key::meta_prefix(repo)) && meta.len() <= MAX_KEY_BYTES);
    let home = key::home(repo, path);
    let apart = key::apart(&home, u64::MAX);
    assert!(apart != home && !key::is_derived_home(&apart));
    for home in [home, apart] {
        assert_eq!(key::parse_home(&home), named);
        let chunk = key::chunk(&home, u32::MAX);
        assert_eq!(key::home_of_chunk(&chunk), Some(home.as_str()));
        assert!(chunk.len() <= MAX_KEY_BYTES, "{} bytes", chunk.len());
    }
    assert!(key::manifest(repo).starts_with("manifest:"));
}

/// A key that is read is that of what was read, but for one way of writing it.
fn check_key(text: &str) {
    if let Some((repo, path)) = key::parse_meta(text) {
        check_keys(&repo, &path);
    }
    if let Some((repo, path)) = key::parse_home(text) {
        check_keys(&repo, &path);
    }
    if let Some(home) = key::home_of_chunk(text) {
        assert!(text.starts_with(&format!("file:{home}:chunk:")));
    }
    if let Some(source) = key::source_of_derived(text) {
        assert!(text.starts_with(&key::derived_prefix(&source)));
    }
    if let Some(id) = key::parse_access(text) {
        assert_eq!(key::parse_access(&key::access(id)), Some(id));
    }
}

/// A shell reads back the word that was meant: outside single quotes it has plain characters and escaped quotes only.
fn check_word(word: &str) {
    let (shown, mut read) = (shell_word(word), String::new());
    let mut rest = shown.as_str();
    assert!(!rest.is_empty());
    while let Some(first) = rest.chars().next() {
        if first == '\'' {
            let (quoted, after) = rest[1..].split_once('\'').expect("every quote is closed");
            read += quoted;
            rest = after;
        } else if let Some(after) = rest.strip_prefix("\\'") {
            read.push('\'');
            rest = after;
        } else {
            assert!(first.is_ascii_alphanumeric() || "_.-/@:+,=".contains(first), "{shown}");
            read.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    assert_eq!(read, word);
}
