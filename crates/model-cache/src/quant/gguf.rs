//! GGUF: the quantisation label in a name, and what stands beside models without being one.

use super::{
    Format, Group,
    sets::{FileSet, split_dir, strip_suffix_nocase},
};
use std::collections::BTreeMap;

/// Parts that may follow `Q4`, `IQ3`, `TQ1` .. in a label, each after a `_`. `R4`, `KS`, `KT` .. are ik_llama.cpp's.
const TAILS: [&str; 25] = [
    "0", "1", "2", "3", "4", "8", "K", "KS", "KSS", "KL", "KT", "KV", "S", "M", "L", "XL", "XXL", "XS", "XXS", "NL", "P", "BN",
    "R4", "R8", "G128",
];
/// Labels that are one word, with the key each gets. `FP16` is what people write for llama.cpp's `F16`.
const WORDS: [(&str, &str); 11] = [
    ("F16", "F16"),
    ("FP16", "F16"),
    ("F32", "F32"),
    ("FP32", "F32"),
    ("F64", "F64"),
    ("BF16", "BF16"),
    ("FP8", "FP8"),
    ("MXFP4", "MXFP4"),
    ("MXFP6", "MXFP6"),
    ("MXFP8", "MXFP8"),
    ("NVFP4", "NVFP4"),
];
/// Most projectors weighed for a model, which keeps a hostile listing linear.
const PROJECTORS_WEIGHED: usize = 256;

/// Whether `name` is a GGUF file, or a piece of one cut with `split`.
pub(super) fn is_gguf(name: &str) -> bool {
    // The pieces are `x.gguf-split-a` and `x.gguf.part1of2`: what follows the extension is checked where shards are read.
    let name = name.to_ascii_lowercase();
    name.ends_with(".gguf") || name.contains(".gguf-split-") || name.contains(".gguf.part")
}

/// A label found in a name: where it stands and the key it gives.
#[derive(Debug, PartialEq, Eq)]
struct Label {
    start: usize,
    end: usize,
    key: String,
}

/// Finds the last label in `text`: delimited by `-`, `.`, `_` and the like, the longest at its place.
///
/// Labels are llama.cpp's and ik_llama.cpp's by their grammar rather than by list (`Q4_K_M`, `IQ2_XXS`, `Q4_0_4_4`, `TQ1_0`,
/// `MXFP4_MOE`, plain `Q4`), so that the next one is known too. `UD-` before a label stays with it.
fn find_label(text: &str) -> Option<Label> {
    let mut found = None;
    let mut next_word = 0;
    let words = text.as_bytes().split(|byte| !byte.is_ascii_alphanumeric()).map(|word| {
        let start = next_word;
        next_word = start + word.len() + 1;
        (start, start + word.len())
    });
    let mut words = words.filter(|(start, end)| start < end).peekable();
    while let Some((start, mut end)) = words.next() {
        let upper = text[start..end].to_ascii_uppercase();
        let word = WORDS.iter().find(|(written, _)| *written == upper);
        if word.is_none() && !is_quant_head(&upper) {
            continue;
        }
        let mut key = word.map_or(upper, |(_, key)| (*key).to_owned());
        for _ in 0..4 {
            let Some(&(next_start, next_end)) = words.peek() else { break };
            let next = text[next_start..next_end].to_ascii_uppercase();
            let belongs = match word {
                Some(_) => next == "MOE",
                None => TAILS.contains(&next.as_str()) || next == "SOME" || (next == "F16" && key.ends_with("_SOME")),
            };
            if !belongs || &text[end..next_start] != "_" {
                break;
            }
            key = format!("{key}_{next}");
            end = next_end;
            words.next();
        }
        let unsloth =
            strip_suffix_nocase(&text[..start], "UD-").filter(|rest| !rest.ends_with(|c: char| c.is_ascii_alphanumeric()));
        found = Some(match unsloth {
            Some(rest) => Label { start: rest.len(), end, key: format!("UD-{key}") },
            None => Label { start, end, key },
        });
    }
    found
}

