//! candle on a GGUF in place: quantised tensors that borrow the store's mapping.
//!
//! candle's own loader (`gguf_file::Content`) reads each tensor into memory of its own, in two copies. A `QTensor` will take
//! weights from anywhere, though, by the trait `QuantizedType`: here, from a clone of the [`ModelFile`], whose lease then lasts as
//! long as the last tensor.
//!
//! What candle does with a tensor afterwards is candle's: see [`tensors`].

use crate::{
    blocks::{Plain, cast},
    error::{Error, Result},
};
use candle_core::{
    CpuStorage,
    quantized::{GgmlDType, QStorage, QTensor, QuantizedType, k_quants::*},
};
use half::{bf16, f16};
use std::{collections::HashMap, marker::PhantomData, ops::Range};
use tabagent_model_cache::{
    ModelFile,
    format::gguf::{GgmlType, GgufIndex, GgufTensor},
};

/// Every tensor of a GGUF file, by name, without a copy.
///
/// Costs the walk of the header; weights are read from the page cache as they are used. Each tensor keeps the file's lease.
///
/// Two of candle's own ways copy a tensor once it is used, whichever loader it came from:
/// - `QMatMul::from_qtensor` turns F32, F16 and BF16 into F32 at once. `QMatMul::QTensor(Arc::new(tensor))` leaves them where they
///   are, and multiplies F16 in half precision.
/// - On x86-64 and arm64 the first product with some types is made with a copy in another order, which is kept: of candle-core
///   0.11 on x86-64, Q4_K, on machines with VNNI Q8_0, and for more than one row Q6_K, where rows are a multiple of 256 long and
///   a multiple of 16 in number. Rows of F16 are multiplied without, on one thread.
///
/// # Errors
/// [`Error::File`] if it is no GGUF; [`Error::UnknownType`] for a type candle does not have; [`Error::Misaligned`].
pub fn tensors(file: &ModelFile) -> Result<HashMap<String, QTensor>> {
    let index = GgufIndex::parse(file)?;
    index.tensors().iter().map(|described| Ok((described.name().to_owned(), tensor(file, described)?))).collect()
}

/// One tensor of a GGUF file, without a copy. `described` is from the index of this very file.
///
/// # Errors
/// As [`tensors`], and [`Error::File`] for a description of another, longer file.
pub fn tensor(file: &ModelFile, described: &GgufTensor) -> Result<QTensor> {
    let storage: Box<dyn QuantizedType> = match described.ggml_type() {
        GgmlType::F32 => Box::new(Borrowed::<f32>::new(file, described)?),
        GgmlType::F16 => Box::new(Borrowed::<f16>::new(file, described)?),
        GgmlType::BF16 => Box::new(Borrowed::<bf16>::new(file, described)?),
        GgmlType::Q4_0 => Box::new(Borrowed::<BlockQ4_0>::new(file, described)?),
        GgmlType::Q4_1 => Box::new(Borrowed::<BlockQ4_1>::new(file, described)?),
        GgmlType::Q5_0 => Box::new(Borrowed::<BlockQ5_0>::new(file, described)?),
        GgmlType::Q5_1 => Box::new(Borrowed::<BlockQ5_1>::new(file, described)?),
        GgmlType::Q8_0 => Box::new(Borrowed::<BlockQ8_0>::new(file, described)?),
        GgmlType::Q2_K => Box::new(Borrowed::<BlockQ2K>::new(file, described)?),
        GgmlType::Q3_K => Box::new(Borrowed::<BlockQ3K>::new(file, described)?),
        GgmlType::Q4_K => Box::new(Borrowed::<BlockQ4K>::new(file, described)?),
        GgmlType::Q5_K => Box::new(Borrowed::<BlockQ5K>::new(file, described)?),
        GgmlType::Q6_K => Box::new(Borrowed::<BlockQ6K>::new(file, described)?),
        GgmlType::Q8_K => Box::new(Borrowed::<BlockQ8K>::new(file, described)?),
        ggml_type => return Err(Error::UnknownType { tensor: described.name().to_owned(), ggml_type }),
    };
    // In memory, so within usize.
    let shape: Vec<usize> = described.shape().iter().map(|&side| side as usize).collect();
    QTensor::new(QStorage::Cpu(storage), shape)
        .map_err(|source| Error::Candle { tensor: described.name().to_owned(), source: source.into() })
}

