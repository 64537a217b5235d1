//! Against the PyPI package gguf, and a naive writer; and what each lie of a header is answered with.

use super::*;
use crate::ErrorKind;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, path::Path, process::Command};

/// A value as it is written. Floats are bits, so that they compare.
#[derive(Clone, Debug, PartialEq)]
enum Written {
    /// Any kind of fixed size, little-endian.
    Number(ValueKind, Vec<u8>),
    Text(Vec<u8>),
    Array(ValueKind, Vec<Written>),
}

impl Written {
    fn kind(&self) -> ValueKind {
        match self {
            Self::Number(kind, _) | Self::Array(kind, _) if !matches!(self, Self::Array(..)) => *kind,
            Self::Text(_) => ValueKind::String,
            _ => ValueKind::Array,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Number(_, bytes) => out.extend(bytes),
            Self::Text(text) => string(out, text),
            Self::Array(kind, values) => {
                out.extend((*kind as u32).to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| value.write(out));
            }
        }
    }

    /// What was read, as it would be written.
    fn of(value: &Value, file: &[u8]) -> Self {
        let bytes = match value {
            Value::U8(value) => value.to_le_bytes().to_vec(),
            Value::I8(value) => value.to_le_bytes().to_vec(),
            Value::U16(value) => value.to_le_bytes().to_vec(),
            Value::I16(value) => value.to_le_bytes().to_vec(),
            Value::U32(value) => value.to_le_bytes().to_vec(),
            Value::I32(value) => value.to_le_bytes().to_vec(),
            Value::U64(value) => value.to_le_bytes().to_vec(),
            Value::I64(value) => value.to_le_bytes().to_vec(),
            Value::F32(value) => value.to_le_bytes().to_vec(),
            Value::F64(value) => value.to_le_bytes().to_vec(),
            Value::Bool(value) => vec![(*value).into()],
            Value::String(text) => return Self::Text(text.clone().into()),
            Value::Bytes(text) => return Self::Text(text.clone()),
            Value::Array(array) => {
                let values = array.values(file).unwrap().map(|value| Self::of(&value.unwrap(), file));
                return Self::Array(array.kind(), values.collect());
            }
        };
        Self::Number(value.kind(), bytes)
    }
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

fn u32_value(number: u32) -> Written {
    Written::Number(ValueKind::U32, number.to_le_bytes().into())
}

/// A tensor as it is written: nothing of it need be true.
#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    /// Innermost first.
    ne: Vec<u64>,
    ggml_type: u32,
    offset: u64,
}

impl Tensor {
    fn new(name: &str, ne: &[u64], ggml_type: GgmlType, offset: u64) -> Self {
        Self { name: name.to_owned(), ne: ne.to_vec(), ggml_type: ggml_type.number(), offset }
    }
}

/// A file as it is written: nothing of it need be true.
#[derive(Clone, Debug)]
struct Model {
    version: u32,
    pairs: Vec<(String, Written)>,
    tensors: Vec<Tensor>,
    alignment: usize,
    data_bytes: usize,
}

impl Model {
    fn of(tensors: &[Tensor], data_bytes: usize) -> Self {
        Self { version: 3, pairs: Vec::new(), tensors: tensors.to_vec(), alignment: 32, data_bytes }
    }

    fn with(mut self, key: &str, value: Written) -> Self {
        self.pairs.push((key.to_owned(), value));
        self
    }

