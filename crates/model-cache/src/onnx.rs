//! ONNX models for ONNX Runtime without a copy: [`OnnxModel`], a graph and its data files in the store, and [`OnnxPlan`], the same graph
//! with its weights told to be where they lie in the store's data file, which ORT then maps by itself.
//!
//! What moves where is decided here, tensor by tensor; the graph's bytes are [`format::onnx`](crate::format::onnx)'s.

use crate::{
    cache::ModelCache,
    error::{Error, Result},
    file::ModelFile,
    format::onnx::{Change, Data, DataType, Graph, INLINE_BELOW_BYTES, Tensor},
    gather::Gathered,
    key::PinnedRepo,
    name::{FilePath, RepoSpec, printable},
    placement::Placement,
    units::iec,
};
use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};

/// How much of a model may cross edges of chunks and be given to each session as a private copy, where nothing else was asked for.
const INJECT_UP_TO_BYTES: u64 = 64 << 20;

/// How an ONNX model is to be given to ONNX Runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnnxOptions {
    /// Whether a tensor is copied that does not begin at a multiple of its element's size, as raw data in a single file seldom does.
    ///
    /// Default: not on x86-64, where ORT's results were found to be the same, and everywhere else.
    pub align: Option<bool>,
    /// What is done with tensors that cross an edge of a chunk. Default: [`Edges::Auto`].
    pub edges: Edges,
}

/// What is done with tensors that cross an edge of a chunk, and so lie in two places of the data file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Edges {
    /// [`Inject`](Self::Inject) up to 64 MiB of them, [`Derive`](Self::Derive) above.
    #[default]
    Auto,
    /// Each session gets a copy of its own.
    Inject,
    /// They are kept once more in the store, in one piece, for all sessions of all processes.
    Derive,
}

impl FromStr for Edges {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "inject" => Ok(Self::Inject),
            "derive" => Ok(Self::Derive),
            other => Err(Error::InvalidOption {
                name: "edges",
                value: printable(other),
                reason: "it is \"auto\", \"inject\" or \"derive\"".to_owned(),
            }),
        }
    }
}

/// An ONNX model of the store: its graph, and the files its tensors are in, all of one commit.
///
/// Got from [`ModelCache::onnx`]. Keeps a lease on each of the files.
#[derive(Clone, Debug)]
pub struct OnnxModel {
    cache: ModelCache,
    /// For messages: `org/name path`.
    name: String,
    graph: Graph,
    file: ModelFile,
    data: Vec<(FilePath, ModelFile)>,
    /// Where each of the graph's tensors lies; `None` for what can't be anywhere but in the graph.
    spans: Vec<Option<Span>>,
}

#[derive(Clone, Debug)]
struct Span {
    /// Index in `data`; `None` for the graph's own file.
    file: Option<usize>,
    range: Range<u64>,
}

/// What a loader needs to make an ONNX Runtime session that maps its weights from the store.
///
/// Give ORT the [`graph`](Self::graph) from memory; as `session.model_external_initializers_file_folder_path` the folder of
/// [`data_file`](Self::data_file); and the [`injected`](Self::injected) tensors by `AddExternalInitializers`. Keep the plan, or what
/// [`into_lease`](Self::into_lease) makes of it, until ORT has released the session: it holds the lease of every file that is mapped.
#[derive(Clone, Debug)]
pub struct OnnxPlan {
    graph: GraphBytes,
    data_file: Option<PathBuf>,
    injected: Vec<InjectedTensor>,
    lease: OnnxLease,
    prepack: bool,
    report: OnnxReport,
}

#[derive(Clone, Debug)]
enum GraphBytes {
    /// Nothing was to be changed.
    AsStored(ModelFile),
    Rewritten(Vec<u8>),
}

/// The leases of what a session maps: while it lives, the bytes stay where the session found them, whatever is removed.
#[derive(Clone, Debug, Default)]
pub struct OnnxLease {
    files: Vec<ModelFile>,
    gathered: Vec<Gathered>,
}

/// A tensor that ORT is to be given by name, since it can't be mapped.
#[derive(Clone, Debug)]
pub struct InjectedTensor {
    /// The initializer's name.
    pub name: String,
    /// Its element type.
    pub data_type: DataType,
    /// Its shape.
    pub dims: Vec<u64>,
    file: ModelFile,
    range: Range<u64>,
}

