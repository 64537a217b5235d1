"""ONNX Runtime sessions that map their weights from the store: :func:`onnx_session`, and :class:`SessionCache` to keep some.

>>> from tabagent_model_cache import ModelCache, onnx_session
>>> cache = ModelCache("./models")
>>> session = onnx_session(cache, "org/name", "onnx/model.onnx")
>>> session.run(None, {"input_ids": ids, "attention_mask": mask})

What becomes of each tensor is told by ``logging``, at INFO, by the logger ``tabagent_model_cache.onnx``, and as ``session.store_report``.

Needs the package ``onnxruntime``, which is imported when it is first used.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .exceptions import ClosedError, ForkedError, InvalidInput
from .values import Record

if TYPE_CHECKING:
    from types import TracebackType

    # It has no annotations, and need not be installed.
    import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]

    from ._native import ModelCache, OnnxModel, OnnxPlan

__all__ = ["SessionCache", "SessionStats", "onnx_session"]

log = logging.getLogger(__name__)

#: The oldest ONNX Runtime this was tried with that does all of it: 1.20 finds no weights of subgraphs in the folder.
_OLDEST = (1, 23)

Providers: TypeAlias = Sequence[str | tuple[str, dict[Any, Any]]]


def onnx_session(
    cache: ModelCache,
    repo: str,
    path: str,
    *,
    prepack: bool | None = None,
    providers: Providers | None = None,
    session_options: onnxruntime.SessionOptions | Callable[[], onnxruntime.SessionOptions] | None = None,
    align: bool | None = None,
    edges: Literal["auto", "inject", "derive"] | None = None,
) -> onnxruntime.InferenceSession:
    """Makes an ONNX Runtime session of a model in the store, its weights mapped from where they lie there.

    The result is an ``onnxruntime.InferenceSession``, with the outputs of one made by path
    with the same prepacking, bit by bit; see ``prepack`` for what the default chooses. Weights in external data, in any number of
    files, and the raw data of a single ``.onnx`` are mapped by ONNX Runtime from the store's data file: no copy, and shared with every
    process that does the same. What can't be mapped is copied: tensors of less than 1 KiB, files of up to 64 KiB, and tensors that cross
    an edge of a chunk of 100 MiB (see ``edges``).

    The model may be removed from the store while the session lives: its space returns once the session, and every IOBinding
    and OrtValue that keeps it alive, is gone.

    ``prepack``: whether ONNX Runtime lays out weights anew for its kernels, which is its own default. It makes a private copy of them, and of
    592 MiB of float32 weights a load takes 0.7 s instead of 0.1 s. Without, 4-bit models run 5 to 170 times slower, 8-bit ones 1.6 to 11
    times, float32 ones as fast for one input at a time and 1.7 to 2.5 times slower for batches of 8 and more, and float32 sums are rounded in another order, which
    shows in the last bits. ``None`` looks at the
    operators: off where every large weight is float32 in an operator that does well without, on otherwise.

    ``providers``: as of ``InferenceSession``.

    ``session_options``: a ``SessionOptions``, of which a copy is used, so that nothing of this session gets into the next one made with
    it; or a function that makes one, called for each session, more than once. It has to be a function where custom operators or providers were
    registered with the options, which a copy loses.

    ``align``: whether a tensor is copied that does not begin at a multiple of its element's size. ``None``: not on x86-64, where results
    were found to be the same, and everywhere else.

    ``edges``: what is done with tensors that cross an edge of a chunk. ``"inject"``: the session gets a private copy of them.
    ``"derive"``: they are kept once more in the store, in one piece, for all sessions. ``None`` or ``"auto"``: the first up to 64 MiB of
    them, the second above.

    :raises FileNotInRepo: the model is not in the store; ``cache.download_quant`` or ``cache.download_file`` brings it.
    :raises NotInStore: nothing of ``repo`` is.
    :raises NotFound: a file its graph names is not in the store, or is still being pulled.
    :raises FormatError: the graph is not a well-formed ONNX model, or names what is not beside it.
    :raises IntegrityError: tensors across edges were to be kept once more, and the disk does not have what was stored of them.
    :raises InvalidInput: the options contradict each other, or what has to be set.
    :raises ImportError: the package ``onnxruntime`` is missing, or too old.

    And what ``InferenceSession`` itself raises.
    """
    _import()
    _check_arguments(cache, prepack)
    model = cache._onnx(repo, path)
    return _make(model, f"{repo} {path}", prepack, providers, session_options, align, edges)


def _check_arguments(cache: ModelCache, prepack: bool | None) -> None:
    from ._native import ModelCache

    if not isinstance(cache, ModelCache):
        raise TypeError(f"cache must be a ModelCache, not {type(cache).__name__}")
    if prepack is not None and not isinstance(prepack, bool):
        raise TypeError(f"prepack must be True, False or None, not {type(prepack).__name__}")


def _import() -> Any:
    """The module of sessions, with ONNX Runtime."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError("ONNX sessions need the package onnxruntime: pip install onnxruntime", name="onnxruntime") from error
    found = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if found < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ImportError(
            f"ONNX sessions need onnxruntime {oldest} or newer, and {onnxruntime.__version__} is installed: "
            f"pip install --upgrade onnxruntime",
            name="onnxruntime",
        )
    return importlib.import_module("tabagent_model_cache._session")


