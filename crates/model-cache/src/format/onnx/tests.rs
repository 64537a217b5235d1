//! Graphs made by a small encoder, so that what a rewrite should give can be written by other code than the one under test.

use super::*;
use proptest::{collection::vec, prelude::*};

// -- the encoder ---------------------------------------------------------------------------------------------------

fn number(field: u32, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, u64::from(field) << 3);
    put_varint(&mut out, value);
    out
}

fn bytes(field: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, u64::from(field) << 3 | 2);
    put_varint(&mut out, body.len() as u64);
    out.extend_from_slice(body);
    out
}

fn entry(key: &str, value: &str) -> Vec<u8> {
    bytes(13, &[bytes(1, key.as_bytes()), bytes(2, value.as_bytes())].concat())
}

/// A tensor's fields but for its data.
fn tensor(name: &str, data_type: i32, dims: &[u64]) -> Vec<u8> {
    let mut out: Vec<u8> = dims.iter().flat_map(|dim| number(1, *dim)).collect();
    out.extend(number(2, data_type as u64));
    out.extend(bytes(8, name.as_bytes()));
    out
}

fn raw(name: &str, data_type: i32, dims: &[u64], data: &[u8]) -> Vec<u8> {
    [tensor(name, data_type, dims), bytes(9, data)].concat()
}

fn external(name: &str, data_type: i32, dims: &[u64], entries: &[(&str, &str)]) -> Vec<u8> {
    let entries: Vec<u8> = entries.iter().flat_map(|(key, value)| entry(key, value)).collect();
    [tensor(name, data_type, dims), entries, number(14, 1)].concat()
}

fn node(op: &str, domain: &str, inputs: &[&str], outputs: &[&str]) -> Vec<u8> {
    let mut out: Vec<u8> = inputs.iter().flat_map(|name| bytes(1, name.as_bytes())).collect();
    out.extend(outputs.iter().flat_map(|name| bytes(2, name.as_bytes())));
    out.extend(bytes(4, op.as_bytes()));
    out.extend(bytes(7, domain.as_bytes()));
    out
}

fn model(graph: &[Vec<u8>]) -> Vec<u8> {
    [number(1, 8), bytes(7, &graph.concat())].concat()
}

// -- graphs at random ----------------------------------------------------------------------------------------------

/// A part of a message: as it is, a message, or a tensor whose data may be elsewhere.
#[derive(Clone, Debug)]
enum Part {
    Plain(Vec<u8>),
    Message(u32, Vec<Part>),
    Tensor { field: u32, before: Vec<u8>, data: Vec<u8>, after: Vec<u8>, moves: Option<Moved> },
}

#[derive(Clone, Debug)]
enum Moved {
    Raw(Vec<u8>),
    External(String, u64, u64),
}

impl Part {
    /// Writes it as it is, or with what moves moved.
    fn encode(&self, moved: bool, out: &mut Vec<u8>) {
        match self {
            Self::Plain(plain) => out.extend_from_slice(plain),
            Self::Message(field, parts) => {
                let mut body = Vec::new();
                parts.iter().for_each(|part| part.encode(moved, &mut body));
                out.extend(bytes(*field, &body));
            }
            Self::Tensor { field, before, data, after, moves } => {
                let data = match moves {
                    Some(_) if moved => &[][..],
                    _ => data,
                };
                let mut body = [before, data, after].concat();
                if let (Some(moves), true) = (moves, moved) {
                    match moves {
                        Moved::Raw(raw) => body.extend(bytes(9, raw)),
                        Moved::External(location, offset, length) => {
                            body.extend(entry("location", location));
                            body.extend(entry("offset", &offset.to_string()));
                            body.extend(entry("length", &length.to_string()));
                            body.extend(number(14, 1));
                        }
                    }
                }
                out.extend(bytes(*field, &body));
            }
        }
    }

    /// What moves, in the order of the file; an entry for each tensor.
    fn moves<'a>(&'a self, out: &mut Vec<Option<&'a Moved>>) {
        match self {
            Self::Plain(_) => {}
            Self::Message(_, parts) => parts.iter().for_each(|part| part.moves(out)),
            Self::Tensor { moves, .. } => out.push(moves.as_ref()),
        }
    }
}

/// A field no version of ONNX has: of each wire type, and lengths of one byte and of two.
fn unknown() -> impl Strategy<Value = Part> {
    let field = 900..1000_u32;
    prop_oneof![
        (field.clone(), any::<u64>()).prop_map(|(field, value)| number(field, value)),
        (field.clone(), vec(any::<u8>(), 0..200)).prop_map(|(field, body)| bytes(field, &body)),
        (field.clone(), any::<[u8; 8]>()).prop_map(|(field, body)| fixed(field, 1, &body)),
        (field, any::<[u8; 4]>()).prop_map(|(field, body)| fixed(field, 5, &body)),
    ]
    .prop_map(Part::Plain)
}

