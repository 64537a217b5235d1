"""How the package is used, for `mypy --strict`: never run."""

from pathlib import Path

import numpy as np

from tabagent_model_cache import (
    CancelToken,
    ModelCache,
    ModelCacheError,
    ModelFile,
    NoSpace,
    NotFound,
    Pull,
    PullReport,
    Removed,
    SessionCache,
    load_safetensors,
    onnx_session,
)


def pulls(cache: ModelCache) -> int:
    report: PullReport = cache.download_quant("org/name", "q4f16", progress=lambda loaded, total: print(loaded / total))
    cancel = CancelToken()
    cache.download_file("org/name", "config.json", cancel=cancel)
    with cache.pull("org/name", quant=["a", "b"], files="*.json", cancel=cancel) as pull:
        for event in pull:
            print(event["event"])
    watched: Pull = pull
    assert watched.report is not None
    return report.fetched_bytes + watched.report.files


async def awaits(cache: ModelCache) -> str:
    manifest = await cache.scan_repo_async("org/name")
    report = await cache.download_quant_async("org/name", "q4f16", lambda loaded, total: None)
    async for event in cache.pull("org/name"):
        print(event)
    return manifest.quants["q4f16"].status + report.commit


def reads(cache: ModelCache) -> float:
    file: ModelFile | None = cache.get_file("org/name", "model.safetensors")
    if file is None:
        return 0
    view: memoryview = memoryview(file)
    part: memoryview = file[10:20]
    byte: int = file[0]
    total = float(np.frombuffer(file[8:], np.float32, count=3).sum())
    shape: tuple[int, ...] = file.tensors["weight"].shape
    with file.open() as stream:
        stream.read(3)
    weights = load_safetensors(cache, "org/name", "model.safetensors")
    return view.nbytes + part[0] + byte + total + shape[0] + weights["weight"].nbytes


def keeps(store: Path) -> Removed | None:
    with ModelCache(store, endpoint="http://127.0.0.1", token=None, offline=False, connections=4, limit_rate=1 << 30) as cache:
        cache.import_files("me/mine", ["a", Path("b")])
        cache.export("me/mine", store / "out", force=True)
        names = [repo.repo for repo in cache.list()] + [file.path for commit in cache.files("me/mine") for file in commit.files]
        try:
            removed: Removed = cache.delete_model(names[0])
        except (NotFound, NoSpace) as error:
            print(error.hint, error.code, error.errno)
        except ModelCacheError:
            return None
        else:
            return removed
    return None


def infers(cache: ModelCache) -> int:
    session = onnx_session(cache, "org/name", "onnx/model.onnx", prepack=False, providers=["CPUExecutionProvider"], edges="derive")
    session.run(None, {})
    with SessionCache(max_sessions=2, max_bytes=1 << 30) as sessions:
        sessions.get(cache, "org/name", "onnx/model.onnx", align=True).run(None, {})
        return sessions.stats().hits + len(sessions)
