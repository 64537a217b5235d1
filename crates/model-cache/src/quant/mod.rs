//! What a repo's file listing offers: its quants, told by names and sizes alone. Nothing here touches disk or network.
//!
//! A quant is the files one loader needs for one precision. Each file of a listing is one of:
//! - **own** to a quant: its weights, their shards, external data and index;
//! - **companion** of a quant: a file that quant needs and others may need too, such as a GGUF's projector (mmproj);
//! - **shared** by all: configs, tokenizers, README, licence, and anything unknown;
//! - **extra**: pulled by no quant, reachable by path only: images, sound, archives, hidden files, importance matrices, drafts
//!   for speculative decoding, unchosen projectors, training state, and weights that another file repeats.
//!
//! Keys are what people type. Per format:
//! - GGUF: llama.cpp's label in upper case (`Q4_K_M`, `UD-Q4_K_XL`, `BF16`; `FP16` is `F16`), from the file name, else from
//!   the folder; two models of one label are keyed by their stems (`a-Q4_K_M`), see gguf.rs.
//! - ONNX: transformers.js dtypes (`fp32`, `q8` for `_quantized`, `q4f16`), see onnx.rs.
//! - Safetensors and PyTorch: the variant (`fp16`, `bf16`) or `default`, see safetensors.rs.
//! - A folder `original`, `checkpoint-<n>` or with a `genai_config.json` of its own is one quant whole, keyed by its name.
//!
//! Formats do not mix, but for a component folder that only the other of safetensors and PyTorch has (a companion then). Where
//! two formats want one key, case ignored, the plain key goes to the first of safetensors, GGUF, ONNX, PyTorch; the others are
//! `onnx/fp16`, and `pytorch` for `pytorch/default`. Further formats (`flax`, `tf`, `openvino` ..) take plain keys only when
//! alone in the repo. A listing without any weights is one quant, `default`, of all but its extras.

mod gguf;
mod onnx;
mod safetensors;
mod sets;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

/// One file of a listing, as much of it as classification needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Listed<'a> {
    /// Path inside the repo, `/` between folders.
    pub(crate) path: &'a str,
    /// Size of the file's content.
    pub(crate) size_bytes: u64,
}

/// What a listing offers. Every path of the listing is own, companion, shared or extra; only companions have several users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The quants by key. No two keys are equal with case ignored.
    pub(crate) quants: BTreeMap<String, QuantFiles>,
    /// Paths every quant needs, sorted.
    pub(crate) shared: Vec<String>,
    /// Paths no quant needs, sorted.
    pub(crate) extras: Vec<String>,
}

/// The files of one quant, beside the [`Offer::shared`] ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct QuantFiles {
    /// Paths that belong to this quant alone, sorted.
    pub(crate) own: Vec<String>,
    /// Paths this quant needs beside its own, sorted: a projector, or a component that has no file of this variant.
    pub(crate) companions: Vec<String>,
    /// Paths the names of the others promise and the listing lacks, for people: absent shards, sessions, data files.
    ///
    /// A note, not a verdict: an absent ONNX session may be meant to run in another dtype. Long lists end in a count.
    pub(crate) missing: Vec<String>,
}

/// Formats in order of their claim to a plain key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Format {
    Safetensors,
    Gguf,
    Onnx,
    Pytorch,
    Flax,
    Tf,
    Openvino,
    Coreml,
    Tflite,
    Rust,
    Npz,
    Nemo,
    /// A folder that is one quant whole.
    Folder,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Gguf => "gguf",
            Self::Onnx => "onnx",
            Self::Pytorch => "pytorch",
            Self::Flax => "flax",
            Self::Tf => "tf",
            Self::Openvino => "openvino",
            Self::Coreml => "coreml",
            Self::Tflite => "tflite",
            Self::Rust => "rust",
            Self::Npz => "npz",
            Self::Nemo => "nemo",
            Self::Folder => "folder",
        }
    }

    /// Whether its quants may have plain keys beside other formats.
    fn is_common(self) -> bool {
        matches!(self, Self::Safetensors | Self::Gguf | Self::Onnx | Self::Pytorch | Self::Folder)
    }
}

