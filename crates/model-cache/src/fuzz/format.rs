//! Files of tensors: what is indexed lies in the file, nothing over another, and the header can be written again from the index.

use super::check_error;
use crate::{
    error::Error,
    format::{
        gguf::{GgufIndex, Split, Value, ValueKind},
        onnx::{Change, Data, Graph},
        safetensors::SafetensorsIndex,
    },
};
use std::{collections::HashSet, ops::Range};

/// A GGUF file. What its index tells is, written again, the header to the byte: nothing is made up and nothing left out.
pub fn gguf(file: &[u8]) {
    let split = Split::of(file);
    let index = match GgufIndex::parse(file) {
        Ok(index) => index,
        Err(error) => return check_error(&error),
    };
    assert_eq!(split.ok(), Some(index.split()));
    check_ranges(file, index.tensors().iter().map(|tensor| (tensor.name(), tensor.range())));
    for tensor in index.tensors() {
        let bytes = index.bytes(file, tensor.name()).expect("it is in the file");
        let (elements, block) = (tensor.shape().iter().product::<u64>(), tensor.ggml_type().block_elements());
        assert_eq!(bytes.len() as u64, elements / block * tensor.ggml_type().block_bytes());
        assert!(tensor.range().start.is_multiple_of(index.alignment().into()));
        check_slice(tensor.slice::<f32>(file), bytes);
        check_slice(tensor.slice::<u16>(file), bytes);
        check_other_file(tensor.bytes(half_of(file)), tensor.range(), half_of(file));
    }

    let mut header = b"GGUF".to_vec();
    header.extend(index.version().to_le_bytes());
    header.extend((index.tensors().len() as u64).to_le_bytes());
    header.extend((index.metadata().len() as u64).to_le_bytes());
    for (key, value) in index.metadata() {
        put_string(&mut header, key.as_bytes());
        header.extend((value.kind() as u32).to_le_bytes());
        put_value(&mut header, value, file);
        // Not by value: there are numbers that are not equal to themselves.
        assert!(index.value(key).is_some_and(|found| std::ptr::eq(found, value)));
    }
    let tensors_bytes: usize = index.tensors().iter().map(|tensor| 24 + tensor.name().len() + 8 * tensor.shape().len()).sum();
    let data = ((header.len() + tensors_bytes) as u64).next_multiple_of(index.alignment().into());
    for tensor in index.tensors() {
        put_string(&mut header, tensor.name().as_bytes());
        header.extend((tensor.shape().len() as u32).to_le_bytes());
        tensor.ne().for_each(|side| header.extend(side.to_le_bytes()));
        header.extend(tensor.ggml_type().number().to_le_bytes());
        header.extend((tensor.range().start - data).to_le_bytes());
    }
    assert!(file.starts_with(&header), "the header reads back as another one");
}

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

fn put_value(out: &mut Vec<u8>, value: &Value, file: &[u8]) {
    match value {
        Value::U8(value) => out.push(*value),
        Value::I8(value) => out.extend(value.to_le_bytes()),
        Value::U16(value) => out.extend(value.to_le_bytes()),
        Value::I16(value) => out.extend(value.to_le_bytes()),
        Value::U32(value) => out.extend(value.to_le_bytes()),
        Value::I32(value) => out.extend(value.to_le_bytes()),
        Value::U64(value) => out.extend(value.to_le_bytes()),
        Value::I64(value) => out.extend(value.to_le_bytes()),
        Value::F32(value) => out.extend(value.to_le_bytes()),
        Value::F64(value) => out.extend(value.to_le_bytes()),
        Value::Bool(value) => out.push((*value).into()),
        Value::String(text) => put_string(out, text.as_bytes()),
        Value::Bytes(text) => {
            assert!(std::str::from_utf8(text).is_err());
            put_string(out, text);
        }
        Value::Array(array) => {
            out.extend((array.kind() as u32).to_le_bytes());
            out.extend(array.len().to_le_bytes());
            let start = out.len();
            let bytes = &file[array.range().start as usize..array.range().end as usize];
            let mut decoded = 0;
            for value in array.values(file).expect("it is in the file") {
                decoded += 1;
                match value {
                    Ok(value) => put_value(out, &value, file),
                    // The truth values of an array are looked at when they are asked for.
                    Err(error) => {
                        assert_eq!(array.kind(), ValueKind::Bool);
                        check_error(&error);
                        out.push(bytes[out.len() - start]);
                    }
                }
            }
            assert_eq!(decoded, array.len());
            assert_eq!(&out[start..], bytes);
            match array.strings(file) {
                Ok(strings) => assert!(array.kind() == ValueKind::String && strings.len() as u64 == array.len()),
                Err(error) => check_error(&error),
            }
            check_other_file(array.values(half_of(file)).map(|_| ()), array.range(), half_of(file));
        }
    }
}

