//! Realistic listings, table by table, then the properties every listing must have.

use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// Classifies paths that are all large, as weights are.
fn offer(paths: &[&str]) -> Offer {
    let files: Vec<Listed<'_>> = paths.iter().map(|path| Listed { path, size_bytes: 1000 * MIB }).collect();
    classify(&files)
}

fn keys(offer: &Offer) -> Vec<&str> {
    offer.quants.keys().map(String::as_str).collect()
}

fn own<'a>(offer: &'a Offer, key: &str) -> Vec<&'a str> {
    offer.quants[key].own.iter().map(String::as_str).collect()
}

fn companions<'a>(offer: &'a Offer, key: &str) -> Vec<&'a str> {
    offer.quants[key].companions.iter().map(String::as_str).collect()
}

/// The shards of a set, the number's place marked `#`.
fn shards(pattern: &str, total: usize) -> Vec<String> {
    (1..=total).map(|n| pattern.replace('#', &format!("{n:05}"))).collect()
}

#[test]
fn quants_are_keyed_as_people_type_them() {
    let cases: [(&str, &[&str], &[&str]); 23] = [
        (
            "bartowski",
            &["README.md", "M-Q4_K_M.gguf", "M-Q6_K_L.gguf", "M-IQ2_XXS.gguf", "M-f32.gguf", "M.imatrix"],
            &["F32", "IQ2_XXS", "Q4_K_M", "Q6_K_L"],
        ),
        ("TheBloke", &["config.json", "llama-2-7b.Q2_K.gguf", "llama-2-7b.Q4_0.gguf"], &["Q2_K", "Q4_0"]),
        (
            "unsloth",
            &[
                "M-UD-Q4_K_XL.gguf",
                "M-Q4_K_M.gguf",
                "BF16/M-BF16-00001-of-00002.gguf",
                "BF16/M-BF16-00002-of-00002.gguf",
                "UD-Q2_K_XL/M-UD-Q2_K_XL-00001-of-00001.gguf",
            ],
            &["BF16", "Q4_K_M", "UD-Q2_K_XL", "UD-Q4_K_XL"],
        ),
        ("label in the folder", &["BF16/model-00001-of-00002.gguf", "BF16/model-00002-of-00002.gguf"], &["BF16"]),
        ("no label", &["ggml-model.gguf"], &["default"]),
        ("cut with split", &["M.Q6_K.gguf-split-a", "M.Q6_K.gguf-split-b", "M.Q8_0.gguf.part1of1"], &["Q6_K", "Q8_0"]),
        ("two models of one label", &["a-Q4_K_M.gguf", "b-Q4_K_M.gguf", "b-Q8_0.gguf"], &["Q8_0", "a-Q4_K_M", "b-Q4_K_M"]),
        ("one name extends the other", &["D-IQ4_KSS.gguf", "D-smol-IQ4_KSS.gguf"], &["D-smol-IQ4_KSS", "IQ4_KSS"]),
        (
            "one model whole and in shards",
            &["M-F16.gguf", "M-F16-00001-of-00001.gguf", "s/M-F16.gguf"],
            &["M-F16", "M-F16-of-00001", "s/M-F16"],
        ),
        (
            "onnx-community",
            &[
                "onnx/model.onnx",
                "onnx/model_fp16.onnx",
                "onnx/model_quantized.onnx",
                "onnx/model_q4f16.onnx",
                "onnx/model_bnb4.onnx",
            ],
            &["bnb4", "fp16", "fp32", "q4f16", "q8"],
        ),
        ("optimum", &["onnx/model_O4.onnx", "onnx/model_qint8_avx512_vnni.onnx"], &["O4", "qint8_avx512_vnni"]),
        ("precision folders", &["fp16/model.onnx", "int8/model.onnx"], &["fp16", "int8"]),
        ("several models", &["yolov8n.onnx", "yolov8s.onnx"], &["yolov8n", "yolov8s"]),
        ("sherpa", &["encoder-1.onnx", "decoder-1.onnx", "encoder-1.int8.onnx", "decoder-1.int8.onnx"], &["fp32", "int8"]),
        (
            "genai",
            &["cpu/cpu-int4/genai_config.json", "cpu/cpu-int4/phi.onnx", "cuda/genai_config.json", "cuda/phi.onnx"],
            &["cpu-int4", "cuda"],
        ),
        ("gptq", &["config.json", "gptq_model-4bit-128g.safetensors"], &["default"]),
        ("mlx", &["config.json", "model.safetensors", "model.safetensors.index.json"], &["default"]),
        ("old mlx", &["config.json", "weights.npz"], &["default"]),
        ("pickles only", &["pytorch_model.bin", "training_args.bin"], &["default"]),
        (
            "every framework",
            &["model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"],
            &["default", "flax", "pytorch", "rust", "tf"],
        ),
        (
            "formats that want one key",
            &["model.fp16.safetensors", "onnx/model_fp16.onnx", "M-BF16.gguf", "model.bf16.safetensors"],
            &["bf16", "fp16", "gguf/BF16", "onnx/fp16"],
        ),
        ("meta", &["model.safetensors", "original/consolidated.00.pth", "original/params.json"], &["default", "original"]),
        ("whisper.cpp", &["ggml-base.en-q5_1.bin", "ggml-base.bin"], &["ggml-base", "ggml-base.en-q5_1"]),
    ];
    for (name, paths, expected) in cases {
        assert_eq!(keys(&offer(paths)), expected, "{name}");
    }
}

