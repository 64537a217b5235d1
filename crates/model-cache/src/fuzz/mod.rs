//! What must hold of input from outside, whatever it is: a function for each kind of it, for `fuzz/`, and for the test that runs its
//! targets. Each panics where something does not hold.

mod format;
mod listing;
mod names;
mod options;
mod records;

pub use format::{gguf, onnx, safetensors};
pub use listing::listing;
pub use names::names;
pub use options::options;
pub use records::{record_samples, records};
pub use storage::fuzz::extent;

use crate::{error::Error, hub};

/// A body of the Hub: model infos, listings, errors.
pub fn json(input: &[u8]) {
    hub::fuzz::json(input);
}

/// The head of an answer of the Hub, or of where it leads.
pub fn headers(input: &[u8]) {
    hub::fuzz::headers(input);
}

/// Text for people that was made of hostile input: short, and nothing in it that a terminal would obey.
pub(crate) fn check_text(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.chars().count() <= 4096, "{} characters: {text:.200}", text.chars().count());
}

pub(crate) fn check_error(error: &Error) {
    check_text(&error.to_string());
    if let Some(hint) = error.hint() {
        // A command stands on a line of its own.
        hint.lines().for_each(check_text);
    }
}

/// The pieces of an input that stand on lines of their own; what is no UTF-8 in it is replaced.
fn lines(input: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(input).split('\n').map(str::to_owned).collect()
}
