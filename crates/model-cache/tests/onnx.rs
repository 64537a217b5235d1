//! ONNX models in the store: that a planned graph leads to the bytes the stored one means, wherever they lie, and that what can't be
//! planned says why. Graphs are written by hand here; those of real exporters, and ONNX Runtime itself, are tested from Python.

mod common;

use common::*;
use hub_fixture::{Content, Fault, Hub, Repo, Target};
use std::{fs::File, os::unix::fs::FileExt, path::Path};
use tabagent_model_cache::{
    format::onnx::{Data, Graph},
    *,
};

// -- graphs --------------------------------------------------------------------------------------------------------

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, body: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(body.len() as u64), body.to_vec()].concat()
}

fn tensor(name: &str, data_type: u64, elements: u64) -> Vec<u8> {
    [number(1, elements), number(2, data_type), bytes(8, name.as_bytes())].concat()
}

fn external(name: &str, data_type: u64, elements: u64, entries: &[(&str, &str)]) -> Vec<u8> {
    let entry = |(key, value): &(&str, &str)| bytes(13, &[bytes(1, key.as_bytes()), bytes(2, value.as_bytes())].concat());
    let entries: Vec<u8> = entries.iter().flat_map(entry).collect();
    [tensor(name, data_type, elements), entries, number(14, 1)].concat()
}

/// A model whose main graph has these initializers, and a node with a constant for each of `constants`.
fn model(initializers: &[Vec<u8>], constants: &[Vec<u8>]) -> Vec<u8> {
    let nodes = constants.iter().flat_map(|constant| bytes(1, &bytes(5, &bytes(5, constant))));
    let graph: Vec<u8> = nodes.chain(initializers.iter().flat_map(|tensor| bytes(5, tensor))).collect();
    [number(1, 8), bytes(7, &graph)].concat()
}

const FLOAT: u64 = 1;
const BFLOAT16: u64 = 16;
const GRAPH: &str = "onnx/model.onnx";

/// A cache with a model imported: the graph, and files beside it.
fn imported(dir: &Path, graph: &[u8], files: &[(&str, Content)]) -> ModelCache {
    let source = dir.join("in");
    std::fs::create_dir_all(source.join("onnx/sub")).unwrap();
    std::fs::write(source.join(GRAPH), graph).unwrap();
    for (path, content) in files {
        std::fs::write(source.join(path), content.read(0..content.size_bytes().unwrap()).unwrap()).unwrap();
    }
    let cache = local(&dir.join("store"));
    cache.import(REPO, &[source], &ImportOptions::default()).unwrap();
    cache
}

/// What the planned graph means by each of its tensors, by name: read from the data file, as ORT would, or given with the plan.
fn meant(plan: &OnnxPlan) -> Vec<(String, Vec<u8>)> {
    let graph = Graph::scan(plan.graph()).unwrap();
    let data_file = plan.data_file().map(|path| File::open(path).unwrap());
    let read = |tensor: &format::onnx::Tensor| match tensor.data() {
        _ if plan.injected().iter().any(|injected| injected.name == tensor.name()) => {
            plan.injected().iter().find(|injected| injected.name == tensor.name()).unwrap().bytes().to_vec()
        }
        Data::Raw(range) => plan.graph()[range.start as usize..range.end as usize].to_vec(),
        Data::External { location, offset, length } => {
            assert_eq!(Some(location.as_str()), plan.data_file().unwrap().file_name().unwrap().to_str());
            let mut bytes = vec![0; length.unwrap() as usize];
            data_file.as_ref().unwrap().read_exact_at(&mut bytes, *offset).unwrap();
            bytes
        }
        Data::Typed => panic!("{} can't be read", tensor.name()),
    };
    graph.tensors().iter().map(|tensor| (tensor.name().to_owned(), read(tensor))).collect()
}

// -- what is planned -----------------------------------------------------------------------------------------------

