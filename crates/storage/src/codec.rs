//! How a record becomes bytes and back: rkyv, then the size of its root and a CRC32C over both.
//!
//! ```text
//! | rkyv archive, root at its end | bytes of the root, u32 little endian | CRC32C of all before, u32 little endian |
//! ```
//! Bytes from disk are never trusted: the CRC tells a damaged page (libmdbx keeps no checksums). An archive does not say what
//! it is an archive of, and many bytes are good for several types: the root's size tells a type with a field more or less,
//! rkyv's checked access tells bytes that are no value of the type. Two types of one size whose bytes are good for both are
//! not told apart. The archive is of the `unaligned` kind, since a value may lie anywhere in a page.

use rkyv::{
    Archive, Deserialize, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator},
    bytecheck::CheckBytes,
    rancor,
    ser::allocator::ArenaHandle,
    util::AlignedVec,
};

const ROOT_BYTES: usize = 4;
const CRC_BYTES: usize = 4;

/// A type that can be a record: anything with rkyv's derives and checked access.
pub trait Record: Sized {
    /// The record as stored bytes.
    #[doc(hidden)]
    fn encode(&self) -> Result<Vec<u8>, String>;
    /// The record in stored bytes, or what is wrong with them.
    #[doc(hidden)]
    fn decode(bytes: &[u8]) -> Result<Self, String>;
}

impl<R> Record for R
where
    R: Archive + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
    R::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>> + Deserialize<R, HighDeserializer<rancor::Error>>,
{
    fn encode(&self) -> Result<Vec<u8>, String> {
        let archive = rkyv::to_bytes::<rancor::Error>(self).map_err(|error| error.to_string())?;
        let mut bytes = Vec::with_capacity(archive.len() + ROOT_BYTES + CRC_BYTES);
        bytes.extend_from_slice(&archive);
        bytes.extend_from_slice(&(size_of::<R::Archived>() as u32).to_le_bytes());
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let short = || format!("it has {} bytes, fewer than its trailer", bytes.len());
        let (checked, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or_else(short)?;
        let (archive, root_bytes) = checked.split_last_chunk::<ROOT_BYTES>().ok_or_else(short)?;
        let (expected, found) = (u32::from_le_bytes(*crc), crc32c::crc32c(checked));
        if expected != found {
            return Err(format!("its CRC32C is {found:08x}, its trailer says {expected:08x}"));
        }
        let (expected, found) = (size_of::<R::Archived>(), u32::from_le_bytes(*root_bytes) as usize);
        if expected != found {
            return Err(format!("it is of another type: its root has {found} bytes, not {expected}"));
        }
        rkyv::from_bytes::<Self, rancor::Error>(archive).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
    struct Sample {
        name: String,
        numbers: Vec<u32>,
        maybe: Option<u64>,
    }

    fn sample() -> impl Strategy<Value = Sample> {
        (".*", prop::collection::vec(any::<u32>(), 0..40), any::<Option<u64>>()).prop_map(|(name, numbers, maybe)| Sample {
            name,
            numbers,
            maybe,
        })
    }

    proptest! {
        #[test]
        fn a_record_reads_back_from_any_alignment(record in sample(), shift in 0usize..8) {
            let mut padded = vec![0; shift];
            padded.extend(record.encode().unwrap());
            prop_assert_eq!(Sample::decode(&padded[shift..]).unwrap(), record);
        }

        #[test]
        fn a_flipped_bit_anywhere_is_noticed(record in sample(), place in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = record.encode().unwrap();
            let at = place.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Sample::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_with_a_right_trailer_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            bytes.extend((size_of::<ArchivedSample>() as u32).to_le_bytes());
            let crc = crc32c::crc32c(&bytes);
            bytes.extend(crc.to_le_bytes());
            let _ = Sample::decode(&bytes);
        }
    }
}