fn fixed(field: u32, wire: u64, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, u64::from(field) << 3 | wire);
    out.extend_from_slice(body);
    out
}

fn any_tensor(field: u32) -> impl Strategy<Value = Part> {
    let elements = INLINE_BELOW_BYTES / 4..INLINE_BELOW_BYTES;
    let moved = prop_oneof![
        vec(any::<u8>(), 0..300).prop_map(Moved::Raw),
        ("[a-z.]{1,12}", any::<u64>(), any::<u64>()).prop_map(|(name, offset, length)| Moved::External(name, offset, length)),
    ];
    // No two of one name, which a graph may not have.
    (elements, "[a-z]{12}", unknown(), any::<bool>(), prop::option::of(moved)).prop_map(
        move |(elements, name, unknown, is_raw, moves)| {
            let data = match is_raw {
                true => bytes(9, &vec![7; elements as usize * 4]),
                false => [entry("location", "w"), entry("checksum", "00"), number(14, 1)].concat(),
            };
            let Part::Plain(after) = unknown else { unreachable!("an unknown field is plain") };
            Part::Tensor { field, before: tensor(&name, 1, &[elements]), data, after, moves }
        },
    )
}

fn any_sparse(field: u32) -> impl Strategy<Value = Part> {
    (any_tensor(1), any_tensor(2), unknown())
        .prop_map(move |(values, indices, unknown)| Part::Message(field, vec![values, unknown, indices]))
}

/// The parts of a graph, with graphs in it so deep.
fn any_graph(depth: u32) -> BoxedStrategy<Vec<Part>> {
    let inner = match depth {
        0 => unknown().boxed(),
        _ => any_graph(depth - 1).prop_map(|graph| Part::Message(6, graph)).boxed(),
    };
    let attribute = (inner, vec(any_tensor(10), 0..2), prop::option::of(any_tensor(5)), any_sparse(22)).prop_map(
        |(inner, tensors, tensor, sparse)| Part::Message(5, tensors.into_iter().chain(tensor).chain([inner, sparse]).collect()),
    );
    let node = (unknown(), vec(attribute, 0..2))
        .prop_map(|(name, attributes)| Part::Message(1, std::iter::once(name).chain(attributes).collect()));
    vec(prop_oneof![node, any_tensor(5), any_sparse(15), unknown()], 0..4).boxed()
}

fn any_model() -> impl Strategy<Value = Vec<Part>> {
    (unknown(), any_graph(2), any_graph(1), vec(any_tensor(5), 0..2)).prop_map(|(first, graph, training, constants)| {
        let attributes = constants.into_iter().map(|tensor| Part::Message(5, vec![tensor]));
        let function = Part::Message(7, attributes.collect());
        vec![
            first,
            Part::Message(7, graph),
            Part::Message(20, vec![Part::Message(2, training)]),
            Part::Message(25, vec![function]),
        ]
    })
}

fn encode(parts: &[Part], moved: bool) -> Vec<u8> {
    let mut out = Vec::new();
    parts.iter().for_each(|part| part.encode(moved, &mut out));
    out
}