#[test]
fn a_file_that_is_nothing_but_a_shard_mark_has_a_key_that_can_be_typed() {
    let offer = offer(&["M.gguf", "-00001-of-00001.gguf"]);
    assert_eq!(keys(&offer), ["M", "default"]);
    assert_eq!(own(&offer, "default"), ["-00001-of-00001.gguf"]);
}

#[test]
fn each_quant_of_a_vision_gguf_brings_the_projector_closest_to_it() {
    let offer = offer(&[
        "M-Q4_K_M.gguf",
        "M-BF16.gguf",
        "mmproj-M-BF16.gguf",
        "mmproj-M-F32.gguf",
        "mmproj-M-Q8_0.gguf",
        "mtp-M-Q8_0.gguf",
        "imatrix_unsloth.gguf_file",
        "imatrix.gguf",
    ]);
    assert_eq!(keys(&offer), ["BF16", "Q4_K_M"]);
    assert_eq!(companions(&offer, "Q4_K_M"), ["mmproj-M-Q8_0.gguf"]);
    assert_eq!(companions(&offer, "BF16"), ["mmproj-M-BF16.gguf"]);
    assert_eq!(offer.extras, ["imatrix.gguf", "imatrix_unsloth.gguf_file", "mmproj-M-F32.gguf", "mtp-M-Q8_0.gguf"]);
}

#[test]
fn a_projector_in_the_models_folder_or_of_its_name_wins_over_closer_bits() {
    let in_folder = offer(&["a/x-Q8_0.gguf", "a/mmproj-F16.gguf", "b/mmproj-Q8_0.gguf"]);
    assert_eq!(companions(&in_folder, "Q8_0"), ["a/mmproj-F16.gguf"]);
    let of_name = offer(&["aa-Q8_0.gguf", "bb-Q4_0.gguf", "mmproj-aa-f16.gguf", "mmproj-bb-Q8_0.gguf"]);
    assert_eq!(companions(&of_name, "Q8_0"), ["mmproj-aa-f16.gguf"]);
    assert_eq!(companions(&of_name, "Q4_0"), ["mmproj-bb-Q8_0.gguf"]);
}

#[test]
fn an_absent_shard_is_noticed() {
    let gguf = offer(&["M-Q8_0-00001-of-00003.gguf", "M-Q8_0-00003-of-00003.gguf"]);
    assert_eq!(gguf.quants["Q8_0"].missing, ["M-Q8_0-00002-of-00003.gguf"]);
    let first = offer(&["model-00002-of-00002.safetensors"]);
    assert_eq!(first.quants["default"].missing, ["model-00001-of-00002.safetensors"]);
    let hostile = offer(&["model-00001-of-999999.safetensors"]);
    assert_eq!(hostile.quants["default"].missing.len(), 9);
    assert_eq!(hostile.quants["default"].missing[8], "and 999990 more shards of model-*-of-999999.safetensors");
}

