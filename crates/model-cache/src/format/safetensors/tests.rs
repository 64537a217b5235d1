//! Against the crate `safetensors`, on a real model and on made and damaged files; and what each lie of a header is answered with.

use super::*;
use crate::ErrorKind;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A file of this header, padded with spaces to a multiple of 8 as writers do, and of so many bytes of data: 0, 1, 2, ...
fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let padded = header.len().next_multiple_of(8);
    let mut file = (padded as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(8 + padded, b' ');
    file.extend((0..data_bytes).map(|byte| byte as u8));
    file
}

fn refusal(file: &[u8]) -> String {
    let error = SafetensorsIndex::parse(file).expect_err("a file that lies");
    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.hint().is_some());
    error.to_string()
}

/// The message for a header over 16 bytes of data.
fn lie(header: Value) -> String {
    refusal(&file(&header.to_string(), 16))
}

/// What an index promises: all tensors within the file and disjoint, each found by its name, each with the bytes of its shape.
fn check_sound(file: &[u8], index: &SafetensorsIndex) {
    let mut position = 8 + u64::from_le_bytes(*file.first_chunk().unwrap());
    for tensor in index.tensors() {
        assert_eq!(tensor.range().start, position);
        position = tensor.range().end;
        assert_eq!(index.tensor(tensor.name()), Some(tensor));
        let elements: u64 = tensor.shape().iter().product();
        assert_eq!(index.bytes(file, tensor.name()).unwrap().len() as u64 * 8, elements * tensor.dtype().bits());
    }
    assert_eq!(position, file.len() as u64);
}

/// That the reference implementation finds the same in `file`.
fn check_as_reference(file: &[u8], index: &SafetensorsIndex) {
    let theirs = safetensors::SafeTensors::deserialize(file).unwrap();
    assert_eq!(theirs.len(), index.tensors().len());
    for tensor in index.tensors() {
        let view = theirs.tensor(tensor.name()).unwrap();
        assert_eq!(view.dtype().to_string(), tensor.dtype().name());
        assert_eq!(view.dtype().bitsize() as u64, tensor.dtype().bits());
        assert!(view.shape().iter().map(|&side| side as u64).eq(tensor.shape().iter().copied()));
        assert!(std::ptr::eq(view.data(), tensor.bytes(file).unwrap()), "the same bytes, in place");
    }
    let (_, header) = safetensors::SafeTensors::read_metadata(file).unwrap();
    let metadata: BTreeMap<&str, &str> = index.metadata().collect();
    let theirs = header.metadata().as_ref();
    assert_eq!(theirs.map_or(0, |theirs| theirs.len()), metadata.len());
    for (key, value) in metadata {
        assert_eq!(theirs.and_then(|theirs| theirs.get(key)).map(String::as_str), Some(value));
        assert_eq!(index.value(key), Some(value));
    }
}

#[test]
fn a_real_model_reads_as_the_reference_reads_it() {
    let folder = std::env::var_os("MODEL_CACHE_MINILM").expect("MODEL_CACHE_MINILM; scripts/with sets it");
    let file = std::fs::read(std::path::Path::new(&folder).join("model.safetensors")).unwrap();
    let index = SafetensorsIndex::parse(&file).unwrap();
    assert_eq!(index.tensors().len(), 104);
    assert_eq!(index.value("format"), Some("pt"));
    check_sound(&file, &index);
    check_as_reference(&file, &index);
}

#[test]
fn tensors_and_metadata_are_found_by_name_and_in_order() {
    let file = file(
        r#"{"b": {"dtype": "F32", "shape": [2, 1], "data_offsets": [4, 12]}, "__metadata__": {"format": "pt", "é": ""},
            "a\n": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], "later": [[{}]]},
            "none": {"dtype": "BF16", "shape": [3, 0], "data_offsets": [4, 4]}, "one": {"dtype": "I32", "shape": [], "data_offsets": [12, 16]}}"#,
        16,
    );
    let index = SafetensorsIndex::parse(&file).unwrap();
    check_sound(&file, &index);
    check_as_reference(&file, &index);
    let names: Vec<&str> = index.tensors().iter().map(SafetensorsTensor::name).collect();
    assert_eq!(names, ["a\n", "none", "b", "one"]);
    assert_eq!(index.metadata().collect::<Vec<_>>(), [("format", "pt"), ("é", "")]);
    assert!(index.tensor("c").is_none() && index.tensor("__metadata__").is_none() && index.value("a\n").is_none());
    assert_eq!(index.bytes(&file, "b").unwrap(), [4, 5, 6, 7, 8, 9, 10, 11]);
    assert!(index.bytes(&file, "none").unwrap().is_empty());
}

