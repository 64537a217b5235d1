"""Tensors as numpy arrays on the mapping: which numpy type reads which tensor."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from .exceptions import FormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ._native import ModelFile
    from .values import Tensor

#: Types of numpy's own, little-endian as the files are.
_NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}

#: Types numpy has none for: what the package ml_dtypes calls them, and the integers their bits are.
_ML_DTYPES = {
    "BF16": ("bfloat16", "<u2"),
    "F8_E4M3": ("float8_e4m3fn", "u1"),
    "F8_E5M2": ("float8_e5m2", "u1"),
    "F8_E8M0": ("float8_e8m0fnu", "u1"),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", "u1"),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", "u1"),
}


def array(file: ModelFile, tensor: Tensor, raw: bool = False) -> NDArray[Any]:
    """``tensor`` of ``file`` as :meth:`ModelFile.tensor` gives it."""
    try:
        import numpy as np
    except ImportError as error:
        raise ImportError("tensors are given as numpy arrays, and numpy is not installed: pip install numpy") from error
    dtype = _dtype(tensor, raw)
    view = file[tensor.start : tensor.end]
    if dtype is None:
        # Blocks, or elements of less than a byte: the bytes as they are, row by row where rows are whole bytes.
        rows = prod(tensor.shape[:-1])
        shape = (*tensor.shape[:-1], tensor.nbytes // rows) if rows and tensor.nbytes % rows == 0 else (tensor.nbytes,)
        return np.frombuffer(view, np.uint8).reshape(shape) if tensor.nbytes else np.empty(shape, np.uint8)
    # numpy refuses an empty buffer.
    return np.frombuffer(view, dtype).reshape(tensor.shape) if tensor.nbytes else np.empty(tensor.shape, dtype)


def _dtype(tensor: Tensor, raw: bool) -> np.dtype[Any] | None:
    """The numpy type of an element; None where one element is no whole number of bytes."""
    import numpy as np

    if tensor.dtype in _NUMPY:
        return np.dtype(_NUMPY[tensor.dtype])
    if tensor.dtype not in _ML_DTYPES:
        return None
    name, bits = _ML_DTYPES[tensor.dtype]
    if raw:
        return np.dtype(bits)
    try:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype
    except (ImportError, AttributeError) as error:
        raise FormatError(
            f"tensor {tensor.name} is {tensor.dtype}, which numpy has no type for",
            hint=f"pip install ml_dtypes, for its {name}; or tensor({tensor.name!r}, raw=True), for its bits as {np.dtype(bits)}",
        ) from error
