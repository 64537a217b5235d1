"""A model file as a stream: :class:`ModelReader`."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from ._native import ModelFile

__all__ = ["ModelReader"]

#: A read of at least this many bytes is worth asking the disk for them beforehand.
_LARGE_BYTES = 64 << 10


class ModelReader(io.RawIOBase):
    """Reads a :class:`ModelFile` as a stream, with a position of its own; made by :meth:`ModelFile.open`.

    Reads are copies; a ``memoryview`` of the file is none. It keeps the file from being freed until it is closed or dropped.
    """

    def __init__(self, file: ModelFile) -> None:
        super().__init__()
        self._file = file._clone()
        self._view = memoryview(self._file)
        self._position = 0
        #: The path within the repo, as the ``name`` of other files is their path.
        self.name = file.path

    def readable(self) -> bool:
        self._check()
        return True

    def seekable(self) -> bool:
        self._check()
        return True

    def tell(self) -> int:
        self._check()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check()
        match whence:
            case os.SEEK_SET:
                position = offset
            case os.SEEK_CUR:
                position = self._position + offset
            case os.SEEK_END:
                position = len(self._view) + offset
            case _:
                raise ValueError(f"whence is 0, 1 or 2, not {whence!r}")
        if position < 0:
            raise ValueError(f"byte {position} lies before the start of {self.name}")
        self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._check()
        with memoryview(buffer) as whole, whole.cast("B") as target:
            self._wait_for(len(target))
            part = self._view[self._position : self._position + len(target)]
            target[: len(part)] = part
        self._position += len(part)
        return len(part)

    def readall(self) -> bytes:
        self._check()
        self._wait_for(len(self._view))
        rest = bytes(self._view[self._position :])
        self._position += len(rest)
        return rest

    def write(self, buffer: ReadableBuffer, /) -> int:
        raise io.UnsupportedOperation("a model file is only read")

    def close(self) -> None:
        # Also called for one whose file could not be viewed.
        if hasattr(self, "_view"):
            self._view.release()
            self._file.close()
        super().close()

    def _wait_for(self, size_bytes: int) -> None:
        # The copy is made with Python's lock held; a wait for the disk need not be.
        if size_bytes >= _LARGE_BYTES:
            start = min(self._position, len(self._view))
            self._file._wait_for(start, min(start + size_bytes, len(self._view)))

    def _check(self) -> None:
        if self.closed:
            raise ValueError(f"the reader of {self.name} is closed")
