//! ONNX graphs, as bytes: which tensors have their data beside the graph or lie in it, and the graph with that data told to be elsewhere.
//!
//! A walk over protobuf's wire format and nothing more. What is not known is copied as it stands, so nothing a later version of ONNX
//! adds is lost; a message is written anew only where data within it moved. No I/O, and no copy of tensor data.
//!
//! Formats: [protobuf's encoding](https://protobuf.dev/programming-guides/encoding/),
//! [onnx.proto](https://github.com/onnx/onnx/blob/main/onnx/onnx.proto),
//! [external data](https://github.com/onnx/onnx/blob/main/docs/ExternalData.md).

use crate::{
    error::{Error, Result},
    name::printable,
};
use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
};

/// Deepest nesting of messages that is followed: protobuf's own limit.
const MAX_DEPTH: usize = 100;
/// Most tensors of a graph that are looked at one by one.
const MAX_TENSORS: usize = 1 << 20;
/// Most dimensions of a tensor: as many as NumPy and PyTorch have.
const MAX_DIMS: usize = 64;
/// Largest graph protobuf reads.
const MAX_GRAPH_BYTES: u64 = i32::MAX as u64;
/// Data smaller than this stays in the graph, or is put there: ORT wants shapes inside it, and a page is larger anyway.
pub const INLINE_BELOW_BYTES: u64 = 1024;
/// A weight, to the question whether prepacking pays; smaller tensors do not count.
const WEIGHT_BYTES: u64 = 16 << 10;

/// An element type, by its number in `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DataType(pub i32);

impl DataType {
    /// 32-bit floating point.
    pub const FLOAT: Self = Self(1);
    /// Text; the one type that can't be beside a graph.
    pub const STRING: Self = Self(8);
    /// 64-bit floating point.
    pub const DOUBLE: Self = Self(11);

    /// Bits an element takes in raw data; `None` for text and for types this program does not know.
    pub fn bits(self) -> Option<u64> {
        Some(match self.0 {
            21..=23 => 4,
            25 | 26 => 2,
            2 | 3 | 9 | 17..=20 | 24 => 8,
            4 | 5 | 10 | 16 => 16,
            1 | 6 | 12 => 32,
            7 | 11 | 13 | 14 => 64,
            15 => 128,
            _ => return None,
        })
    }

    /// The alignment its elements have in memory, in bytes.
    pub fn align_bytes(self) -> u64 {
        self.bits().map_or(1, |bits| (bits / 8).clamp(1, 8))
    }

    /// Whether an element is eight bits or more of a type that ordinary arrays have: no text, no complex numbers, nothing packed.
    pub fn has_array_type(self) -> bool {
        matches!(self.0, 1..=7 | 9..=13)
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 27] = [
            "undefined",
            "float32",
            "uint8",
            "int8",
            "uint16",
            "int16",
            "int32",
            "int64",
            "string",
            "bool",
            "float16",
            "float64",
            "uint32",
            "uint64",
            "complex64",
            "complex128",
            "bfloat16",
            "float8e4m3fn",
            "float8e4m3fnuz",
            "float8e5m2",
            "float8e5m2fnuz",
            "uint4",
            "int4",
            "float4e2m1",
            "float8e8m0",
            "uint2",
            "int2",
        ];
        match usize::try_from(self.0).ok().and_then(|number| NAMES.get(number)) {
            Some(name) => f.write_str(name),
            None => write!(f, "type {}", self.0),
        }
    }
}

/// What is to be known of a graph to move its data; made by [`Graph::scan`] of bytes it does not keep.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Its tensors whose data is, or may be, elsewhere, in the order of the file.
    tensors: Vec<Tensor>,
    /// The messages around them and they themselves, an outer one before those within it.
    messages: Vec<Message>,
    prepack: bool,
}

/// A tensor of a graph: an initializer, a constant, or a part of one.
#[derive(Clone, Debug)]
pub struct Tensor {
    name: String,
    data_type: DataType,
    dims: Vec<u64>,
    is_initializer: bool,
    data: Data,
    /// Index of its message.
    message: usize,
    /// Fields that say what its data is, to be cut out when that changes.
    cuts: Vec<Range<usize>>,
}

