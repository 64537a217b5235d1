//! Safetensors, and the other frameworks' weights that are named alike: base, variant, shards, index, component folders.

use super::{
    Format, Group,
    sets::{FileSet, split_dir, split_ext, strip_suffix_nocase},
};
use std::collections::{BTreeMap, BTreeSet};

/// Names that transformers, diffusers and peft look for, the likelier first. A file so named is the model of its folder.
const BASES: [&str; 10] = [
    "model",
    "diffusion_pytorch_model",
    "pytorch_model",
    "tf_model",
    "flax_model",
    "diffusion_flax_model",
    "rust_model",
    "openvino_model",
    "adapter_model",
    "weights",
];
/// Variants known by name; on a base of [`BASES`] any other word is a variant too. A folder of such a name speaks for its files.
const VARIANTS: [&str; 20] = [
    "fp16", "bf16", "fp32", "f16", "f32", "fp8", "fp4", "nf4", "nvfp4", "mxfp4", "mxfp8", "int8", "int4", "8bit", "6bit", "5bit",
    "4bit", "3bit", "ema", "non_ema",
];
/// Files of weights smaller than this may be something else, such as a voice or a table of means.
const SUPPORT_MAX_BYTES: u64 = 16 << 20;
/// .. if the largest weights of the repo are so many times larger.
const SUPPORT_RATIO: u64 = 32;

/// The format a file's name says it has, for formats this module groups.
pub(super) fn format(path: &str) -> Option<Format> {
    let (dir, name) = split_dir(path);
    let lower = name.to_ascii_lowercase();
    let ext = split_ext(&lower).1;
    let openvino = lower.starts_with("openvino_") || dir.split('/').any(|folder| folder == "openvino");
    let coreml = dir.split('/').any(|folder| folder.ends_with(".mlpackage") || folder.ends_with(".mlmodelc"));
    match ext {
        _ if coreml => Some(Format::Coreml),
        "mlmodel" => Some(Format::Coreml),
        "bin" | "xml" if openvino => Some(Format::Openvino),
        "safetensors" => Some(Format::Safetensors),
        "bin" | "pt" | "pth" | "ckpt" => Some(Format::Pytorch),
        "msgpack" => Some(Format::Flax),
        "h5" | "keras" => Some(Format::Tf),
        "tflite" | "litertlm" | "task" => Some(Format::Tflite),
        "ot" => Some(Format::Rust),
        "npz" => Some(Format::Npz),
        "nemo" => Some(Format::Nemo),
        _ => None,
    }
}

/// Whether a file of weights by its extension is rather something small the model needs beside them (a voice, a speaker table).
///
/// `largest` is the size of the largest weights in the listing.
pub(super) fn is_support(set: &FileSet<'_>, format: Format, size_bytes: u64, largest: u64) -> bool {
    let named = matches!(format, Format::Openvino | Format::Coreml) || Name::of(&set.name).is_primary();
    !named && !set.is_sharded() && size_bytes < SUPPORT_MAX_BYTES && size_bytes < largest / SUPPORT_RATIO
}

/// A file name read as base and variant.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    /// Lower case.
    base: String,
    /// Lower case.
    variant: Option<String>,
}

impl Name {
    /// Reads `{base}.{variant}.{ext}`, the shard mark already left out.
    fn of(name: &str) -> Self {
        Self::of_stem(&split_ext(name).0.to_ascii_lowercase())
    }

    fn of_stem(stem: &str) -> Self {
        let split = stem.rsplit_once('.').filter(|(base, variant)| {
            // The `.0` of `sd_xl_base_1.0` is part of a name, not a variant.
            let word = variant.contains(|c: char| c.is_ascii_alphabetic());
            VARIANTS.contains(variant) || (word && BASES.contains(base))
        });
        match split {
            Some((base, variant)) => Self { base: base.to_owned(), variant: Some(variant.to_owned()) },
            None => Self { base: stem.to_owned(), variant: None },
        }
    }

    fn is_primary(&self) -> bool {
        BASES.contains(&self.base.as_str())
    }
}

/// Reads the name of a shard index, giving the weights it lists: format, base and variant.
///
/// Spelled `{base}.safetensors.index.json`, `{base}.safetensors.index.{v}.json`, `{base}.safetensors.{v}.index.json` or
/// `{base}.{v}.safetensors.index.json`; `.bin`, `.h5`, `.msgpack` likewise.
fn index(name: &str) -> Option<(Format, Name)> {
    let lower = name.to_ascii_lowercase();
    let rest = lower.strip_suffix(".json")?;
    let (rest, late) = match rest.strip_suffix(".index") {
        Some(rest) => (rest, None),
        None => rest.rsplit_once(".index.").map(|(rest, variant)| (rest, Some(variant)))?,
    };
    let (rest, late) = match format(rest) {
        Some(_) => (rest, late),
        None => rest.rsplit_once('.').map(|(rest, variant)| (rest, Some(variant)))?,
    };
    let format = format(rest)?;
    let name = Name::of(rest);
    Some((format, Name { variant: late.map(str::to_owned).or(name.variant), base: name.base }))
}