#[test]
fn a_planned_graph_leads_to_the_bytes_the_stored_one_means() {
    const BIG: u64 = 3 * CHUNK_BYTES + 12_344;
    let dir = tempfile::tempdir().unwrap();
    let (big, other, small) = (Content::seeded(1, BIG), Content::seeded(2, 300_000), Content::seeded(3, 20_000));
    let raw: Vec<u8> = Content::seeded(4, 4096).read(0..4096).unwrap().to_vec();
    // Name, type, elements, bytes of an element, file, offset.
    let places = [
        ("aligned", FLOAT, 1 << 20, 4, "big.bin", 64 << 10),
        ("odd", FLOAT, 5000, 4, "./big.bin", 7),
        ("edge", FLOAT, 1000, 4, "big.bin", CHUNK_BYTES - 400),
        ("edge_brain", BFLOAT16, 1000, 2, "big.bin", 2 * CHUNK_BYTES - 400),
        ("two_edges", FLOAT, CHUNK_BYTES / 4 + 128, 4, "big.bin", 2 * CHUNK_BYTES - 256),
        ("last", FLOAT, 1000, 4, "big.bin", BIG - 4000),
        ("below", FLOAT, 1000, 4, "sub/other.bin", 1000),
        ("tiny", FLOAT, 10, 4, "big.bin", 100),
        ("in_small_file", FLOAT, 1000, 4, "small.bin", 0),
    ];
    let mut expected: Vec<(String, Vec<u8>)> = Vec::new();
    let mut initializers = Vec::new();
    for (name, data_type, elements, size, location, offset) in places {
        let length = elements * size;
        let (offset_text, length_text) = (offset.to_string(), length.to_string());
        let mut entries = vec![("location", location), ("checksum", "00")];
        if offset > 0 {
            entries.push(("offset", &offset_text));
        }
        if name != "last" {
            entries.push(("length", &length_text));
        }
        initializers.push(external(name, data_type, elements, &entries));
        let content = match location {
            "sub/other.bin" => &other,
            "small.bin" => &small,
            _ => &big,
        };
        // A scan does not tell of what is too small to be anywhere but in the graph.
        if length >= 1024 {
            expected.push((name.to_owned(), content.read(offset..offset + length).unwrap().to_vec()));
        }
    }
    initializers.push([tensor("raw", FLOAT, 1024), bytes(9, &raw)].concat());
    expected.push(("raw".to_owned(), raw));
    let constant = external("constant", FLOAT, 1000, &[("location", "big.bin"), ("offset", &(CHUNK_BYTES - 2000).to_string())]);
    expected.insert(0, ("constant".to_owned(), big.read(CHUNK_BYTES - 2000..CHUNK_BYTES + 2000).unwrap().to_vec()));
    let graph = model(&initializers, &[constant]);
    let files = [("onnx/big.bin", big), ("onnx/sub/other.bin", other), ("onnx/small.bin", small)];
    let cache = imported(dir.path(), &graph, &files);
    drop(files);

    let opened = cache.onnx(REPO, GRAPH).unwrap();
    assert_eq!(opened.digests().count(), 4);
    assert_eq!(opened.size_bytes(), graph.len() as u64 + BIG + 320_000);
    let plan = |edges, align| opened.plan(&OnnxOptions { edges, align }).unwrap();
    let counts = |plan: &OnnxPlan| {
        let report = plan.report();
        [report.pointed, report.derived, report.injected, report.inlined, report.kept].map(|tally| tally.tensors)
    };
    // Within 64 MiB of edges nothing is made in the store; here there are more, so auto derives.
    for (edges, align, expected_counts) in [
        (Edges::Inject, Some(false), [4, 0, 2, 4, 1]),
        (Edges::Inject, Some(true), [3, 0, 3, 4, 1]),
        (Edges::Auto, Some(false), [4, 4, 0, 2, 1]),
        (Edges::Derive, Some(true), [3, 4, 1, 2, 1]),
    ] {
        let plan = plan(edges, align);
        let (said, copied) = (plan.report().to_string(), &plan.report().copied);
        assert_eq!(counts(&plan), expected_counts, "{edges:?} {align:?}: {said}");
        assert_eq!(copied.iter().any(|(reason, _)| *reason == CopyReason::Edge), edges == Edges::Inject, "{said}");
        assert_eq!(copied.iter().any(|(reason, _)| *reason == CopyReason::Unaligned), align == Some(true), "{said}");
        assert!(meant(&plan) == expected, "{edges:?} {align:?}: {said}");
        assert_eq!(plan.lease().derived().len(), usize::from(edges != Edges::Inject));
    }

    // Removed meanwhile: what is planned stays where it is for as long as the plan's lease.
    let kept = plan(Edges::Auto, Some(false));
    drop(opened);
    cache.delete_model(REPO).unwrap();
    assert!(meant(&kept) == expected);
    assert!(matches!(cache.onnx(REPO, GRAPH), Err(Error::NotInStore { .. })));
    let lease = kept.into_lease();
    assert!(cache.stats().unwrap().doomed_bytes >= BIG);
    drop(lease);
    assert_sound(&cache);
    assert_eq!(cache.stats().unwrap().live_bytes, 0);
}

#[test]
fn raw_data_of_a_single_file_is_mapped_where_it_lies_and_small_files_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let raw = Content::seeded(5, 400_000).read(0..400_000).unwrap().to_vec();
    let graph = model(
        &[[tensor("w", FLOAT, 100_000), bytes(9, &raw)].concat(), [tensor("b", FLOAT, 2), bytes(9, &raw[..8])].concat()],
        &[],
    );
    let cache = imported(dir.path(), &graph, &[]);
    let plan = cache.onnx(REPO, GRAPH).unwrap().plan(&OnnxOptions { align: Some(false), ..OnnxOptions::default() }).unwrap();
    assert!(plan.graph().len() < 200);
    assert!(meant(&plan) == [("w".to_owned(), raw.clone())]);
    // The graph's own file is what is mapped.
    assert_eq!(plan.lease().files().len(), 1);

    let dir = tempfile::tempdir().unwrap();
    let graph = model(&[[tensor("w", FLOAT, 1000), bytes(9, &raw[..4000])].concat()], &[]);
    let cache = imported(dir.path(), &graph, &[]);
    let plan = cache.onnx(REPO, GRAPH).unwrap().plan(&OnnxOptions::default()).unwrap();
    assert!(plan.graph() == graph);
    assert_eq!((plan.data_file(), plan.lease().files().len()), (None, 0));
}

