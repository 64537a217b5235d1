"""What the calls of :class:`ModelCache` give back: values that read as attributes and as the dicts people know.

>>> manifest = cache.get_manifest("org/name")
>>> manifest.quants["q4f16"].status
'downloaded'
>>> manifest["quants"]["q4f16"]["status"]
'downloaded'

Sizes are in bytes. Where a value has a ``--json`` document of the program ``model-cache``, its fields have the same names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = [
    "BadBlock",
    "ExportReport",
    "FileInfo",
    "ImportReport",
    "Manifest",
    "ManifestFile",
    "PrefetchReport",
    "PullReport",
    "Quant",
    "Record",
    "Removed",
    "RepoFiles",
    "RepoSummary",
    "Stats",
    "Tensor",
    "VerifyReport",
]


class Record(Mapping[str, Any]):
    """Reads as attributes and as a mapping of their names to their values; equal to any mapping with the same content."""

    __slots__ = ()
    #: The names of the fields, as ``dataclass`` writes them down.
    __match_args__: ClassVar[tuple[str, ...]] = ()

    def __getitem__(self, key: str) -> Any:
        if key in self.__match_args__:
            return getattr(self, key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__match_args__)

    def __len__(self) -> int:
        return len(self.__match_args__)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists all the way down, as ``json.dumps`` takes them."""
        return {name: _plain(getattr(self, name)) for name in self.__match_args__}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, eq=False, slots=True)
class Quant(Record):
    """One quant: the files a loader needs for one precision."""

    #: ``available``, ``downloading``, ``downloaded``, ``failed`` or ``partial``.
    status: str
    #: Paths of all its files, those shared with other quants included, sorted.
    files: list[str]
    #: Paths of the files that are its alone.
    own_files: list[str]
    #: Bytes of all its files.
    total_size: int
    #: Bytes of them that are here, landed blocks of unfinished files included.
    downloaded_size: int
    #: Files that names of the others promise and the repo lacks: absent shards, sessions.
    missing: list[str]
    #: Why the last pull of it failed, if it did.
    last_error: str | None


@dataclass(frozen=True, eq=False, slots=True)
class ManifestFile(Record):
    """One file of a commit."""

    path: str
    size_bytes: int
    #: ``sha256:<hex>`` or ``git-sha1:<hex>``, as the Hub told it.
    digest: str


@dataclass(frozen=True, eq=False, slots=True)
class Manifest(Record):
    """What a repo offers at one commit, and what of it is here. True when it was made; it does not follow later changes."""

    repo: str
    commit: str
    #: What the model is for, such as ``text-generation``, if its page says so.
    task: str | None
    #: By the names people type: ``Q4_K_M``, ``q4f16``, ``fp16``; ``default`` where file names carry none.
    quants: dict[str, Quant]
    #: Every file of the commit, sorted by path.
    files: list[ManifestFile]
    #: Paths every quant uses: configs, tokenizers.
    shared: list[str]
    #: Paths no quant uses; ``pull(files=..)`` and ``pull(all=True)`` reach them.
    extras: list[str]


@dataclass(frozen=True, eq=False, slots=True)
class PullReport(Record):
    """What a pull did."""

    repo: str
    commit: str
    #: The quants pulled, as the manifest names them; empty where files were chosen.
    quants: list[str]
    #: How many files.
    files: int
    total_bytes: int
    #: Bytes that came over the network.
    fetched_bytes: int
    #: Bytes that were here already, or came in through another pull.
    here_bytes: int
    elapsed_ms: int
    #: Files that names of the others promise and the repo lacks.
    missing: list[str]


@dataclass(frozen=True, eq=False, slots=True)
class RepoSummary(Record):
    """One repo at one commit, or an import."""

    repo: str
    #: None for an import.
    commit: str | None
    #: The quants of which every file is here.
    quants: list[str]
    #: How many complete files are here.
    files: int
    #: Bytes of them; content shared with other repos counts in each.
    size_bytes: int
    #: How many files were begun and are not complete.
    filling_files: int
    #: Bytes of the unfinished ones that have landed.
    landed_bytes: int
    #: When a file of it was last opened, in seconds since 1970, as far as that was written down.
    last_used_unix_seconds: int | None
    #: Processes that read a file of it now, as far as this one may look.
    readers: list[int]


@dataclass(frozen=True, eq=False, slots=True)
class FileInfo(Record):
    """One file that is here, or was begun."""

    path: str
    size_bytes: int
    #: How many chunks of 100 MiB it is stored in; 0 for a file of at most 64 KiB.
    chunks: int
    #: ``sha256:<hex>`` or ``git-sha1:<hex>``.
    digest: str
    #: ``sealed``: complete, verified, visible; ``filling``: a pull finishes it.
    state: str
    #: Bytes of it that are here.
    landed_bytes: int
    #: Processes that read it now, as far as this one may look.
    readers: list[int]


