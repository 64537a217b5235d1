//! ONNX: the dtype in a graph's name, the sessions of a model, and the data files beside them.

use super::{
    Format, Group,
    sets::{FileSet, join, split_dir, split_ext, strip_suffix_nocase},
};
use std::collections::{BTreeMap, BTreeSet};

/// Name suffixes and their keys. The first of a key is the name transformers.js looks for (its `utils/dtypes.js`).
const SUFFIXES: [(&str, &str); 26] = [
    ("", "fp32"),
    ("fp32", "fp32"),
    ("fp16", "fp16"),
    ("quantized", "q8"),
    ("q8", "q8"),
    ("int8", "int8"),
    ("uint8", "uint8"),
    ("q4", "q4"),
    ("q4f16", "q4f16"),
    ("bnb4", "bnb4"),
    ("q2", "q2"),
    ("q2f16", "q2f16"),
    ("q1", "q1"),
    ("q1f16", "q1f16"),
    ("q8f16", "q8f16"),
    ("uint8f16", "uint8f16"),
    ("q4fp16", "q4f16"),
    ("q8fp16", "q8f16"),
    ("int4", "int4"),
    ("uint4", "uint4"),
    ("bf16", "bf16"),
    ("fp8", "fp8"),
    // optimum's optimisation levels
    ("o1", "O1"),
    ("o2", "O2"),
    ("o3", "O3"),
    ("o4", "O4"),
];
/// Words that make a graph one session of a model rather than a model of its own name.
const ROLES: [&str; 43] = [
    "model",
    "encoder",
    "decoder",
    "encode",
    "decode",
    "encodec",
    "encoding",
    "joiner",
    "embed",
    "embeds",
    "embedding",
    "embeddings",
    "embedder",
    "head",
    "lm",
    "gen",
    "vision",
    "text",
    "audio",
    "speech",
    "language",
    "image",
    "video",
    "vae",
    "unet",
    "transformer",
    "tokenizer",
    "detokenizer",
    "prompt",
    "mask",
    "latent",
    "denoiser",
    "voice",
    "vocoder",
    "prefill",
    "preprocess",
    "preprocessor",
    "postprocess",
    "prepare",
    "conditional",
    "conditioner",
    "predictor",
    "duration",
];
/// The one session that does the work of both [`UNMERGED`].
const MERGED: &str = "decoder_model_merged";
const UNMERGED: [&str; 2] = ["decoder_model", "decoder_with_past_model"];
/// Most absent sessions spelled out per quant.
const MISSING_SHOWN: usize = 16;

/// Splits a name into a graph's stem and what follows `.onnx`, if it is a graph or a graph's own data.
///
/// Data is `x.onnx_data`, `x.onnx_data_1` .. (transformers.js), `x.onnx.data` (other exporters) and `x.onnx.json` (its settings).
pub(super) fn split_graph(name: &str) -> Option<(&str, &str)> {
    let at = name.to_ascii_lowercase().rfind(".onnx")?;
    let (stem, rest) = (&name[..at], &name[at + 5..]);
    let known = rest.is_empty() || rest.eq_ignore_ascii_case(".json") || data_number(rest).is_some();
    known.then_some((stem, rest))
}

/// Number of an external data file: 0 for `_data`, n for `_data_n`.
fn data_number(rest: &str) -> Option<u32> {
    let rest = rest.strip_prefix("_data").or(rest.strip_prefix(".data"))?;
    if rest.is_empty() {
        return Some(0);
    }
    rest.strip_prefix(['_', '.', '-'])?.parse().ok()
}

/// A graph with its data files.
struct Graph<'a> {
    dir: &'a str,
    stem: &'a str,
    files: Vec<&'a str>,
    missing: Vec<String>,
    /// Folder and base name, lower case, precision left out: the session this graph is one dtype of.
    session: (String, String),
    key: String,
    /// Lower is the likelier reading when two files claim one session and key.
    rank: usize,
}

/// Reads the base name and dtype of a graph's stem: `decoder_model_merged_q4f16` is `decoder_model_merged`, `q4f16`.
///
/// The number ranks the spelling. An unknown ending of `model_..` is a key as it stands (`model_qint8_avx512_vnni`).
fn dtype(stem: &str) -> (String, Option<(String, usize)>) {
    let lower = stem.to_ascii_lowercase();
    let at = lower.rfind(['_', '-', '.']).map_or(0, |separator| separator + 1);
    let (base, ending) = (lower[..at].trim_end_matches(['_', '-', '.']), &lower[at..]);
    if let Some(rank) = SUFFIXES.iter().position(|(suffix, _)| *suffix == ending && !ending.is_empty()) {
        let base = if base.is_empty() { "model" } else { base };
        return (base.to_owned(), Some((SUFFIXES[rank].1.to_owned(), rank)));
    }
    match lower.strip_prefix("model_") {
        Some(key) if !key.is_empty() && !key.split('_').any(|word| ROLES.contains(&word) || word == "merged") => {
            ("model".to_owned(), Some((stem[6..].to_owned(), SUFFIXES.len())))
        }
        _ => (lower, None),
    }
}