#[test]
fn a_slice_is_the_bytes_in_place_and_is_refused_where_it_can_not_be() {
    let header = r#"{"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "h": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [8, 12]},
        "q": {"dtype": "F4", "shape": [1, 2], "data_offsets": [12, 13]}, "odd": {"dtype": "F16", "shape": [1], "data_offsets": [13, 15]},
        "none": {"dtype": "I64", "shape": [0], "data_offsets": [15, 15]}}"#;
    // On a boundary of 8 in memory, as a mapped file is.
    let bytes = file(header, 15);
    let mut aligned = vec![0_u64; bytes.len().div_ceil(8) + 1];
    let memory: &mut [u8] = bytemuck::cast_slice_mut(&mut aligned);
    memory[..bytes.len()].copy_from_slice(&bytes);
    let file = &memory[..bytes.len()];
    let index = SafetensorsIndex::parse(file).unwrap();

    let floats: &[f32] = index.slice(file, "b").unwrap();
    assert_eq!(floats, [f32::from_le_bytes([0, 1, 2, 3]), f32::from_le_bytes([4, 5, 6, 7])]);
    assert!(std::ptr::eq(floats.as_ptr().cast(), index.bytes(file, "b").unwrap().as_ptr()));
    assert_eq!(index.slice::<u16>(file, "h").unwrap(), [0x0908, 0x0b0a]);
    assert!(index.slice::<i64>(file, "none").unwrap().is_empty());

    let refusal = |error: Error, kind| {
        assert_eq!(error.kind(), kind);
        (error.to_string(), error.hint().unwrap_or_default())
    };
    let (text, _) = refusal(index.slice::<f64>(file, "b").unwrap_err(), ErrorKind::Usage);
    assert_eq!(text, "tensor \"b\" can't be read as a slice of f64: it is F32, and f64 reads F64");
    let (text, _) = refusal(index.slice::<u8>(file, "q").unwrap_err(), ErrorKind::Usage);
    assert!(text.contains("it is F4, and u8 reads U8, BOOL, F8_E5M2"), "{text}");
    let (text, hint) = refusal(index.slice::<u16>(file, "odd").unwrap_err(), ErrorKind::Usage);
    let at = index.tensor("odd").unwrap().range().start;
    assert_eq!(
        text,
        format!(
            "tensor \"odd\" can't be read as a slice of u16: its bytes begin at {at} of the file, which is not a multiple of 2"
        )
    );
    assert!(hint.contains("bytes"));
    let (text, hint) = refusal(index.slice::<f32>(file, "model.b").unwrap_err(), ErrorKind::NotFound);
    assert_eq!((text.as_str(), hint.as_str()), ("no tensor \"model.b\" among the 5 of the file", ""));
    let (_, hint) = refusal(index.bytes(file, "nine").unwrap_err(), ErrorKind::NotFound);
    assert_eq!(hint, "did you mean \"none\"?");

    let moved = &memory[..];
    let shifted: Vec<u8> = std::iter::once(0).chain(moved.iter().copied()).collect();
    let base = usize::from(shifted.as_ptr().align_offset(8) == 0);
    let (text, _) = refusal(index.slice::<f32>(&shifted[base..], "b").unwrap_err(), ErrorKind::Usage);
    assert!(text.ends_with("the memory the file lies in does not begin at a multiple of 4"), "{text}");
    let (text, _) = refusal(index.bytes(&file[..40], "b").unwrap_err(), ErrorKind::Usage);
    assert!(text.ends_with(" does not lie in the file given for tensor \"b\", which has 40 bytes"), "{text}");
}

