//! What can go wrong between a file and the loader it is given to.

use tabagent_model_cache::format::gguf::GgmlType;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a tensor can't be given to candle in place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is no GGUF that can be used, or has no such tensor.
    #[error(transparent)]
    File(#[from] tabagent_model_cache::Error),
    /// candle has no kernels for its type.
    #[error("tensor \"{tensor}\" is {ggml_type}, which candle does not compute with")]
    UnknownType {
        /// Its name.
        tensor: String,
        /// Its type.
        ggml_type: GgmlType,
    },
    /// candle reads its type at another alignment. Takes a file with a `general.alignment` below 4.
    #[error(
        "tensor \"{tensor}\" begins at byte {offset} of its file, and candle reads {ggml_type} at multiples of {align_bytes}"
    )]
    Misaligned {
        /// Its name.
        tensor: String,
        /// Its type.
        ggml_type: GgmlType,
        /// Where it begins.
        offset: u64,
        /// What that would have to be a multiple of.
        align_bytes: usize,
    },
    /// candle would have none of it.
    #[error("candle refuses tensor \"{tensor}\"")]
    Candle {
        /// Its name.
        tensor: String,
        /// Why.
        source: Box<candle_core::Error>,
    },
}
