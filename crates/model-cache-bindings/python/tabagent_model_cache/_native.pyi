"""What of the package is written in Rust; its documentation is here."""

import builtins
from collections.abc import Callable, Coroutine, Iterable, Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, SupportsIndex, TypeAlias, final, overload

from numpy.typing import NDArray

from .cancel import Cancel
from .pull import Pull
from .reader import ModelReader
from .values import (
    ExportReport,
    ImportReport,
    Manifest,
    PrefetchReport,
    PullReport,
    Removed,
    RepoFiles,
    RepoSummary,
    Stats,
    Tensor,
    VerifyReport,
)
from .waiting import News

__all__ = ["__version__", "ModelCache", "ModelFile", "OnnxLease", "OnnxModel", "OnnxPlan", "Work", "_shutdown"]

__version__: str

_Path: TypeAlias = str | PathLike[str]
_Progress: TypeAlias = Callable[[int, int], object]

@final
class ModelCache:
    """An open store of AI model files.

    Where a call takes ``repo``, it is ``org/name`` or ``org/name@revision``, the revision being a branch, a tag, a commit or
    ``refs/pr/n``; without one it is ``main``. Calls that read the store never touch the network.

    Threads and processes share a store; one ``ModelCache`` may be used by several threads at once, and other Python threads
    run while a call waits. It does not come through a fork: in the child every call raises :class:`ForkedError`, and the
    child opens its own. Files opened before stay readable there. With ``multiprocessing``, pass the path and open it in each
    process; a ``ModelCache`` can't be pickled.

    As a context manager it closes the store at the end.

    >>> with ModelCache("./models") as cache:
    ...     cache.download_quant("onnx-community/Phi-3.5-mini-instruct-onnx-web", "q4f16")
    ...     file = cache.get_file("onnx-community/Phi-3.5-mini-instruct-onnx-web", "onnx/model_q4f16.onnx")
    """

    def __new__(
        cls,
        path: _Path | None = None,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        offline: bool | None = None,
        connections: int | None = None,
        limit_rate: int | None = None,
        memory_budget_bytes: int | None = None,
    ) -> Self:
        """Opens the store in the folder ``path``, creating it where missing. Cost: a few milliseconds, whatever its size.

        :param path: Default: ``$MODEL_CACHE_HOME``, else ``$XDG_CACHE_HOME/tabagent/model-cache``, else
            ``~/.cache/tabagent/model-cache``. It has to be on a local disk.
        :param endpoint: the Hub's address. Default: ``$HF_ENDPOINT``, else ``https://huggingface.co``.
        :param token: sent to the Hub, and to no other host. Default: as the Hub's own tools find it: ``$HF_TOKEN``,
            ``$HUGGING_FACE_HUB_TOKEN``, the file ``$HF_TOKEN_PATH``, ``$HF_HOME/token``.
        :param offline: whether the network is forbidden. Default: ``$HF_HUB_OFFLINE`` or ``$TRANSFORMERS_OFFLINE``, else no.
        :param connections: connections of one pull at once, 1 to 64. Default: as many as pay, up to 16.
        :param limit_rate: most bytes of files a second, over all connections and pulls; at least 1024. Default:
            ``$MODEL_CACHE_LIMIT_RATE`` (``10M``, ``1.5GiB``), else no limit.
        :param memory_budget_bytes: most private memory of one pull for its data, 8 MiB or more. Default:
            ``$MODEL_CACHE_MEMORY_BUDGET``, else 40 MiB.
        :raises InvalidInput: an option or environment variable that can't be; nothing was touched. The two variables of pulls are
            looked at where no option is given, and refused by what pulls.
        :raises StoreError: a store that can't be opened: read-only, on a network file system, open in another container.
        :raises NoSpace: the disk is full.
        """

    @property
    def path(self) -> Path:
        """The store's folder."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""

    def close(self) -> None:
        """Closes the store; calls after it raise :class:`ClosedError`. Files opened from it stay valid, pulls under way go on."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: TracebackType | None = None, /
    ) -> None: ...

    # -- the Hub ---------------------------------------------------------------------------------------------------

    def scan_repo(self, repo: str) -> Manifest:
        """Asks the Hub what ``repo`` offers, and writes it down.

        Local reads of a revision go on to the commit that was last pulled; a scan does not move them. Offline: what the last
        scan wrote down. Ctrl-C ends it.

        :raises RepoNotFound: the Hub knows no such repo, or hides it from this token.
        :raises RevisionNotFound: the repo has no such branch, tag or commit.
        :raises NetworkError: the Hub can't be reached, after every retry.
        :raises AccessDenied: the Hub does not accept the token.

        >>> cache.scan_repo("org/name")["quants"]["q4f16"]["status"]
        'available'
        """

    def get_manifest(self, repo: str) -> Manifest:
        """What ``repo`` offers and what of it is here: of the commit local reads go to, without the network; scans a repo
        never seen.

        :raises ModelCacheError: as :meth:`scan_repo`.
        """

    def local_manifest(self, repo: str) -> Manifest | None:
        """As :meth:`get_manifest`, but None for a repo never scanned; never asks the Hub."""

    def download_quant(
        self, repo: str, quant: str, progress: _Progress | None = None, cancel: Cancel | None = None
    ) -> PullReport:
        """Pulls all files of one quant; done when every one is here, verified against the Hub's digest, and durable.

        What is here is not fetched again; what landed before a pull was cut off is gone on from, to the block of 5 MiB.

        :param quant: as :attr:`Manifest.quants` names it, case ignored.
        :param progress: called as ``progress(loaded, total)``, in bytes of all files, in the calling thread: at most ten
            times a second, never backwards, last with ``(total, total)``. What it raises cancels the pull and is raised here.
        :param cancel: a :class:`CancelToken`, a ``threading.Event``, or anything else with ``is_set()``; asked every 50 ms.
        :raises QuantNotFound: the repo offers no such quant.
        :raises Gated: its licence is to be accepted first.
        :raises NoSpace: before the first byte.
        :raises IntegrityError: the bytes are not those the Hub promised.
        :raises Cancelled: ``cancel`` said so. What landed is kept, as after Ctrl-C.
        :raises ModelCacheError: as :meth:`scan_repo`.
        """

    def download_file(
        self, repo: str, path: str, progress: _Progress | None = None, cancel: Cancel | None = None
    ) -> PullReport:
        """Pulls one file; otherwise as :meth:`download_quant`.

        :raises FileNotInRepo: the repo has no such file.
        """

    def pull(
        self,
        repo: str,
        *,
        quant: str | Iterable[str] | None = None,
        files: str | Iterable[str] | None = None,
        all: bool = False,
        cancel: Cancel | None = None,
    ) -> Pull:
        """Begins a pull to be watched: an iterator of its events, for a ``for`` or an ``async for``.

        :param quant: one quant or several. Default: the repo's only one, where ``files`` names none either.
        :param files: globs, one or several; ``*`` matches ``/`` too. A path written out matches itself.
        :param all: whether to take every file of the repo.
        :param cancel: as of :meth:`download_quant`.
        :raises InvalidInput: ``repo`` is not a repo name. Everything else is raised by the iteration, after the event ``failed``.
        """

    def scan_repo_async(self, repo: str) -> Coroutine[Any, Any, Manifest]:
        """As :meth:`scan_repo`, to be awaited in asyncio."""

    def get_manifest_async(self, repo: str) -> Coroutine[Any, Any, Manifest]:
        """As :meth:`get_manifest`, to be awaited in asyncio."""

    def download_quant_async(self, repo: str, quant: str, progress: _Progress | None = None) -> Coroutine[Any, Any, PullReport]:
        """As :meth:`download_quant`, to be awaited in asyncio.

        ``progress`` is called in the event loop's thread. Cancelling the task cancels the pull, and waits until it has ended;
        what landed is kept.
        """

    def download_file_async(self, repo: str, path: str, progress: _Progress | None = None) -> Coroutine[Any, Any, PullReport]:
        """As :meth:`download_file`, to be awaited in asyncio; otherwise as :meth:`download_quant_async`."""

    # -- reading ---------------------------------------------------------------------------------------------------

    def get_file(self, repo: str, path: str) -> ModelFile | None:
        """Opens a file that is here: one contiguous read-only buffer, without a copy. None if it is not here.

        Cost: well under a millisecond, whatever the size; no network, no writer's lock.

        :raises InvalidInput: ``repo`` or ``path`` is not a name.
        :raises IntegrityError: the store is damaged.
        """

    def has_file(self, repo: str, path: str) -> bool:
        """Whether a file is here, complete and verified."""

    def list(self) -> builtins.list[RepoSummary]:
        """Every repo that has a file here, complete or begun, one for each commit of it, sorted by name."""

    def files(self, repo: str) -> builtins.list[RepoFiles]:
        """The files of ``repo`` that are here or were begun, for each commit that has any, the one local reads go to first.

        :raises NotInStore: there are none.
        """

    def get_stats(self) -> Stats:
        """How much is here, and how much disk it takes."""

    def is_imported(self, repo: str) -> bool:
        """Whether any file of ``repo`` was imported, so that the Hub can't give it again."""

    def verify(
        self,
        repo: str | None = None,
        files: str | Iterable[str] | None = None,
        *,
        digest: bool = False,
        cached: bool = False,
        progress: _Progress | None = None,
        cancel: Cancel | None = None,
    ) -> VerifyReport:
        """Reads content from the disk and holds it against what was sealed. Damage is no exception but a finding: see ``bad``.

        Files stay readable meanwhile. Cost: one read of everything checked, past the page cache unless ``cached``.

        :param repo: Default: the whole store.
        :param files: globs; Default: all.
        :param digest: whether to compute each file's whole digest too; always of what the disk has.
        :param cached: whether bytes that are in memory are checked as they are there, instead of read from the disk again.
        :param progress: as of :meth:`download_quant`: bytes checked, bytes in all.
        :raises NotInStore: nothing of ``repo`` is here.
        :raises FileNotInRepo: a glob matches nothing here.
        """

    def prefetch(
        self,
        repo: str,
        *,
        quant: str | Iterable[str] | None = None,
        files: str | Iterable[str] | None = None,
        progress: _Progress | None = None,
        cancel: Cancel | None = None,
    ) -> PrefetchReport:
        """Reads files into memory, several pieces at once, so that loading them does not wait for the disk.

        They stay in the page cache, which every process shares, until something else needs the memory. Of what is larger than the
        memory available the end is left on the disk: see ``left_bytes``. Cost: one read of what is not there, at the disk's speed.

        :param quant: one quant or several, with what their loaders need besides.
        :param files: globs, one or several. Default, where ``quant`` names none either: all that are here.
        :param progress: as of :meth:`download_quant`: bytes in memory, bytes in all.
        :raises NotInStore: nothing of ``repo`` is here.
        :raises QuantNotFound: the repo offers no such quant.
        :raises FileNotInRepo: a glob matches nothing here, or the quant is not here, or not complete.
        :raises Cancelled: ``cancel`` said so. What was read stays in memory, as after Ctrl-C.
        """

    # -- local files -----------------------------------------------------------------------------------------------

    def import_files(
        self,
        repo: str,
        paths: _Path | Iterable[_Path],
        progress: _Progress | None = None,
        cancel: Cancel | None = None,
    ) -> ImportReport:
        """Copies local files into the store under the name ``repo``, their SHA-256 computed on the way.

        A file keeps its name; of a folder come all files, under their paths within it, but for ``.git``, ``.cache`` and
        ``__pycache__``.

        :raises NotFound: one of ``paths`` is not there.
        :raises InvalidInput: ``repo`` has a revision, or a file's name can't be kept.
        """

    def export(
        self,
        repo: str,
        to: _Path,
        files: str | Iterable[str] | None = None,
        force: bool = False,
        progress: _Progress | None = None,
        cancel: Cancel | None = None,
    ) -> ExportReport:
        """Writes the files of ``repo`` below the folder ``to``, under their own paths, by the cheapest way the file system
        offers.

        :param files: globs; Default: all.
        :param force: whether files that exist are replaced.
        :param progress: called with bytes written and bytes in all, in this thread.
        :raises AlreadyExists: a file exists; nothing was written.
        :raises NotInStore: nothing of ``repo`` is here.
        """

    # -- removing --------------------------------------------------------------------------------------------------

    def delete_file(self, repo: str, path: str) -> Removed:
        """Removes one file, at every commit of the repo unless a revision is given.

        The name is gone at once; the space returns at once or, where somebody reads the file, when the last reader lets go.

        :raises FileNotInRepo: it is not here.
        """

    def delete_files(
        self, repo: str, files: str | Iterable[str] | None = None, *, quant: str | Iterable[str] | None = None
    ) -> Removed:
        """Removes the files that match any of the globs ``files``, and those that are of the quants ``quant`` alone."""

    def delete_model(self, repo: str) -> Removed:
        """Removes every file of a repo, finished or not, and what is known of it; at every commit unless a revision is given.

        Asks nobody: :meth:`is_imported` tells what the Hub can't give again.

        :raises NotInStore: nothing of it is here.
        """

    def gc(self) -> Removed:
        """Frees what nothing uses: content without a name, downloads nobody continues."""

    def _onnx(self, repo: str, path: str) -> OnnxModel:
        """Opens an ONNX model that is here: reads its graph and finds the files its tensors are in, at the same commit."""

