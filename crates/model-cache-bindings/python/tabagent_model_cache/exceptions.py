"""What can go wrong, as exceptions: :class:`ModelCacheError` and a class for each thing a caller would catch.

Each is also the builtin exception a Python program expects: ``NotFound`` a ``FileNotFoundError``, ``NetworkError`` a
``ConnectionError``, and so on. All can be pickled.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar

__all__ = [
    "AccessDenied",
    "AlreadyExists",
    "Busy",
    "Cancelled",
    "ClosedError",
    "FileNotInRepo",
    "ForkedError",
    "FormatError",
    "Gated",
    "IntegrityError",
    "InvalidInput",
    "ModelCacheError",
    "NetworkError",
    "NoSpace",
    "NotFound",
    "NotInStore",
    "Offline",
    "QuantNotChosen",
    "QuantNotFound",
    "RateLimited",
    "RepoNotFound",
    "RevisionNotFound",
    "StoreError",
    "TensorNotFound",
]


class ModelCacheError(Exception):
    """Anything that went wrong in the model cache. ``str()`` of it says what was attempted, on what, with which numbers.

    ``code``: the group, as the program ``model-cache`` names it in ``--json``: ``usage``, ``not_found``, ``network``,
    ``integrity``, ``no_space``, ``not_allowed``, ``interrupted``, ``other``.

    ``hint``: what to do next, where something is known to help; often a command that can be pasted. Also a note of the
    exception, so that a traceback shows it.
    """

    code: str = "other"
    hint: str | None = None
    _errno: ClassVar[int | None] = None

    def __init__(self, message: str = "", *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if hint is not None:
            self.hint = hint
            self.add_note(f"hint: {hint}")
        # The number alone: with a text beside it, str() of an OSError would begin with "[Errno 2]".
        error: BaseException = self
        if isinstance(error, OSError):
            error.errno = self._errno

    def __str__(self) -> str:
        # Not as a KeyError has it, in quotes.
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), str(self), self.hint, self.code), {}


def _restore(kind: type[ModelCacheError], message: str, hint: str | None, code: str) -> ModelCacheError:
    return kind(message, hint=hint, code=code)


class InvalidInput(ModelCacheError, ValueError):
    """The request itself is wrong: a name, a path, an option, a range. Nothing was touched."""

    code = "usage"


class QuantNotChosen(InvalidInput):
    """The repo offers several quants, and none was chosen."""


class NotFound(ModelCacheError, FileNotFoundError):
    """No such repo, revision, file or quant; also a ``FileNotFoundError``."""

    code = "not_found"
    _errno = errno.ENOENT


class RepoNotFound(NotFound):
    """The Hub knows no such repo, or hides it from this token."""


class RevisionNotFound(NotFound):
    """The repo has no such branch, tag or commit."""


class FileNotInRepo(NotFound):
    """The repo, or what is here of it, has no such file."""


class QuantNotFound(NotFound):
    """The repo offers no such quant."""


class NotInStore(NotFound):
    """Nothing of this repo is in the store."""


class NetworkError(ModelCacheError, ConnectionError):
    """The network or the Hub, after every retry; also a ``ConnectionError``. What landed is kept."""

    code = "network"


class Offline(NetworkError):
    """Offline mode, and the store does not have it."""


class RateLimited(NetworkError):
    """The Hub limits the rate of requests."""


class AccessDenied(ModelCacheError, PermissionError):
    """A token is missing, refused, or not on the list; also a ``PermissionError``."""

    code = "not_allowed"
    _errno = errno.EACCES


class Gated(AccessDenied):
    """The repo's licence was not accepted by the owner of this token, or no token was sent."""


class IntegrityError(ModelCacheError):
    """Bytes are not what they should be: damaged here, or not what the Hub promised."""

    code = "integrity"


class NoSpace(ModelCacheError, OSError):
    """The disk has no room; told before the first byte is fetched. Also an ``OSError`` with ``errno.ENOSPC``."""

    code = "no_space"
    _errno = errno.ENOSPC


class Cancelled(ModelCacheError):
    """The caller cancelled. The store keeps every block that landed; the next pull goes on from there."""

    code = "interrupted"


class Busy(ModelCacheError):
    """Another process or thread is at it right now; try again in a moment."""


class AlreadyExists(ModelCacheError, FileExistsError):
    """The target of an export exists and was not to be replaced; also a ``FileExistsError``."""

    _errno = errno.EEXIST


class FormatError(ModelCacheError, ValueError):
    """A file is not a well-formed GGUF, safetensors or ONNX file, or can't be read as asked; also a ``ValueError``."""

    code = "integrity"


class TensorNotFound(ModelCacheError, KeyError):
    """The file has no tensor of this name; also a ``KeyError``."""

    code = "not_found"


class StoreError(ModelCacheError, OSError):
    """The store, its disk or the operating system refused; also an ``OSError``."""


class ClosedError(ModelCacheError, ValueError):
    """The cache or file was closed; also a ``ValueError``, as of a closed file of ``io``."""

    code = "usage"


class ForkedError(ModelCacheError, RuntimeError):
    """The cache was opened before a fork, and this is the child: open the store anew there."""

    code = "usage"