#[test]
fn every_lie_of_a_header_is_told_with_its_numbers() {
    let tensor =
        |dtype: &str, shape: Value, start: u64, end: u64| json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
    let one = |dtype, shape, start, end| lie(json!({ "w": tensor(dtype, shape, start, end) }));
    let cases = [
        (one("F32", json!([4]), 0, 20), "tensor \"w\" lies at 0..20 of 16 bytes of data"),
        (one("F32", json!([4]), 16, 0), "tensor \"w\" lies at 16..0 of 16 bytes"),
        (one("F32", json!([4]), 0, u64::MAX), "lies at 0..18446744073709551615 of 16 bytes"),
        (one("F32", json!([3]), 0, 16), "lies at 0..16, which is 16 bytes; F32 [3] is 12"),
        (one("F32", json!([4]), 4, 16), "lies at 4..16, which is 12 bytes; F32 [4] is 16"),
        (one("F32", json!([u64::MAX, 2]), 0, 16), "a size beyond 64 bits: F32 [18446744073709551615, 2]"),
        (one("F32", json!([1_u64 << 60]), 0, 16), "a size beyond 64 bits"),
        (one("F4", json!([33]), 0, 16), "ends within a byte: F4 [33] is 132 bits"),
        (one("F33", json!([4]), 0, 16), "tensor \"w\" is of an unknown type, \"F33\""),
        (one("f32", json!([4]), 0, 16), "unknown type, \"f32\""),
        (one("F32", json!([-1]), 0, 16), "\"w\": invalid value: integer `-1`, expected u64"),
        (one("F32", json!([4.0]), 0, 16), "\"w\": invalid type: floating point"),
        (one("U8", json!(vec![1; 1000]), 0, 16), "U8 [1, 1, 1, 1, 1, 1, 1, 1] and 992 dimensions more is 1"),
        (lie(json!({"w": tensor("U8", json!([8]), 0, 8)})), "the tensors end at byte 72, and the file has 80"),
        (
            lie(json!({"w": tensor("U8", json!([8]), 8, 16)})),
            "tensor \"w\" leaves a gap before it: it begins at byte 72 of the file, not at 64",
        ),
        (
            lie(json!({"a": tensor("U8", json!([9]), 0, 9), "w": tensor("U8", json!([8]), 8, 16)})),
            "tensor \"w\" overlaps the one before it: it begins at byte",
        ),
        (lie(json!({})), "the tensors end at byte 16, and the file has 32"),
        (lie(json!({"w": {"dtype": "U8", "shape": [16]}})), "\"w\": missing field `data_offsets`"),
        (lie(json!({"w": {"dtype": "U8", "shape": [16], "data_offsets": [0, 8, 16]}})), "\"w\": "),
        (lie(json!({"w": 1})), "\"w\": invalid type: integer `1`"),
        (lie(json!({"__metadata__": {"a": 1}})), "\"__metadata__\": invalid type: integer `1`, expected a string"),
        (lie(json!([])), "it does not begin with {"),
        (refusal(&file(" {}", 0)), "it does not begin with {"),
        (refusal(b""), "it has 0 bytes, fewer than the 8 of the header's length"),
        (refusal(&8_u64.to_le_bytes()), "a header of 8 bytes in a file of 8"),
        (refusal(&u64::MAX.to_le_bytes()), "a header of 18446744073709551615 bytes; 100000000 are allowed"),
        (refusal(&100_000_001_u64.to_le_bytes()), "a header of 100000001 bytes; 100000000 are allowed"),
        (
            refusal(b"version https://git-lfs.github.com/spec/v1\n"),
            "it is a Git LFS pointer, not the file it stands for: as safetensors, it has a header of",
        ),
        (refusal(&[b"GGUF\x03".as_slice(), &[0; 99]].concat()), "it is a GGUF file: as safetensors"),
        (refusal(&0_u64.to_le_bytes()), "it does not begin with {"),
        (refusal(b"\x03\0\0\0\0\0\0\0{\xff}"), "the header is not UTF-8 (offset 9)"),
        (refusal(&file(r#"{"__metadata__": {}, "__metadata__": {}}"#, 0)), "__metadata__ twice"),
        (refusal(&file(r#"{"__metadata__": {"a": "", "a": ""}}"#, 0)), "two entries of __metadata__ are named \"a\""),
        (
            refusal(&file(
                r#"{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                0,
            )),
            "two tensors are named \"w\"",
        ),
        (refusal(&file(r#"{"w":{"dtype":"U8","#, 0)), "EOF while parsing"),
    ];
    for (text, expected) in cases {
        assert!(text.starts_with("not a usable safetensors file: ") && text.contains(expected), "{text}\nlacks: {expected}");
    }
}

#[test]
fn deep_nesting_and_huge_strings_are_answered_shortly() {
    let deep = format!("{{\"w\": {}{}}}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    let later = deep.replacen("\"w\": ", "\"w\": {\"later\": ", 1) + "}";
    let huge =
        format!("{{\"{0}\": {{\"dtype\": \"{0}\", \"shape\": [], \"data_offsets\": [0, 0]}}}}", "\u{1b}[2J".repeat(1 << 20));
    for header in [deep, later, huge.replace('\u{1b}', "\\u001b")] {
        let text = refusal(&file(&header, 0));
        assert!(text.len() < 1000 && !text.contains('\u{1b}'), "{text}");
    }
}

#[test]
fn a_header_cut_anywhere_is_an_error() {
    let whole = file(r#"{"__metadata__":{"a":"b"},"w":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]}}"#, 8);
    SafetensorsIndex::parse(&whole).unwrap();
    for bytes in 0..whole.len() {
        refusal(&whole[..bytes]);
    }
}

prop_compose! {
    /// Tensors back to back, listed in any order.
    fn model()(tensors in prop::collection::btree_map("[a-z.\\\\\"é]{0,8}", (0..Dtype::ALL.len(), prop::collection::vec(0_u64..4, 0..4)), 0..8),
               metadata in prop::option::of(prop::collection::btree_map("[a-z]{0,3}", ".{0,5}", 0..3)),
               order in any::<prop::sample::Index>()) -> Vec<u8> {
        let mut header: Vec<(String, Value)> = Vec::new();
        let mut end = 0;
        for (name, (dtype, shape)) in tensors {
            let dtype = Dtype::ALL[dtype];
            let bits = shape.iter().product::<u64>() * dtype.bits();
            if name != "__metadata__" && bits.is_multiple_of(8) {
                header.push((name, json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [end, end + bits / 8]})));
                end += bits / 8;
            }
        }
        if let Some(metadata) = metadata {
            header.push(("__metadata__".to_owned(), json!(metadata)));
        }
        if !header.is_empty() {
            let at = order.index(header.len());
            header.rotate_left(at);
        }
        let fields: Vec<String> = header.into_iter().map(|(name, value)| format!("{}:{value}", json!(name))).collect();
        file(&format!("{{{}}}", fields.join(",")), end as usize)
    }
}

proptest! {
    #[test]
    fn what_the_reference_reads_is_read_the_same(file in model()) {
        let index = SafetensorsIndex::parse(&file).unwrap();
        check_sound(&file, &index);
        check_as_reference(&file, &index);
    }

    #[test]
    fn a_damaged_file_is_an_error_or_sound(mut file in model(), damage in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(b'0'), Just(b'9'), Just(b'}'), Just(b'"')]), 0..4),
                                          cut in prop::option::of(any::<prop::sample::Index>())) {
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        match SafetensorsIndex::parse(&file) {
            Ok(index) => {
                check_sound(&file, &index);
                check_as_reference(&file, &index);
            }
            // Stricter in nothing but names that occur twice.
            Err(error) => if safetensors::SafeTensors::read_metadata(&file).is_ok() {
                let text = error.to_string();
                prop_assert!(text.contains("two tensors are named") || text.contains("two entries of") || text.contains("does not begin with {"), "{}", text);
            }
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_sound(file in prop::collection::vec(any::<u8>(), 0..64), header_bytes in 0_u64..64) {
        let behind_a_length = [&header_bytes.to_le_bytes(), file.as_slice()].concat();
        for file in [file, behind_a_length] {
            if let Ok(index) = SafetensorsIndex::parse(&file) {
                check_sound(&file, &index);
            }
        }
    }
}
