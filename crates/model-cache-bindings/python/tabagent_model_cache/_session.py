"""An ``InferenceSession`` of ONNX Runtime whose weights lie in a store; imported when the first one is made."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

# It has no annotations, and need not be installed where no session is made.
import onnxruntime as ort  # type: ignore[import-untyped, import-not-found, unused-ignore]
from onnxruntime.capi import _pybind_state as native  # type: ignore[import-untyped, import-not-found, unused-ignore]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._native import OnnxPlan

FOLDER = "session.model_external_initializers_file_folder_path"
DISABLE_PREPACKING = "session.disable_prepacking"
#: What numpy calls the element types that are injected, by their numbers in ONNX.
_NUMPY_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
#: The smallest model ONNX Runtime reads: of an IR version, an operator set, and a graph with a name and nothing in it.
_EMPTY_MODEL = bytes.fromhex("0808 3a03 120167 4204 0a00 1011")


def copy(options: ort.SessionOptions) -> ort.SessionOptions:
    """The same options in an object of their own.

    Python's copy module can't. A session has a copy of its options; this one is not even initialised.
    """
    # It would begin a file.
    profiling, options.enable_profiling = options.enable_profiling, False
    try:
        copied = native.InferenceSession(options, _EMPTY_MODEL, False, False).session_options
    finally:
        options.enable_profiling = profiling
    copied.enable_profiling = profiling
    return copied


def entry(options: ort.SessionOptions, key: str) -> str | None:
    try:
        return options.get_session_config_entry(key)  # type: ignore[no-any-return]
    except RuntimeError:
        return None


class StoreSession(ort.InferenceSession):  # type: ignore[misc, unused-ignore]
    """An ``InferenceSession`` whose weights lie in a store."""

    def __init__(
        self,
        plan: OnnxPlan,
        make_options: Callable[[], ort.SessionOptions],
        prepack: bool | None,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | None,
    ) -> None:
        self._store_plan = plan
        self._make_store_options = make_options
        self._store_prepack = prepack
        #: What became of the model's tensors: ``pointed``, ``derived``, ``injected``, ``inlined`` and ``kept``, each with ``tensors``
        #: and ``size_bytes``; ``copied``, the same by reason; ``prepack``, whether prepacking is on.
        self.store_report: dict[str, Any] = plan.report
        # ORT prints, and tries again on the CPU, where another provider fails; there is nothing else to try on the CPU.
        only_cpu = all((one if isinstance(one, str) else one[0]) == "CPUExecutionProvider" for one in providers or ())
        super().__init__(b"", None, providers=providers, enable_fallback=0 if only_cpu else 1)

    def _create_inference_session(
        self, providers: Any, provider_options: Any, disabled_optimizers: Any = None
    ) -> None:
        # Called by __init__, and by set_providers, for a session in place of the one before.
        plan = self._store_plan
        # What ORT gets, and what get_session_options tells: without what is ours.
        options, told = self._make_store_options(), self._make_store_options()
        for each in (options, told):
            if entry(each, DISABLE_PREPACKING) is None:
                on = plan.prepack if self._store_prepack is None else self._store_prepack
                each.add_session_config_entry(DISABLE_PREPACKING, "0" if on else "1")
        self.store_report["prepack"] = entry(options, DISABLE_PREPACKING) != "1"
        if plan.data_file is not None:
            options.add_session_config_entry(FOLDER, str(plan.data_file.parent))
        _inject(options, plan)
        self._model_bytes = plan.graph()
        self._sess_options = options
        lease = plan.lease()
        try:
            super()._create_inference_session(providers, provider_options, disabled_optimizers)
        except BaseException:
            lease.release()
            raise
        finally:
            # ORT has mapped or copied what it needs; these would keep the rest.
            self._model_bytes = b""
            self._sess_options = self._sess_options_initial = told
        # Not this object is what maps the store, but ORT's own: an IOBinding or a NodeArg keeps it alive longer.
        finalizer = weakref.finalize(self._sess, lease.release)
        # At exit the kernel lets go of the lease, and nothing may run that unmaps what another thread still reads.
        finalizer.atexit = False


def _inject(options: ort.SessionOptions, plan: OnnxPlan) -> None:
    injected = plan.injected
    if not injected:
        return
    names, values = [], []
    for name, number, shape, file, start, end in injected:
        array = np.frombuffer(memoryview(file)[start:end], _NUMPY_TYPES[number]).reshape(shape)
        names.append(name)
        values.append(ort.OrtValue.ortvalue_from_numpy(array))
    options.add_external_initializers(names, values)
