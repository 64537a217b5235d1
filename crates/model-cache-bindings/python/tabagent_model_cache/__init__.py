"""An embedded store of AI model files: pulls from the Hub, verified and resumable, read back as one buffer without a copy.

>>> from tabagent_model_cache import ModelCache
>>> with ModelCache("./models") as cache:
...     cache.download_file("sentence-transformers/all-MiniLM-L6-v2", "model.safetensors")
...     weights = cache.get_file("sentence-transformers/all-MiniLM-L6-v2", "model.safetensors")
...     memoryview(weights)
"""

from ._native import ModelCache, ModelFile, __version__
from .cancel import Cancel, CancelToken
from .exceptions import (
    AccessDenied,
    AlreadyExists,
    Busy,
    Cancelled,
    ClosedError,
    FileNotInRepo,
    ForkedError,
    FormatError,
    Gated,
    IntegrityError,
    InvalidInput,
    ModelCacheError,
    NetworkError,
    NoSpace,
    NotFound,
    NotInStore,
    Offline,
    QuantNotChosen,
    QuantNotFound,
    RateLimited,
    RepoNotFound,
    RevisionNotFound,
    StoreError,
    TensorNotFound,
)
from .onnx import SessionCache, SessionStats, onnx_session
from .pull import Pull
from .reader import ModelReader
from .safetensors import load_safetensors
from .values import (
    BadBlock,
    ExportReport,
    FileInfo,
    ImportReport,
    Manifest,
    ManifestFile,
    PrefetchReport,
    PullReport,
    Quant,
    Record,
    Removed,
    RepoFiles,
    RepoSummary,
    Stats,
    Tensor,
    VerifyReport,
)

__all__ = [
    "AccessDenied",
    "AlreadyExists",
    "BadBlock",
    "Busy",
    "Cancel",
    "CancelToken",
    "Cancelled",
    "ClosedError",
    "ExportReport",
    "FileInfo",
    "FileNotInRepo",
    "ForkedError",
    "FormatError",
    "Gated",
    "ImportReport",
    "IntegrityError",
    "InvalidInput",
    "Manifest",
    "ManifestFile",
    "ModelCache",
    "ModelCacheError",
    "ModelFile",
    "ModelReader",
    "NetworkError",
    "NoSpace",
    "NotFound",
    "NotInStore",
    "Offline",
    "PrefetchReport",
    "Pull",
    "PullReport",
    "Quant",
    "QuantNotChosen",
    "QuantNotFound",
    "RateLimited",
    "Record",
    "Removed",
    "RepoFiles",
    "RepoNotFound",
    "RepoSummary",
    "RevisionNotFound",
    "SessionCache",
    "SessionStats",
    "Stats",
    "StoreError",
    "Tensor",
    "TensorNotFound",
    "VerifyReport",
    "__version__",
    "load_safetensors",
    "onnx_session",
]