impl InjectedTensor {
    /// Its bytes, in the file's mapping.
    pub fn bytes(&self) -> &[u8] {
        &self.file[self.range.start as usize..self.range.end as usize]
    }

    /// The file it is in.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// Where it is in the file.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }
}

/// What became of a model's tensors, those of at least 1 KiB and those outside the graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnnxReport {
    /// Mapped where they were pulled to.
    pub pointed: Tally,
    /// Mapped from a second copy in the store, made since they cross edges of chunks.
    pub derived: Tally,
    /// Given to the session by name: a private copy.
    pub injected: Tally,
    /// Brought into the graph from another file: a private copy.
    pub inlined: Tally,
    /// Left in the graph: a private copy.
    pub kept: Tally,
    /// Why those that are copied are.
    pub copied: Vec<(CopyReason, Tally)>,
}

/// How many tensors, and bytes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// How many tensors.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why a tensor is copied and not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CopyReason {
    /// It has less than 1 KiB.
    Small,
    /// Its file has at most 64 KiB and is not in the data file.
    SmallFile,
    /// It crosses an edge of a chunk.
    Edge,
    /// It does not begin at a multiple of its element's size, and that was asked for.
    Unaligned,
    /// The graph holds it in another form than raw data.
    Typed,
}

impl CopyReason {
    /// The reason in one word, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::SmallFile => "small_file",
            Self::Edge => "edge",
            Self::Unaligned => "unaligned",
            Self::Typed => "typed",
        }
    }
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "smaller than 1 KiB",
            Self::SmallFile => "in a file of at most 64 KiB",
            Self::Edge => "across an edge of a chunk",
            Self::Unaligned => "not aligned",
            Self::Typed => "not raw data",
        })
    }
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.tensors += 1;
        self.bytes += bytes;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.tensors, iec(self.bytes))
    }
}

/// As `37 tensors (592.00 MiB): 32 (512.00 MiB) mapped, 5 (80.00 MiB) injected: 5 (80.00 MiB) across an edge of a chunk`.
impl fmt::Display for OnnxReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways = [
            (self.pointed, "mapped"),
            (self.derived, "mapped from a derived value"),
            (self.injected, "injected"),
            (self.inlined, "inlined"),
            (self.kept, "kept in the graph"),
        ];
        let ways: Vec<_> = ways.into_iter().filter(|(tally, _)| tally.tensors > 0).collect();
        if ways.is_empty() {
            return f.write_str("no tensors of 1 KiB or more");
        }
        let mut all = Tally::default();
        for (tally, _) in &ways {
            all.tensors += tally.tensors;
            all.bytes += tally.bytes;
        }
        write!(f, "{} tensor{} ({})", all.tensors, if all.tensors == 1 { "" } else { "s" }, iec(all.bytes))?;
        let separated = |place: usize, first| if place == 0 { first } else { ", " };
        for (place, (tally, way)) in ways.iter().enumerate() {
            write!(f, "{}{tally} {way}", separated(place, ": "))?;
        }
        for (place, (reason, tally)) in self.copied.iter().enumerate() {
            write!(f, "{}{tally} {reason}", separated(place, "; copied: "))?;
        }
        Ok(())
    }
}

impl ModelCache {
    /// Opens an ONNX model of the store: reads its graph, finds the files its tensors are in, at the same commit, and checks that each
    /// tensor lies in its file.
    ///
    /// Cost: opens each of the files, as [`get_file`](Self::get_file); reads the graph without its data: tens of microseconds for a
    /// hundred nodes. No network.
    ///
    /// # Errors
    /// [`Error::NotInStore`] and [`Error::NotHere`] if the graph is not here; [`Error::MissingData`] if a file it names is not, or is still being pulled;
    /// [`Error::BadFormat`] if it is no ONNX model, names a file outside its own folder, or a tensor that does not fit.
    pub fn onnx(&self, repo: &str, path: &str) -> Result<OnnxModel> {
        let (spec, path): (RepoSpec, FilePath) = (repo.parse()?, path.parse()?);
        for pinned in self.store().local_repos(&spec)? {
            if let Some(file) = self.open_pinned(&pinned, &path)? {
                return self.open_onnx(&pinned, &path, file);
            }
        }
        Err(self.why_not_here(&spec, &path)?)
    }