/// Where a tensor's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// In the graph, as raw data: these bytes of it.
    Raw(Range<u64>),
    /// In the graph, in a form that can't be elsewhere.
    Typed,
    /// In another file.
    External {
        /// The file, as the graph names it, relative to the graph's own folder.
        location: String,
        /// First byte.
        offset: u64,
        /// How many bytes; `None` where the graph leaves it to the shape.
        length: Option<u64>,
    },
}

/// What is to become of a tensor's data.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// It is in a file.
    External {
        /// The file's name.
        location: &'a str,
        /// First byte.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// It is in the graph: this.
    Raw(&'a [u8]),
}

#[derive(Clone, Debug)]
struct Message {
    /// Where its length is written.
    length: Range<usize>,
    body: Range<usize>,
    parent: Option<usize>,
}

impl Tensor {
    /// Its name; a constant's is often empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its element type.
    pub fn data_type(&self) -> DataType {
        self.data_type
    }

    /// Its shape; empty for a scalar.
    pub fn dims(&self) -> &[u64] {
        &self.dims
    }

    /// Whether it is an initializer of the main graph: those have names by which a loader can be given their values, and no two of
    /// them one name.
    pub fn is_initializer(&self) -> bool {
        self.is_initializer
    }

    /// Where its data is.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Bytes its data takes by shape and type; `None` for types this program does not know.
    pub fn size_bytes(&self) -> Option<u64> {
        size_bytes(self.data_type, &self.dims)
    }
}

/// Elements times bits, in whole bytes; `None` also where that is more than a number holds.
fn size_bytes(data_type: DataType, dims: &[u64]) -> Option<u64> {
    let elements = if dims.contains(&0) { 0 } else { dims.iter().try_fold(1_u64, |product, dim| product.checked_mul(*dim))? };
    Some(elements.checked_mul(data_type.bits()?)?.div_ceil(8))
}

impl Graph {
    /// Finds the tensors of `bytes`, an ONNX model.
    ///
    /// Cost: reads each message's fields and skips data; 40 µs for a model of 100 nodes, also where it holds 592 MiB.
    ///
    /// # Errors
    /// [`Error::BadFormat`] for what is no such file, or contradicts itself.
    pub fn scan(bytes: &[u8]) -> Result<Self> {
        let mut graph = Self { tensors: Vec::new(), messages: Vec::new(), prepack: false };
        let mut walk = Walk::new(bytes);
        // Of each initializer's name, whether it is there twice: which of the two ORT takes depends on where their data is and how large
        // it is, so that moving it would give another result.
        let mut names: HashMap<&[u8], bool> = HashMap::new();
        // Of each message being walked: its index, if it has one, and how many tensors there were before it.
        let mut open: Vec<(Option<usize>, usize)> = Vec::new();
        while let Some(event) = walk.next()? {
            match event {
                Event::Enter { kind: Kind::Model, .. } => open.push((None, 0)),
                Event::Enter { length, body, .. } => {
                    let parent = open.last().and_then(|(index, _)| *index);
                    open.push((Some(graph.messages.len()), graph.tensors.len()));
                    graph.messages.push(Message { length, body, parent });
                }
                Event::Tensor { length, body, is_initializer } => {
                    let message = graph.messages.len();
                    if is_initializer {
                        names.entry(name_of(bytes, body.clone())?).and_modify(|twice| *twice = true).or_insert(false);
                    }
                    let Some(tensor) = Tensor::read(bytes, body.clone(), is_initializer, message)? else { continue };
                    if graph.tensors.len() == MAX_TENSORS {
                        return Err(bad(body.start, format!("there are more than {MAX_TENSORS} tensors")));
                    }
                    graph.tensors.push(tensor);
                    let parent = open.last().and_then(|(index, _)| *index);
                    graph.messages.push(Message { length, body, parent });
                }
                // What has no tensor within is not looked at again.
                Event::Leave => {
                    if let Some((Some(index), before)) = open.pop()
                        && before == graph.tensors.len()
                    {
                        graph.messages.truncate(index);
                    }
                }
            }
        }
        let twice = |tensor: &&Tensor| tensor.is_initializer && names.get(tensor.name.as_bytes()) == Some(&true);
        if let Some(tensor) = graph.tensors.iter().find(twice) {
            let reason = format!("two initializers are named \"{}\"; ONNX allows one of a name", printable(&tensor.name));
            return Err(bad(graph.messages[tensor.message].body.start, reason));
        }
        graph.prepack = graph.needs_prepacking(bytes)?;
        Ok(graph)
    }

    /// The tensors whose data is in another file, and those of at least 1 KiB in this one, in the order of the file.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Where in the file a tensor is described.
    pub fn offset_of(&self, tensor: &Tensor) -> u64 {
        self.messages[tensor.message].body.start as u64
    }

    /// Whether ONNX Runtime should lay out the weights anew for speed ("prepacking", its default), which costs a private copy of each.
    ///
    /// False only where every operator fed by a weight of at least 16 KiB is known to do well without: then a loader that maps the weights
    /// shares them. 4-bit and 8-bit models run 2 to 170 times slower without.
    pub fn prepack(&self) -> bool {
        self.prepack
    }

    fn needs_prepacking(&self, bytes: &[u8]) -> Result<bool> {
        let is_weight = |tensor: &&Tensor| tensor.size_bytes().is_none_or(|size_bytes| size_bytes >= WEIGHT_BYTES);
        let weights: Vec<&Tensor> = self.tensors.iter().filter(is_weight).collect();
        if weights.is_empty() {
            return Ok(false);
        }
        // Narrow types have kernels that are made for packed weights.
        if weights.iter().any(|tensor| !matches!(tensor.data_type.0, 1 | 6 | 7 | 9 | 11)) {
            return Ok(true);
        }
        let starts: Vec<usize> = weights.iter().map(|tensor| self.messages[tensor.message].body.start).collect();
        let mut names: HashSet<&[u8]> = weights.iter().map(|tensor| tensor.name.as_bytes()).collect();
        let mut walk = Walk::new(bytes);
        while let Some(event) = walk.next()? {
            let Event::Enter { kind: Kind::Node, body, .. } = event else { continue };
            let node = Node::read(bytes, body.clone())?;
            if node.op == b"Constant" && node.is_standard {
                let first = starts.partition_point(|start| *start < body.start);
                if starts.get(first).is_some_and(|start| body.contains(start)) {
                    node.each(bytes, body, 2, |output| _ = names.insert(output))?;
                }
                continue;
            }
            let mut is_fed = false;
            node.each(bytes, body.clone(), 1, |input| is_fed |= names.contains(input))?;
            if !is_fed {
                continue;
            }
            if node.is_standard && LAYOUT.contains(&node.op) {
                node.each(bytes, body, 2, |output| _ = names.insert(output))?;
            } else if !(node.is_standard && UNPACKED.contains(&node.op)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `bytes`, which [`scan`](Self::scan) was given, with these tensors' data where the changes say; the same bytes without any.
    ///
    /// A tensor is named by its index in [`tensors`](Self::tensors); each at most once, in rising order.
    ///
    /// Cost: one copy of the result.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if the result were more than the 2 GiB protobuf reads.
    ///
    /// # Panics
    /// If `bytes` are not those that were scanned, or an index is none.
    pub fn rewrite(&self, bytes: &[u8], changes: &[(usize, Change<'_>)]) -> Result<Vec<u8>> {
        // What each message gains or loses, an inner one told to the one around it: those come first, so backwards.
        let mut growth: Vec<Option<i64>> = vec![None; self.messages.len()];
        for (index, change) in changes {
            let tensor = &self.tensors[*index];
            let cut: usize = tensor.cuts.iter().map(Range::len).sum();
            growth[tensor.message] = Some(change.size_bytes() as i64 - cut as i64);
        }
        let mut total = 0;
        let mut edits: Vec<(Range<usize>, Piece<'_>)> = Vec::new();
        for (index, message) in self.messages.iter().enumerate().rev() {
            let Some(grown) = growth[index] else { continue };
            let length = message.body.len() as i64 + grown;
            let written = varint_bytes(length as u64) as i64 - message.length.len() as i64;
            match message.parent {
                Some(parent) => *growth[parent].get_or_insert(0) += grown + written,
                None => total += grown + written,
            }
            edits.push((message.length.clone(), Piece::Length(length as u64)));
        }
        let size_bytes = (bytes.len() as i64 + total) as u64;
        if size_bytes > MAX_GRAPH_BYTES && total != 0 {
            let reason =
                format!("with the data that has to be within, it has {size_bytes} bytes; protobuf reads {MAX_GRAPH_BYTES}");
            return Err(bad(0, reason));
        }
        for (index, change) in changes {
            let tensor = &self.tensors[*index];
            edits.extend(tensor.cuts.iter().map(|cut| (cut.clone(), Piece::Nothing)));
            let end = self.messages[tensor.message].body.end;
            edits.push((end..end, Piece::Data(change)));
        }
        edits.sort_by_key(|(range, _)| (range.start, range.end));

        let mut out = Vec::with_capacity(size_bytes as usize);
        let mut at = 0;
        for (range, piece) in edits {
            out.extend_from_slice(&bytes[at..range.start]);
            match piece {
                Piece::Nothing => {}
                Piece::Length(length) => put_varint(&mut out, length),
                Piece::Data(change) => change.put(&mut out),
            }
            at = range.end;
        }
        out.extend_from_slice(&bytes[at..]);
        debug_assert_eq!(out.len() as u64, size_bytes);
        Ok(out)
    }
}

/// Operators whose kernels on a CPU take weights of these types as they are, or lose little by it.
const UNPACKED: [&[u8]; 27] = [
    b"MatMul",
    b"Gemm",
    b"Conv",
    b"Gather",
    b"GatherND",
    b"GatherElements",
    b"Add",
    b"Sub",
    b"Mul",
    b"Div",
    b"Pow",
    b"Min",
    b"Max",
    b"Where",
    b"Equal",
    b"Greater",
    b"Less",
    b"And",
    b"Or",
    b"PRelu",
    b"Range",
    b"Shape",
    b"Size",
    b"BatchNormalization",
    b"LayerNormalization",
    b"InstanceNormalization",
    b"ScatterND",
];
/// Operators that only lay out a weight anew: what they give counts as a weight.
const LAYOUT: [&[u8]; 11] = [
    b"Transpose",
    b"Reshape",
    b"Identity",
    b"Squeeze",
    b"Unsqueeze",
    b"Flatten",
    b"Slice",
    b"Split",
    b"Concat",
    b"Expand",
    b"Tile",
];

/// What of a node matters to the question of prepacking.
struct Node<'a> {
    op: &'a [u8],
    /// Of ONNX's own operators.
    is_standard: bool,
}

impl<'a> Node<'a> {
    fn read(bytes: &'a [u8], body: Range<usize>) -> Result<Self> {
        let mut node = Self { op: b"", is_standard: true };
        let mut fields = Fields::new(bytes, body);
        while let Some(field) = fields.next()? {
            match (field.number, field.value) {
                (4, Value::Bytes { body, .. }) => node.op = &bytes[body],
                (7, Value::Bytes { body, .. }) => node.is_standard = matches!(&bytes[body], b"" | b"ai.onnx"),
                _ => {}
            }
        }
        Ok(node)
    }

    /// Gives each input (field 1) or output (2).
    fn each(&self, bytes: &'a [u8], body: Range<usize>, number: u32, mut take: impl FnMut(&'a [u8])) -> Result<()> {
        let mut fields = Fields::new(bytes, body);
        while let Some(field) = fields.next()? {
            if let (found, Value::Bytes { body, .. }) = (field.number, field.value)
                && found == number
                && !body.is_empty()
            {
                take(&bytes[body]);
            }
        }
        Ok(())
    }
}

impl Tensor {
    /// Reads a `TensorProto`; `None` for one that stays as it is and is too small to matter.
    fn read(bytes: &[u8], body: Range<usize>, is_initializer: bool, message: usize) -> Result<Option<Self>> {
        let start = body.start;
        let mut dims = Vec::new();
        let mut push_dim = |dim| {
            if dims.len() == MAX_DIMS {
                return Err(bad(start, format!("a tensor has more than {MAX_DIMS} dimensions")));
            }
            dims.push(dim);
            Ok(())
        };
        let (mut number, mut name, mut is_external) = (0, &[][..], false);
        let (mut raw, mut raw_fields): (Option<Range<usize>>, Vec<Range<usize>>) = (None, Vec::new());
        let mut packed: Option<(u32, Range<usize>)> = None;
        let mut has_typed = false;
        let (mut entries, mut location_fields) = (Vec::new(), Vec::new());
        let mut fields = Fields::new(bytes, body);
        while let Some(field) = fields.next()? {
            match (field.number, field.value) {
                (1, Value::Varint(dim)) => push_dim(dim)?,
                (1, Value::Bytes { body, .. }) => {
                    let mut at = body.start;
                    while at < body.end {
                        push_dim(varint(bytes, &mut at, body.end)?)?;
                    }
                }
                // Protobuf cuts an enum's or int32's varint to its low 32 bits.
                (2, Value::Varint(value)) => number = value as i32,
                (8, Value::Bytes { body, .. }) => name = &bytes[body],
                (9, Value::Bytes { body, .. }) => {
                    raw = Some(body);
                    raw_fields.push(field.range);
                }
                (4 | 10, Value::Bytes { body, .. }) if packed.is_none() && !has_typed => {
                    packed = Some((field.number, body));
                    has_typed = true;
                    raw_fields.push(field.range);
                }
                (4..=7 | 10 | 11, _) => (has_typed, packed) = (true, None),
                (13, Value::Bytes { body, .. }) => {
                    entries.push(body);
                    location_fields.push(field.range);
                }
                (14, Value::Varint(value)) => {
                    // ORT's protobuf passes over a place that has no name. What it reads as external must be read so here: else its
                    // location would come to ORT unchecked.
                    match value as i32 {
                        0 => is_external = false,
                        1 => is_external = true,
                        _ => {}
                    }
                    location_fields.push(field.range);
                }
                _ => {}
            }
        }
        let data_type = DataType(number);
        let known = |dims: &[u64]| size_bytes(data_type, dims);
        let data = if is_external {
            External::read(bytes, &entries, start)?
        } else {
            // A packed field of floats, in protobuf, is what raw data of them is: little-endian, side by side.
            let raw = match (raw, packed) {
                (Some(raw), _) if !has_typed => Some(raw),
                (None, Some((4, floats))) if data_type == DataType::FLOAT => Some(floats),
                (None, Some((10, doubles))) if data_type == DataType::DOUBLE => Some(doubles),
                _ => None,
            };
            match raw {
                Some(raw) if raw.len() as u64 >= INLINE_BELOW_BYTES && data_type != DataType::STRING => {
                    Data::Raw(raw.start as u64..raw.end as u64)
                }
                _ if known(&dims).is_some_and(|size_bytes| size_bytes >= WEIGHT_BYTES) => Data::Typed,
                _ => return Ok(None),
            }
        };
        let name = match std::str::from_utf8(name) {
            Ok(name) => name.to_owned(),
            Err(_) => return Err(bad(start, "a tensor's name is not UTF-8".to_owned())),
        };
        let called = || format!("tensor \"{}\"", printable(&name));
        if let Some(dim) = dims.iter().find(|dim| **dim > i64::MAX as u64) {
            return Err(bad(start, format!("{} has a dimension of {}", called(), *dim as i64)));
        }
        if data_type == DataType::STRING && is_external {
            return Err(bad(start, format!("{} is of strings, which can't be in another file", called())));
        }
        if data_type.bits().is_some() && known(&dims).is_none() {
            return Err(bad(start, format!("{} of {data_type} {dims:?} has more bytes than can be counted", called())));
        }
        if let Data::Raw(raw) = &data
            && let Some(expected) = known(&dims)
            && expected != raw.end - raw.start
        {
            let found = raw.end - raw.start;
            return Err(bad(start, format!("{} of {data_type} {dims:?} needs {expected} bytes and has {found}", called())));
        }
        let mut cuts = location_fields;
        cuts.extend(raw_fields);
        cuts.sort_by_key(|cut| cut.start);
        Ok(Some(Self { name, data_type, dims, is_initializer, data, message, cuts }))
    }
}

/// The name of the `TensorProto` that is `body`.
fn name_of(bytes: &[u8], body: Range<usize>) -> Result<&[u8]> {
    let mut name = &[][..];
    let mut fields = Fields::new(bytes, body);
    while let Some(field) = fields.next()? {
        if let (8, Value::Bytes { body, .. }) = (field.number, field.value) {
            name = &bytes[body];
        }
    }
    Ok(name)
}

struct External;

impl External {
    /// Reads the entries of `TensorProto.external_data`; what is no location, offset or length is a hint and dropped.
    fn read(bytes: &[u8], entries: &[Range<usize>], tensor: usize) -> Result<Data> {
        let (mut location, mut offset, mut length) = (None, 0, None);
        for entry in entries {
            let (mut key, mut value) = (&[][..], &[][..]);
            let mut fields = Fields::new(bytes, entry.clone());
            while let Some(field) = fields.next()? {
                match (field.number, field.value) {
                    (1, Value::Bytes { body, .. }) => key = &bytes[body],
                    (2, Value::Bytes { body, .. }) => value = &bytes[body],
                    _ => {}
                }
            }
            let text = || match std::str::from_utf8(value) {
                Ok(text) => Ok(text),
                Err(_) => Err(bad(entry.start, "an entry of external data is not UTF-8".to_owned())),
            };
            let number = || {
                let text = text()?;
                let number = text.parse::<u64>();
                number.map_err(|_| bad(entry.start, format!("\"{}\" is no offset or length in a file", printable(text))))
            };
            match key {
                b"location" => location = Some(text()?.to_owned()),
                b"offset" if !value.is_empty() => offset = number()?,
                b"length" if !value.is_empty() => length = Some(number()?),
                _ => {}
            }
        }
        match location {
            Some(location) => Ok(Data::External { location, offset, length }),
            None => Err(bad(tensor, "a tensor's data is in another file, and none is named".to_owned())),
        }
    }
}

// -- writing -------------------------------------------------------------------------------------------------------

/// What stands in place of a piece of the graph.
enum Piece<'a> {
    Nothing,
    Length(u64),
    Data(&'a Change<'a>),
}

/// Field tags of `TensorProto` and of the entries of its external data: number and wire type.
const RAW_DATA: u8 = 9 << 3 | 2;
const EXTERNAL_DATA: u8 = 13 << 3 | 2;
const DATA_LOCATION: u8 = 14 << 3;
const KEY: u8 = 1 << 3 | 2;
const VALUE: u8 = 2 << 3 | 2;

impl Change<'_> {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Raw(data) => 1 + varint_bytes(data.len() as u64) + data.len(),
            Self::External { .. } => {
                let mut out = Vec::new();
                self.put(&mut out);
                out.len()
            }
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        let put_bytes = |out: &mut Vec<u8>, tag: u8, bytes: &[u8]| {
            out.push(tag);
            put_varint(out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        };
        match self {
            Self::Raw(data) => put_bytes(out, RAW_DATA, data),
            Self::External { location, offset, length } => {
                for (key, value) in [("location", *location), ("offset", &offset.to_string()), ("length", &length.to_string())] {
                    let mut entry = Vec::with_capacity(4 + key.len() + value.len());
                    put_bytes(&mut entry, KEY, key.as_bytes());
                    put_bytes(&mut entry, VALUE, value.as_bytes());
                    put_bytes(out, EXTERNAL_DATA, &entry);
                }
                out.extend_from_slice(&[DATA_LOCATION, 1]);
            }
        }
    }
}

fn varint_bytes(value: u64) -> usize {
    (64 - value.leading_zeros()).max(1).div_ceil(7) as usize
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

// -- walking -------------------------------------------------------------------------------------------------------

/// The messages on the way to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
    Sparse,
    Tensor,
}

impl Kind {
    /// What a field of a message of this kind is; `true` where a message has at most one.
    fn child(self, field: u32) -> Option<(Self, bool)> {
        Some(match (self, field) {
            (Self::Model, 7) => (Self::Graph, true),
            (Self::Model, 20) => (Self::Training, false),
            (Self::Model, 25) => (Self::Function, false),
            (Self::Training, 1 | 2) => (Self::Graph, true),
            (Self::Function, 7) => (Self::Node, false),
            (Self::Function, 11) => (Self::Attribute, false),
            (Self::Graph, 1) => (Self::Node, false),
            (Self::Graph, 5) => (Self::Tensor, false),
            (Self::Graph, 15) => (Self::Sparse, false),
            (Self::Node, 5) => (Self::Attribute, false),
            (Self::Attribute, 5) => (Self::Tensor, true),
            (Self::Attribute, 6) => (Self::Graph, true),
            (Self::Attribute, 10) => (Self::Tensor, false),
            (Self::Attribute, 11) => (Self::Graph, false),
            (Self::Attribute, 22) => (Self::Sparse, true),
            (Self::Attribute, 23) => (Self::Sparse, false),
            (Self::Sparse, 1 | 2) => (Self::Tensor, true),
            _ => return None,
        })
    }
}

enum Event {
    Enter { kind: Kind, length: Range<usize>, body: Range<usize> },
    Tensor { length: Range<usize>, body: Range<usize>, is_initializer: bool },
    Leave,
}

/// Goes through a model's messages, outer before inner, without recursion.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    begun: bool,
    /// The messages around `at`: kind, end, and a bit for each field there may be but one of.
    around: Vec<(Kind, usize, u32)>,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, begun: false, around: Vec::new() }
    }

    fn next(&mut self) -> Result<Option<Event>> {
        if !self.begun {
            self.begun = true;
            let end = self.bytes.len();
            self.around.push((Kind::Model, end, 0));
            return Ok(Some(Event::Enter { kind: Kind::Model, length: 0..0, body: 0..end }));
        }
        loop {
            let depth = self.around.len();
            let Some((kind, end, seen)) = self.around.last_mut() else { return Ok(None) };
            let mut fields = Fields { bytes: self.bytes, at: self.at, end: *end };
            let Some(field) = fields.next()? else {
                self.around.pop();
                return Ok(Some(Event::Leave));
            };
            self.at = fields.at;
            let Value::Bytes { length, body } = field.value else { continue };
            let Some((child, is_single)) = kind.child(field.number) else { continue };
            if is_single {
                // Protobuf would make one of the two; nobody writes that, and what is rewritten must be what is read.
                let bit = 1 << field.number;
                if *seen & bit != 0 {
                    let reason = format!("field {} of a {kind:?} is there twice", field.number);
                    return Err(bad(field.range.start, reason));
                }
                *seen |= bit;
            }
            if child == Kind::Tensor {
                let is_initializer = *kind == Kind::Graph && depth == 2 && self.around[0].0 == Kind::Model;
                return Ok(Some(Event::Tensor { length, body, is_initializer }));
            }
            if depth == MAX_DEPTH {
                return Err(bad(field.range.start, format!("messages nest deeper than {MAX_DEPTH}")));
            }
            self.at = body.start;
            self.around.push((child, body.end, 0));
            return Ok(Some(Event::Enter { kind: child, length, body }));
        }
    }
}

