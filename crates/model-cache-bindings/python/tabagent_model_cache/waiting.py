"""Waiting within asyncio for work that runs on threads of Rust's.

The work rings a bell, a socket the event loop watches, whenever there is news; so no thread of Rust's ever calls into Python,
which could hang or crash one while the interpreter shuts down, and any event loop that has ``add_reader`` will do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from ._native import Work
from .cancel import Cancel

#: The newest progress (bytes here, bytes in all), the events, whether the work has ended.
News: TypeAlias = tuple[tuple[int, int] | None, list[dict[str, Any]], bool]

#: How often a ``cancel`` is asked, in seconds.
_POLL_SECONDS = 0.05


async def news(work: Work, cancel: Cancel | None = None) -> News:
    """The next news of ``work``; waits until there are some."""
    loop = asyncio.get_running_loop()
    while True:
        if cancel is not None and cancel.is_set():
            work.cancel()
        told = work.poll()
        if told[0] is not None or told[1] or told[2]:
            return told
        rung = asyncio.Event()
        bell = work.fileno()
        loop.add_reader(bell, rung.set)
        try:
            async with asyncio.timeout(_POLL_SECONDS if cancel is not None else None):
                await rung.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(bell)


async def finish(work: Work, progress: Callable[[int, int], object] | None = None) -> Any:
    """Runs ``work`` to its end and gives its result; ``progress`` is called in the event loop's thread.

    If this task is cancelled, or ``progress`` raises, the work is cancelled, and its end is waited for, so that the store is
    at rest when the exception goes on. A second cancellation does not wait.
    """
    work.start()
    try:
        ended = False
        while not ended:
            loaded, _, ended = await news(work)
            if loaded is not None and progress is not None:
                progress(*loaded)
    except GeneratorExit:
        # Whoever closes a coroutine lets it await no more.
        work.cancel()
        raise
    except BaseException:
        work.cancel()
        while not (await news(work))[2]:
            pass
        raise
    return work.result()