    fn open_onnx(&self, repo: &PinnedRepo, path: &FilePath, file: ModelFile) -> Result<OnnxModel> {
        let name = format!("{} {path}", repo.repo);
        let in_file = |error| match error {
            Error::BadFormat { format, offset, reason } => {
                Error::BadFormat { format, offset, reason: format!("{name}: {reason}") }
            }
            other => other,
        };
        let graph = Graph::scan(&file).map_err(in_file)?;
        let mut data: Vec<(FilePath, ModelFile)> = Vec::new();
        let mut spans = Vec::with_capacity(graph.tensors().len());
        for tensor in graph.tensors() {
            let bad = |reason: String| Error::BadFormat {
                format: "ONNX",
                offset: graph.offset_of(tensor),
                reason: format!("{name}: tensor \"{}\" {reason}", printable(tensor.name())),
            };
            spans.push(match tensor.data() {
                Data::Typed => None,
                Data::Raw(range) => Some(Span { file: None, range: range.clone() }),
                Data::External { location, offset, length } => {
                    let place = beside(path, location)
                        .map_err(|reason| bad(format!("is said to be in \"{}\": {reason}", printable(location))))?;
                    let index = match data.iter().position(|(known, _)| *known == place) {
                        Some(index) => index,
                        None => {
                            let opened = self.open_pinned(repo, &place)?;
                            data.push((place.clone(), opened.ok_or_else(|| self.missing(repo, path, &place))?));
                            data.len() - 1
                        }
                    };
                    let range = range_of(tensor, *offset, *length, data[index].1.len() as u64)
                        .map_err(|reason| bad(format!("in {place} {reason}")))?;
                    Some(Span { file: Some(index), range })
                }
            });
        }
        Ok(OnnxModel { cache: self.clone(), name, graph, file, data, spans })
    }

    /// That a data file is not here, and how much of it is.
    fn missing(&self, repo: &PinnedRepo, graph: &FilePath, path: &FilePath) -> Error {
        let fills = self.store().fills().unwrap_or_default();
        let fill = fills.into_iter().find(|fill| fill.repo == *repo && fill.path == *path);
        Error::MissingData {
            repo: repo.repo.clone(),
            graph: graph.clone(),
            path: path.clone(),
            landed: fill.map(|fill| (fill.landed_bytes, fill.size_bytes)),
            is_imported: repo.commit.is_none(),
        }
    }
}

/// The file a graph at `graph` calls `location`: in the graph's folder or below.
pub(crate) fn beside(graph: &FilePath, location: &str) -> std::result::Result<FilePath, &'static str> {
    if location.starts_with('/') {
        return Err("an absolute path");
    }
    let parts: Vec<&str> = location.split('/').filter(|part| !matches!(*part, "." | "")).collect();
    if parts.contains(&"..") {
        return Err("outside the graph's folder");
    }
    let folder = graph.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
    let path = if folder.is_empty() { parts.join("/") } else { format!("{folder}/{}", parts.join("/")) };
    match path.parse() {
        Ok(path) if !parts.is_empty() => Ok(path),
        _ => Err("no file's name in a repo"),
    }
}

/// Where an external tensor lies in its file, by what the graph says and its shape needs.
fn range_of(tensor: &Tensor, offset: u64, length: Option<u64>, file_bytes: u64) -> std::result::Result<Range<u64>, String> {
    let (data_type, dims) = (tensor.data_type(), tensor.dims());
    let length = match (tensor.size_bytes(), length) {
        (Some(needed), Some(length)) if needed != length => {
            return Err(format!("is {data_type} {dims:?}, which is {needed} bytes, and has {length}"));
        }
        (Some(length), _) | (None, Some(length)) => length,
        (None, None) => return Err(format!("is of {data_type}, which this program does not know, and tells no length")),
    };
    match offset.checked_add(length) {
        Some(end) if end <= file_bytes => Ok(offset..end),
        _ => Err(format!("has {length} bytes from {offset}, where the file has {file_bytes}")),
    }
}

/// What is to be done with one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It stays in the graph.
    Keep(CopyReason),
    /// It comes into the graph.
    Inline(CopyReason),
    /// It is given by name.
    Inject(CopyReason),
    /// It is mapped from here.
    Point { offset: u64, derived: bool },
    /// It crosses an edge.
    Edge,
}

/// What a tensor that can't be mapped is copied by: by name where it has one and a type that can be told, else with the graph.
fn copied(tensor: &Tensor, reason: CopyReason) -> Way {
    match tensor.data() {
        _ if tensor.is_initializer() && tensor.data_type().has_array_type() && !tensor.name().is_empty() => Way::Inject(reason),
        Data::External { .. } => Way::Inline(reason),
        Data::Raw(_) | Data::Typed => Way::Keep(reason),
    }
}