@final
class ModelFile:
    """A file of the store, open: all its bytes as one read-only buffer, without a copy, whatever the size.

    ``memoryview(file)`` and ``np.frombuffer(file, ...)`` share the mapping; a slice is a ``memoryview``; ``bytes(file)``
    copies. The buffer begins on a 64 KiB boundary (64 B for a file of at most 64 KiB), so alignments within the file hold in
    memory.

    As long as this object or any view of it lives, removing the file takes its name away and leaves its bytes; dropping the
    last gives the space back. Pages come from the page cache as they are touched. If the disk can't deliver one, the process
    gets SIGBUS, as with every memory-mapped file.

    Made by :meth:`ModelCache.get_file`. Always true, also where ``len`` is 0.

    >>> file = cache.get_file("org/name", "model.safetensors")
    >>> header_bytes = int.from_bytes(file[:8], "little")
    """

    @property
    def repo(self) -> str:
        """The repo, as it was asked for."""

    @property
    def path(self) -> str:
        """The path within the repo."""

    @property
    def digest(self) -> str:
        """The Hub's digest, ``sha256:<hex>`` or ``git-sha1:<hex>``; it was checked before the file became visible."""

    def __bytes__(self) -> bytes:
        """All bytes, copied; other threads run while they come from the disk."""

    @property
    def resident_bytes(self) -> int:
        """How many of its bytes are in memory, so that reading them does not wait for the disk. Cost: a few milliseconds a GiB."""

    def prefetch(self, progress: _Progress | None = None, cancel: Cancel | None = None) -> PrefetchReport:
        """Reads all of it into memory, and into this process's page tables: whoever uses it then neither waits for the disk nor
        takes a page fault. Otherwise as :meth:`ModelCache.prefetch`.

        >>> weights.prefetch().read_bytes
        2147483648
        """

    def _clone(self) -> ModelFile:
        """The same file once more, to be closed by itself."""

    def _wait_for(self, start: int, end: int) -> None:
        """Waits until these bytes are in memory, other threads running meanwhile."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of a GGUF or safetensors file, by name, in the order of the file. Read once a file, from its header alone.

        :raises FormatError: it is not a well-formed file of either format.

        >>> {name: (tensor.dtype, tensor.shape) for name, tensor in file.tensors.items()}
        """

    def tensor(self, name: str, *, raw: bool = False) -> NDArray[Any]:
        """A tensor as a numpy array on the mapping: read-only, without a copy. It keeps the file from being freed while it lives.

        Quantised GGUF tensors come as the bytes of their blocks, ``uint8``, one row of blocks a row, as
        ``gguf.quants.dequantize`` takes them; ``tensors[name].dtype`` tells their type. ``BF16`` and 8-bit floats come as
        types of the package ``ml_dtypes``; nothing is ever converted.

        :param raw: gives types that need ``ml_dtypes`` as their bits, ``uint16`` and ``uint8``.
        :raises TensorNotFound: there is no such tensor.
        :raises FormatError: as :attr:`tensors`; or the type needs ``ml_dtypes``, and it is not installed.
        :raises ImportError: numpy is not installed.

        >>> gguf.quants.dequantize(file.tensor("token_embd.weight"), gguf.GGMLQuantizationType.Q8_0)
        """

    def open(self) -> ModelReader:
        """A stream over the file, with a position of its own: an ``io.RawIOBase``, for ``io.BufferedReader`` and
        ``io.TextIOWrapper``."""

    def close(self) -> None:
        """Lets go of the file. Views and streams made of it stay valid, and keep it from being freed, until they are gone
        themselves."""

    def __len__(self) -> int: ...
    def __bool__(self) -> Literal[True]: ...
    @overload
    def __getitem__(self, index: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> memoryview: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: TracebackType | None = None, /
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class OnnxModel:
    """An ONNX model that is here: its graph, and the files its tensors are in. Not for users: sessions are made with it."""

    @property
    def digests(self) -> list[str]:
        """Of the graph and of each file it names, in the order it names them."""
    @property
    def size_bytes(self) -> int:
        """Bytes of these files."""
    def plan(
        self, *, align: bool | None = None, edges: Literal["auto", "inject", "derive"] | None = None
    ) -> OnnxPlan:
        """Decides how ONNX Runtime gets each tensor, and writes the graph that says so."""

@final
class OnnxPlan:
    """How ONNX Runtime is to be given a model, and the leases of what it will map."""

    def graph(self) -> bytes:
        """The graph to be given from memory; a new copy at each call."""
    @property
    def data_file(self) -> Path | None:
        """The file weights are mapped from; ``None`` if none are. Its folder is the one of external data."""
    @property
    def injected(self) -> list[tuple[str, int, list[int], ModelFile, int, int]]:
        """The tensors to be given by name: name, number of the element type in ONNX, shape, file, first byte, one past the last."""
    @property
    def prepack(self) -> bool:
        """Whether prepacking should be left on, by the operators."""
    @property
    def report(self) -> dict[str, Any]:
        """What was decided, in numbers."""
    @property
    def report_text(self) -> str:
        """The same as one line."""
    def lease(self) -> OnnxLease:
        """What is to be held until the session is gone; each one made is to be released."""

@final
class OnnxLease:
    """Keeps what a session maps where it is."""

    def release(self) -> None:
        """Lets go; again it does nothing."""
    @property
    def released(self) -> bool:
        """Whether it was let go."""

@final
class Work:
    """Something long that runs on threads of its own. Not for users: ``ModelCache`` and ``Pull`` are made with it."""

    def start(self) -> None: ...
    def cancel(self) -> None: ...
    def fileno(self) -> int: ...
    def poll(self) -> News: ...
    def wait(self, cancel: Cancel | None) -> News: ...
    def result(self) -> Any: ...

def _shutdown() -> None: ...
