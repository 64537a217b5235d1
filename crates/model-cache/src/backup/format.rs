//! What the files of a backup say, as functions of values: the marker, a snapshot's document, its sums. No I/O.
//!
//! A backup may come from anybody: nothing of it is believed before [`parse`] has checked it, and no path in it but those of
//! [`FilePath`], which lead nowhere else.

use crate::{
    digest::Digest,
    error::Error,
    key::PinnedRepo,
    name::{FilePath, RepoId, Revision, printable},
    record::*,
    store::LeftOut,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    str::FromStr,
};

/// The format of the backups this build makes, and the one it reads.
pub(super) const FORMAT: u32 = 1;

const MARK: &str = "model-cache backup, format ";

/// The text of the file that makes a folder a backup.
pub(super) fn marker() -> String {
    format!(
        "{MARK}{FORMAT}\n\
         \n\
         Made by `model-cache backup`; `model-cache restore` makes a store of it again.\n\
         \n\
         blobs/<kind>-<digest>  files as they are, each under the digest of its content\n\
         snapshots/<n>.json     what was in the store at one moment: which file is which blob\n\
         snapshots/<n>.sha256   the SHA-256 of that, and of every blob it speaks of\n\
         \n\
         To check a snapshot without model-cache, in this folder: sha256sum --check --quiet snapshots/<n>.sha256\n\
         A snapshot counts once its .json is there. What ends in .part is of a backup that was interrupted; the next one goes on with it.\n\
         What ends in .damaged was found so by `model-cache backup --recheck`, and the store had no sound copy.\n"
    )
}

/// The format a marker names; `Err` has what it says instead, for people.
pub(super) fn parse_marker(text: &[u8]) -> Result<u32, String> {
    let line = String::from_utf8_lossy(text.split(|byte| *byte == b'\n').next().unwrap_or_default()).into_owned();
    let found = line.strip_prefix(MARK).and_then(|number| number.trim_end().parse().ok());
    found.ok_or_else(|| format!("\"{}\"", printable(&line)))
}

/// The name of a blob's file, which any file system takes.
pub(super) fn blob_name(digest: &Digest) -> String {
    digest.to_string().replace(':', "-")
}

/// The digest in the name of a blob's file; `None` for other names.
pub(super) fn parse_blob_name(name: &str) -> Option<Digest> {
    let (kind, hex) = name.rsplit_once('-')?;
    let digest = format!("{kind}:{hex}").parse().ok()?;
    (blob_name(&digest) == name).then_some(digest)
}

/// What was in a store at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Document {
    pub(super) format: u32,
    /// What wrote it.
    pub(super) program: String,
    pub(super) created_unix_ms: i64,
    /// The store's id. None of one that could not be given any, nor in documents of builds that knew none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) store: Option<String>,
    pub(super) blobs: Vec<Blob>,
    pub(super) files: Vec<File>,
    pub(super) refs: Vec<Reference>,
    pub(super) manifests: Vec<Manifest>,
    pub(super) left_out: Vec<LeftOut>,
}

/// Content, and what its file in the backup must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Blob {
    #[serde(with = "text")]
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    /// Of content the Hub names by git's SHA-1, so that `sha256sum` can check it too.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "maybe_text")]
    pub(super) sha256: Option<Digest>,
    /// CRC32C of each 5 MiB.
    #[serde(with = "crcs")]
    pub(super) block_crc32c: Vec<u32>,
    pub(super) created_unix_ms: i64,
    pub(super) last_used_unix_ms: Option<i64>,
}

/// A name and the content it leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File {
    /// With its commit; an import has none.
    #[serde(with = "text")]
    pub(super) repo: PinnedRepo,
    #[serde(with = "text")]
    pub(super) path: FilePath,
    #[serde(with = "text")]
    pub(super) digest: Digest,
    pub(super) created_unix_ms: i64,
}

/// Which commit a revision is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reference {
    #[serde(with = "text")]
    pub(super) repo: RepoId,
    #[serde(with = "text")]
    pub(super) revision: Revision,
    pub(super) latest: String,
    pub(super) checked_unix_ms: i64,
    pub(super) current: Option<String>,
}

/// What a commit offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    #[serde(with = "text")]
    pub(super) repo: PinnedRepo,
    #[serde(flatten)]
    pub(super) entry: ManifestEntry,
}

