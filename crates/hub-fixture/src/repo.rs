//! What a test says about a repo: files, refs, who may read it. Pure description; nothing is hashed or served here.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use crate::content::Content;

/// File names the Hub stores through LFS whatever their size (the list of mkhf.py).
const LFS_NAMES: &[&str] = &[
    "*.safetensors",
    "*.bin",
    "*.gguf",
    "*.onnx",
    "*.onnx_data",
    "*.onnx_data_*",
    "*.pt",
    "*.pth",
    "*.h5",
    "*.msgpack",
    "*.model",
    "*.npz",
    "*.parquet",
    "*.zip",
    "*.gz",
    "*.tflite",
    "*.dat",
    "*.ckpt",
];

/// From this size on a file is stored through LFS whatever its name, in bytes.
const LFS_MIN_BYTES: u64 = 10 << 20;

/// One file of a commit: its path in the repo, its bytes, and whether LFS stores it.
#[derive(Clone, Debug)]
pub struct File {
    pub(crate) path: String,
    pub(crate) content: Content,
    lfs: Option<bool>,
}

impl File {
    /// A file at `path`. Paths are not checked: a hostile one is served as given.
    pub fn new(path: impl Into<String>, content: impl Into<Content>) -> File {
        File { path: path.into(), content: content.into(), lfs: None }
    }

    /// Says whether LFS stores the file. Default: by its extension, or from 10 MiB on.
    pub fn lfs(mut self, lfs: bool) -> File {
        self.lfs = Some(lfs);
        self
    }

    pub(crate) fn is_lfs(&self, size: u64) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        self.lfs.unwrap_or_else(|| size >= LFS_MIN_BYTES || LFS_NAMES.iter().any(|pattern| glob_matches(pattern, name)))
    }
}

impl<P: Into<String>, C: Into<Content>> From<(P, C)> for File {
    fn from((path, content): (P, C)) -> Self {
        File::new(path, content)
    }
}

/// How a reference gets its commit.
#[derive(Clone, Debug)]
pub(crate) enum RefTo {
    /// A commit of these files.
    Files(Vec<File>),
    /// The commit another revision points at when the hub starts.
    Revision(String),
}

/// A model repo to be served: files on `main`, other refs, metadata and access.
///
/// ```
/// use hub_fixture::{Content, Repo};
/// let repo = Repo::new("org/name")
///     .file("config.json", "{}")
///     .file("model.gguf", Content::seeded(1, 64 << 20))
///     .branch("dev/next", [("config.json", "{\"n\":2}")])
///     .tag("v1.0")
///     .pipeline_tag("text-generation");
/// ```
#[derive(Clone, Debug)]
pub struct Repo {
    pub(crate) id: String,
    pub(crate) main: Vec<File>,
    /// Full ref name (`refs/heads/…`, `refs/tags/…`, `refs/pr/…`) to what it points at.
    pub(crate) refs: BTreeMap<String, RefTo>,
    pub(crate) old_ids: Vec<String>,
    pub(crate) private: bool,
    pub(crate) gated: Option<String>,
    pub(crate) disabled: bool,
    /// Further properties of the model info, by their JSON names.
    pub(crate) meta: Map<String, Value>,
}

impl Repo {
    /// A public repo `org/name` without files.
    pub fn new(id: impl Into<String>) -> Repo {
        Repo {
            id: id.into(),
            main: Vec::new(),
            refs: BTreeMap::new(),
            old_ids: Vec::new(),
            private: false,
            gated: None,
            disabled: false,
            meta: Map::new(),
        }
    }