/// A quant whose key is not settled yet.
struct Group<'a> {
    format: Format,
    /// Names it may be known by, from the plainest to the most exact; at least one.
    names: Vec<String>,
    own: Vec<&'a str>,
    companions: Vec<&'a str>,
    missing: Vec<String>,
}

/// Tells the quants of a listing, in any order, from its names and sizes.
///
/// A path listed twice counts once. Time is `O(n log n)` in the number of paths.
pub(crate) fn classify(files: &[Listed<'_>]) -> Offer {
    let mut files = files.to_vec();
    files.sort_unstable();
    files.dedup_by_key(|file| file.path);

    let sorted = sort(&files);
    let mut shared = sorted.shared;
    let mut extras = sorted.extras;
    let mut groups = sorted.folders;
    for (found, leftover) in [gguf::groups(sorted.gguf), onnx::groups(sorted.onnx)] {
        groups.extend(found);
        extras.extend(leftover);
    }
    let (found, stray_indexes) = safetensors::groups(sorted.weights, sorted.indexes);
    groups.extend(found);
    shared.extend(stray_indexes);

    if groups.is_empty() {
        // Nothing but extras is still something somebody may want to pull.
        let own = std::mem::take(if shared.is_empty() { &mut extras } else { &mut shared });
        if !own.is_empty() {
            let names = vec!["default".to_owned()];
            groups.push(Group { format: Format::Safetensors, names, own, companions: Vec::new(), missing: Vec::new() });
        }
    }
    Offer { quants: settle_keys(groups), shared: owned(shared), extras: owned(extras) }
}

/// A listing's files by what they are.
#[derive(Default)]
struct Sorted<'a> {
    gguf: Vec<sets::FileSet<'a>>,
    onnx: Vec<sets::FileSet<'a>>,
    weights: Vec<(sets::FileSet<'a>, Format)>,
    folders: Vec<Group<'a>>,
    indexes: Vec<&'a str>,
    shared: Vec<&'a str>,
    extras: Vec<&'a str>,
}

fn sort<'a>(files: &[Listed<'a>]) -> Sorted<'a> {
    let size_of = |path: &str| files.binary_search_by(|file| file.path.cmp(path)).ok().map(|at| files[at].size_bytes);
    let mut sorted = Sorted::default();
    let (extras, candidates): (Vec<&'a str>, Vec<&'a str>) = files.iter().map(|file| file.path).partition(|path| is_extra(path));
    sorted.extras = extras;

    let self_contained: BTreeSet<&str> = files
        .iter()
        .map(|file| sets::split_dir(file.path))
        .filter(|(dir, name)| !dir.is_empty() && *name == "genai_config.json")
        .map(|(dir, _)| dir)
        .collect();
    let is_weights = |path: &str| onnx::split_graph(sets::split_dir(path).1).is_some() || safetensors::format(path).is_some();
    let mut folders: BTreeMap<&'a str, Vec<&'a str>> = BTreeMap::new();
    let mut rest = Vec::new();
    for path in candidates {
        match whole_folder(path, &self_contained) {
            Some(folder) if !gguf::is_gguf(path) => folders.entry(folder).or_default().push(path),
            _ => rest.push(path),
        }
    }
    for (folder, paths) in folders {
        if paths.iter().any(|path| is_weights(path)) {
            sorted.folders.push(folder_group(folder, paths));
        } else {
            rest.extend(paths);
        }
    }
    rest.sort_unstable();

    let largest = files.iter().filter(|file| is_weights(file.path)).map(|file| file.size_bytes).max().unwrap_or(0);
    for set in sets::collect(rest) {
        let path = set.files[0];
        let name = sets::split_dir(path).1;
        // Settings of a graph that is not there are settings of something else.
        let has_graph = |graph| size_of(&sets::join(set.dir, graph)).is_some();
        if gguf::is_gguf(&set.name) {
            sorted.gguf.push(set);
        } else if onnx::graph_of_settings(name).map_or(onnx::split_graph(name).is_some(), has_graph) {
            sorted.onnx.push(set);
        } else if let Some(format) = safetensors::format(&sets::join(set.dir, &set.name)) {
            if safetensors::is_support(&set, format, size_of(path).unwrap_or(0), largest) {
                sorted.shared.extend(set.files);
            } else {
                sorted.weights.push((set, format));
            }
        } else if safetensors::is_index(name) {
            sorted.indexes.extend(set.files);
        } else {
            sorted.shared.extend(set.files);
        }
    }
    sorted
}