/// A value as the text it is shown as, checked as it is read.
mod text {
    use super::*;
    use std::fmt::Display;

    pub(super) fn serialize<T: Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err = Error>, D: serde::Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The same of a value that need not be there.
mod maybe_text {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(value: &Option<Digest>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(|value| value.to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Digest>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}

/// Numbers as eight hex digits each, on one line: a file of 100 GiB has 20,480 of them.
mod crcs {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(crcs: &[u32], serializer: S) -> Result<S::Ok, S::Error> {
        let words: Vec<_> = crcs.iter().map(|crc| format!("{crc:08x}")).collect();
        serializer.collect_str(&words.join(" "))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<u32>, D::Error> {
        let text = String::deserialize(from)?;
        let number = |word: &str| u32::from_str_radix(word, 16).map_err(serde::de::Error::custom);
        text.split_ascii_whitespace().map(number).collect()
    }
}

impl Blob {
    /// The SHA-256 of its file.
    pub(super) fn sha256(&self) -> Option<Digest> {
        match self.digest {
            Digest::Sha256(_) => Some(self.digest),
            Digest::GitSha1(_) => self.sha256,
        }
    }
}

impl Reference {
    pub(super) fn record(&self) -> (RepoId, Revision, RefRecord) {
        let (latest, checked_unix_ms, current) = (self.latest.clone(), self.checked_unix_ms, self.current.clone());
        (self.repo.clone(), self.revision.clone(), RefRecord { latest, checked_unix_ms, current })
    }
}

impl Document {
    /// The document as its file has it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("documents have string keys and numbers JSON knows");
        bytes.push(b'\n');
        bytes
    }

    /// The file that `sha256sum --check` reads: of the document of snapshot `number`, whose SHA-256 is `own`, and of every blob.
    pub(super) fn sums(&self, number: u64, own: &Digest) -> String {
        let mut lines = format!("{}  snapshots/{number}.json\n", own.hex());
        for blob in &self.blobs {
            if let Some(sha256) = blob.sha256() {
                lines += &format!("{}  blobs/{}\n", sha256.hex(), blob_name(&blob.digest));
            }
        }
        lines
    }

    /// Bytes of all its content.
    pub(super) fn size_bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size_bytes).sum()
    }

    /// Whether `older` is of the same store: its id says so, or, where one of them has none, content that is in both. Nothing is lost with one
    /// that has no files: it is anybody's.
    pub(super) fn is_of_store_of(&self, older: &Self) -> bool {
        match (&self.store, &older.store) {
            _ if older.blobs.is_empty() => true,
            (Some(own), Some(other)) => own == other,
            _ => self.shares_with(older),
        }
    }

    /// Whether any content is in both.
    pub(super) fn shares_with(&self, other: &Self) -> bool {
        let own: HashSet<_> = self.blobs.iter().map(|blob| blob.digest).collect();
        other.blobs.iter().any(|blob| own.contains(&blob.digest))
    }

    /// Takes out content that `damage` tells of, and the names that lead to it; says which those are.
    pub(super) fn leave_out(&mut self, damage: impl Fn(&Digest) -> Option<String>) -> Vec<LeftOut> {
        self.blobs.retain(|blob| damage(&blob.digest).is_none());
        let mut left_out = Vec::new();
        self.files.retain(|file| {
            let damage = damage(&file.digest);
            left_out.extend(damage.iter().map(|reason| LeftOut::file(&file.repo, &file.path, reason.clone())));
            damage.is_none()
        });
        left_out
    }