/// `Q4`, `IQ2`, `TQ1`, `PQ2` ..: letters that end in Q, then the bits.
fn is_quant_head(word: &str) -> bool {
    let Some((family, bits)) = word.split_once('Q') else { return false };
    matches!(family, "" | "I" | "T" | "P" | "PT") && matches!(bits.as_bytes(), [b'1'..=b'8'])
}

/// Bits per weight a key speaks of, 16 if it speaks of none.
fn bits(key: &str) -> u32 {
    key.bytes().find(u8::is_ascii_digit).map_or(16, |_| {
        let digits: String = key.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(16)
    })
}

/// A model, projector or draft of the listing.
struct Model<'a> {
    set: FileSet<'a>,
    /// The file name without extension and shard mark.
    stem: String,
    /// The stem without its label, lower case: what tells two models of one label apart.
    base: String,
    key: Option<String>,
}

impl<'a> Model<'a> {
    fn of(set: FileSet<'a>) -> Self {
        let stem = strip_suffix_nocase(&set.name, ".gguf").unwrap_or(&set.name).to_owned();
        let in_name = find_label(&stem);
        let base = match &in_name {
            Some(label) => format!("{}{}", &stem[..label.start], &stem[label.end..]),
            None => stem.clone(),
        };
        let base = base.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_ascii_lowercase();
        let label = in_name.or_else(|| set.dir.rsplit('/').find_map(find_label));
        Self { stem, base, key: label.map(|label| label.key), set }
    }
}

/// What a GGUF file is for, told by its name as llama.cpp tells it.
#[derive(PartialEq, Eq)]
enum Part {
    Model,
    Projector,
    Draft,
}

fn part(name: &str) -> Part {
    let name = name.to_ascii_lowercase();
    if name.contains("mmproj") {
        Part::Projector
    } else if ["mtp-", "eagle3-", "dflash-", "dspark-"].iter().any(|mark| name.contains(mark)) {
        Part::Draft
    } else {
        Part::Model
    }
}

/// Groups the GGUF sets of a listing by label; the second value holds the files no group takes.
///
/// A projector (mmproj) becomes the companion of each model it fits best: the deepest folder in common, then the model's own
/// name in its name, then the closest bits, then the first path. Projectors nobody chose, and drafts, are left over. A listing
/// of nothing but projectors or drafts offers those as models.
pub(super) fn groups<'a>(sets: Vec<FileSet<'a>>) -> (Vec<Group<'a>>, Vec<&'a str>) {
    let mut models = Vec::new();
    let mut projectors = Vec::new();
    let mut drafts = Vec::new();
    for set in sets {
        match part(&set.name) {
            Part::Model => models.push(Model::of(set)),
            Part::Projector => projectors.push(Model::of(set)),
            Part::Draft => drafts.push(Model::of(set)),
        }
    }
    if models.is_empty() {
        models = std::mem::take(if drafts.is_empty() { &mut projectors } else { &mut drafts });
    }

    let mut by_key: BTreeMap<String, Vec<Model<'a>>> = BTreeMap::new();
    for model in models {
        by_key.entry(model.key.clone().unwrap_or_else(|| "default".to_owned())).or_default().push(model);
    }
    let mut chosen = vec![false; projectors.len()];
    let mut groups = Vec::new();
    for (key, models) in by_key {
        let plain = plain_model(&models);
        for (at, model) in models.into_iter().enumerate() {
            let projector = best_projector(&model, &projectors);
            let mut names = if plain == Some(at) { vec![key.clone()] } else { Vec::new() };
            names.extend(model.set.exact_names(&model.stem));
            let mut group =
                Group { format: Format::Gguf, names, own: model.set.files, companions: Vec::new(), missing: model.set.missing };
            if let Some(at) = projector {
                chosen[at] = true;
                group.companions.extend(&projectors[at].set.files);
                group.missing.extend(projectors[at].set.missing.iter().cloned());
            }
            groups.push(group);
        }
    }
    let unchosen = projectors.into_iter().zip(chosen).filter(|(_, chosen)| !chosen).map(|(projector, _)| projector);
    let leftover = unchosen.chain(drafts).flat_map(|model| model.set.files).collect();
    (groups, leftover)
}

