//! The types of ggml: how many elements a block of each has, and how many bytes. Source: `ggml.h` and `ggml-common.h`.

use std::fmt;

macro_rules! ggml_types {
    ($($ggml_type:ident $number:literal: $elements:literal in $bytes:literal;)+) => {
        /// A type of ggml: a number by itself, or a block of quantised ones.
        ///
        /// Those of llama.cpp in November 2026 (`ggml.h`, `ggml-common.h`), but for the ones that were removed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types, missing_docs, reason = "the names of ggml")]
        #[non_exhaustive]
        pub enum GgmlType {
            $($ggml_type = $number,)+
        }

        impl GgmlType {
            /// Every type this program knows.
            pub const ALL: &'static [Self] = &[$(Self::$ggml_type),+];

            /// The type of this number in `ggml.h`.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$ggml_type),)+ _ => None }
            }

            /// As it is written: "F32", "Q4_K".
            pub const fn name(self) -> &'static str {
                match self { $(Self::$ggml_type => stringify!($ggml_type),)+ }
            }

            /// Elements of a block; 1 for types that are not quantised.
            pub const fn block_elements(self) -> u64 {
                match self { $(Self::$ggml_type => $elements,)+ }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> u64 {
                match self { $(Self::$ggml_type => $bytes,)+ }
            }
        }
    };
}

ggml_types! {
    F32 0: 1 in 4;
    F16 1: 1 in 2;
    Q4_0 2: 32 in 18;
    Q4_1 3: 32 in 20;
    Q5_0 6: 32 in 22;
    Q5_1 7: 32 in 24;
    Q8_0 8: 32 in 34;
    Q8_1 9: 32 in 36;
    Q2_K 10: 256 in 84;
    Q3_K 11: 256 in 110;
    Q4_K 12: 256 in 144;
    Q5_K 13: 256 in 176;
    Q6_K 14: 256 in 210;
    Q8_K 15: 256 in 292;
    IQ2_XXS 16: 256 in 66;
    IQ2_XS 17: 256 in 74;
    IQ3_XXS 18: 256 in 98;
    IQ1_S 19: 256 in 50;
    IQ4_NL 20: 32 in 18;
    IQ3_S 21: 256 in 110;
    IQ2_S 22: 256 in 82;
    IQ4_XS 23: 256 in 136;
    I8 24: 1 in 1;
    I16 25: 1 in 2;
    I32 26: 1 in 4;
    I64 27: 1 in 8;
    F64 28: 1 in 8;
    IQ1_M 29: 256 in 56;
    BF16 30: 1 in 2;
    TQ1_0 34: 256 in 54;
    TQ2_0 35: 256 in 66;
    MXFP4 39: 32 in 17;
    NVFP4 40: 64 in 36;
    Q1_0 41: 128 in 18;
    Q2_0 42: 64 in 18;
}

impl GgmlType {
    /// Its number in `ggml.h`, which files carry.
    pub const fn number(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