def _make(
    model: OnnxModel,
    name: str,
    prepack: bool | None,
    providers: Providers | None,
    session_options: onnxruntime.SessionOptions | Callable[[], onnxruntime.SessionOptions] | None,
    align: bool | None,
    edges: Literal["auto", "inject", "derive"] | None,
) -> onnxruntime.InferenceSession:
    make_options = _maker(session_options)
    _check(make_options(), prepack)
    plan = model.plan(align=align, edges=edges)
    session: onnxruntime.InferenceSession = _import().StoreSession(plan, make_options, prepack, providers)
    log.info("%s: %s; prepacking %s", name, plan.report_text, "on" if session.store_report["prepack"] else "off")
    return session


# -- options --------------------------------------------------------------------------------------------------------------


def _maker(given: onnxruntime.SessionOptions | Callable[[], onnxruntime.SessionOptions] | None) -> Callable[[], onnxruntime.SessionOptions]:
    """What makes the options of a session, anew at each call, so that ours can be written into them."""
    sessions = _import()
    options: Callable[[], onnxruntime.SessionOptions] = sessions.ort.SessionOptions
    if given is None:
        return options
    if isinstance(given, sessions.ort.SessionOptions):
        if getattr(given, "has_providers", bool)():
            raise InvalidInput(
                "session_options has providers of its own, which a copy of it loses: name them as providers=, or pass a function "
                "that makes the options"
            )
        snapshot = sessions.copy(given)
        return lambda: sessions.copy(snapshot)
    if callable(given):
        return given
    raise TypeError(f"session_options is a SessionOptions or a function that makes one, not a {type(given).__name__}")


def _check(options: onnxruntime.SessionOptions, prepack: bool | None) -> None:
    """Refuses options that contradict what is asked for, or what has to be set."""
    sessions = _import()
    if not isinstance(options, sessions.ort.SessionOptions):
        raise TypeError(f"the function given as session_options made a {type(options).__name__}, not a SessionOptions")
    folder = sessions.entry(options, sessions.FOLDER)
    if folder:
        raise InvalidInput(f"session_options has {sessions.FOLDER}={folder!r}, which has to be the store's folder: leave it out")
    disabled = sessions.entry(options, sessions.DISABLE_PREPACKING)
    if prepack is not None and disabled is not None and (disabled == "1") == prepack:
        raise InvalidInput(f"prepack={prepack} contradicts session_options, which has {sessions.DISABLE_PREPACKING}={disabled!r}")
    if options.optimized_model_filepath:
        raise InvalidInput(
            "session_options has an optimized_model_filepath, and what would be saved there names the store's data file: "
            "export the model, and save it from a session made by path"
        )


# -- several sessions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class SessionStats(Record):
    """What a :class:`SessionCache` holds, and did."""

    #: Sessions held.
    sessions: int
    #: Bytes of their models' files.
    size_bytes: int
    #: How often a session was here already.
    hits: int
    #: How often one had to be made.
    misses: int
    #: How many were let go to make room.
    evictions: int


class _Held:
    __slots__ = ("session", "size_bytes")

    def __init__(self, session: onnxruntime.InferenceSession, size_bytes: int) -> None:
        self.session = session
        self.size_bytes = size_bytes


