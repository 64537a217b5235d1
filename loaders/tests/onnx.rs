//! ONNX Runtime, the library of the wheel, on models of the store: the numbers are those of the formula.

mod common;
#[path = "../examples/onnx.rs"]
mod example;

use common::*;
use ort::{environment::Environment, value::TensorRef};
use std::sync::{LazyLock, Mutex};

/// A process has one. Private memory is a process's too, so that these tests take turns.
static ENVIRONMENT: LazyLock<Mutex<Environment>> = LazyLock::new(|| Mutex::new(ort::init().build().unwrap()));

const SIDE: usize = 1024;

/// The model of `models.py`, in double precision: y = (x A) A + b.
fn expected(x: &[f32]) -> Vec<f64> {
    let a = |i: usize, j: usize| ((i * 31 + j * 17) % 64) as f64 / 1024.0 - 32.0 / 1024.0;
    let times_a = |x: &[f64]| (0..SIDE).map(|j| (0..SIDE).map(|i| x[i] * a(i, j)).sum()).collect::<Vec<f64>>();
    let product = times_a(&times_a(&x.iter().copied().map(f64::from).collect::<Vec<_>>()));
    product.iter().enumerate().map(|(j, value)| value + j as f64 / SIDE as f64).collect()
}

fn input() -> Vec<f32> {
    (0..SIDE).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect()
}

macro_rules! assert_right {
    ($session:expr) => {
        let input = input();
        let outputs = $session.run(ort::inputs![TensorRef::from_array_view(([1, SIDE], &*input)).unwrap()]).unwrap();
        let (shape, y) = outputs["y"].try_extract_tensor::<f32>().unwrap();
        assert_eq!(shape[..], [1, SIDE as i64]);
        for (y, expected) in y.iter().zip(expected(&input)) {
            assert!((f64::from(*y) - expected).abs() < 1e-3, "{y}, not {expected}");
        }
    };
}

#[test]
fn a_model_in_either_format_computes_what_its_formula_says() {
    let environment = ENVIRONMENT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let store = Store::of_onnx();
    for path in ["model.onnx", "model.ort"] {
        let mut session = {
            let file = store.file(path);
            example::copied(&environment, &file).unwrap()
        };
        store.cache.delete_file(REPO, path).unwrap();
        assert_right!(session);
    }
    assert_eq!(store.cache.stats().unwrap().live_bytes, 0);
}

#[test]
fn a_session_in_place_computes_the_same_from_a_file_that_was_removed_and_keeps_no_copy() {
    let environment = ENVIRONMENT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let store = Store::of_onnx();
    let file = store.file("model.ort");
    // What the library takes once, whatever it loads. It is kept: what is given back, the next may have without the process growing.
    let first = example::copied(&environment, &file).unwrap();
    let (copies_bytes, copies) = private_growth(|| [(); 4].map(|()| example::copied(&environment, &file).unwrap()));
    let (bytes, mut session) = private_growth(|| example::in_place(&environment, &file).unwrap());
    assert!(bytes < 2 * MIB, "{bytes} bytes of private memory for 4 MiB of weights in place");
    // One of them may have what the loading of another gave back.
    assert!(copies_bytes > 12 * MIB, "{copies_bytes} bytes of private memory for four copies of 4 MiB of weights");
    drop((first, copies));
    assert!(store.cache.delete_model(REPO).unwrap().busy_bytes > 4 * MIB);
    assert_right!(session);
}

#[test]
fn what_is_no_model_is_refused() {
    let environment = ENVIRONMENT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let store = Store::of_minilm(&["vocab.txt"]);
    let file = store.file("vocab.txt");
    let refused: [ort::Result<()>; 2] =
        [example::copied(&environment, &file).map(drop), example::in_place(&environment, &file).map(drop)];
    assert!(refused.iter().all(Result::is_err));
}
