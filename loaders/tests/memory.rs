//! What loading costs in private memory. One test: memory is the process's.

mod common;
#[path = "../examples/candle_gguf.rs"]
mod gguf;
#[path = "../examples/safetensors.rs"]
mod safetensors_of;

use candle_core::{Device, quantized::gguf_file::Content};
use common::*;

/// Room for what allocators and the store's own tables take; no weights fit into it.
const SLACK: u64 = 8 * MIB;

#[test]
fn weights_in_place_take_no_private_memory_and_copies_take_their_size() {
    let store = Store::of_gguf("gguf-across");
    let file = store.file("model.gguf");
    let size = file.len() as u64;
    let (bytes, tensors) = private_growth(|| {
        let tensors = gguf::open(&store.cache, REPO, "model.gguf").unwrap();
        // Read all of it, as a loader would.
        let sum: u64 =
            tensors.values().map(|tensor| tensor.data().unwrap().iter().map(|&byte| u64::from(byte)).sum::<u64>()).sum();
        assert!(sum > 0);
        tensors
    });
    assert!(bytes < SLACK, "GGUF in place: {bytes} bytes of private memory");
    let (bytes, copies) = private_growth(|| {
        let mut reader = file.reader();
        let content = Content::read(&mut reader).unwrap();
        let names = content.tensor_infos.keys().filter(|name| *name != "q8_k");
        names.map(|name| content.tensor(&mut reader, name, &Device::Cpu).unwrap()).collect::<Vec<_>>()
    });
    assert!(bytes > size - SLACK, "GGUF copied: {bytes} bytes of private memory, of {size}");
    assert_eq!(copies.len(), tensors.len() - 1);

    let store = Store::of_minilm(&["model.safetensors"]);
    let file = store.file("model.safetensors");
    let (bytes, views) = private_growth(|| {
        let views = safetensors_of::views(&file).unwrap();
        let sum: u64 = views.iter().flat_map(|(_, view)| view.data()).map(|&byte| u64::from(byte)).sum();
        assert!(sum > 0);
        views
    });
    assert!(bytes < SLACK, "safetensors in place: {bytes} bytes of private memory");
    let name = "embeddings.word_embeddings.weight";
    let (bytes, tensor) = private_growth(|| safetensors_of::candle_tensor(&file, name).unwrap());
    let size = views.tensor(name).unwrap().data().len() as u64;
    assert!(bytes > size - SLACK && bytes < size + SLACK, "a tensor of candle's: {bytes} bytes of private memory, of {size}");
    drop(tensor);
}