/// A range of a file that is weights of type `T`. The file is held, not a reference into it: candle wants `'static`.
struct Borrowed<T> {
    file: ModelFile,
    range: Range<usize>,
    weights: PhantomData<fn() -> T>,
}

impl<T: Plain> Borrowed<T> {
    fn new(file: &ModelFile, described: &GgufTensor) -> Result<Self> {
        let Range { start, end } = described.range();
        if cast::<T>(described.bytes(file)?).is_none() {
            return Err(Error::Misaligned {
                tensor: described.name().to_owned(),
                ggml_type: described.ggml_type(),
                offset: start,
                align_bytes: align_of::<T>(),
            });
        }
        Ok(Self { file: file.clone(), range: start as usize..end as usize, weights: PhantomData })
    }

    fn weights(&self) -> &[T] {
        cast(&self.file[self.range.clone()]).expect("it was cast once, and an open file stays where it is")
    }
}

/// What candle does for a `Vec` of weights, word for word where a word is all there is to it.
impl<T: Plain + Send + Sync> QuantizedType for Borrowed<T> {
    fn dtype(&self) -> GgmlDType {
        T::DTYPE
    }

    fn matmul_t(&self, mkn: (usize, usize, usize), lhs: &[f32], dst: &mut [f32]) -> candle_core::Result<()> {
        matmul(mkn, lhs, self.weights(), dst)
    }

    fn matmul_t_f16(&self, mkn: (usize, usize, usize), lhs: &[f16], dst: &mut [f16]) -> candle_core::Result<()> {
        matmul_f16(mkn, lhs, self.weights(), dst)
    }

    fn embedding(&self, ids: &[u32], rows: usize, hidden: usize) -> candle_core::Result<CpuStorage> {
        let weights = self.weights();
        if !hidden.is_multiple_of(T::BLCK_SIZE) || weights.len() != rows * (hidden / T::BLCK_SIZE) {
            candle_core::bail!("{rows} rows of {hidden} are not in {} blocks of {}", weights.len(), T::BLCK_SIZE);
        }
        let row_blocks = hidden / T::BLCK_SIZE;
        let mut values = vec![0.0; ids.len() * hidden];
        for (&id, values) in ids.iter().zip(values.chunks_exact_mut(hidden)) {
            let row = id as usize;
            if row >= rows {
                candle_core::bail!("embedding id {row} is out of range for {rows} rows");
            }
            T::to_float(&weights[row * row_blocks..(row + 1) * row_blocks], values);
        }
        Ok(CpuStorage::F32(values))
    }

    fn dequantize(&self, elem_count: usize) -> candle_core::Result<CpuStorage> {
        let mut values = vec![0.0; elem_count];
        T::to_float(self.weights(), &mut values);
        Ok(CpuStorage::F32(values))
    }

    fn storage_size_in_bytes(&self) -> usize {
        self.range.len()
    }

    fn size(&self) -> usize {
        self.range.len()
    }

    fn as_ptr(&self) -> *const u8 {
        self.file[self.range.clone()].as_ptr()
    }

    fn block_size(&self) -> usize {
        T::BLCK_SIZE
    }

    fn from_float(&mut self, _: &[f32]) {
        unreachable!("candle quantises into storage it made itself, and a QTensor lends nobody its own to write to");
    }

    fn from_float_imatrix(&mut self, xs: &[f32], _: &[f32], _: usize) {
        self.from_float(xs);
    }
}