/// A safetensors file. A header written from the index, and the same data behind it, give the same index.
pub fn safetensors(file: &[u8]) {
    let index = match SafetensorsIndex::parse(file) {
        Ok(index) => index,
        Err(error) => return check_error(&error),
    };
    check_ranges(file, index.tensors().iter().map(|tensor| (tensor.name(), tensor.range())));
    let data = index.tensors().first().map_or(file.len() as u64, |tensor| tensor.range().start);
    let mut end = data;
    let mut header = serde_json::Map::new();
    for tensor in index.tensors() {
        assert_eq!(tensor.range().start, end, "every byte of the data is of one tensor");
        end = tensor.range().end;
        let bytes = index.bytes(file, tensor.name()).expect("it is in the file");
        assert_eq!(bytes.len() as u64 * 8, tensor.shape().iter().product::<u64>() * tensor.dtype().bits());
        check_slice(tensor.slice::<f32>(file), bytes);
        check_slice(tensor.slice::<u8>(file), bytes);
        check_other_file(tensor.bytes(half_of(file)), tensor.range(), half_of(file));
        let described = serde_json::json!({
            "dtype": tensor.dtype().name(),
            "shape": tensor.shape(),
            "data_offsets": [tensor.range().start - data, tensor.range().end - data],
        });
        header.insert(tensor.name().to_owned(), described);
    }
    assert_eq!(end, file.len() as u64);
    if index.metadata().len() > 0 {
        let entries: serde_json::Map<_, _> = index.metadata().map(|(key, value)| (key.to_owned(), value.into())).collect();
        assert_eq!(entries.len(), index.metadata().len());
        header.insert("__metadata__".to_owned(), entries.into());
    }
    let header = serde_json::Value::from(header).to_string();
    let written = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &file[data as usize..]].concat();
    let again = SafetensorsIndex::parse(&written).expect("what was written of an index can be read");
    let moved = 8 + header.len() as u64;
    assert_eq!(again.tensors().len(), index.tensors().len());
    for tensor in index.tensors() {
        let found = again.tensor(tensor.name()).expect("every name is written");
        assert_eq!((found.dtype(), found.shape()), (tensor.dtype(), tensor.shape()));
        assert_eq!(
            (found.range().start - moved, found.range().end - moved),
            (tensor.range().start - data, tensor.range().end - data)
        );
    }
    for (key, value) in index.metadata() {
        assert_eq!((index.value(key), again.value(key)), (Some(value), Some(value)));
    }
}

/// An ONNX model: with nothing changed it is the same bytes; moved away, every tensor is told again where it was moved to, and what is
/// not moved stays as it is.
pub fn onnx(bytes: &[u8]) {
    let graph = match Graph::scan(bytes) {
        Ok(graph) => graph,
        Err(error) => return check_error(&error),
    };
    assert!(graph.rewrite(bytes, &[]).expect("it is no larger than it was") == bytes);
    for tensor in graph.tensors() {
        assert!(graph.offset_of(tensor) <= bytes.len() as u64);
        if let Data::Raw(range) = tensor.data() {
            assert!(range.start <= range.end && range.end <= bytes.len() as u64);
            assert!(tensor.size_bytes().is_none_or(|size_bytes| size_bytes == range.end - range.start));
        }
    }
    // Every second, then every one.
    for step in [2, 1] {
        let is_moved = |index: usize| index.is_multiple_of(step);
        let away =
            |index: usize| Change::External { location: "mdbx.dat", offset: index as u64, length: u64::MAX - index as u64 };
        let changes: Vec<_> =
            (0..graph.tensors().len()).filter(|index| is_moved(*index)).map(|index| (index, away(index))).collect();
        let moved = graph.rewrite(bytes, &changes).expect("places are short");
        let again = match Graph::scan(&moved) {
            Ok(again) => again,
            // Strings can't be elsewhere; those that are too large for the graph are found as such, in raw data alone.
            Err(error) => panic!("{error} after {} of {} tensors were moved", changes.len(), graph.tensors().len()),
        };
        assert_eq!(again.tensors().len(), graph.tensors().len());
        for (index, (before, after)) in graph.tensors().iter().zip(again.tensors()).enumerate() {
            assert_eq!((before.name(), before.data_type(), before.dims()), (after.name(), after.data_type(), after.dims()));
            assert_eq!(before.is_initializer(), after.is_initializer());
            match (before.data(), after.data()) {
                (_, Data::External { location, offset, length }) if is_moved(index) => {
                    assert_eq!((location.as_str(), *offset, *length), ("mdbx.dat", index as u64, Some(u64::MAX - index as u64)));
                }
                (Data::Raw(before), Data::Raw(after)) => {
                    let cut = |bytes: &[u8], range: &Range<u64>| bytes[range.start as usize..range.end as usize].to_vec();
                    assert!(cut(bytes, before) == cut(&moved, after));
                }
                (before, after) => assert!(before == after && !is_moved(index)),
            }
        }
    }
}

/// Ranges lie in the file, and none over another; no two have one name.
fn check_ranges<'a>(file: &[u8], tensors: impl Iterator<Item = (&'a str, Range<u64>)>) {
    let mut names = HashSet::new();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (name, range) in tensors {
        assert!(names.insert(name), "{name:?} twice");
        assert!(range.start <= range.end && range.end <= file.len() as u64, "{name:?} at {range:?} of {}", file.len());
        ranges.push(range);
    }
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{:?} and {:?} overlap", pair[0], pair[1]);
    }
}

/// A slice is all of the bytes.
fn check_slice<T>(slice: Result<&[T], Error>, bytes: &[u8]) {
    match slice {
        Ok(slice) => assert_eq!(size_of_val(slice), bytes.len()),
        Err(error) => check_error(&error),
    }
}

fn half_of(file: &[u8]) -> &[u8] {
    &file[..file.len() / 2]
}

/// Of a file that is another one, nothing is read outside it.
fn check_other_file<T>(read: Result<T, Error>, range: Range<u64>, other: &[u8]) {
    assert_eq!(read.is_ok(), range.end <= other.len() as u64);
}