/// Which of several models with one label the plain label means: the one whose name all others extend, if there is one.
///
/// Of `DeepSeek` and `DeepSeek-smol` that is the first; of `a` and `b` neither, for a pull must not pick a model nobody named.
fn plain_model(models: &[Model<'_>]) -> Option<usize> {
    let (at, shortest) = models.iter().enumerate().min_by_key(|(_, model)| model.base.len())?;
    let extends = |model: &Model<'_>| {
        model.base.strip_prefix(&shortest.base).is_some_and(|rest| rest.starts_with(|c: char| !c.is_ascii_alphanumeric()))
    };
    models.iter().enumerate().all(|(other, model)| other == at || extends(model)).then_some(at)
}

fn best_projector(model: &Model<'_>, projectors: &[Model<'_>]) -> Option<usize> {
    let wanted_bits = bits(model.key.as_deref().unwrap_or_default());
    let weigh = |projector: &Model<'_>| {
        let shared_folders = model.set.dir.split('/').zip(projector.set.dir.split('/')).take_while(|(a, b)| a == b).count();
        let named_alike = !model.base.is_empty() && projector.base.contains(&model.base);
        let bits_apart = bits(projector.key.as_deref().unwrap_or_default()).abs_diff(wanted_bits);
        (std::cmp::Reverse(shared_folders), !named_alike, bits_apart)
    };
    projectors.iter().take(PROJECTORS_WEIGHED).enumerate().min_by_key(|(_, projector)| weigh(projector)).map(|(at, _)| at)
}

/// Whether the file is a calibration (importance matrix), which no quant needs to run.
pub(super) fn is_calibration(path: &str) -> bool {
    split_dir(path).1.to_ascii_lowercase().contains("imatrix")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_as_llama_cpp_writes_them() {
        let cases = [
            ("Meta-Llama-3.1-8B-Instruct-Q4_K_M", Some("Q4_K_M")),
            ("llama-2-7b-chat.Q3_K_L", Some("Q3_K_L")),
            ("Qwen3-8B-UD-Q4_K_XL", Some("UD-Q4_K_XL")),
            ("ud-iq1_s", Some("UD-IQ1_S")),
            ("cloud-Q8_0", Some("Q8_0")),
            ("phi-3-mini-4k-instruct-q4", Some("Q4")),
            ("phi-3-mini-4k-instruct-fp16", Some("F16")),
            ("gpt-oss-20b-MXFP4", Some("MXFP4")),
            ("gpt-oss-20b-mxfp4_moe", Some("MXFP4_MOE")),
            ("x-Q4_0_4_8", Some("Q4_0_4_8")),
            ("x-Q4_1_SOME_F16", Some("Q4_1_SOME_F16")),
            ("x-IQ4_NL_4_4", Some("IQ4_NL_4_4")),
            ("x-IQ4_KSS", Some("IQ4_KSS")),
            ("x-IQ2_K_R4", Some("IQ2_K_R4")),
            ("x-Q6_K_L", Some("Q6_K_L")),
            ("x-TQ1_0", Some("TQ1_0")),
            ("x_bf16", Some("BF16")),
            ("model.i1-IQ3_XXS", Some("IQ3_XXS")),
            ("report-2024-Q1-Q5_K_S", Some("Q5_K_S")),
            ("x-Q4_K_M_v2", Some("Q4_K_M")),
            ("llama-3-8b", None),
            ("Qwen2-QwQ-32B", None),
            ("BF16x", None),
            ("", None),
            ("é-Q4_0-ü", Some("Q4_0")),
        ];
        for (name, expected) in cases {
            assert_eq!(find_label(name).map(|label| label.key).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn bits_are_the_first_number_of_a_key() {
        for (key, expected) in [("UD-Q4_K_XL", 4), ("BF16", 16), ("IQ2_XXS", 2), ("F32", 32), ("MXFP4", 4), ("", 16)] {
            assert_eq!(bits(key), expected, "{key}");
        }
    }
}