impl<'a> Graph<'a> {
    fn of(dir: &'a str, stem: &'a str, files: &[(&'a str, &'a str)]) -> Self {
        let (base, named) = dtype(stem);
        let mut session_dir = dir.to_owned();
        // `int8/model.onnx`: the folder speaks where the name does not.
        let (parent, folder) = split_dir(dir);
        let folder_key = SUFFIXES.iter().find(|(suffix, _)| !suffix.is_empty() && folder.eq_ignore_ascii_case(suffix));
        let (key, rank) = match (named, folder_key) {
            (Some(named), _) => named,
            (None, Some((_, key))) => {
                session_dir = parent.to_owned();
                ((*key).to_owned(), SUFFIXES.len())
            }
            (None, None) => ("fp32".to_owned(), 0),
        };
        let mut missing = Vec::new();
        let path = join(dir, stem);
        if !files.iter().any(|(rest, _)| rest.is_empty()) {
            missing.push(format!("{path}.onnx"));
        }
        let numbers: BTreeMap<u32, &str> = files.iter().filter_map(|(rest, _)| Some((data_number(rest)?, *rest))).collect();
        if let Some((&last, rest)) = numbers.last_key_value() {
            let first = rest.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['_', '.', '-']);
            let absent = (0..last).filter(|n| !numbers.contains_key(n)).take(MISSING_SHOWN);
            let name = |n| if n == 0 { format!("{path}.onnx{first}") } else { format!("{path}.onnx{first}_{n}") };
            missing.extend(absent.map(name));
        }
        let files = files.iter().map(|(_, path)| *path).collect();
        Self { dir, stem, files, missing, session: (session_dir, base), key, rank }
    }
}

/// Groups ONNX graphs by dtype, all sessions of a dtype together; the second value holds the files no group takes.
///
/// - A dtype that lacks a session other dtypes have says so in `missing`; it is offered all the same, since a model's config may
///   ask for another dtype for that session.
/// - Where `decoder_model_merged` is there, `decoder_model` and `decoder_with_past_model` of that dtype and folder repeat its
///   weights: they are left over.
/// - Two or more graphs without any session word in their names (`yolov8n`, `yolov8s`) are models apart, keyed by their stems.
/// - Where there is a folder `onnx`, graphs outside it are another export, keyed by their stems or paths.
pub(super) fn groups<'a>(sets: Vec<FileSet<'a>>) -> (Vec<Group<'a>>, Vec<&'a str>) {
    let mut leftover = Vec::new();
    let mut stems: BTreeMap<(&'a str, &'a str), Vec<(&'a str, &'a str)>> = BTreeMap::new();
    for path in sets.into_iter().flat_map(|set| set.files) {
        let (dir, name) = split_dir(path);
        match split_graph(name) {
            Some((stem, rest)) => stems.entry((dir, stem)).or_default().push((rest, path)),
            None => leftover.push(path),
        }
    }
    let mut graphs: Vec<Graph<'a>> = stems.iter().map(|((dir, stem), files)| Graph::of(dir, stem, files)).collect();
    graphs.sort_by_key(|graph| graph.rank);

    let merged: BTreeSet<(String, String)> = graphs
        .iter()
        .filter(|graph| graph.session.1 == MERGED)
        .map(|graph| (graph.session.0.clone(), graph.key.clone()))
        .collect();
    let has_home = graphs.iter().any(|graph| in_home(graph.dir));
    let nameless: BTreeSet<(String, String)> =
        graphs.iter().filter(|graph| !has_role(&graph.session.1)).map(|graph| graph.session.clone()).collect();

    let mut groups = Vec::new();
    let mut dtypes: BTreeMap<String, BTreeMap<(String, String), Graph<'a>>> = BTreeMap::new();
    for graph in graphs {
        if UNMERGED.contains(&graph.session.1.as_str()) && merged.contains(&(graph.session.0.clone(), graph.key.clone())) {
            leftover.extend(graph.files);
            continue;
        }
        let apart = (has_home && !in_home(graph.dir)) || (nameless.len() > 1 && nameless.contains(&graph.session));
        let sessions = dtypes.entry(graph.key.clone()).or_default();
        if apart || sessions.contains_key(&graph.session) {
            groups.push(alone(graph));
        } else {
            sessions.insert(graph.session.clone(), graph);
        }
    }
    dtypes.retain(|_, sessions| !sessions.is_empty());

    let all: BTreeSet<(String, String)> =
        dtypes.iter().filter(|(key, _)| is_known(key)).flat_map(|(_, sessions)| sessions.keys().cloned()).collect();
    for (key, sessions) in dtypes {
        let mut missing: Vec<String> = sessions.values().flat_map(|graph| graph.missing.iter().cloned()).collect();
        // Keys outside the table are one exporter's specials; comparing each with all sessions would also be quadratic.
        if is_known(&key) {
            missing.extend(absent_sessions(&key, &sessions, &all));
        }
        let own = sessions.into_values().flat_map(|graph| graph.files).collect();
        groups.push(Group { format: Format::Onnx, names: vec![key], own, companions: Vec::new(), missing });
    }
    (groups, leftover)
}

