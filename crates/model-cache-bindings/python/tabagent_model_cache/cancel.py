"""Ending a long call from another thread: :class:`CancelToken`."""

from __future__ import annotations

import threading
from typing import Protocol

__all__ = ["Cancel", "CancelToken"]


class Cancel(Protocol):
    """What the calls take as ``cancel``: a :class:`CancelToken`, a ``threading.Event``, or anything else with ``is_set()``."""

    def is_set(self) -> bool:
        """Whether to stop."""


class CancelToken:
    """Cancels the calls it was given to; :class:`Cancelled` is raised there, within a tenth of a second or so.

    >>> cancel = CancelToken()
    >>> threading.Timer(30, cancel.cancel).start()
    >>> cache.download_quant("org/name", "Q4_K_M", cancel=cancel)
    """

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Cancels, now and for every later call."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._event.is_set()

    def is_set(self) -> bool:
        """As :attr:`cancelled`: what the calls ask."""
        return self._event.is_set()