#[test]
fn shards_with_totals_of_six_digits_are_one_quant_with_their_index() {
    let mut paths = shards("model-#-of-000163.safetensors", 163);
    paths.extend(["config.json".into(), "model.safetensors.index.json".into()]);
    let offer = offer(&paths.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(keys(&offer), ["default"]);
    assert_eq!(offer.quants["default"].own.len(), 164);
    assert!(offer.quants["default"].missing.is_empty());
    assert_eq!(offer.shared, ["config.json"]);
}

#[test]
fn external_data_belongs_to_its_graph() {
    let phi = offer(&[
        "config.json",
        "onnx/model_q4f16.onnx",
        "onnx/model_q4f16.onnx_data",
        "onnx/model_q4f16.onnx_data_1",
        "onnx/model_fp16.onnx",
        "onnx/model_fp16.onnx_data_1",
    ]);
    assert_eq!(own(&phi, "q4f16"), ["onnx/model_q4f16.onnx", "onnx/model_q4f16.onnx_data", "onnx/model_q4f16.onnx_data_1"]);
    assert!(phi.quants["q4f16"].missing.is_empty());
    assert_eq!(phi.quants["fp16"].missing, ["onnx/model_fp16.onnx_data"]);
    assert_eq!(phi.shared, ["config.json"]);
    let root = offer(&["model.onnx", "model.onnx.data"]);
    assert_eq!(own(&root, "fp32"), ["model.onnx", "model.onnx.data"]);
    let headless = offer(&["model_q4.onnx_data"]);
    assert_eq!(headless.quants["q4"].missing, ["model_q4.onnx"]);
}

#[test]
fn all_sessions_of_a_dtype_are_one_quant_and_the_merged_decoder_stands_for_the_two() {
    let whisper = offer(&[
        "onnx/decoder_model_merged_q4.onnx",
        "onnx/decoder_model_q4.onnx",
        "onnx/decoder_with_past_model_q4.onnx",
        "onnx/encoder_model_q4.onnx",
        "onnx/decoder_model.onnx",
        "onnx/decoder_with_past_model.onnx",
        "onnx/encoder_model.onnx",
        "onnx/embed_tokens_fp16.onnx",
    ]);
    assert_eq!(own(&whisper, "q4"), ["onnx/decoder_model_merged_q4.onnx", "onnx/encoder_model_q4.onnx"]);
    assert_eq!(whisper.quants["q4"].missing, ["onnx/embed_tokens_q4.onnx"]);
    assert_eq!(whisper.quants["fp32"].missing, ["onnx/embed_tokens.onnx"]);
    assert_eq!(
        whisper.quants["fp16"].missing,
        [
            "onnx/decoder_model_fp16.onnx",
            "onnx/decoder_model_merged_fp16.onnx",
            "onnx/decoder_with_past_model_fp16.onnx",
            "onnx/encoder_model_fp16.onnx"
        ]
    );
    assert_eq!(whisper.extras, ["onnx/decoder_model_q4.onnx", "onnx/decoder_with_past_model_q4.onnx"]);
}

#[test]
fn a_sentence_transformers_repo_gives_one_quant_per_format_and_optimisation() {
    let offer = offer(&[
        ".gitattributes",
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "model.safetensors",
        "onnx/model.onnx",
        "onnx/model_O3.onnx",
        "onnx/model_qint8_arm64.onnx",
        "openvino/openvino_model.bin",
        "openvino/openvino_model.xml",
        "openvino/openvino_model_qint8_quantized.bin",
        "openvino/openvino_model_qint8_quantized.xml",
        "pytorch_model.bin",
        "vocab.txt",
    ]);
    assert_eq!(keys(&offer), ["O3", "default", "fp32", "openvino", "openvino/qint8_quantized", "pytorch", "qint8_arm64"]);
    assert_eq!(own(&offer, "default"), ["model.safetensors"]);
    assert_eq!(own(&offer, "openvino"), ["openvino/openvino_model.bin", "openvino/openvino_model.xml"]);
    assert_eq!(offer.shared, ["1_Pooling/config.json", "README.md", "config.json", "vocab.txt"]);
    assert_eq!(offer.extras, [".gitattributes"]);
}

#[test]
fn a_diffusers_variant_is_its_components_and_the_unvaried_ones_it_lacks() {
    let sdxl = offer(&[
        "01.png",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "sd_xl_base_1.0.safetensors",
        "sd_xl_base_1.0_0.9vae.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.onnx",
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/model.onnx",
        "unet/model.onnx_data",
        "vae/diffusion_pytorch_model.safetensors",
    ]);
    assert_eq!(keys(&sdxl), ["default", "fp16", "fp32", "sd_xl_base_1.0", "sd_xl_base_1.0_0.9vae"]);
    assert_eq!(own(&sdxl, "fp16"), ["text_encoder/model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"]);
    assert_eq!(companions(&sdxl, "fp16"), ["vae/diffusion_pytorch_model.safetensors"]);
    assert_eq!(own(&sdxl, "fp32"), ["text_encoder/model.onnx", "unet/model.onnx", "unet/model.onnx_data"]);
    assert_eq!(sdxl.shared, ["model_index.json", "scheduler/scheduler_config.json"]);
    assert_eq!(sdxl.extras, ["01.png"]);
    let fp16 = &sdxl.quants["fp16"];
    assert_eq!(fp16.own.len() + fp16.companions.len() + sdxl.shared.len(), 5);
}

#[test]
fn variant_shards_keep_their_index_in_new_and_legacy_spelling() {
    let offer = offer(&[
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "vae/diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors.fp16.index.json",
        "vae/diffusion_pytorch_model.safetensors.index.json",
    ]);
    assert_eq!(keys(&offer), ["fp16"]);
    assert_eq!(offer.quants["fp16"].own.len(), 5);
    assert_eq!(offer.shared, ["vae/diffusion_pytorch_model.safetensors.index.json"], "an index of weights that are not there");
}

#[test]
fn duplicates_of_the_weights_are_never_dragged_in() {
    let mistral = offer(&[
        "consolidated.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "params.json",
        "tokenizer.json",
    ]);
    assert_eq!(keys(&mistral), ["consolidated", "default"]);
    assert_eq!(mistral.quants["default"].own.len(), 3);
    let resharded = offer(&["model.safetensors", "model-00001-of-00001.safetensors", "model.safetensors.index.json"]);
    assert_eq!(own(&resharded, "default"), ["model.safetensors"]);
    assert_eq!(own(&resharded, "model"), ["model-00001-of-00001.safetensors", "model.safetensors.index.json"]);
}

#[test]
fn small_tensors_beside_large_weights_are_shared() {
    let kokoro =
        [("kokoro-v1_0.pth", 312 * MIB), ("voices/af_heart.pt", MIB / 2), ("voices/am_adam.pt", MIB / 2), ("config.json", 1)];
    let kokoro = classify(&kokoro.map(|(path, size_bytes)| Listed { path, size_bytes }));
    assert_eq!(keys(&kokoro), ["default"]);
    assert_eq!(kokoro.shared, ["config.json", "voices/af_heart.pt", "voices/am_adam.pt"]);
    let loras = [("a.safetensors", 10 * MIB), ("b.safetensors", 20 * MIB)];
    assert_eq!(keys(&classify(&loras.map(|(path, size_bytes)| Listed { path, size_bytes }))), ["a", "b"]);
}

#[test]
fn a_listing_without_weights_is_one_default_quant() {
    let tokenizer = offer(&[".gitattributes", "README.md", "tokenizer.json"]);
    assert_eq!(own(&tokenizer, "default"), ["README.md", "tokenizer.json"]);
    assert_eq!(tokenizer.extras, [".gitattributes"]);
    assert_eq!(own(&offer(&["a.png"]), "default"), ["a.png"]);
    assert_eq!(offer(&[]), Offer::default());
}

#[test]
fn a_typed_key_is_found_in_any_case_and_by_alias_but_never_by_guess() {
    let cases: [(&[&str], &str, Option<&str>); 16] = [
        (&["Q4_K_M", "Q8_0"], "q4_k_m", Some("Q4_K_M")),
        (&["F16", "Q8_0"], "fp16", Some("F16")),
        (&["F16", "fp16"], "FP16", Some("fp16")),
        (&["F16", "fp16"], "f16", Some("F16")),
        (&["Q4_K_M", "Q4_K_S"], "Q4_K", Some("Q4_K_M")),
        (&["Q4_K", "Q4_K_M"], "q4_k", Some("Q4_K")),
        (&["MXFP4_MOE"], "mxfp4", Some("MXFP4_MOE")),
        (&["UD-Q4_K_XL", "Q4_K_M"], "q4_k_xl", Some("UD-Q4_K_XL")),
        (&["q8", "fp32"], "quantized", Some("q8")),
        (&["a-Q4_K_M", "b-Q4_K_M"], "Q4_K_M", None),
        (&["a-Q4_K_M", "b-Q8_0"], "Q4_K_M", Some("a-Q4_K_M")),
        (&["Q4_K_M"], "default", Some("Q4_K_M")),
        (&["Q4_K_M", "Q8_0"], "default", None),
        (&["Q8_0"], "0", None),
        (&["Q8_0"], "", None),
        (&[], "default", None),
    ];
    for (keys, typed, expected) in cases {
        assert_eq!(find(keys.iter().copied(), typed), expected, "{typed} of {keys:?}");
    }
}

#[test]
fn a_hundred_thousand_hostile_names_are_sorted_out() {
    let shapes: [fn(usize) -> String; 13] = [
        |n| format!("m{n}-Q4_K_M.gguf"),
        |n| format!("mmproj-m{n}-F16.gguf"),
        |n| format!("d{n}/x-00001-of-999999.gguf"),
        |n| format!("onnx/encoder_{n}_fp16.onnx"),
        |n| format!("onnx/model_x{n}.onnx"),
        |n| format!("onnx/model_q4.onnx_data_{n}"),
        |n| format!("c{n}/model.fp16.safetensors"),
        |n| format!("model.v{n}.safetensors"),
        |n| format!("p{n}/pytorch_model.bin"),
        |n| format!("model.safetensors.index.v{n}.json"),
        |n| format!("checkpoint-{n}/model.safetensors"),
        |n| format!("file{n}.txt"),
        |n| {
            let cased = |(at, c): (usize, char)| if n >> at & 1 == 1 { c.to_ascii_uppercase() } else { c };
            "abcdefghijklmnopq-q4.gguf".chars().enumerate().map(cased).collect()
        },
    ];
    let paths: Vec<String> = (0..100_000).map(|n| shapes[n % shapes.len()](n)).collect();
    let files: Vec<Listed<'_>> = paths.iter().map(|path| Listed { path, size_bytes: 1000 * MIB }).collect();
    let offer = classify(&files);
    check_partition(&files, &offer);
}

/// Every path is in exactly one of own (of one quant), shared, extras, or is a companion of at least one quant.
fn check_partition(files: &[Listed<'_>], offer: &Offer) {
    let mut placed: BTreeMap<&str, usize> = BTreeMap::new();
    let own = offer.quants.values().flat_map(|quant| &quant.own);
    for path in own.chain(&offer.shared).chain(&offer.extras) {
        *placed.entry(path).or_default() += 1;
    }
    let companions: BTreeSet<&str> = offer.quants.values().flat_map(|quant| &quant.companions).map(String::as_str).collect();
    let listed: BTreeSet<&str> = files.iter().map(|file| file.path).collect();
    for path in &listed {
        let count = placed.remove(path).unwrap_or(0);
        assert!(count == 1 || (count == 0 && companions.contains(path)), "{path} is placed {count} times");
    }
    assert!(placed.is_empty(), "unlisted: {placed:?}");
    assert!(companions.is_subset(&listed));
    let keys: BTreeSet<String> = offer.quants.keys().map(|key| key.to_ascii_lowercase()).collect();
    assert_eq!(keys.len(), offer.quants.len(), "keys differ by more than case");
    assert!(offer.quants.values().all(|quant| !quant.own.is_empty()));
    assert_eq!(offer.quants.is_empty(), files.is_empty());
}

/// Paths made of the pieces that real names are made of, so that the rules meet in every combination.
fn path() -> impl Strategy<Value = String> {
    let folder = prop::sample::select(vec![
        "",
        "",
        "onnx/",
        "BF16/",
        "unet/",
        "original/",
        "fp16/",
        "checkpoint-1/",
        "x.mlpackage/",
        "openvino/",
    ]);
    let stem = prop::sample::select(vec![
        "model",
        "Model",
        "pytorch_model",
        "mmproj-m",
        "a",
        "b",
        "a-x",
        "decoder_model",
        "decoder_model_merged",
        "encoder_model",
        "imatrix",
        "mtp-a",
        "consolidated",
        "openvino_model",
        "adapter_model",
        "optimizer",
        "genai_config",
        ".x",
    ]);
    let mark = prop::sample::select(vec![
        "",
        "",
        "-Q4_K_M",
        "_q4f16",
        "_fp16",
        ".fp16",
        "-UD-Q2_K_XL",
        "_quantized",
        ".00",
        "-F16",
        ".FP16",
    ]);
    let shard = prop::sample::select(vec!["", "", "-00001-of-00002", "-00002-of-00002", "-00001-of-00003", "-00000-of-000002"]);
    let ext = prop::sample::select(vec![
        ".gguf",
        ".onnx",
        ".onnx_data",
        ".onnx_data_1",
        ".onnx.json",
        ".safetensors",
        ".bin",
        ".pth",
        ".h5",
        ".json",
        ".fp16.safetensors",
        ".safetensors.index.json",
        ".safetensors.index.fp16.json",
        ".GGUF",
        ".gguf.part1of2",
        ".gguf-split-a",
        ".xml",
        ".png",
        "",
    ]);
    (folder, stem, mark, shard, ext).prop_map(|(folder, stem, mark, shard, ext)| format!("{folder}{stem}{mark}{shard}{ext}"))
}

fn listing() -> impl Strategy<Value = Vec<(String, u64)>> {
    let any_path = prop_oneof![8 => path(), 1 => any::<String>(), 1 => "[-_./a-zA-Zé0-9]{0,24}\\.(gguf|onnx|bin|onnx_data)"];
    prop::collection::vec((any_path, prop::sample::select(vec![0, 1, MIB, 1000 * MIB])), 0..40)
}

proptest! {
    #[test]
    fn every_path_is_placed_once_and_order_does_not_matter(listing in listing(), swaps in prop::collection::vec(any::<prop::sample::Index>(), 40)) {
        let files: Vec<Listed<'_>> = listing.iter().map(|(path, size_bytes)| Listed { path, size_bytes: *size_bytes }).collect();
        let offer = classify(&files);
        check_partition(&files, &offer);
        let mut shuffled = files.clone();
        for (at, with) in swaps.iter().enumerate().take(files.len()) {
            shuffled.swap(at, with.index(files.len()));
        }
        prop_assert_eq!(classify(&shuffled), offer);
    }

    #[test]
    fn a_shard_set_is_never_split(others in listing(), name in "[a-zA-Z]{1,8}(-Q4_K_M)?(\\.fp16)?", ext in prop::sample::select(vec![".gguf", ".safetensors", ".bin"]), total in 1usize..9) {
        let set = shards(&format!("w/{name}-#-of-{total:05}{ext}"), total);
        let mut files: Vec<Listed<'_>> = others.iter().map(|(path, size_bytes)| Listed { path, size_bytes: *size_bytes }).collect();
        files.extend(set.iter().map(|path| Listed { path, size_bytes: MIB }));
        let offer = classify(&files);
        let mut lists: Vec<&[String]> = offer.quants.values().map(|quant| quant.own.as_slice()).collect();
        lists.extend(offer.quants.values().map(|quant| quant.companions.as_slice()));
        lists.extend([offer.shared.as_slice(), offer.extras.as_slice()]);
        for list in lists {
            let inside = set.iter().filter(|path| list.contains(path)).count();
            prop_assert!(inside == 0 || inside == total, "{} of {} in {:?}", inside, total, list);
        }
    }

    #[test]
    fn every_key_finds_itself_in_any_case(listing in listing()) {
        let files: Vec<Listed<'_>> = listing.iter().map(|(path, size_bytes)| Listed { path, size_bytes: *size_bytes }).collect();
        let offer = classify(&files);
        for key in offer.quants.keys() {
            let keys = || offer.quants.keys().map(String::as_str);
            prop_assert_eq!(find(keys(), key), Some(key.as_str()));
            prop_assert_eq!(find(keys(), &key.to_ascii_uppercase()), Some(key.as_str()));
        }
    }
}