/// The fields of one message, in order.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

struct Field {
    number: u32,
    /// All of it, tag included.
    range: Range<usize>,
    value: Value,
}

enum Value {
    Varint(u64),
    /// Eight or four bytes; no such field matters here.
    Fixed,
    Bytes {
        length: Range<usize>,
        body: Range<usize>,
    },
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8], body: Range<usize>) -> Self {
        Self { bytes, at: body.start, end: body.end }
    }

    fn next(&mut self) -> Result<Option<Field>> {
        let start = self.at;
        if start == self.end {
            return Ok(None);
        }
        let tag = varint(self.bytes, &mut self.at, self.end)?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or_else(|| bad(start, format!("{tag:#x} is no field's tag")))?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(self.bytes, &mut self.at, self.end)?),
            1 => self.skip(8, start)?,
            5 => self.skip(4, start)?,
            2 => {
                let at = self.at;
                let bytes = varint(self.bytes, &mut self.at, self.end)?;
                let body = self.at;
                self.skip(bytes, start)?;
                Value::Bytes { length: at..body, body: body..self.at }
            }
            wire => return Err(bad(start, format!("field {number} has wire type {wire}, which ONNX has no use for"))),
        };
        Ok(Some(Field { number, range: start..self.at, value }))
    }

    fn skip(&mut self, bytes: u64, start: usize) -> Result<Value> {
        let left = (self.end - self.at) as u64;
        if bytes > left {
            return Err(bad(start, format!("a field of {bytes} bytes begins where {left} are left of what holds it")));
        }
        self.at += bytes as usize;
        Ok(Value::Fixed)
    }
}

fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Result<u64> {
    let start = *at;
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        if *at == end {
            return Err(bad(start, "it ends within a number".to_owned()));
        }
        let byte = bytes[*at];
        *at += 1;
        // Of the tenth byte only the lowest bit is left to be used; as other readers do, the rest is let go.
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(bad(start, "a number has more than ten bytes".to_owned()))
}

fn bad(offset: usize, reason: String) -> Error {
    Error::BadFormat { format: "ONNX", offset: offset as u64, reason }
}

#[cfg(test)]
mod tests;
