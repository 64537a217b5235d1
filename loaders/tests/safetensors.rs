//! The crate `safetensors` on the real MiniLM in the store: views into the mapping, and candle's copies of them.

mod common;
#[path = "../examples/safetensors.rs"]
mod example;

use candle_core::DType;
use common::*;
use safetensors::Dtype;

const EMBEDDINGS: &str = "embeddings.word_embeddings.weight";

#[test]
fn views_lie_in_the_file_and_have_the_values_of_the_original() {
    let store = Store::of_minilm(&["model.safetensors"]);
    let file = store.file("model.safetensors");
    let views = example::views(&file).unwrap();
    assert_eq!(views.len(), 104);
    assert!(views.iter().all(|(_, view)| lies_in(view.data(), &file)));
    let embeddings = views.tensor(EMBEDDINGS).unwrap();
    assert_eq!((embeddings.dtype(), embeddings.shape()), (Dtype::F32, &[30522, 384][..]));
    // As long as all of the file but its header.
    assert_eq!(views.iter().map(|(_, view)| view.data().len()).sum::<usize>(), file.len() - 11416);
    let original = std::fs::read(std::path::Path::new(&std::env::var("MODEL_CACHE_MINILM").unwrap()).join("model.safetensors"));
    assert!(*file == original.unwrap()[..]);
}

#[test]
fn candles_tensors_have_the_numbers_of_the_views() {
    let store = Store::of_minilm(&["model.safetensors"]);
    let file = store.file("model.safetensors");
    let views = example::views(&file).unwrap();
    for name in [EMBEDDINGS, "encoder.layer.5.output.dense.weight", "pooler.dense.bias"] {
        let view = views.tensor(name).unwrap();
        let tensor = example::candle_tensor(&file, name).unwrap();
        assert_eq!((tensor.dtype(), tensor.dims()), (DType::F32, view.shape()));
        let numbers = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(numbers.iter().flat_map(|number| number.to_le_bytes()).eq(view.data().iter().copied()), "{name}");
    }
    assert!(example::candle_tensor(&file, "no such").is_err());
}