/// Whether no quant needs `path`: hidden files, images, sound, archives, importance matrices, training state.
fn is_extra(path: &str) -> bool {
    let name = sets::split_dir(path).1;
    let lower = name.to_ascii_lowercase();
    let media_or_archive = matches!(
        sets::split_ext(&lower).1,
        "png"
            | "jpg"
            | "jpeg"
            | "gif"
            | "svg"
            | "webp"
            | "bmp"
            | "ico"
            | "mp4"
            | "mov"
            | "webm"
            | "mp3"
            | "wav"
            | "flac"
            | "ogg"
            | "pdf"
            | "zip"
            | "tar"
            | "tgz"
            | "7z"
            | "rar"
            | "xz"
            | "bz2"
    );
    path.split('/').any(|part| part.starts_with('.'))
        || media_or_archive
        || lower.ends_with(".tar.gz")
        || gguf::is_calibration(path)
        || safetensors::is_training_state(name)
}

/// The outermost folder above `path` that is a model of its own rather than a component.
fn whole_folder<'a>(path: &'a str, self_contained: &BTreeSet<&str>) -> Option<&'a str> {
    let mut start = 0;
    path.match_indices('/').find_map(|(end, _)| {
        let (folder, last) = (&path[..end], &path[start..end]);
        start = end + 1;
        let checkpoint = last.strip_prefix("checkpoint-").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        (last == "original" || checkpoint || self_contained.contains(folder)).then_some(folder)
    })
}

fn folder_group<'a>(folder: &str, paths: Vec<&'a str>) -> Group<'a> {
    let names = vec![sets::split_dir(folder).1.to_owned(), folder.to_owned()];
    let missing = sets::collect(paths.iter().copied()).into_iter().flat_map(|set| set.missing).collect();
    Group { format: Format::Folder, names, own: paths, companions: Vec::new(), missing }
}

/// Gives every group the plainest of its names that is its alone.
fn settle_keys(mut groups: Vec<Group<'_>>) -> BTreeMap<String, QuantFiles> {
    for group in &mut groups {
        group.own.sort_unstable();
    }
    // Own files are disjoint, so this order is total: the outcome cannot depend on how the groups were found.
    groups.sort_by(|a, b| (a.format, &a.own).cmp(&(b.format, &b.own)));
    let formats: BTreeSet<Format> = groups.iter().map(|group| group.format).collect();

    let mut settled: BTreeMap<String, QuantFiles> = BTreeMap::new();
    let mut taken: BTreeMap<String, u32> = BTreeMap::new();
    for format in &formats {
        let plain = format.is_common() || formats.len() == 1;
        let mut waiting: Vec<&mut Group<'_>> = groups.iter_mut().filter(|group| group.format == *format).collect();
        let rungs = waiting.iter().map(|group| group.names.len()).max().unwrap_or(0);
        for rung in 0..rungs {
            // A name that two groups of a format propose is neither's: it would pull one model for the other.
            let name_of = |group: &Group<'_>| group.names[rung.min(group.names.len() - 1)].to_ascii_lowercase();
            let mut proposed: BTreeMap<String, usize> = BTreeMap::new();
            for group in &waiting {
                *proposed.entry(name_of(group)).or_default() += 1;
            }
            let (alone, tied): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|group| proposed[&name_of(group)] == 1 || rung + 1 == rungs);
            waiting = tied;
            for group in alone {
                let name = &group.names[rung.min(group.names.len() - 1)];
                let key = take_key(name, *format, plain, &mut taken);
                settled.insert(key, quant_files(group));
            }
        }
    }
    settled
}