/// Whether `name` is the index of a shard set.
pub(super) fn is_index(name: &str) -> bool {
    index(name).is_some()
}

/// A set of weights, with what its name tells.
struct Weights<'a> {
    set: FileSet<'a>,
    format: Format,
    name: Name,
    /// The component: its folder, a folder that only names the precision left out.
    component: &'a str,
    /// The key within the format, if the set is the model rather than one of several.
    key: String,
}

impl<'a> Weights<'a> {
    fn of(set: FileSet<'a>, format: Format) -> Self {
        let mut name = Name::of(&set.name);
        let mut component = set.dir;
        if format == Format::Openvino {
            name = openvino_name(&name.base);
        }
        let (parent, folder) = split_dir(set.dir);
        if name.variant.is_none() && VARIANTS.contains(&folder.to_ascii_lowercase().as_str()) {
            name.variant = Some(folder.to_ascii_lowercase());
            component = parent;
        }
        let key = name.variant.clone().unwrap_or_else(|| "default".to_owned());
        Self { set, format, name, component, key }
    }

    /// Whether its files make one model with the others of its key, whatever they are called.
    fn is_bundle(&self) -> bool {
        matches!(self.format, Format::Openvino | Format::Coreml)
    }

    fn apart(self) -> Group<'a> {
        let stem = split_ext(&self.set.name).0.to_owned();
        let names = self.set.exact_names(&stem).to_vec();
        Group { format: self.format, names, own: self.set.files, companions: Vec::new(), missing: self.set.missing }
    }
}

/// `openvino_model_qint8_quantized` is the variant `qint8_quantized`; encoders, decoders and tokenizers make one model together.
fn openvino_name(stem: &str) -> Name {
    let variant = stem.strip_prefix("openvino_model_").filter(|variant| !variant.is_empty()).map(str::to_owned);
    Name { base: "openvino_model".to_owned(), variant }
}

/// The sets that together are one quant: a format and key, then the folder each set is the model of.
type Models<'a> = BTreeMap<(Format, String), BTreeMap<&'a str, Vec<Weights<'a>>>>;

/// Groups sets of weights by format and variant; `indexes` are shard indexes, and those no group takes come back.
///
/// - A folder is a component (`unet`, `2_Dense`), and a variant is all components that have it. A component without it comes
///   along as companion: unvaried, or from the other of safetensors and PyTorch.
/// - Where any file has a name the frameworks look for (`model`, `pytorch_model` ..), weights of other names are models apart,
///   keyed by their stems (`consolidated`, `sd_xl_base_1.0`). Where none has, a lone name is the model, and several are apart.
/// - Of two sets that claim one key and folder, the likelier name wins, and a single file before shards, as transformers
///   loads them; the other is keyed by its stem.
pub(super) fn groups<'a>(sets: Vec<(FileSet<'a>, Format)>, indexes: Vec<&'a str>) -> (Vec<Group<'a>>, Vec<&'a str>) {
    let mut weights: Vec<Weights<'a>> = sets.into_iter().map(|(set, format)| Weights::of(set, format)).collect();
    let rank = |weights: &Weights<'_>| BASES.iter().position(|base| *base == weights.name.base).unwrap_or(BASES.len());
    // A stable sort: what ties stays in order of path.
    weights.sort_by_key(|weights| (rank(weights), weights.set.is_sharded(), weights.set.missing.len()));

    let has_primary = weights.iter().any(|weights| weights.name.is_primary() && !weights.is_bundle());
    let nameless: BTreeSet<(&str, String)> = weights
        .iter()
        .filter(|weights| !weights.name.is_primary() && !weights.is_bundle())
        .map(|weights| (weights.component, weights.name.base.clone()))
        .collect();
    let lone = !has_primary && nameless.len() == 1;

    let mut groups = Vec::new();
    let mut models: Models<'a> = BTreeMap::new();
    for weights in weights {
        if !(weights.name.is_primary() || weights.is_bundle() || lone) {
            groups.push(weights.apart());
            continue;
        }
        let folder = models.entry((weights.format, weights.key.clone())).or_default().entry(weights.component).or_default();
        if folder.is_empty() || weights.is_bundle() {
            folder.push(weights);
        } else {
            groups.push(weights.apart());
        }
    }

    let companions: Vec<Vec<&'a str>> =
        models.iter().map(|((format, key), folders)| companions(&models, *format, key, folders)).collect();
    let (mut indexed, leftover) = assign_indexes(&models, &groups, indexes);
    for ((at, ((format, key), folders)), companions) in models.into_iter().enumerate().zip(companions) {
        let sets: Vec<FileSet<'a>> = folders.into_values().flatten().map(|weights| weights.set).collect();
        let missing = sets.iter().flat_map(|set| set.missing.iter().cloned()).collect();
        let mut own: Vec<&'a str> = sets.into_iter().flat_map(|set| set.files).collect();
        own.extend(indexed.models.remove(&at).unwrap_or_default());
        groups.push(Group { format, names: vec![key], own, companions, missing });
    }
    for (at, files) in indexed.apart {
        groups[at].own.extend(files);
    }
    (groups, leftover)
}