// -- what is refused -----------------------------------------------------------------------------------------------

#[test]
fn a_graph_that_names_what_is_not_beside_it_is_refused_with_the_names() {
    let said = |entries: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        let graph = model(&[external("w", FLOAT, 1000, entries)], &[]);
        let cache =
            imported(dir.path(), &graph, &[("onnx/w.bin", Content::seeded(6, 5000)), ("outside.bin", Content::seeded(6, 5000))]);
        let error = cache.onnx(REPO, GRAPH).unwrap_err();
        (error.kind(), error.to_string())
    };
    for (entries, kind, expected) in [
        (
            &[("location", "../outside.bin")][..],
            ErrorKind::Integrity,
            "\"w\" is said to be in \"../outside.bin\": outside the graph's folder",
        ),
        (&[("location", "sub/../../outside.bin")], ErrorKind::Integrity, "outside the graph's folder"),
        (&[("location", "/etc/passwd")], ErrorKind::Integrity, "\"/etc/passwd\": an absolute path"),
        (&[("location", "a\\b")], ErrorKind::Integrity, "no file's name in a repo"),
        (&[("location", "./")], ErrorKind::Integrity, "no file's name in a repo"),
        (
            &[("location", "w.bin"), ("offset", "1001")],
            ErrorKind::Integrity,
            "in onnx/w.bin has 4000 bytes from 1001, where the file has 5000",
        ),
        (&[("location", "w.bin"), ("offset", "18446744073709551615")], ErrorKind::Integrity, "from 18446744073709551615"),
        (
            &[("location", "w.bin"), ("length", "4004")],
            ErrorKind::Integrity,
            "is float32 [1000], which is 4000 bytes, and has 4004",
        ),
        (
            &[("location", "none.bin")],
            ErrorKind::NotFound,
            "org/model onnx/model.onnx has its weights in onnx/none.bin, which is not in the store",
        ),
    ] {
        let (found, said) = said(entries);
        assert!(found == kind && said.contains(expected) && said.contains(GRAPH), "{found:?} {said}");
    }
}

#[tokio::test]
async fn a_data_file_of_which_a_part_is_here_is_told_with_how_much() {
    let graph = model(&[external("w", FLOAT, 1000, &[("location", "w.bin")])], &[]);
    let hub = Hub::start(vec![Repo::new(REPO).file("model.onnx", graph).file("w.bin", Content::seeded(7, 40 * MIB))]);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    cache.download_file(REPO, "model.onnx", None).await.unwrap();
    let absent = cache.onnx(REPO, "model.onnx").unwrap_err();
    assert!(matches!(&absent, Error::MissingData { landed: None, .. }), "{absent}");
    assert_eq!(absent.hint().unwrap(), "model-cache pull org/model --file w.bin");

    // The file takes seconds, four blocks side by side; stopped with the first ones here.
    let slow = hub.faults().always(Target::path("w.bin").cdn(), Fault::SlowBytesPerSecond(4 * MIB));
    let token = tokio_util::sync::CancellationToken::new();
    let cancel = token.clone();
    let progress: ProgressCallback = std::sync::Arc::new(move |loaded, _| {
        if loaded > 24 * MIB {
            cancel.cancel()
        }
    });
    let pull = cache.pull(REPO).path("w.bin").on_progress(Some(progress)).cancel_token(token);
    assert!(matches!(pull.run().await, Err(Error::Cancelled)));
    let begun = cache.onnx(REPO, "model.onnx").unwrap_err();
    assert!(matches!(&begun, Error::MissingData { landed: Some((1.., 41_943_040)), .. }), "{begun}");
    assert!(begun.to_string().ends_with("of 40.00 MiB are here"), "{begun}");

    hub.faults().remove(slow);
    cache.download_file(REPO, "w.bin", None).await.unwrap();
    assert_eq!(cache.onnx(REPO, "model.onnx").unwrap().plan(&OnnxOptions::default()).unwrap().report().pointed.tensors, 1);
}

#[tokio::test]
async fn data_is_that_of_the_graphs_own_commit() {
    let graph = |elements| model(&[external("w", FLOAT, elements, &[("location", "w.bin")])], &[]);
    let dir = tempfile::tempdir().unwrap();
    // Another commit of the repo has data of the same name that would fit; it is not this graph's.
    let old = Hub::start(vec![Repo::new(REPO).file("model.onnx", graph(1000)).file("w.bin", Content::seeded(8, 200_000))]);
    cache(dir.path(), &old).pull(REPO).all(true).run().await.unwrap();
    let new = Hub::start(vec![Repo::new(REPO).file("model.onnx", graph(2000)).file("w.bin", Content::seeded(9, 200_000))]);
    let cache = cache(dir.path(), &new);
    cache.download_file(REPO, "model.onnx", None).await.unwrap();
    let error = cache.onnx(REPO, "model.onnx").unwrap_err();
    assert!(matches!(error, Error::MissingData { .. }), "{error}");
}