/// Takes a key for `name`: as it is, else with the format before it, else numbered.
///
/// `taken` maps each key, lower case, to the last number given out behind it: names that differ by case alone are numbered in
/// one step each.
fn take_key(name: &str, format: Format, plain: bool, taken: &mut BTreeMap<String, u32>) -> String {
    // Nobody can type the name of `-00001-of-00002.gguf`, which is none.
    let name = if name.is_empty() { "default" } else { name };
    let qualified = if name == "default" { format.name().to_owned() } else { format!("{}/{name}", format.name()) };
    let plain = plain.then(|| name.to_owned());
    for key in plain.into_iter().chain([qualified.clone()]) {
        if let Entry::Vacant(free) = taken.entry(key.to_ascii_lowercase()) {
            free.insert(1);
            return key;
        }
    }
    loop {
        let number = taken.entry(qualified.to_ascii_lowercase()).or_insert(1);
        *number += 1;
        let key = format!("{qualified}~{number}");
        if let Entry::Vacant(free) = taken.entry(key.to_ascii_lowercase()) {
            free.insert(1);
            return key;
        }
    }
}

fn quant_files(group: &mut Group<'_>) -> QuantFiles {
    QuantFiles {
        own: owned(std::mem::take(&mut group.own)),
        companions: owned(std::mem::take(&mut group.companions)),
        missing: std::mem::take(&mut group.missing),
    }
}

fn owned(mut paths: Vec<&str>) -> Vec<String> {
    paths.sort_unstable();
    paths.into_iter().map(str::to_owned).collect()
}

/// The key among `keys` that a person means by `typed`.
///
/// An exact match wins, then one with case ignored, then an alias (`fp16` and `F16`, `quantized` and `q8`), then the `_M` or
/// `_MOE` a bare label stands for (`Q4_K` is `Q4_K_M`), then the one key that ends in `-typed` or `/typed` (`Q4_K_XL` for
/// `UD-Q4_K_XL`). `default` also means a sole key, whatever it is. What could mean two keys means none.
pub(crate) fn find<'a>(keys: impl Iterator<Item = &'a str>, typed: &str) -> Option<&'a str> {
    let keys: Vec<&str> = keys.collect();
    let wanted = canonical(typed);
    if wanted.is_empty() {
        return None;
    }
    let readings: [&dyn Fn(&str) -> bool; 6] = [
        &|key| key == typed,
        &|key| key.eq_ignore_ascii_case(typed),
        &|key| canonical(key) == wanted,
        &|key| ["_m", "_moe"].iter().any(|tail| canonical(key).strip_suffix(tail) == Some(&wanted)),
        &|key| canonical(key).strip_suffix(&wanted).is_some_and(|rest| rest.ends_with(['-', '/'])),
        &|_| wanted == "default",
    ];
    // The first reading that fits any key decides, also when it fits two.
    let mut fitting = readings.iter().map(|fits| keys.iter().copied().filter(|key| fits(key)).collect::<Vec<_>>());
    match fitting.find(|fitting| !fitting.is_empty())?.as_slice() {
        [key] => Some(key),
        _ => None,
    }
}

/// `key` in lower case, its last word in the one spelling that stands for all.
fn canonical(key: &str) -> String {
    let lower = key.to_ascii_lowercase();
    let at = lower.rfind(['-', '/']).map_or(0, |separator| separator + 1);
    let last = match &lower[at..] {
        "fp16" | "float16" => "f16",
        "fp32" | "float32" => "f32",
        "bfloat16" => "bf16",
        "quantized" => "q8",
        last => last,
    };
    format!("{}{last}", &lower[..at])
}
