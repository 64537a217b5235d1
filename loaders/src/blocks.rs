//! Bytes of a file as candle's blocks, in place. The one file of this package with `unsafe` in it: candle's blocks implement
//! neither bytemuck's nor zerocopy's traits, and its own loader casts as well, after a copy.
#![allow(unsafe_code)]

use candle_core::quantized::k_quants::*;
use half::{bf16, f16};

// GGUF is little-endian, and so are these casts.
const _: () = assert!(cfg!(target_endian = "little"), "a little-endian machine is needed");

/// A type of weights that is nothing but its bytes.
///
/// # Safety
/// Any `size_of::<Self>()` initialised bytes are a valid value: there are only numbers in it, and arrays of numbers, without
/// padding between them. There is nothing to drop, and nothing that can be changed through a shared reference.
pub(crate) unsafe trait Plain: GgmlType + 'static {}

macro_rules! plain {
    ($($weights:ty: $align:literal, $($field:literal)+;)+) => {$(
        // The fields fill it: no padding. A candle that lays a block out in another way does not compile here, and would not
        // read GGUF either.
        const _: () = assert!(size_of::<$weights>() == 0 $(+ $field)+);
        const _: () = assert!(align_of::<$weights>() == $align && !std::mem::needs_drop::<$weights>());
        // SAFETY: a number, or `repr(C)` with fields of f16, f32, u8, i8 and i16 and arrays of them only, whose every bit pattern
        // is a value (candle-core 0.11, quantized/k_quants.rs: the sizes of the fields in their order are those given below); no
        // cells among them.
        unsafe impl Plain for $weights {}
    )+};
}

plain! {
    f32: 4, 4;
    f16: 2, 2;
    bf16: 2, 2;
    BlockQ4_0: 2, 2 16;
    BlockQ4_1: 2, 2 2 16;
    BlockQ5_0: 2, 2 4 16;
    BlockQ5_1: 2, 2 2 4 16;
    BlockQ8_0: 2, 2 32;
    BlockQ2K: 2, 16 64 2 2;
    BlockQ3K: 2, 32 64 12 2;
    BlockQ4K: 2, 2 2 12 128;
    BlockQ5K: 2, 2 2 12 32 128;
    BlockQ6K: 2, 128 64 16 2;
    BlockQ8K: 4, 4 256 32;
}

/// `bytes` as weights, if they begin at a multiple of `T`'s alignment and no byte is left over.
pub(crate) fn cast<T: Plain>(bytes: &[u8]) -> Option<&[T]> {
    // SAFETY: `align_to` needs bytes to be valid as `T`, which `Plain` promises of initialised ones, and these are. The slices
    // it makes borrow `bytes`, are aligned and lie within it, whatever `bytes` is.
    let (before, weights, after) = unsafe { bytes.align_to() };
    (before.is_empty() && after.is_empty()).then_some(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_aligned_or_not_whole_blocks_are_none() {
        let words = [0_u32; 80];
        let bytes = cast_to_bytes(&words);
        assert_eq!(cast::<BlockQ8K>(&bytes[..292]).unwrap().len(), 1);
        assert_eq!(cast::<BlockQ8K>(&bytes[4..296]).unwrap().len(), 1);
        assert!(cast::<BlockQ8K>(&bytes[2..294]).is_none());
        assert!(cast::<BlockQ4_0>(&bytes[1..19]).is_none());
        assert!(cast::<BlockQ4_0>(&bytes[2..20]).is_some());
        for len in [1, 17, 19, 35] {
            assert!(cast::<BlockQ4_0>(&bytes[..len]).is_none(), "{len}");
        }
        assert!(cast::<f32>(&bytes[..0]).unwrap().is_empty());
    }

    fn cast_to_bytes(words: &[u32]) -> &[u8] {
        // SAFETY: the bytes of integers are valid as bytes.
        unsafe { words.align_to().1 }
    }
}