    /// A repo whose `main` holds the files below `directory`, read when served.
    ///
    /// As mkhf.py: `.git` and `.cache` are left out, and a `.hf.json` beside the files may set `gated`, `private`, `disabled`,
    /// `lfs` (name patterns), `tags_refs`, `renamed_from` (a list), and any property of the model info.
    ///
    /// # Errors
    /// The directory cannot be walked, or `.hf.json` is not a JSON object.
    pub fn from_dir(id: impl Into<String>, directory: impl AsRef<Path>) -> io::Result<Repo> {
        let directory = directory.as_ref();
        let mut repo = Repo::new(id);
        let settings = match std::fs::read(directory.join(".hf.json")) {
            Ok(text) => serde_json::from_slice::<Map<String, Value>>(&text)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Map::new(),
            Err(e) => return Err(e),
        };
        let strings = |key: &str| -> Vec<String> {
            let list = settings.get(key).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let lfs = strings("lfs");
        walk(directory, "", &mut |path, on_disk| {
            let named = lfs.iter().any(|pattern| glob_matches(pattern, path.rsplit('/').next().unwrap_or_default()));
            let file = File::new(path, on_disk);
            repo.main.push(if named { file.lfs(true) } else { file });
        })?;
        for tag in strings("tags_refs") {
            repo = repo.tag(if tag.starts_with(|c: char| c.is_ascii_digit()) { format!("v{tag}") } else { tag });
        }
        for old in strings("renamed_from") {
            repo = repo.renamed_from(old);
        }
        for (key, value) in &settings {
            match key.as_str() {
                "lfs" | "tags_refs" | "renamed_from" => {}
                "private" => repo.private = value.as_bool().unwrap_or(false),
                "disabled" => repo.disabled = value.as_bool().unwrap_or(false),
                "gated" => {
                    repo.gated = match value {
                        Value::String(mode) => Some(mode.clone()),
                        Value::Bool(true) => Some("manual".to_owned()),
                        _ => None,
                    }
                }
                _ => repo = repo.meta(key, value.clone()),
            }
        }
        Ok(repo)
    }

    /// Adds a file to `main`.
    pub fn file(self, path: impl Into<String>, content: impl Into<Content>) -> Repo {
        self.with(File::new(path, content))
    }

    /// Adds a file to `main`, with its own choice of LFS.
    pub fn with(mut self, file: impl Into<File>) -> Repo {
        self.main.push(file.into());
        self
    }

    /// Hides the repo from all but [`GOOD_TOKEN`](crate::GOOD_TOKEN).
    pub fn private(mut self) -> Repo {
        self.private = true;
        self
    }

    /// Gives file bytes to [`GOOD_TOKEN`](crate::GOOD_TOKEN) only; listings stay public, as on the Hub.
    pub fn gated(mut self) -> Repo {
        self.gated = Some("manual".to_owned());
        self
    }

    /// Answers every request with the Hub's "disabled" refusal.
    pub fn disabled(mut self) -> Repo {
        self.disabled = true;
        self
    }

    /// Sets the task, such as `text-generation`.
    pub fn pipeline_tag(self, tag: &str) -> Repo {
        self.meta("pipeline_tag", tag)
    }

    /// Sets a property of the model info (`library_name`, `tags`, `gguf`, `safetensors`, `config`, …).
    pub fn meta(mut self, key: &str, value: impl Into<Value>) -> Repo {
        self.meta.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a branch with files of its own; its name may hold slashes.
    pub fn branch<I: IntoIterator<Item: Into<File>>>(self, name: &str, files: I) -> Repo {
        self.reference(&format!("refs/heads/{name}"), files)
    }

    /// Adds `refs/pr/{number}` with files of its own.
    pub fn pull_request<I: IntoIterator<Item: Into<File>>>(self, number: u32, files: I) -> Repo {
        self.reference(&format!("refs/pr/{number}"), files)
    }

    /// Adds a ref by its full name (such as `refs/convert/parquet`) with files of its own.
    pub fn reference<I: IntoIterator<Item: Into<File>>>(mut self, full_name: &str, files: I) -> Repo {
        self.refs.insert(full_name.to_owned(), RefTo::Files(files.into_iter().map(Into::into).collect()));
        self
    }

    /// Tags the commit `main` starts with.
    pub fn tag(self, name: impl AsRef<str>) -> Repo {
        self.tag_of(name, "main")
    }

    /// Tags the commit another revision starts with.
    pub fn tag_of(mut self, name: impl AsRef<str>, revision: &str) -> Repo {
        self.refs.insert(format!("refs/tags/{}", name.as_ref()), RefTo::Revision(revision.to_owned()));
        self
    }

    /// Makes an old id (`org/name`, or a bare `name`) redirect here.
    pub fn renamed_from(mut self, old_id: impl Into<String>) -> Repo {
        self.old_ids.push(old_id.into());
        self
    }
}

fn walk(directory: &Path, prefix: &str, see: &mut impl FnMut(String, std::path::PathBuf)) -> io::Result<()> {
    let mut entries = std::fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if entry.file_type()?.is_dir() {
            if name != ".git" && name != ".cache" {
                walk(&entry.path(), &format!("{path}/"), see)?;
            }
        } else if entry.path().is_file() && path != ".hf.json" {
            see(path, entry.path());
        }
    }
    Ok(())
}

/// Shell-like match of a whole name; `*` and `?` only.
fn glob_matches(pattern: &str, name: &str) -> bool {
    match pattern.chars().next() {
        None => name.is_empty(),
        Some('*') => (0..=name.len()).any(|i| name.is_char_boundary(i) && glob_matches(&pattern[1..], &name[i..])),
        Some(c) => name
            .chars()
            .next()
            .is_some_and(|n| (c == '?' || c == n) && glob_matches(&pattern[c.len_utf8()..], &name[n.len_utf8()..])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lfs_goes_by_extension_then_size_unless_told() {
        assert!(File::new("a/model.gguf", "x").is_lfs(1));
        assert!(File::new("onnx/model.onnx_data_1", "x").is_lfs(1));
        assert!(!File::new("config.json", "x").is_lfs(1));
        assert!(File::new("vocab.json", "x").is_lfs(10 << 20));
        assert!(!File::new("vocab.json", "x").is_lfs((10 << 20) - 1));
        assert!(!File::new("model.gguf", "x").lfs(false).is_lfs(1 << 40));
    }
}