@dataclass(frozen=True, eq=False, slots=True)
class RepoFiles(Record):
    """The files of one repo at one commit."""

    repo: str
    #: None for an import.
    commit: str | None
    #: Sorted by path, unfinished ones included.
    files: list[FileInfo]


@dataclass(frozen=True, eq=False, slots=True)
class Removed(Record):
    """What a removal took away, and what became of the space."""

    #: Names that are gone.
    files: int
    #: Bytes those names had.
    size_bytes: int
    #: Bytes of content given back to the disk.
    freed_bytes: int
    #: Bytes of content that somebody still reads; they return when the last reader lets go.
    busy_bytes: int
    #: Bytes of unfinished files that somebody is pulling now: that goes on, and keeps them.
    filling_bytes: int
    #: Processes that read or fill it, as far as this one may look.
    busy_processes: list[int]
    #: Bytes of the removed names whose content another name uses.
    shared_bytes: int


@dataclass(frozen=True, eq=False, slots=True)
class BadBlock(Record):
    """A block that is not what was sealed."""

    #: With its commit.
    repo: str
    path: str
    #: From 0; 100 MiB each.
    chunk: int
    #: Within the chunk, from 0; 5 MiB each.
    block: int
    #: What was expected and found.
    reason: str


@dataclass(frozen=True, eq=False, slots=True)
class VerifyReport(Record):
    """What a verification found."""

    #: Files checked.
    files: int
    #: Blocks checked; those of content with several names once.
    blocks: int
    #: Bytes read.
    size_bytes: int
    #: Blocks that are damaged; empty if none is.
    bad: list[BadBlock]
    #: Records and keys that are damaged, and how; looked for where the whole store is verified.
    bad_records: list[str]


@dataclass(frozen=True, eq=False, slots=True)
class PrefetchReport(Record):
    """What a prefetch found and did."""

    #: Files asked for; each name counts.
    files: int
    #: Bytes of them; content with several names counts once.
    size_bytes: int
    #: Bytes that were in memory already.
    resident_bytes: int
    #: Bytes that were read from the disk.
    read_bytes: int
    #: Bytes left on the disk, at the end: all of it is more than the memory available.
    left_bytes: int
    #: Memory that was available before; None where the system does not tell.
    available_bytes: int | None
    #: How long it took.
    seconds: float


@dataclass(frozen=True, eq=False, slots=True)
class Stats(Record):
    """How much is here, and how much disk it takes."""

    #: Names of complete files.
    files: int
    #: Chunks of complete content; content with several names counts once.
    chunks: int
    #: Bytes of complete content.
    live_bytes: int
    #: Bytes of values made of content for loaders that need another layout; they go with the content they were made of.
    derived_bytes: int
    #: Bytes reserved for content that is being fetched, or was begun.
    filling_bytes: int
    #: Bytes of content without a name that waits for its last reader.
    doomed_bytes: int
    #: Disk space of the whole store, as ``du`` counts it.
    disk_bytes: int


@dataclass(frozen=True, eq=False, slots=True)
class ImportReport(Record):
    """What an import did."""

    repo: str
    #: How many files.
    files: int
    size_bytes: int
    #: Bytes whose content was here already.
    here_bytes: int
    #: What was found and left out: links to folders, pipes, devices, and the store itself.
    skipped: list[str]


@dataclass(frozen=True, eq=False, slots=True)
class ExportReport(Record):
    """What an export wrote."""

    #: How many files.
    files: int
    size_bytes: int
    #: How their content came there: ``"reflink"`` (disk blocks shared with the store), ``"copy_file_range"`` (copied by the kernel) or ``"copy"``;
    #: the costliest way that was needed. None if nothing was exported.
    method: str | None
    #: Bytes that share their disk blocks with the store and take no space of their own.
    shared_bytes: int
    #: The files written.
    paths: list[str]
    #: Files of the repo that were begun and are not complete, so not exported.
    unfinished: list[str]


@dataclass(frozen=True, eq=False, slots=True)
class Tensor(Record):
    """Where a tensor lies in its file, and how to read it."""

    name: str
    #: As the file's format names it: ``F32``, ``BF16``, ``I64``; ``Q4_K`` and its like are blocks of numbers.
    dtype: str
    #: Row-major: the last dimension varies fastest, as numpy has it.
    shape: tuple[int, ...]
    #: First byte in the file.
    start: int
    #: One past the last byte.
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return self.end - self.start