/// The way of a tensor that is `range` of a file that lies so.
fn way_of(tensor: &Tensor, range: &Range<u64>, placement: Option<&Placement>, align: bool) -> Way {
    let into_graph = |reason| match tensor.data() {
        Data::External { .. } => Way::Inline(reason),
        Data::Raw(_) | Data::Typed => Way::Keep(reason),
    };
    if range.end - range.start < INLINE_BELOW_BYTES {
        return into_graph(CopyReason::Small);
    }
    let Some(placement) = placement else { return into_graph(CopyReason::SmallFile) };
    match placement.offset_of(range.clone()) {
        None => Way::Edge,
        Some(offset) if align && !offset.is_multiple_of(tensor.data_type().align_bytes()) => {
            copied(tensor, CopyReason::Unaligned)
        }
        Some(offset) => Way::Point { offset, derived: false },
    }
}

impl OnnxModel {
    /// The digests of the graph and of each file it names, in the order it names them: what makes two models the same.
    pub fn digests(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.file.digest()).chain(self.data.iter().map(|(_, file)| file.digest()))
    }

    /// Bytes of the graph and of each file it names.
    pub fn size_bytes(&self) -> u64 {
        self.file.len() as u64 + self.data.iter().map(|(_, file)| file.len() as u64).sum::<u64>()
    }

    /// Decides for each tensor how ORT gets it, and writes the graph that says so.
    ///
    /// Cost: tens of microseconds for a hundred tensors; the data of tensors that have to be within the graph is copied.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if more has to be within the graph than the 2 GiB protobuf reads; [`Error::Damaged`] if tensors across
    /// edges were to be kept once more, and a block of them is not what was sealed.
    pub fn plan(&self, options: &OnnxOptions) -> Result<OnnxPlan> {
        let align = options.align.unwrap_or(!cfg!(target_arch = "x86_64"));
        let placements: Vec<Option<Placement>> = self.data.iter().map(|(_, file)| file.placement()).collect();
        let own = self.file.placement();
        let placement = |file: Option<usize>| file.map_or(own.as_ref(), |index| placements[index].as_ref());
        let data_file = own.iter().chain(placements.iter().flatten()).map(|placement| placement.data_file()).next();
        let data_file_name = data_file.and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();

        let tensors = self.graph.tensors();
        let mut ways: Vec<Way> = tensors
            .iter()
            .zip(&self.spans)
            .map(|(tensor, span)| match span {
                None => Way::Keep(CopyReason::Typed),
                Some(span) => way_of(tensor, &span.range, placement(span.file), align),
            })
            .collect();
        let gathered = self.gather_edges(&mut ways, options.edges)?;

        let mut changes = Vec::new();
        let mut injected = Vec::new();
        let mut report = OnnxReport::default();
        let mut mapped: Vec<Option<usize>> = Vec::new();
        for (index, way) in ways.into_iter().enumerate() {
            let (tensor, span) = (&tensors[index], self.spans[index].as_ref());
            let bytes = span.map_or_else(|| tensor.size_bytes().unwrap_or(0), |span| span.range.end - span.range.start);
            let reason = match (way, span) {
                (Way::Point { offset, derived }, Some(span)) => {
                    changes.push((index, Change::External { location: data_file_name, offset, length: bytes }));
                    if derived { &mut report.derived } else { &mut report.pointed }.add(bytes);
                    if !derived && !mapped.contains(&span.file) {
                        mapped.push(span.file);
                    }
                    continue;
                }
                (Way::Inject(reason), Some(span)) => {
                    // The place is not read: ORT wants one before it takes another value.
                    changes.push((index, Change::External { location: data_file_name, offset: 0, length: bytes }));
                    injected.push(InjectedTensor {
                        name: tensor.name().to_owned(),
                        data_type: tensor.data_type(),
                        dims: tensor.dims().to_owned(),
                        file: self.file_at(span.file).clone(),
                        range: span.range.clone(),
                    });
                    report.injected.add(bytes);
                    reason
                }
                (Way::Inline(reason), Some(span)) => {
                    let data = &self.file_at(span.file)[span.range.start as usize..span.range.end as usize];
                    changes.push((index, Change::Raw(data)));
                    report.inlined.add(bytes);
                    reason
                }
                (Way::Keep(reason), _) => {
                    report.kept.add(bytes);
                    reason
                }
                (way, span) => unreachable!("{way:?} of {span:?}: an edge is decided above, the rest lies somewhere"),
            };
            match report.copied.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, tally)) => tally.add(bytes),
                None => report.copied.push((reason, Tally { tensors: 1, bytes })),
            }
        }
        let graph = match changes.is_empty() {
            true => GraphBytes::AsStored(self.file.clone()),
            false => GraphBytes::Rewritten(self.graph.rewrite(&self.file, &changes)?),
        };
        let files = mapped.into_iter().map(|file| self.file_at(file).clone()).collect();
        tracing::debug!(model = self.name, prepack = self.graph.prepack(), "{report}");
        Ok(OnnxPlan {
            graph,
            data_file: data_file.map(Path::to_owned),
            injected,
            lease: OnnxLease { files, gathered },
            prepack: self.graph.prepack(),
            report,
        })
    }

    /// Decides what becomes of tensors across edges: none of `ways` is an edge afterwards.
    fn gather_edges(&self, ways: &mut [Way], edges: Edges) -> Result<Vec<Gathered>> {
        let mut crossing: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        let mut bytes = 0;
        for (index, way) in ways.iter().enumerate() {
            if let (Way::Edge, Some(span)) = (way, &self.spans[index]) {
                crossing.entry(span.file).or_default().push(index);
                bytes += span.range.end - span.range.start;
            }
        }
        let derive = match edges {
            Edges::Auto => bytes > INJECT_UP_TO_BYTES,
            Edges::Inject => false,
            Edges::Derive => true,
        };
        let mut kept = Vec::new();
        for (file, indices) in crossing {
            let ranges: Vec<_> = indices.iter().filter_map(|index| Some(self.spans[*index].as_ref()?.range.clone())).collect();
            let gathered = match derive {
                true => match self.cache.gather(self.file_at(file), &ranges) {
                    // A session that costs more memory is better than none; one of damaged weights is not.
                    Err(error) if edges == Edges::Auto && !matches!(error, Error::Damaged { .. }) => {
                        tracing::warn!(model = self.name, %error, "tensors across edges of chunks are copied into the session");
                        None
                    }
                    gathered => gathered?,
                },
                false => None,
            };
            for (place, index) in indices.into_iter().enumerate() {
                ways[index] = match gathered.as_ref().and_then(|gathered| gathered.offsets()[place]) {
                    Some(offset) => Way::Point { offset, derived: true },
                    None => copied(&self.graph.tensors()[index], CopyReason::Edge),
                };
            }
            kept.extend(gathered);
        }
        Ok(kept)
    }

    fn file_at(&self, file: Option<usize>) -> &ModelFile {
        file.map_or(&self.file, |index| &self.data[index].1)
    }
}

