"""A whole safetensors file as numpy arrays: :func:`load_safetensors`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arrays import array
from .exceptions import FileNotInRepo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._native import ModelCache

__all__ = ["load_safetensors"]


def load_safetensors(cache: ModelCache, repo: str, path: str, *, raw: bool = False) -> dict[str, NDArray[Any]]:
    """All tensors of a safetensors file that is here, by name: arrays on the mapping, read-only, without a copy.

    The file stays open, and is kept from being freed, as long as any of the arrays lives. What
    ``safetensors.numpy.load_file`` gives, but that these share the page cache with every process that reads the file, and
    that ``bf16`` and 8-bit floats come as types of the package ``ml_dtypes``; with ``raw=True`` as their bits, ``uint16`` and
    ``uint8``.

    Cost: a few microseconds a tensor; private memory for names and shapes only. Pages are read as they are touched.

    :raises FileNotInRepo: the file is not in the store; ``cache.download_file(repo, path)`` brings it.
    :raises FormatError: it is not a well-formed safetensors file, or has a type that needs ``ml_dtypes`` where that is missing.

    >>> weights = load_safetensors(cache, "sentence-transformers/all-MiniLM-L6-v2", "model.safetensors")
    >>> weights["embeddings.word_embeddings.weight"].shape
    (30522, 384)
    """
    file = cache.get_file(repo, path)
    if file is None:
        raise FileNotInRepo(
            f"{repo} {path} is not in the store", code="not_found", hint=f"cache.download_file({repo!r}, {path!r}) brings it"
        )
    return {name: array(file, tensor, raw) for name, tensor in file.tensors.items()}