fn changes(parts: &[Part]) -> Vec<(usize, Change<'_>)> {
    let mut moves = Vec::new();
    parts.iter().for_each(|part| part.moves(&mut moves));
    moves
        .into_iter()
        .enumerate()
        .filter_map(|(index, moved)| match moved? {
            Moved::Raw(raw) => Some((index, Change::Raw(raw))),
            Moved::External(location, offset, length) => {
                Some((index, Change::External { location, offset: *offset, length: *length }))
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_graph_nothing_is_changed_in_is_the_same_bytes(parts in any_model()) {
        let bytes = encode(&parts, false);
        let graph = Graph::scan(&bytes).unwrap();
        prop_assert!(graph.rewrite(&bytes, &[]).unwrap() == bytes);
    }

    #[test]
    fn a_rewritten_graph_is_what_an_encoder_writes_of_the_changed_one(parts in any_model()) {
        let bytes = encode(&parts, false);
        let graph = Graph::scan(&bytes).unwrap();
        let changes = changes(&parts);
        prop_assert!(graph.rewrite(&bytes, &changes).unwrap() == encode(&parts, true));
    }

    #[test]
    fn what_is_external_is_told_as_it_was_written(location in "[^\0]{1,40}", offset in any::<u64>(), length in any::<u64>()) {
        let (offset_text, length_text) = (offset.to_string(), length.to_string());
        let entries = [("location", location.as_str()), ("offset", &offset_text), ("length", &length_text)];
        let bytes = model(&[bytes(5, &external("w", 1, &[4], &entries))]);
        let graph = Graph::scan(&bytes).unwrap();
        let told = Data::External { location, offset, length: Some(length) };
        prop_assert_eq!(graph.tensors()[0].data(), &told);
        // And so is what a rewrite writes.
        let change = Change::External { location: "other", offset: length, length: offset };
        let bytes = graph.rewrite(&bytes, &[(0, change)]).unwrap();
        let again = Graph::scan(&bytes).unwrap();
        let told = Data::External { location: "other".to_owned(), offset: length, length: Some(offset) };
        prop_assert_eq!(again.tensors()[0].data(), &told);
    }

    #[test]
    fn no_mutation_of_a_graph_makes_the_walk_panic_or_leave_the_file(
        parts in any_model(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode(&parts, false);
        for (place, byte) in flips {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
            let Ok(graph) = Graph::scan(bytes) else { continue };
            prop_assert!(graph.rewrite(bytes, &[]).unwrap() == bytes);
            for tensor in graph.tensors() {
                if let Data::Raw(range) = tensor.data() {
                    prop_assert!(range.start <= range.end && range.end <= bytes.len() as u64);
                }
            }
            // What was read is what is written anew: moved and moved back, each tensor is told again.
            let away = Change::External { location: "mdbx.dat", offset: 1, length: 2 };
            let all: Vec<_> = (0..graph.tensors().len()).map(|index| (index, away)).collect();
            let moved = graph.rewrite(bytes, &all).unwrap();
            let again = Graph::scan(&moved);
            prop_assert!(again.is_ok_and(|again| again.tensors().len() == graph.tensors().len()));
        }
    }

    #[test]
    fn a_varint_takes_as_many_bytes_as_it_is_said_to(value in any::<u64>(), shift in 0..64_u32) {
        let mut out = Vec::new();
        put_varint(&mut out, value >> shift);
        prop_assert_eq!(out.len(), varint_bytes(value >> shift));
        prop_assert_eq!(varint(&out, &mut 0, out.len()).unwrap(), value >> shift);
    }
}

// -- what is found -------------------------------------------------------------------------------------------------

#[test]
fn bits_of_narrow_types_are_counted_in_whole_bytes() {
    for (data_type, dims, size_bytes) in [
        (1, &[2, 3][..], Some(24)),
        (22, &[3, 5], Some(8)),
        (25, &[5], Some(2)),
        (16, &[7], Some(14)),
        (9, &[7], Some(7)),
        (15, &[2], Some(32)),
        (1, &[], Some(4)),
        (1, &[0, u64::MAX, u64::MAX], Some(0)),
        (1, &[u64::MAX, 2], None),
        (1, &[1 << 61], None),
        (8, &[1], None),
        (99, &[1], None),
    ] {
        assert_eq!(super::size_bytes(DataType(data_type), dims), size_bytes, "{data_type} {dims:?}");
    }
}

#[test]
fn packed_floats_are_raw_data_and_mixed_ones_are_not() {
    let floats = vec![0; 2048];
    let dims = [512];
    let found = |body: Vec<u8>| {
        let bytes = model(&[bytes(5, &body)]);
        let graph = Graph::scan(&bytes).unwrap();
        graph.tensors().first().map(|tensor| tensor.data().clone())
    };
    assert!(
        matches!(found([tensor("w", 1, &dims), bytes(4, &floats)].concat()), Some(Data::Raw(range)) if range.end - range.start == 2048)
    );
    assert!(matches!(found([tensor("w", 11, &[256]), bytes(10, &floats)].concat()), Some(Data::Raw(_))));
    // Floats of another type, in two fields, beside raw data, or one by one: left to whoever reads them.
    assert_eq!(found([tensor("w", 10, &dims), bytes(4, &floats)].concat()), None);
    assert_eq!(found([tensor("w", 1, &dims), bytes(4, &floats[..1024]), bytes(4, &floats[..1024])].concat()), None);
    assert_eq!(found([tensor("w", 1, &dims), bytes(9, &floats), bytes(4, &floats)].concat()), None);
    let one_by_one: Vec<u8> = (0..512).flat_map(|_| fixed(4, 5, &[0; 4])).collect();
    assert_eq!(found([tensor("w", 1, &dims), one_by_one].concat()), None);
}

#[test]
fn only_initializers_of_the_main_graph_have_names_to_give_values_by() {
    let weight = raw("w", 1, &[256], &[0; 1024]);
    let inner = bytes(6, &bytes(5, &weight));
    let constant = bytes(5, &weight);
    let graph = [bytes(1, &[bytes(5, &inner), bytes(5, &constant)].concat()), bytes(15, &bytes(1, &weight)), bytes(5, &weight)];
    let bytes = [model(&graph), bytes(20, &bytes(1, &bytes(5, &weight)))].concat();
    let graph = Graph::scan(&bytes).unwrap();
    let initializers: Vec<bool> = graph.tensors().iter().map(Tensor::is_initializer).collect();
    assert_eq!(initializers, [false, false, false, true, false]);
}

#[test]
fn where_data_is_said_to_be_is_read_as_protobuf_reads_it() {
    let of = |places: &[u64]| {
        let entries = entry("location", "../../secret");
        let places: Vec<u8> = places.iter().flat_map(|place| number(14, *place)).collect();
        let bytes = model(&[bytes(5, &[tensor("w", 1, &[1]), entries, places].concat())]);
        Graph::scan(&bytes).unwrap().tensors().iter().any(|tensor| matches!(tensor.data(), Data::External { .. }))
    };
    // The last one counts; of its bits the low 32; and a place ONNX has no name for is passed over.
    for (places, is_external) in [
        (&[][..], false),
        (&[1], true),
        (&[0, 1], true),
        (&[1, 0], false),
        (&[1 << 32 | 1], true),
        (&[1 << 32], false),
        (&[1, 2], true),
        (&[2], false),
        (&[1, u64::MAX], true),
    ] {
        assert_eq!(of(places), is_external, "{places:?}");
    }
}

// -- what is refused -----------------------------------------------------------------------------------------------

fn refusal(bytes: &[u8]) -> String {
    match Graph::scan(bytes) {
        Err(error @ Error::BadFormat { format: "ONNX", .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn graphs_that_contradict_themselves_are_refused_with_the_numbers() {
    let of = |body: Vec<u8>| refusal(&model(&[bytes(5, &body)]));
    for (said, expected) in [
        (of(raw("w", 1, &[1000], &[0; 2048])), "\"w\" of float32 [1000] needs 4000 bytes and has 2048"),
        (of(raw("w", 22, &[4095], &[0; 2047])), "needs 2048 bytes and has 2047"),
        (of(raw("w", 1, &[u64::MAX], &[0; 2048])), "a dimension of -1"),
        (of(raw("w", 1, &[1 << 40, 1 << 40], &[0; 2048])), "more bytes than can be counted"),
        (of(external("w", 1, &[1], &[])), "none is named"),
        (of(external("w", 1, &[1], &[("location", "x"), ("offset", "-1")])), "\"-1\" is no offset or length"),
        (of(external("w", 1, &[1], &[("location", "x"), ("length", "99999999999999999999")])), "\"99999999999999999999\""),
        (of(external("w", 8, &[1], &[("location", "x")])), "of strings"),
        (of([bytes(13, &[0x0a, 9]), number(14, 1)].concat()), "a field of 9 bytes begins where 0 are left"),
        (refusal(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f]), "a field of 4294967295 bytes begins where 0 are left"),
        (refusal(&[0x3a]), "it ends within a number"),
        (refusal(&[0xff; 11]), "a number has more than ten bytes"),
        (refusal(&[0x00]), "is no field's tag"),
        (refusal(&[0x0b]), "field 1 has wire type 3"),
        (refusal(&[model(&[]), model(&[])].concat()), "field 7 of a Model is there twice"),
    ] {
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn two_initializers_of_one_name_are_refused_if_the_data_of_either_could_move() {
    let weight = |name: &str| bytes(5, &raw(name, 1, &[256], &[0; 1024]));
    let small = |name: &str| bytes(5, &tensor(name, 1, &[0]));
    for graph in
        [[weight("a"), weight("b"), weight("a")], [weight("a"), weight("b"), small("b")], [small("b"), weight("b"), vec![]]]
    {
        let said = refusal(&model(&graph));
        assert!(said.contains("two initializers are named \"") && said.contains("ONNX allows one"), "{said}");
    }
    // Nothing of these is moved. Another graph's names are its own, and a constant's is not among them.
    let inner = bytes(1, &bytes(5, &[bytes(6, &weight("a")), bytes(5, &raw("a", 1, &[256], &[0; 1024]))].concat()));
    let source = model(&[small("c"), small("c"), weight("a"), inner]);
    assert_eq!(Graph::scan(&source).unwrap().tensors().len(), 3);
}

#[test]
fn a_tensor_of_a_million_dimensions_is_refused_in_a_line() {
    let dims = vec![1; 1 << 20];
    let packed = |name: &str| [bytes(1, &dims), number(2, 1), bytes(8, name.as_bytes())].concat();
    for body in
        [[packed("w"), bytes(9, &[0; 2048])].concat(), [packed("w"), entry("location", "x"), number(14, 1)].concat(), packed("w")]
    {
        let said = refusal(&model(&[bytes(5, &body)]));
        assert!(said.contains("dimensions") && said.len() < 200, "{said:.200}");
    }
}

#[test]
fn a_graph_within_a_graph_is_followed_as_deep_as_protobuf_does_and_no_deeper() {
    let nested = |depth: usize| {
        let mut graph = bytes(5, &raw("w", 1, &[256], &[0; 1024]));
        for _ in 0..depth {
            graph = bytes(1, &bytes(5, &bytes(6, &graph)));
        }
        model(&[graph])
    };
    assert_eq!(Graph::scan(&nested(32)).unwrap().tensors().len(), 1);
    assert!(refusal(&nested(33)).contains("nest deeper than 100"));
    assert!(refusal(&nested(20_000)).contains("nest deeper than 100"));
}

#[test]
fn a_graph_that_would_outgrow_protobuf_is_refused_before_it_is_written() {
    let source = model(&[
        bytes(5, &external("w", 1, &[1], &[("location", "x")])),
        bytes(5, &external("v", 1, &[1], &[("location", "x")])),
    ]);
    let graph = Graph::scan(&source).unwrap();
    // Zeros nobody touches: no memory is taken for them.
    let half = vec![0_u8; 1 << 30];
    let error = graph.rewrite(&source, &[(0, Change::Raw(&half)), (1, Change::Raw(&half))]).unwrap_err();
    assert!(error.to_string().contains("protobuf reads 2147483647"), "{error}");
}

// -- prepacking ----------------------------------------------------------------------------------------------------

#[test]
fn prepacking_is_left_off_only_where_every_weight_is_used_by_an_operator_known_to_do_without() {
    const WEIGHT: u64 = WEIGHT_BYTES / 4;
    let of = |nodes: &[Vec<u8>], data_type: i32, elements: u64| {
        let length = super::size_bytes(DataType(data_type), &[elements]).unwrap();
        let weight = external("w", data_type, &[elements], &[("location", "x"), ("length", &length.to_string())]);
        let mut graph: Vec<Vec<u8>> = nodes.iter().map(|node| bytes(1, node)).collect();
        graph.push(bytes(5, &weight));
        Graph::scan(&model(&graph)).unwrap().prepack()
    };
    let matmul = node("MatMul", "", &["x", "w"], &["y"]);
    assert!(!of(std::slice::from_ref(&matmul), 1, WEIGHT));
    assert!(!of(&[node("MatMul", "ai.onnx", &["x", "w"], &["y"])], 1, WEIGHT));
    // Half precision, bytes, and operators of others.
    assert!(of(std::slice::from_ref(&matmul), 10, WEIGHT * 2));
    assert!(of(&[node("MatMulNBits", "com.microsoft", &["x", "w"], &["y"])], 2, WEIGHT * 4));
    assert!(of(&[node("MatMul", "elsewhere", &["x", "w"], &["y"])], 1, WEIGHT));
    assert!(of(&[matmul.clone(), node("LSTM", "", &["x", "w"], &["z"])], 1, WEIGHT));
    // Through operators that only lay it out anew.
    let turned = node("Transpose", "", &["w"], &["t"]);
    assert!(!of(&[turned.clone(), node("MatMul", "", &["x", "t"], &["y"])], 1, WEIGHT));
    assert!(of(&[turned, node("LSTM", "", &["x", "t"], &["y"])], 1, WEIGHT));
    // What is not fed by a weight does not count, nor does a small one.
    assert!(!of(&[matmul, node("LSTM", "", &["x", "v"], &["z"])], 1, WEIGHT));
    assert!(!of(&[node("LSTM", "", &["x", "w"], &["z"])], 1, WEIGHT - 1));
    // A weight that is a constant.
    let constant =
        [node("Constant", "", &[], &["c"]), bytes(5, &bytes(5, &raw("", 1, &[WEIGHT], &vec![0; WEIGHT_BYTES as usize])))]
            .concat();
    let graph = |op| [bytes(1, &constant), bytes(1, &node(op, "", &["x", "c"], &["y"]))];
    assert!(!Graph::scan(&model(&graph("MatMul"))).unwrap().prepack());
    assert!(Graph::scan(&model(&graph("LSTM"))).unwrap().prepack());
}
