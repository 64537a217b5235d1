"""An embedded store of AI model files: pulls from the Hub, verified and resumable, read back as one buffer without a copy.

>>> from tabagent_model_cache import ModelCache
>>> with ModelCache("./models") as cache:
...     cache.download_file("sentence-transformers/all-MiniLM-L6-v2", "model.safetensors")
...     weights = cache.get_file("sentence-transformers/all-MiniLM-L6-v2", "model.safetensors")
...     memoryview(weights)
"""

from ._native import ModelCache, ModelFile, __version__
from .cancel import Cancel, CancelToken
from .exceptions import *  # noqa: F403
from .exceptions import __all__ as _exceptions
from .onnx import SessionCache, SessionStats, onnx_session
from .pull import Pull
from .reader import ModelReader
from .values import *  # noqa: F403
from .values import __all__ as _values

__all__ = ["Cancel", "CancelToken", "ModelCache", "ModelFile", "ModelReader", "Pull", "SessionCache", "SessionStats", "onnx_session", "__version__", *_exceptions, *_values]
