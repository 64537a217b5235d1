//! candle on a GGUF of the store: its tensors are the file's bytes, compute as candle's own copies do, and keep the file.

mod common;
#[path = "../examples/candle_gguf.rs"]
mod example;

use candle_core::{
    DType, Device, Module, Tensor,
    quantized::{GgmlDType, QMatMul, QStorage, QTensor, gguf_file::Content},
};
use common::*;
use loaders::Error;
use std::{borrow::Cow, collections::HashMap};
use tabagent_model_cache::{CHUNK_BYTES, ModelFile, format::gguf::GgufIndex};

const MATRICES: [&str; 15] =
    ["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_k", "across"];

/// The tensor as candle's own loader makes it, from a reader: a copy.
fn copied(file: &ModelFile, name: &str) -> QTensor {
    let mut reader = file.reader();
    let content = Content::read(&mut reader).unwrap();
    let described = &content.tensor_infos[name];
    if described.ggml_dtype != GgmlDType::Q8K {
        return content.tensor(&mut reader, name, &Device::Cpu).unwrap();
    }
    // Which its loader leaves out.
    let index = GgufIndex::parse(file).unwrap();
    let bytes = Cow::Borrowed(index.bytes(file, name).unwrap());
    let storage = QStorage::from_data(bytes, &Device::Cpu, described.ggml_dtype).unwrap();
    QTensor::new(storage, described.shape.dims()).unwrap()
}

fn open(store: &Store) -> HashMap<String, QTensor> {
    example::open(&store.cache, REPO, "model.gguf").unwrap()
}