    /// The names of each content, as people know them.
    pub(super) fn names(&self) -> HashMap<Digest, Vec<String>> {
        let mut names: HashMap<_, Vec<_>> = HashMap::new();
        for file in &self.files {
            names.entry(file.digest).or_default().push(format!("{} {}", file.repo, file.path));
        }
        names
    }
}

/// Reads a document, and checks all it says against itself.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn parse(bytes: &[u8]) -> Result<Document, String> {
    /// All that is read of a document of another format.
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|error| format!("it is no document of a backup: {error}"))?;
    if head.format != FORMAT {
        return Err(format!("it has format {}; this program reads format {FORMAT}", head.format));
    }
    let document: Document = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if let Some(store) = document.store.as_deref().filter(|store| !is_store_id(store)) {
        return Err(format!("\"{}\" is no id of a store", printable(store)));
    }
    let mut blobs = BTreeMap::new();
    let mut total_bytes = 0u64;
    for blob in &document.blobs {
        if blob.block_crc32c.len() as u64 != blocks(blob.size_bytes) {
            let (crcs, expected) = (blob.block_crc32c.len(), blocks(blob.size_bytes));
            return Err(format!("{} has {crcs} CRC32Cs, not {expected}", blob.digest));
        }
        if !matches!(blob.sha256(), Some(Digest::Sha256(_))) {
            return Err(format!("{} has no SHA-256", blob.digest));
        }
        if blobs.insert(blob.digest, 0u64).is_some() {
            return Err(format!("{} is there twice", blob.digest));
        }
        total_bytes = total_bytes.checked_add(blob.size_bytes).ok_or("its blobs have more bytes than any disk")?;
    }
    let mut names = HashSet::new();
    for file in &document.files {
        let Some(uses) = blobs.get_mut(&file.digest) else {
            return Err(format!("{} {} leads to {}, which is not among its blobs", file.repo, file.path, file.digest));
        };
        *uses += 1;
        if !names.insert((&file.repo, &file.path)) {
            return Err(format!("{} {} is there twice", file.repo, file.path));
        }
    }
    if let Some((digest, _)) = blobs.iter().find(|(_, uses)| **uses == 0) {
        return Err(format!("no name leads to {digest}"));
    }
    let is_commit = |commit: &str| commit.parse::<crate::name::CommitId>().is_ok();
    for reference in &document.refs {
        if !is_commit(&reference.latest) || !reference.current.as_deref().is_none_or(is_commit) {
            return Err(format!("{}@{} leads to something that is no commit", reference.repo, reference.revision));
        }
    }
    for manifest in &document.manifests {
        for listed in &manifest.entry.files {
            let valid = listed.path.parse::<FilePath>().map(drop).and_then(|()| listed.digest.parse::<Digest>().map(drop));
            valid.map_err(|error| format!("the manifest of {}: {error}", manifest.repo))?;
        }
    }
    Ok(document)
}