/// Files of the components that `format` lacks under `key` and some other key of the same model has.
fn companions<'a>(models: &Models<'a>, format: Format, key: &str, folders: &BTreeMap<&'a str, Vec<Weights<'a>>>) -> Vec<&'a str> {
    let other = match format {
        Format::Safetensors => Format::Pytorch,
        Format::Pytorch => Format::Safetensors,
        _ => return Vec::new(),
    };
    // A variant nobody knows is not known to be a variant of the same model either; this also bounds the work.
    if key != "default" && !VARIANTS.contains(&key) {
        return Vec::new();
    }
    let mut seen: BTreeSet<&str> = folders.keys().copied().collect();
    let mut files = Vec::new();
    for (format, key) in [(format, "default"), (other, key), (other, "default")] {
        for (component, weights) in models.get(&(format, key.to_owned())).into_iter().flatten() {
            if seen.insert(component) {
                files.extend(weights.iter().flat_map(|weights| &weights.set.files));
            }
        }
    }
    files
}

/// Which indexes go to which group: by place among the models, and among the groups apart.
#[derive(Default)]
struct Indexed<'a> {
    models: BTreeMap<usize, Vec<&'a str>>,
    apart: BTreeMap<usize, Vec<&'a str>>,
}

fn assign_indexes<'a>(models: &Models<'a>, apart: &[Group<'a>], indexes: Vec<&'a str>) -> (Indexed<'a>, Vec<&'a str>) {
    // Later insertions win: a sharded set has the better claim to an index than a single file.
    let mut owners: BTreeMap<(Format, &str, Name), (bool, usize)> = BTreeMap::new();
    for (at, group) in apart.iter().enumerate() {
        let set_name = &group.names[0];
        let dir = group.own.first().map_or("", |path| split_dir(path).0);
        owners.insert((group.format, dir, Name::of_stem(&set_name.to_ascii_lowercase())), (false, at));
    }
    for (at, ((format, _), folders)) in models.iter().enumerate() {
        for weights in folders.values().flatten() {
            let owner = (*format, weights.set.dir, Name::of(&weights.set.name));
            if weights.set.is_sharded() || !owners.contains_key(&owner) {
                owners.insert(owner, (true, at));
            }
        }
    }
    let mut indexed = Indexed::default();
    let mut leftover = Vec::new();
    for path in indexes {
        let (dir, name) = split_dir(path);
        match index(name).and_then(|(format, name)| owners.get(&(format, dir, name))) {
            Some((true, at)) => indexed.models.entry(*at).or_default().push(path),
            Some((false, at)) => indexed.apart.entry(*at).or_default().push(path),
            None => leftover.push(path),
        }
    }
    (indexed, leftover)
}

/// Whether the file is what a training run leaves behind, which no model needs.
pub(super) fn is_training_state(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let (stem, ext) = split_ext(&lower);
    let pickled = matches!(ext, "pt" | "pth" | "bin" | "ckpt");
    let state = ["optimizer", "scheduler", "rng_state", "training_args", "scaler"];
    (pickled && state.iter().any(|state| stem.starts_with(state)))
        || lower.starts_with("events.out.tfevents")
        || strip_suffix_nocase(&lower, "trainer_state.json").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_a_word_after_the_base_and_a_version_is_not() {
        for (name, base, variant) in [
            ("model.safetensors", "model", None),
            ("model.fp16.safetensors", "model", Some("fp16")),
            ("diffusion_pytorch_model.non_ema.bin", "diffusion_pytorch_model", Some("non_ema")),
            ("sd_xl_base_1.0.safetensors", "sd_xl_base_1.0", None),
            ("flux1-dev.bf16.safetensors", "flux1-dev", Some("bf16")),
            ("a.b.safetensors", "a.b", None),
        ] {
            assert_eq!(Name::of(name), Name { base: base.into(), variant: variant.map(str::to_owned) }, "{name}");
        }
    }

    #[test]
    fn an_index_is_read_in_every_spelling() {
        for (name, format, variant) in [
            ("model.safetensors.index.json", Format::Safetensors, None),
            ("model.safetensors.index.fp16.json", Format::Safetensors, Some("fp16")),
            ("model.safetensors.fp16.index.json", Format::Safetensors, Some("fp16")),
            ("model.fp16.safetensors.index.json", Format::Safetensors, Some("fp16")),
            ("model.bin.index.json", Format::Pytorch, None),
        ] {
            let expected = Name { base: "model".into(), variant: variant.map(str::to_owned) };
            assert_eq!(index(name), Some((format, expected)), "{name}");
        }
        assert!(index("model_index.json").is_none());
        assert!(index("index.json").is_none());
    }
}