/// Rows of numbers between -1 and 1.
fn rows(count: usize, columns: usize) -> Tensor {
    let values: Vec<f32> = (0..count * columns).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
    Tensor::from_vec(values, (count, columns), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_type_multiplies_in_place_as_candles_own_copy_does() {
    let store = Store::of_gguf("gguf-across");
    let file = store.file("model.gguf");
    let mut tensors = open(&store);
    for name in MATRICES {
        let (borrowed, copied) = (tensors.remove(name).unwrap(), copied(&file, name));
        assert_eq!((borrowed.dtype(), borrowed.shape()), (copied.dtype(), copied.shape()), "{name}");
        let (_, columns) = borrowed.shape().dims2().unwrap();
        let (borrowed, copied) = (example::layer(borrowed), example::layer(copied));
        // One row and several take different kernels, and so does half precision.
        for count in [1, 5] {
            for dtype in [DType::F32, DType::F16] {
                let input = rows(count, columns).to_dtype(dtype).unwrap();
                let (ours, theirs) = (borrowed.forward(&input).unwrap(), copied.forward(&input).unwrap());
                let (ours, theirs) = (values(&ours), values(&theirs));
                assert!(ours.iter().any(|value| *value != 0.0) && ours.iter().all(|value| value.is_finite()), "{name}");
                assert_eq!(ours, theirs, "{name}, {count} rows of {dtype:?}");
            }
        }
    }
}

#[test]
fn a_row_in_half_precision_gives_the_same_but_for_rounding() {
    let store = Store::of_gguf("gguf");
    let mut tensors = open(&store);
    for name in MATRICES.into_iter().filter(|name| *name != "across") {
        let layer = example::layer(tensors.remove(name).unwrap());
        let whole = values(&layer.forward(&rows(3, 512)).unwrap());
        let half = values(&layer.forward(&rows(3, 512).to_dtype(DType::F16).unwrap()).unwrap());
        let most = whole.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        for (whole, half) in whole.into_iter().zip(half) {
            assert!((whole - half).abs() < most / 100.0, "{name}: {half}, not {whole}, of {most} at most");
        }
    }
}

#[test]
fn every_type_reads_as_the_numbers_gguf_reads() {
    let store = Store::of_gguf("gguf");
    let tensors = open(&store);
    let mut compared = 0;
    for (name, numbers) in &tensors {
        let Some(matrix) = name.strip_suffix(".values") else { continue };
        let (ours, theirs) = (tensors[matrix].dequantize(&Device::Cpu).unwrap(), numbers.dequantize(&Device::Cpu).unwrap());
        // Both multiply a scale by a small integer, in one order or the other: a bit of single precision may differ.
        for (ours, theirs) in values(&ours).into_iter().zip(values(&theirs)) {
            assert!((ours - theirs).abs() <= theirs.abs() * 1e-5 + 1e-6, "{matrix}: {ours}, not {theirs}");
        }
        compared += 1;
    }
    assert_eq!(compared, 10);
}

#[test]
fn rows_looked_up_are_the_rows_of_the_matrix() {
    let store = Store::of_gguf("gguf");
    let tensors = open(&store);
    let ids = Tensor::new(&[3_u32, 0, 47, 3], &Device::Cpu).unwrap();
    for name in ["f16", "q4_0", "q6_k"] {
        let rows = tensors[name].dequantize(&Device::Cpu).unwrap().index_select(&ids, 0).unwrap();
        assert_eq!(values(&tensors[name].embedding(&ids).unwrap()), values(&rows), "{name}");
        let beyond = Tensor::new(&[48_u32], &Device::Cpu).unwrap();
        assert!(tensors[name].embedding(&beyond).unwrap_err().to_string().contains("48 is out of range for 48 rows"), "{name}");
    }
}

#[test]
fn tensors_lie_in_the_file_one_of_them_across_the_edge_of_a_chunk() {
    let store = Store::of_gguf("gguf-across");
    let file = store.file("model.gguf");
    let index = GgufIndex::parse(&file).unwrap();
    let tensors = loaders::candle::tensors(&file).unwrap();
    assert_eq!(tensors.len(), index.tensors().len());
    for (name, tensor) in &tensors {
        let Cow::Borrowed(data) = tensor.data().unwrap() else { panic!("{name} was copied") };
        assert!(lies_in(data, &file), "{name}");
        assert_eq!(data.as_ptr_range(), index.bytes(&file, name).unwrap().as_ptr_range(), "{name}");
    }
    let across = index.tensor("across").unwrap().range();
    assert!(across.start < CHUNK_BYTES && CHUNK_BYTES < across.end, "{across:?}");
}

#[test]
fn tensors_keep_a_file_that_is_removed_until_the_last_is_dropped() {
    let store = Store::of_gguf("gguf");
    let mut tensors = open(&store);
    let first = example::layer(tensors.remove("q4_k").unwrap());
    let expected = values(&copied_forward(&store));
    let size = store.file("model.gguf").len() as u64;
    let removed = store.cache.delete_model(REPO).unwrap();
    assert_eq!((removed.busy_bytes, removed.freed_bytes), (size, 0), "{removed:?}");
    drop(tensors);
    assert_eq!(store.cache.stats().unwrap().doomed_bytes, size);
    assert_eq!(values(&first.forward(&rows(1, 512)).unwrap()), expected);
    drop(first);
    let stats = store.cache.stats().unwrap();
    assert_eq!((stats.doomed_bytes, stats.live_bytes), (0, 0), "{stats:?}");
}

fn copied_forward(store: &Store) -> Tensor {
    example::layer(copied(&store.file("model.gguf"), "q4_k")).forward(&rows(1, 512)).unwrap()
}

#[test]
fn a_layer_made_candles_usual_way_gives_the_same_but_for_rounding() {
    let store = Store::of_gguf("gguf");
    let file = store.file("model.gguf");
    for name in ["f32", "f16", "bf16"] {
        let usual = QMatMul::from_qtensor(loaders::candle::tensors(&file).unwrap().remove(name).unwrap()).unwrap();
        let ours = example::layer(loaders::candle::tensors(&file).unwrap().remove(name).unwrap());
        let (usual, ours) = (usual.forward(&rows(2, 512)).unwrap(), ours.forward(&rows(2, 512)).unwrap());
        for (usual, ours) in values(&usual).into_iter().zip(values(&ours)) {
            assert!((usual - ours).abs() < 0.2, "{name}: {ours}, not {usual}");
        }
    }
}

/// A GGUF of version 3 with one tensor "t" of 32 elements, whose data is at the next multiple of `alignment` and of zeros.
fn small_gguf(ggml_type: u32, alignment: u32, bytes: usize) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes(), &1_u64.to_le_bytes(), &1_u64.to_le_bytes()].concat();
    file.extend([string("general.alignment"), 4_u32.to_le_bytes().to_vec(), alignment.to_le_bytes().to_vec()].concat());
    file.extend([string("t"), 1_u32.to_le_bytes().to_vec(), 32_u64.to_le_bytes().to_vec()].concat());
    file.extend([&ggml_type.to_le_bytes()[..], &0_u64.to_le_bytes()].concat());
    file.resize(file.len().next_multiple_of(alignment as usize) + bytes, 0);
    file
}

fn open_bytes(bytes: &[u8]) -> Result<HashMap<String, QTensor>, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    std::fs::write(&path, bytes).unwrap();
    loaders::candle::tensors(&Store::of(&[path]).file("small.gguf"))
}

#[test]
fn what_candle_can_not_take_is_refused_by_name() {
    assert_eq!(open_bytes(&small_gguf(8, 32, 34)).unwrap()["t"].dtype(), GgmlDType::Q8_0);

    let error = open_bytes(&small_gguf(20, 32, 18)).unwrap_err();
    assert_eq!(error.to_string(), "tensor \"t\" is IQ4_NL, which candle does not compute with");

    // The header is of odd length, so that the data is misaligned for all but bytes.
    let file = small_gguf(0, 1, 32 * 4);
    let offset = file.len() - 32 * 4;
    let error = open_bytes(&file).unwrap_err();
    assert!(matches!(error, Error::Misaligned { align_bytes: 4, .. }), "{error}");
    assert_eq!(
        error.to_string(),
        format!("tensor \"t\" begins at byte {offset} of its file, and candle reads F32 at multiples of 4")
    );

    let error = open_bytes(&small_gguf(8, 32, 33)).unwrap_err();
    assert!(matches!(error, Error::File(_)), "{error}");
}