/// Whether this is an id as stores have them: 32 hex digits.
pub(super) fn is_store_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn document() -> Document {
        let digest: Digest = format!("git-sha1:{}", "0a".repeat(20)).parse().unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let listed = ListedFile { path: "a/b.gguf".to_owned(), size_bytes: 7, digest: digest.to_string() };
        Document {
            format: FORMAT,
            program: "test".to_owned(),
            created_unix_ms: 5,
            store: Some("0123456789abcdef".repeat(2)),
            blobs: vec![Blob {
                digest,
                size_bytes: 6 << 20,
                sha256: Some(Digest::Sha256([7; 32])),
                block_crc32c: vec![0, 0xdead_beef],
                created_unix_ms: 1,
                last_used_unix_ms: None,
            }],
            files: vec![File {
                repo: format!("org/name@{commit}").parse().unwrap(),
                path: "a/b.gguf".parse().unwrap(),
                digest,
                created_unix_ms: 2,
            }],
            refs: vec![Reference {
                repo: "org/name".parse().unwrap(),
                revision: "main".parse().unwrap(),
                latest: commit.to_owned(),
                checked_unix_ms: 3,
                current: None,
            }],
            manifests: vec![Manifest {
                repo: format!("org/name@{commit}").parse().unwrap(),
                entry: ManifestEntry {
                    task: None,
                    scanned_unix_ms: 4,
                    files: vec![listed],
                    quants: Vec::new(),
                    shared: Vec::new(),
                    extras: Vec::new(),
                },
            }],
            left_out: Vec::new(),
        }
    }

    #[test]
    fn a_document_reads_back_and_its_sums_are_in_the_form_of_sha256sum() {
        let document = document();
        assert_eq!(parse(&document.encode()).unwrap(), document);
        let sums = document.sums(3, &Digest::Sha256([1; 32]));
        let blob = format!("{}  blobs/git-sha1-{}\n", "07".repeat(32), "0a".repeat(20));
        assert_eq!(sums, format!("{}  snapshots/3.json\n{blob}", "01".repeat(32)));
    }

    #[test]
    fn a_document_that_lies_about_itself_or_leads_elsewhere_is_refused_with_what_is_wrong() {
        type Lie = fn(&mut serde_json::Value);
        let lies: [(Lie, &str); 13] = [
            (|d| d["store"] = "../x".into(), "no id of a store"),
            (|d| d["format"] = 2.into(), "format 2"),
            (|d| d["files"][0]["path"] = "../../etc/passwd".into(), "not a file path"),
            (|d| d["files"][0]["path"] = "/etc/passwd".into(), "not a file path"),
            (|d| d["files"][0]["repo"] = "../x".into(), "not a repo name"),
            (|d| d["files"][0]["digest"] = format!("sha256:{}", "00".repeat(32)).into(), "not among its blobs"),
            (|d| d["blobs"][0]["digest"] = "sha256:../../x".into(), "not a digest"),
            (|d| d["blobs"][0]["size_bytes"] = 1.into(), "has 2 CRC32Cs, not 1"),
            (|d| d["blobs"][0]["sha256"] = serde_json::Value::Null, "no SHA-256"),
            (|d| d["files"] = serde_json::json!([]), "no name leads to"),
            (|d| d["refs"][0]["latest"] = "main".into(), "no commit"),
            (|d| d["manifests"][0]["files"][0]["path"] = "a/../../b".into(), "not a file path"),
            (|d| d["blobs"] = serde_json::json!("none"), "invalid type"),
        ];
        for (lie, told) in lies {
            let mut value: serde_json::Value = serde_json::from_slice(&document().encode()).unwrap();
            lie(&mut value);
            let refused = parse(&serde_json::to_vec(&value).unwrap()).unwrap_err();
            assert!(refused.contains(told), "{refused}: {told}");
        }
        let mut twice = document();
        twice.files.push(twice.files[0].clone());
        assert!(parse(&twice.encode()).unwrap_err().contains("twice"));
        let mut twice = document();
        twice.blobs.push(twice.blobs[0].clone());
        assert!(parse(&twice.encode()).unwrap_err().contains("twice"));
    }

    #[test]
    fn documents_are_of_one_store_by_its_id_or_where_there_is_none_by_what_they_share() {
        let of = |store: Option<u8>, content: Option<u8>| {
            let mut made = document();
            made.store = store.map(|n| format!("{n:032x}"));
            made.blobs[0].digest = Digest::Sha256([content.unwrap_or_default(); 32]);
            made.blobs.truncate(content.iter().len());
            made
        };
        let new = of(Some(1), Some(1));
        for (older, same) in [
            (of(Some(1), Some(2)), true),
            (of(Some(2), Some(1)), false),
            (of(None, Some(1)), true),
            (of(None, Some(2)), false),
            (of(Some(2), None), true),
        ] {
            assert_eq!(new.is_of_store_of(&older), same, "{:?}", older.store);
        }
        // As builds that knew no ids wrote it.
        let mut old: serde_json::Value = serde_json::from_slice(&new.encode()).unwrap();
        old.as_object_mut().unwrap().remove("store");
        old["files"][0]["digest"] = new.blobs[0].digest.to_string().into();
        assert_eq!(parse(&serde_json::to_vec(&old).unwrap()).unwrap().store, None);
        assert!(!of(None, Some(1)).encode().windows(7).any(|bytes| bytes == b"\"store\""));
    }

    #[test]
    fn only_names_of_blobs_are_taken_for_such() {
        let digest: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        for digest in [digest, document().blobs[0].digest] {
            assert_eq!(parse_blob_name(&blob_name(&digest)), Some(digest));
        }
        for other in ["", "sha256-", "sha256:ab", "lock", &format!("{}.part", blob_name(&digest)), &"AB".repeat(32)] {
            assert_eq!(parse_blob_name(other), None, "{other}");
        }
        assert_eq!(parse_blob_name(&format!("sha256-{}", "AB".repeat(32))), None, "one spelling each");
    }

    #[test]
    fn a_marker_says_its_format_and_what_is_none_is_shown() {
        assert_eq!(parse_marker(marker().as_bytes()), Ok(FORMAT));
        assert_eq!(parse_marker(b"model-cache backup, format 7\r\nmore"), Ok(7));
        assert_eq!(parse_marker(b"a\x1b[31m diary\n"), Err("\"a\\u{1b}[31m diary\"".to_owned()));
        assert!(parse_marker(b"").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&bytes).is_err());
            let _ = parse_marker(&bytes);
            let _ = parse_blob_name(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn a_document_with_a_byte_changed_never_panics(at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = document().encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = parse(&bytes);
        }
    }
}