    fn write(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            string(&mut out, key.as_bytes());
            out.extend((value.kind() as u32).to_le_bytes());
            value.write(&mut out);
        }
        for Tensor { name, ne, ggml_type, offset } in &self.tensors {
            string(&mut out, name.as_bytes());
            out.extend((ne.len() as u32).to_le_bytes());
            ne.iter().for_each(|side| out.extend(side.to_le_bytes()));
            out.extend(ggml_type.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend((0..self.data_bytes).map(|byte| byte as u8));
        out
    }
}

fn refusal(file: &[u8]) -> String {
    let error = GgufIndex::parse(file).expect_err("a file that lies");
    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(error.hint().is_some());
    error.to_string()
}

/// What an index promises: all tensors within the file, aligned and disjoint, each found by its name, each with the bytes of its
/// shape; and every value can be read.
fn check_sound(file: &[u8], index: &GgufIndex) {
    let mut ranges = Vec::new();
    for tensor in index.tensors() {
        let (range, block) = (tensor.range(), tensor.ggml_type());
        assert!(range.start.is_multiple_of(index.alignment().into()) && range.end <= file.len() as u64);
        assert_eq!(index.tensor(tensor.name()), Some(tensor));
        let elements: u64 = tensor.shape().iter().product();
        assert_eq!(range.end - range.start, elements / block.block_elements() * block.block_bytes());
        assert_eq!(index.bytes(file, tensor.name()).unwrap().len() as u64, range.end - range.start);
        ranges.extend((!range.is_empty()).then_some(range));
    }
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    for (key, value) in index.metadata() {
        assert_eq!(index.value(key).map(Value::kind), Some(value.kind()));
        if let Value::Array(array) = value {
            // Truth values of 2 are errors only here.
            assert_eq!(array.values(file).unwrap().count() as u64, array.len());
            let strings = array.strings(file);
            assert!(array.kind() == ValueKind::String || strings.is_err());
        }
    }
}

#[test]
fn a_file_of_every_type_reads_as_an_independent_reader_reads_it() {
    let python = std::env::var_os("MODEL_CACHE_PYTHON").expect("MODEL_CACHE_PYTHON, with gguf; scripts/with sets it");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/format/gguf/reference.py");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("everything.gguf");
    let run = |verb| {
        let done = Command::new(&python).arg(&script).arg(verb).arg(&path).output().unwrap();
        assert!(done.status.success(), "reference.py {verb}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    };
    run("write");
    let theirs: serde_json::Value = serde_json::from_slice(&run("read")).unwrap();
    let file = std::fs::read(&path).unwrap();
    let index = GgufIndex::parse(&file).unwrap();
    check_sound(&file, &index);

    assert_eq!((index.version(), u64::from(index.alignment())), (3, theirs["alignment"].as_u64().unwrap()));
    let tensors = index.tensors().iter().map(|tensor| {
        let digest: String = Sha256::digest(tensor.bytes(&file).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
        serde_json::json!([tensor.name(), tensor.ggml_type().name(), tensor.shape(), tensor.range().start, digest])
    });
    assert_eq!(tensors.collect::<Vec<_>>(), *theirs["tensors"].as_array().unwrap());
    // All but Q8_1, of which reference.py tells, and Q2_0, which the package does not know yet.
    assert_eq!(index.tensors().len(), GgmlType::ALL.len() - 2);

    let contents = |value: &Value| json(value, &file);
    let ours: BTreeMap<&str, serde_json::Value> = index.metadata().map(|(key, value)| (key, contents(value))).collect();
    assert_eq!(ours.len(), theirs["fields"].as_object().unwrap().len());
    for (key, value) in &ours {
        assert_eq!(*value, theirs["fields"][key][1], "{key}");
        let kind = theirs["fields"][key][0][0].as_str().unwrap();
        let ours = format!("{:?}", index.value(key).unwrap().kind()).to_uppercase();
        assert_eq!(ours, kind.replace("UINT", "U").replace("INT", "I").replace("FLOAT", "F"), "{key}");
    }
    let words = index.value("tokenizer.ggml.tokens").and_then(Value::as_array).unwrap();
    assert_eq!((words.len(), words.strings(&file).unwrap()[999]), (1000, "<999>é"));
}

/// As reference.py tells a value: floats by their bits, since few JSON readers get every digit right.
fn json(value: &Value, file: &[u8]) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        Value::Array(array) => array.values(file).unwrap().map(|value| json(&value.unwrap(), file)).collect(),
        Value::String(text) => text.as_str().into(),
        Value::Bool(value) => (*value).into(),
        other => other
            .as_u64()
            .map(Json::from)
            .or(other.as_i64().map(Json::from))
            .or(other.as_f64().map(|value| value.to_bits().into()))
            .unwrap(),
    }
}

#[test]
fn tensors_are_placed_from_the_start_of_the_file_in_row_major_order() {
    let tensors = [
        Tensor::new("late", &[64, 3, 2], GgmlType::Q4_0, 64),
        Tensor::new("early", &[3], GgmlType::F32, 0),
        Tensor::new("one", &[], GgmlType::BF16, 32),
        Tensor::new("none", &[0, 7], GgmlType::F16, 32),
    ];
    let file = Model::of(&tensors, 64 + 6 * 2 * 18).with("general.name", Written::Text(b"x".to_vec())).write();
    let index = GgufIndex::parse(&file).unwrap();
    check_sound(&file, &index);
    let data = file.len() as u64 - (64 + 216);
    let late = index.tensor("late").unwrap();
    assert_eq!((late.shape(), late.range()), ([2, 3, 64].as_slice(), data + 64..data + 280));
    assert_eq!(late.ne().collect::<Vec<_>>(), [64, 3, 2]);
    let names: Vec<&str> = index.tensors().iter().map(GgufTensor::name).collect();
    assert_eq!(names, ["late", "early", "one", "none"]);
    assert_eq!(index.bytes(&file, "one").unwrap(), [32, 33]);
    assert_eq!(
        (index.tensor("one").unwrap().shape(), index.tensor("none").unwrap().range()),
        ([].as_slice(), data + 32..data + 32)
    );
    assert_eq!((index.alignment(), index.split()), (32, None));
    assert_eq!(index.value("general.name").and_then(Value::as_str), Some("x"));

    let error = index.slice::<f32>(&file, "late").unwrap_err();
    assert_eq!(error.to_string(), "tensor \"late\" can't be read as a slice of f32: it is Q4_0, and f32 reads F32");
    let error = index.bytes(&file, "blk.late").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = index.bytes(&file[..99], "late").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().ends_with("does not lie in the file given for tensor \"late\", which has 99 bytes"), "{error}");
}

#[test]
fn an_alignment_smaller_than_the_numbers_is_told_by_the_slice() {
    let tensors = [Tensor::new("b", &[1], GgmlType::I8, 0), Tensor::new("w", &[1], GgmlType::F32, 1)];
    let mut model = Model::of(&tensors, 5).with("general.alignment", u32_value(1));
    model.alignment = 1;
    // Whatever the name's length, one of four puts the number beside its boundary.
    let texts = (0..4).filter_map(|length| {
        model.tensors[0].name = "b".repeat(1 + length);
        let file = model.write();
        let index = GgufIndex::parse(&file).unwrap();
        index.slice::<f32>(&file, "w").err().map(|error| error.to_string())
    });
    let texts: Vec<String> = texts.collect();
    assert!(texts.len() >= 3 && texts.iter().any(|text| text.contains("which is not a multiple of 4")), "{texts:?}");
}

/// The second of `count` parts of a model.
fn second_part_of(count: u16, tensors: &[Tensor]) -> Vec<u8> {
    let number = |number: u16| Written::Number(ValueKind::U16, number.to_le_bytes().into());
    Model::of(tensors, 64).with("split.no", number(1)).with("split.count", number(count)).write()
}

#[test]
fn a_part_of_a_split_model_says_which_it_is() {
    let part = |count| {
        let file = second_part_of(count, &[]);
        let split = GgufIndex::parse(&file).unwrap().split();
        assert_eq!(Split::of(&file).unwrap(), split);
        split
    };
    assert_eq!(part(3), Some(Split { index: 1, count: 3 }));
    assert_eq!(part(1), None);
    // What llama.cpp writes into a model it has merged.
    assert_eq!(part(0), None);
}

#[test]
fn a_part_of_a_split_model_is_told_whatever_its_tensors_are() {
    let unknown = Tensor { ggml_type: 4711, ..Tensor::new("w", &[1], GgmlType::F32, 0) };
    let file = second_part_of(3, &[unknown]);
    assert!(GgufIndex::parse(&file).is_err());
    assert_eq!(Split::of(&file).unwrap(), Some(Split { index: 1, count: 3 }));
    for file in [b"".as_slice(), b"GGU", b"safetensors.....", &file[..30]] {
        assert!(matches!(Split::of(file), Err(Error::BadFormat { .. })), "{file:?}");
    }
}

#[test]
fn strings_that_are_not_utf_8_stay_bytes() {
    let text = b"cut \xe2\x89".to_vec();
    let texts = Written::Array(ValueKind::String, vec![Written::Text(b"a".to_vec()), Written::Text(text.clone())]);
    let file = Model::of(&[], 0).with("a", Written::Text(text.clone())).with("b", texts).write();
    let index = GgufIndex::parse(&file).unwrap();
    assert_eq!(index.value("a"), Some(&Value::Bytes(text.clone())));
    let array = index.value("b").and_then(Value::as_array).unwrap();
    assert!(array.strings(&file).unwrap_err().to_string().contains("string 1 of an array is not UTF-8"));
    assert_eq!(array.values(&file).unwrap().nth(1).unwrap().unwrap(), Value::Bytes(text));
    assert!(array.values(&file[..40]).is_err());
}

#[test]
fn every_lie_of_a_header_is_told_with_its_numbers() {
    let model = |tensor: Tensor| refusal(&Model::of(&[tensor], 64).write());
    let tensor = |ne: &[u64], ggml_type, offset| model(Tensor::new("w", ne, ggml_type, offset));
    let typed = |number| model(Tensor { ggml_type: number, ..Tensor::new("w", &[1], GgmlType::F32, 0) });
    let pair = |key: &str, value| refusal(&Model::of(&[], 0).with(key, value).write());
    let version = |version| refusal(&Model { version, ..Model::of(&[], 0) }.write());
    let two = |first, second| refusal(&Model::of(&[first, second], 64).write());
    let counts = |tensors: u64, pairs: u64| {
        let header = [b"GGUF\x03\0\0\0".as_slice(), &tensors.to_le_bytes(), &pairs.to_le_bytes(), &[0; 100]];
        refusal(&header.concat())
    };
    let alignment = "general.alignment";
    let array = |kind: u32, len: u64| {
        let mut file = Model::of(&[], 0).with("a", Written::Array(ValueKind::U8, vec![])).write();
        let at = 4 + 4 + 8 + 8 + 8 + 1 + 4;
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        file[at + 4..at + 12].copy_from_slice(&len.to_le_bytes());
        refusal(&file)
    };
    let nested = (0..8).fold(Written::Array(ValueKind::U8, vec![]), |inner, _| Written::Array(ValueKind::Array, vec![inner]));
    let long = |bytes| Tensor::new(&"w".repeat(bytes), &[1], GgmlType::F32, 0);
    let cases = [
        (refusal(b"GGU"), "the magic number of 4 bytes goes beyond the end, at 3"),
        (refusal(b"ggjt\x03\0\0\0"), "it begins with \"ggjt\", not with GGUF"),
        (refusal(b"\0\x1b[2"), "it begins with \"\\x00\\x1b[2\", not with GGUF"),
        (refusal(b"PK\x03\x04\x14"), "it is a zip archive, as PyTorch writes them: it begins with"),
        (version(1), "it is of version 1, which no current loader reads"),
        (version(4), "it is of version 4; 2 and 3 can be read"),
        (version(0), "it is of version 0; 2 and 3 can be read"),
        (version(3 << 24), "it is big-endian (version 3); little-endian files can be read"),
        (counts(u64::MAX, 0), "18446744073709551615 tensors of 24 bytes or more, in a header of 108 more bytes at most"),
        (counts(0, 1 << 40), "1099511627776 key-value pairs of 13 bytes or more, in a header of 100 more bytes at most"),
        (tensor(&[17], GgmlType::F32, 0), "tensor \"w\" of 68 bytes (F32 [17]) lies at 64 + 0, and the file has 128 bytes"),
        (tensor(&[1], GgmlType::F32, 64), "lies at 64 + 64, and the file has 128 bytes"),
        (tensor(&[1], GgmlType::F32, 1 << 63), "lies at 64 + 9223372036854775808"),
        (tensor(&[1], GgmlType::F32, u64::MAX - 31), "lies at 64 + 18446744073709551584"),
        (tensor(&[1], GgmlType::F32, 4), "tensor \"w\" lies at 4 of the data, not a multiple of 32"),
        (tensor(&[u64::MAX], GgmlType::F16, 0), "tensor \"w\" is of a size beyond 64 bits: F16 [18446744073709551615]"),
        (tensor(&[1 << 32, 1 << 32], GgmlType::I8, 0), "is of a size beyond 64 bits: I8 [4294967296, 4294967296]"),
        (tensor(&[48], GgmlType::Q8_0, 0), "tensor \"w\" has rows of 48 elements, not a multiple of Q8_0's blocks of 32"),
        (tensor(&[], GgmlType::Q4_K, 0), "has rows of 1 elements, not a multiple of Q4_K's blocks of 256"),
        (tensor(&[1, 1, 1, 1, 1], GgmlType::F32, 0), "tensor \"w\" has 5 dimensions; 4 are allowed"),
        (typed(4), "tensor \"w\" is of ggml type 4, which is unknown here or was removed from ggml"),
        (typed(u32::MAX), "is of ggml type 4294967295"),
        (two(long(1), long(1)), "two tensors overlap: \"w\" at 96..100 and \"w\" at 96..100"),
        (two(long(1), Tensor { offset: 32, ..long(1) }), "two tensors are named \"w\""),
        (
            two(Tensor::new("a", &[9], GgmlType::F32, 0), Tensor::new("b", &[1], GgmlType::F32, 32)),
            "two tensors overlap: \"a\" at 96..132 and \"b\" at 128..132",
        ),
        (model(long(65_536)), "a tensor's name of 65536 bytes; 65535 are allowed"),
        (pair(&"k".repeat(65_536), u32_value(1)), "a key of 65536 bytes; 65535 are allowed"),
        (
            refusal(&Model::of(&[], 0).with("a", u32_value(1)).with("a", u32_value(2)).write()),
            "two key-value pairs are named \"a\"",
        ),
        (pair(alignment, u32_value(0)), "general.alignment is 0, not a power of two"),
        (pair(alignment, u32_value(48)), "general.alignment is 48, not a power of two"),
        (pair(alignment, Written::Text(vec![b'8'; 1 << 20])), "general.alignment is of type String, not U32"),
        (pair("a", Written::Number(ValueKind::Bool, vec![2])), "key \"a\": a truth value of 2, neither 0 nor 1"),
        (pair("a", nested), "key \"a\": arrays nested more than 8 deep"),
        (array(13, 0), "key \"a\": the type of an array's values is 13, which is none (0 to 12)"),
        (array(0, 1 << 60), "1152921504606846976 values of an array of 1 bytes or more, in a header of"),
        (array(12, u64::MAX), "18446744073709551615 values of an array of 8 bytes or more"),
        (array(8, u64::MAX / 8), "values of an array of 8 bytes or more"),
        (array(9, 1 << 60), "values of an array of 12 bytes or more"),
    ];
    for (text, expected) in cases {
        assert!(text.starts_with("not a usable GGUF file: ") && text.contains(expected), "{text}\nlacks: {expected}");
        assert!(text.len() < 1000, "{text}");
    }
}

#[test]
fn a_string_longer_than_the_file_is_told_with_its_key() {
    let mut file = Model::of(&[], 0).with("a", Written::Text(b"text".to_vec())).write();
    let at = 4 + 4 + 8 + 8 + 8 + 1 + 4;
    for (bytes, expected) in [
        (1000_u64, "key \"a\": a string of 1000 bytes goes beyond the end, at 64"),
        (u64::MAX, "key \"a\": a string of 18446744073709551615 bytes; 268435456 are allowed"),
    ] {
        file[at..at + 8].copy_from_slice(&bytes.to_le_bytes());
        assert!(refusal(&file).contains(expected), "{}", refusal(&file));
    }
}

#[test]
fn a_header_cut_anywhere_is_an_error() {
    let texts = Written::Array(ValueKind::String, vec![Written::Text(b"ab".to_vec()); 3]);
    let numbers = Written::Array(ValueKind::U16, vec![Written::Number(ValueKind::U16, vec![1, 2]); 3]);
    let tensors = [Tensor::new("a", &[5], GgmlType::F32, 0), Tensor::new("b", &[32, 2], GgmlType::Q8_0, 32)];
    let whole = Model::of(&tensors, 32 + 68).with("t", texts).with("n", numbers).write();
    GgufIndex::parse(&whole).unwrap();
    for bytes in 0..whole.len() {
        refusal(&whole[..bytes]);
    }
}

#[test]
fn versions_2_and_3_have_the_same_layout() {
    let model = Model::of(&[Tensor::new("a", &[5], GgmlType::F32, 0)], 20).with("k", u32_value(7));
    let index = |version| GgufIndex::parse(&Model { version, ..model.clone() }.write()).unwrap();
    assert_eq!((index(2).version(), index(3).version()), (2, 3));
    assert_eq!(index(2).tensors(), index(3).tensors());
}

#[test]
fn types_have_their_numbers_and_blocks_of_whole_bytes() {
    for &ggml_type in GgmlType::ALL {
        assert_eq!(GgmlType::from_number(ggml_type.number()), Some(ggml_type));
        assert!(ggml_type.block_elements().is_power_of_two() && ggml_type.block_bytes() > 0);
    }
    // The two that reference.py can't speak for: block_q8_1 and block_q2_0 of ggml-common.h.
    assert_eq!((GgmlType::Q8_1.block_elements(), GgmlType::Q8_1.block_bytes()), (32, 2 + 2 + 32));
    assert_eq!((GgmlType::Q2_0.block_elements(), GgmlType::Q2_0.block_bytes()), (64, 2 + 16));
}

fn number() -> impl Strategy<Value = Written> {
    let kinds = [
        (ValueKind::U8, 1),
        (ValueKind::I8, 1),
        (ValueKind::U16, 2),
        (ValueKind::I16, 2),
        (ValueKind::U32, 4),
        (ValueKind::I32, 4),
        (ValueKind::F32, 4),
        (ValueKind::U64, 8),
        (ValueKind::I64, 8),
        (ValueKind::F64, 8),
    ];
    let number = (prop::sample::select(kinds.to_vec()), any::<[u8; 8]>())
        .prop_map(|((kind, size), bytes)| Written::Number(kind, bytes[..size].to_vec()));
    prop_oneof![number, any::<bool>().prop_map(|value| Written::Number(ValueKind::Bool, vec![value.into()]))]
}

fn value() -> impl Strategy<Value = Written> {
    let text = prop::collection::vec(any::<u8>(), 0..12).prop_map(Written::Text);
    prop_oneof![number(), text].prop_recursive(3, 16, 4, |inner| {
        // Values of an array are of one kind: copies of one value, but for texts and arrays, which may differ in length.
        (inner, 0_usize..4).prop_map(|(value, len)| Written::Array(value.kind(), vec![value; len]))
    })
}

prop_compose! {
    fn tensors(alignment: u64)(shapes in prop::collection::btree_map("[a-z.é]{0,8}", (prop::sample::select(GgmlType::ALL.to_vec()), prop::collection::vec(0_u64..4, 0..4), 0_u64..3), 0..6))
        -> (Vec<Tensor>, usize) {
        let mut end = 0_u64;
        let tensors = shapes.into_iter().map(|(name, (ggml_type, mut ne, gap))| {
            if ggml_type.block_elements() > 1 && ne.is_empty() {
                ne.push(1);
            }
            if let Some(row) = ne.first_mut() {
                *row *= ggml_type.block_elements();
            }
            let offset = end.next_multiple_of(alignment) + gap * alignment;
            end = offset + ne.iter().product::<u64>() / ggml_type.block_elements() * ggml_type.block_bytes();
            Tensor::new(&name, &ne, ggml_type, offset)
        });
        let tensors: Vec<Tensor> = tensors.collect();
        (tensors, end as usize)
    }
}

fn model() -> impl Strategy<Value = Model> {
    let alignment = prop::sample::select(vec![1_u32, 8, 32, 64]);
    (alignment, prop::collection::btree_map("[a-z]{0,5}", value(), 0..5), 2_u32..4, any::<prop::sample::Index>()).prop_flat_map(
        |(alignment, pairs, version, place)| {
            tensors(alignment.into()).prop_map(move |(tensors, data_bytes)| {
                let mut pairs: Vec<(String, Written)> = pairs.clone().into_iter().collect();
                if alignment != 32 {
                    pairs.insert(place.index(pairs.len() + 1), (ALIGNMENT_KEY.to_owned(), u32_value(alignment)));
                }
                Model { version, pairs, tensors, alignment: alignment as usize, data_bytes }
            })
        },
    )
}

proptest! {
    #[test]
    fn what_was_written_is_read(model in model()) {
        let file = model.write();
        let index = GgufIndex::parse(&file).unwrap();
        check_sound(&file, &index);
        prop_assert_eq!(index.version(), model.version);
        let pairs: Vec<(String, Written)> = index.metadata().map(|(key, value)| (key.to_owned(), Written::of(value, &file))).collect();
        prop_assert_eq!(&pairs, &model.pairs);
        let data = file.len() - model.data_bytes;
        prop_assert_eq!(index.tensors().len(), model.tensors.len());
        for (found, written) in index.tensors().iter().zip(&model.tensors) {
            prop_assert_eq!((found.name(), found.ggml_type().number()), (written.name.as_str(), written.ggml_type));
            prop_assert!(found.ne().eq(written.ne.iter().copied()));
            prop_assert_eq!(found.range().start, data as u64 + written.offset);
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_or_sound(model in model(), bytes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
                                          number in prop::option::of((any::<prop::sample::Index>(), prop::sample::select(vec![0, 1, 255, 1 << 32, i64::MAX as u64, u64::MAX, u64::MAX - 31]))),
                                          cut in prop::option::of(any::<prop::sample::Index>())) {
        let mut file = model.write();
        for (at, byte) in bytes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some((at, number)) = number {
            let at = at.index(file.len() - 7);
            file[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        if let Ok(index) = GgufIndex::parse(&file) {
            check_sound(&file, &index);
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_sound(bytes in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..128), tensors in 0_u64..3, pairs in 0_u64..3) {
        let behind_a_header = [b"GGUF\x03\0\0\0".as_slice(), &tensors.to_le_bytes(), &pairs.to_le_bytes(), &bytes].concat();
        for file in [bytes, behind_a_header] {
            if let Ok(index) = GgufIndex::parse(&file) {
                check_sound(&file, &index);
            }
        }
    }

    #[test]
    fn an_index_of_another_file_reads_nothing_outside(model in model(), other in prop::collection::vec(any::<u8>(), 0..512)) {
        let index = GgufIndex::parse(&model.write()).unwrap();
        for tensor in index.tensors() {
            prop_assert_eq!(tensor.bytes(&other).is_ok(), tensor.range().end <= other.len() as u64);
        }
        for array in index.metadata().filter_map(|(_, value)| value.as_array()) {
            prop_assert_eq!(array.values(&other).is_ok(), array.range().end <= other.len() as u64);
            let _ = array.strings(&other);
            if let Ok(values) = array.values(&other) {
                prop_assert_eq!(values.count() as u64, array.len());
            }
        }
    }
}
