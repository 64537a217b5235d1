"""A pull that is watched while it runs: :class:`Pull`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any

from . import waiting
from ._native import Work
from .cancel import Cancel
from .values import PullReport

__all__ = ["Pull"]


class Pull(Iterator[dict[str, Any]], AsyncIterator[dict[str, Any]]):
    """A pull under way: iterates over its events, in a ``for`` or an ``async for``.

    Made by :meth:`ModelCache.pull`; it runs from then on, whether or not anybody iterates. Events are the objects
    ``model-cache pull --progress json`` prints: ``{"event": "progress", "repo", "commit", "path", "loaded_bytes",
    "total_bytes", "bytes_per_second", "eta_seconds", ..}``; ``event`` is ``started``, ``progress``, ``retry``, ``waiting``,
    ``verifying`` or ``sealed``, and last exactly one of ``done``, ``failed``, ``cancelled``. After ``failed`` and
    ``cancelled`` the iteration raises what :meth:`ModelCache.download_quant` would. Of progress that nobody has taken yet the
    newest of each file is kept.

    As a context manager it cancels at the end what still runs, and waits until that has ended. A ``Pull`` that is dropped is
    cancelled, too.

    >>> with cache.pull("org/name", quant="Q4_K_M") as pull:
    ...     for event in pull:
    ...         if event["event"] == "progress":
    ...             print(event["path"], event["loaded_bytes"], "of", event["total_bytes"])
    >>> pull.report.fetched_bytes
    """

    def __init__(self, work: Work, cancel: Cancel | None) -> None:
        self._work = work
        self._cancel = cancel
        self._events: deque[dict[str, Any]] = deque()
        self._ended = False
        self._told = False
        self._report: PullReport | None = None
        self._awaited = False
        if cancel is not None and cancel.is_set():
            work.cancel()
        work.start()

    @property
    def report(self) -> PullReport | None:
        """What the pull did, once its ``done`` was iterated over; None before, and if it failed."""
        return self._report

    def cancel(self) -> None:
        """Cancels it: the iteration goes on to ``cancelled``, then raises :class:`Cancelled`. What landed is kept."""
        self._work.cancel()

    def __iter__(self) -> Pull:
        return self

    def __next__(self) -> dict[str, Any]:
        while not self._events:
            if self._ended:
                self._end()
                raise StopIteration
            try:
                self._take(self._work.wait(self._cancel))
            except BaseException:
                # Ctrl-C.
                self._work.cancel()
                raise
        return self._events.popleft()

    def __aiter__(self) -> Pull:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while not self._events:
            if self._ended:
                self._end()
                raise StopAsyncIteration
            await self._news(self._cancel)
        return self._events.popleft()

    def __enter__(self) -> Pull:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._work.cancel()
        while not self._ended:
            self._take(self._work.wait(None))

    async def __aenter__(self) -> Pull:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._work.cancel()
        while not self._ended:
            # Where another task iterates, that one hears of the end.
            await (asyncio.sleep(0.02) if self._awaited else self._news(None))

    async def _news(self, cancel: Cancel | None) -> None:
        # There is one bell: of two tasks that wait for it one would not hear it.
        if self._awaited:
            raise RuntimeError("another task awaits the next event of this Pull: give each task a pull of its own, or pass events on")
        self._awaited = True
        try:
            self._take(await waiting.news(self._work, cancel))
        finally:
            self._awaited = False

    def _take(self, news: waiting.News) -> None:
        _, events, self._ended = news
        self._events.extend(events)

    def _end(self) -> None:
        if not self._told:
            self._told = True
            self._report = self._work.result()