/// Whether `dir` is the folder where transformers.js looks, or inside it.
fn in_home(dir: &str) -> bool {
    dir == "onnx" || dir.starts_with("onnx/")
}

fn has_role(base: &str) -> bool {
    base.split(['_', '-', '.']).any(|word| ROLES.contains(&word))
}

fn is_known(key: &str) -> bool {
    SUFFIXES.iter().any(|(_, known)| *known == key)
}

/// A group of one graph, reached by its stem or path.
fn alone(graph: Graph<'_>) -> Group<'_> {
    let names = vec![graph.stem.to_owned(), join(graph.dir, graph.stem)];
    Group { format: Format::Onnx, names, own: graph.files, companions: Vec::new(), missing: graph.missing }
}

/// Paths of the sessions that other dtypes have and `key` lacks.
fn absent_sessions(
    key: &str,
    sessions: &BTreeMap<(String, String), Graph<'_>>,
    all: &BTreeSet<(String, String)>,
) -> impl Iterator<Item = String> {
    let suffix = SUFFIXES.iter().find(|(_, known)| *known == key).map_or("", |(suffix, _)| suffix);
    let has = |dir: &str, base: &str| sessions.contains_key(&(dir.to_owned(), base.to_owned()));
    let stands_in = |dir: &str, base: &str| match base {
        MERGED => UNMERGED.iter().all(|base| has(dir, base)),
        base => UNMERGED.contains(&base) && has(dir, MERGED),
    };
    let absent: Vec<String> = all
        .iter()
        .filter(|(dir, base)| !has(dir, base) && !stands_in(dir, base))
        .take(MISSING_SHOWN)
        .map(|(dir, base)| join(dir, &if suffix.is_empty() { format!("{base}.onnx") } else { format!("{base}_{suffix}.onnx") }))
        .collect();
    absent.into_iter()
}

/// Whether `name` holds settings of a graph (`x.onnx.json`), which follow it but are no weights.
pub(super) fn graph_of_settings(name: &str) -> Option<&str> {
    let (graph, ext) = split_ext(name);
    (ext.eq_ignore_ascii_case("json") && strip_suffix_nocase(graph, ".onnx").is_some()).then_some(graph)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dtype_is_a_known_last_word() {
        let cases = [
            ("model", "model", None),
            ("model_q4f16", "model", Some("q4f16")),
            ("model_quantized", "model", Some("q8")),
            ("decoder_model_merged_bnb4", "decoder_model_merged", Some("bnb4")),
            ("decoder_model_merged", "decoder_model_merged", None),
            ("encoder-epoch-99-avg-1.int8", "encoder-epoch-99-avg-1", Some("int8")),
            ("model_O4", "model", Some("O4")),
            ("model_qint8_avx512_vnni", "model", Some("qint8_avx512_vnni")),
            ("fp16", "model", Some("fp16")),
            ("text_encoder_2", "text_encoder_2", None),
            ("model_", "model_", None),
            ("", "", None),
        ];
        for (stem, base, key) in cases {
            let (found_base, found) = dtype(stem);
            assert_eq!((found_base.as_str(), found.as_ref().map(|(key, _)| key.as_str())), (base, key), "{stem}");
        }
    }

    #[test]
    fn data_files_belong_to_the_graph_they_are_named_after() {
        for (name, expected) in [
            ("model_q4f16.onnx", Some(("model_q4f16", ""))),
            ("model_q4f16.onnx_data", Some(("model_q4f16", "_data"))),
            ("model.onnx_data_12", Some(("model", "_data_12"))),
            ("model.onnx.data", Some(("model", ".data"))),
            ("Model.ONNX", Some(("Model", ""))),
            ("en_US-amy-low.onnx.json", Some(("en_US-amy-low", ".json"))),
            ("model.onnx_datum", None),
            ("model.onnx.zip", None),
        ] {
            assert_eq!(split_graph(name), expected, "{name}");
        }
    }
}