impl OnnxPlan {
    /// The graph to be given to ORT, from memory.
    pub fn graph(&self) -> &[u8] {
        match &self.graph {
            GraphBytes::AsStored(file) => file,
            GraphBytes::Rewritten(bytes) => bytes,
        }
    }

    /// The file ORT maps weights from, an absolute path; `None` if the model is too small to be in it.
    pub fn data_file(&self) -> Option<&Path> {
        self.data_file.as_deref()
    }

    /// The tensors ORT is to be given by name.
    pub fn injected(&self) -> &[InjectedTensor] {
        &self.injected
    }

    /// Whether ORT's prepacking should be left on, which copies weights and is several times faster for 4-bit and 8-bit ones.
    ///
    /// False only where every operator that takes a weight of 16 KiB or more is known to do well without: float32 models mostly.
    pub fn prepack(&self) -> bool {
        self.prepack
    }

    /// What was decided, in numbers.
    pub fn report(&self) -> &OnnxReport {
        &self.report
    }

    /// What has to live for as long as ORT's session, where the rest need not.
    pub fn into_lease(self) -> OnnxLease {
        self.lease
    }

    /// The same, while the plan is still needed.
    pub fn lease(&self) -> &OnnxLease {
        &self.lease
    }
}

impl OnnxLease {
    /// The files that are mapped.
    pub fn files(&self) -> &[ModelFile] {
        &self.files
    }

    /// What else is mapped: copies, in the store, of tensors that cross edges of chunks.
    pub fn derived(&self) -> &[Gathered] {
        &self.gathered
    }
}