class SessionCache:
    """Keeps sessions by model and options, and lets go of the least recently used ones.

    >>> with SessionCache(max_sessions=4, max_bytes=8 << 30) as sessions:
    ...     session = sessions.get(cache, "org/name", "onnx/model.onnx")

    A model is its content: after a pull of a new revision :meth:`get` makes a new session, and the same file under two names is one.
    A session that is let go here lives on for as long as somebody else uses it.

    ``max_sessions``: how many are kept. ``max_bytes``: how many bytes of models, graphs and data files as they are in the store; ``None`` for
    any number. A model larger than that gets a session that is not kept.

    For threads. After a fork the child gets ``ForkedError``: ONNX Runtime's sessions do not survive one.
    """

    def __init__(self, max_sessions: int = 8, max_bytes: int | None = None) -> None:
        for name, number in (("max_sessions", max_sessions), ("max_bytes", 0 if max_bytes is None else max_bytes)):
            if not isinstance(number, int):
                raise TypeError(f"{name} must be an int, not {type(number).__name__}")
        if max_sessions < 1:
            raise InvalidInput(f"max_sessions={max_sessions}: at least one session is kept")
        if max_bytes is not None and max_bytes < 0:
            raise InvalidInput(f"max_bytes={max_bytes} is no size")
        self._max_sessions = max_sessions
        self._max_bytes = max_bytes
        self._process = os.getpid()
        self._lock = threading.Lock()
        #: The least recently used first.
        self._held: OrderedDict[Any, _Held] = OrderedDict()
        #: Of each session being made: what is set once it is, or failed.
        self._making: dict[Any, threading.Event] = {}
        self._closed = False
        self._hits = self._misses = self._evictions = 0

    def get(
        self,
        cache: ModelCache,
        repo: str,
        path: str,
        *,
        prepack: bool | None = None,
        providers: Providers | None = None,
        session_options: onnxruntime.SessionOptions | Callable[[], onnxruntime.SessionOptions] | None = None,
        align: bool | None = None,
        edges: Literal["auto", "inject", "derive"] | None = None,
    ) -> onnxruntime.InferenceSession:
        """The session of this model with these options: one that is here, or a new one, made by one thread while the others wait for it.

        Arguments and exceptions as of :func:`onnx_session`. ``session_options`` counts as the same if it is the same object. Where the session
        is here the graph is still read, to know its model: well under a millisecond for a hundred nodes.
        """
        self._check()
        _import()
        _check_arguments(cache, prepack)
        model = cache._onnx(repo, path)
        key = (tuple(model.digests), prepack, _frozen(providers), session_options, align, edges)
        # Set by whoever makes the session once it is here, or failed; whatever interrupts this thread, also Ctrl-C at any point.
        mine: threading.Event | None = None
        try:
            while mine is None:
                with self._lock:
                    self._check()
                    held = self._held.get(key)
                    if held is not None:
                        self._held.move_to_end(key)
                        self._hits += 1
                        return held.session
                    made = self._making.get(key)
                    if made is None:
                        mine = threading.Event()
                        self._making[key] = mine
                if mine is None and made is not None:
                    # Then it is here; or could not be made, and this thread finds out why; or was let go again.
                    made.wait()
            session = _make(model, f"{repo} {path}", prepack, providers, session_options, align, edges)
            dropped = self._keep(key, _Held(session, model.size_bytes))
        finally:
            if mine is not None:
                if self._making.get(key) is mine:
                    del self._making[key]
                mine.set()
        # Outside of the lock: a session may take a while to go.
        del dropped
        return session

    def _keep(self, key: Any, new: _Held) -> list[_Held]:
        """Holds a session, and gives those that had to make room for it."""
        dropped = []
        with self._lock:
            self._misses += 1
            too_large = self._max_bytes is not None and new.size_bytes > self._max_bytes
            if self._closed or too_large:
                return []
            self._held[key] = new
            size_bytes = sum(held.size_bytes for held in self._held.values())
            while len(self._held) > self._max_sessions or (self._max_bytes is not None and size_bytes > self._max_bytes):
                _, oldest = self._held.popitem(last=False)
                size_bytes -= oldest.size_bytes
                self._evictions += 1
                dropped.append(oldest)
        return dropped

    def stats(self) -> SessionStats:
        """What is held, and how often it was asked for."""
        self._check_process()
        with self._lock:
            size_bytes = sum(held.size_bytes for held in self._held.values())
            return SessionStats(len(self._held), size_bytes, self._hits, self._misses, self._evictions)

    def clear(self) -> None:
        """Lets go of every session."""
        self._check_process()
        with self._lock:
            held, self._held = self._held, OrderedDict()
        held.clear()

    def close(self) -> None:
        """Lets go of every session, and makes no more."""
        self._check_process()
        with self._lock:
            self._closed = True
        self.clear()

    def __enter__(self) -> SessionCache:
        self._check()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._held)

    def _check(self) -> None:
        self._check_process()
        if self._closed:
            raise ClosedError("the session cache is closed")

    def _check_process(self) -> None:
        # Before the lock is asked for, which a thread of the parent may have held when it forked.
        if os.getpid() != self._process:
            raise ForkedError(
                f"this session cache was made by process {self._process}; process {os.getpid()} is a fork of it and can't use it",
                hint="make one after the fork, in the process that uses it",
            )


def _frozen(value: Any) -> Any:
    """``value`` as something that can be a key."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _frozen(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    return value
