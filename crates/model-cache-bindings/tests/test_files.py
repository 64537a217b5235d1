"""Files read back: buffers, slices, streams, and the lease that keeps what they show."""

from __future__ import annotations

import gc
import io
import mmap
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import BIG, MIB, REPO, Hub

from tabagent_model_cache import Cancelled, ClosedError, FileNotInRepo, ModelCache, ModelFile, NotInStore, StoreError

Open = Callable[..., ModelCache]


@pytest.fixture
def content(hub: Hub) -> bytes:
    return hub.content(BIG)


@pytest.fixture
def file(cache: ModelCache) -> ModelFile:
    cache.download_file(REPO, BIG)
    file = cache.get_file(REPO, BIG)
    assert file is not None
    return file


def test_a_file_is_its_bytes(file: ModelFile, content: bytes) -> None:
    assert len(file) == len(content)
    assert bytes(file) == content
    assert (file.repo, file.path) == (REPO, BIG)
    assert file.digest.startswith("sha256:") and len(file.digest) == 7 + 64
    for index in [0, 1, -1, len(content) - 1, -len(content), 5 * MIB]:
        assert file[index] == content[index]
    for wrong in [len(content), -len(content) - 1, 1 << 70, -(1 << 70)]:
        with pytest.raises(IndexError, match=str(wrong)):
            file[wrong]
    assert file[np.int64(3)] == content[3]
    with pytest.raises(TypeError):
        file["name"]  # type: ignore[call-overload]


def test_a_slice_is_a_view_and_not_a_copy(file: ModelFile, content: bytes) -> None:
    for part in [slice(None), slice(10, 20), slice(-5, None), slice(0, 100, 7), slice(20, 10), slice(None, None, -1)]:
        view = file[part]
        assert isinstance(view, memoryview) and view == content[part]
    start = np.frombuffer(file, np.uint8).ctypes.data
    assert np.frombuffer(file[4096:8192], np.uint8).ctypes.data == start + 4096
    # Alignments within the file hold in memory.
    assert start % (64 << 10) == 0


def test_nobody_writes_through_a_view(file: ModelFile) -> None:
    view = memoryview(file)
    assert view.readonly and view.contiguous and view.format == "B" and view.ndim == 1
    with pytest.raises(TypeError):
        view[0] = 1
    array = np.frombuffer(file, np.uint8)
    with pytest.raises(ValueError):
        array[0] = 1
    with pytest.raises(ValueError):
        array.flags.writeable = True
    with pytest.raises((BufferError, TypeError)):
        io.BytesIO(b"1234").readinto(file)  # type: ignore[arg-type]


def test_the_lease_lives_until_the_last_view_dies_and_then_the_space_returns(
    cache: ModelCache, file: ModelFile, content: bytes
) -> None:
    view = memoryview(file)
    array = np.frombuffer(view[MIB:], np.uint8)
    removed = cache.delete_file(REPO, BIG)
    assert (removed.busy_bytes, removed.freed_bytes) == (len(content), 0)
    for drop in range(3):
        assert cache.get_file(REPO, BIG) is None
        assert cache.get_stats().doomed_bytes == len(content), drop
        assert array[0] == content[MIB]
        if drop == 0:
            file.close()
            assert view[:100] == content[:100]
        elif drop == 1:
            view.release()
    disk = cache.get_stats().disk_bytes
    del array
    gc.collect()
    stats = cache.get_stats()
    assert stats.doomed_bytes == 0
    # The bytes themselves, given back to the disk.
    assert disk - stats.disk_bytes > len(content) - MIB


def test_removing_a_big_file_returns_its_disk_space(cache: ModelCache) -> None:
    cache.download_file(REPO, BIG)
    before = cache.get_stats()
    assert before.disk_bytes >= before.live_bytes > 10 * MIB
    assert cache.delete_model(REPO).freed_bytes == before.live_bytes
    assert cache.get_stats().disk_bytes < before.disk_bytes - 9 * MIB


def test_a_closed_file_gives_nothing_and_its_views_stay(file: ModelFile, content: bytes) -> None:
    view = memoryview(file)
    stream = file.open()
    with file as same:
        assert same is file
    assert file.closed
    for use in [lambda: memoryview(file), lambda: file[0], lambda: file[:1], lambda: bytes(file), file.open, file.__enter__]:
        with pytest.raises(ClosedError):
            use()
    file.close()
    assert view[-10:] == content[-10:]
    assert stream.read(3) == content[:3]
    assert (len(file), file.path, "closed" in repr(file)) == (len(content), BIG, True)


def test_a_closed_cache_gives_nothing_and_its_files_stay(open_cache: Open, hub: Hub, content: bytes) -> None:
    cache = open_cache(hub)
    with cache as same:
        assert same is cache
        cache.download_file(REPO, BIG)
        file = cache.get_file(REPO, BIG)
    assert cache.closed and file is not None
    for use in [cache.list, cache.gc, cache.get_stats, cache.__enter__, lambda: cache.pull(REPO), lambda: cache.scan_repo(REPO)]:
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(ValueError):
        cache.has_file(REPO, BIG)
    cache.close()
    assert bytes(file) == content
    assert open_cache(hub).has_file(REPO, BIG)


def test_an_empty_and_a_small_file_are_files(cache: ModelCache, hub: Hub) -> None:
    cache.download_file(REPO, "sub/empty.txt")
    empty = cache.get_file(REPO, "sub/empty.txt")
    assert empty is not None and bool(empty) and len(empty) == 0 and bytes(empty) == b""
    assert empty.open().read() == b"" and memoryview(empty).nbytes == 0 and empty[:] == b""
    cache.download_file(REPO, "config.json")
    config = cache.get_file(REPO, "config.json")
    assert config is not None and io.TextIOWrapper(io.BufferedReader(config.open())).read() == hub.content("config.json").decode()


def test_a_stream_reads_as_the_file_on_disk_does(file: ModelFile, hub: Hub) -> None:
    plain = open(hub.root / REPO / BIG, "rb", buffering=0)
    stream = file.open()
    assert isinstance(stream, io.RawIOBase) and stream.readable() and stream.seekable() and not stream.writable()
    size = len(file)
    seeks: list[tuple[int, ...]] = [(0,), (5 * MIB - 3,), (-4, 2), (size + 9,), (0, 2), (-100, 1), (3,)]
    for seek, count in zip(seeks, [10, 7, 100, 5, 1, 50, 0], strict=True):
        assert stream.seek(*seek) == plain.seek(*seek)
        assert stream.read(count) == plain.read(count)
        assert stream.tell() == plain.tell()
    for at in [0, 7, size - 5, size + 3]:
        stream.seek(at), plain.seek(at)
        assert stream.read() == plain.read()
    target, other = bytearray(64), bytearray(64)
    stream.seek(size - 10), plain.seek(size - 10)
    assert stream.readinto(target) == plain.readinto(other) == 10 and target == other
    assert stream.readinto(np.zeros((2, 3), np.float32)) == 0
    for wrong in [lambda: stream.seek(-1), lambda: stream.seek(0, 9), lambda: stream.seek(-size - 1, 2)]:
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(io.UnsupportedOperation):
        stream.write(b"x")
    plain.close()
    with stream:
        pass
    for use in [stream.read, stream.tell, stream.readable, lambda: stream.seek(0), lambda: stream.readinto(target)]:
        with pytest.raises(ValueError):
            use()


def test_buffered_readers_and_pickle_take_a_stream(cache: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "numbers.pkl").write_bytes(pickle.dumps(list(range(50_000))))
    cache.import_files("me/numbers", [tmp_path / "numbers.pkl"])
    file = cache.get_file("me/numbers", "numbers.pkl")
    assert file is not None
    with io.BufferedReader(file.open()) as stream:
        assert stream.name == "numbers.pkl"  # type: ignore[attr-defined]
        assert pickle.load(stream) == list(range(50_000))


def test_a_file_of_several_chunks_is_one_buffer(cache: ModelCache, tmp_path: Path) -> None:
    size = 230 * MIB
    sparse = tmp_path / "sparse.bin"
    with sparse.open("wb") as out:
        out.truncate(size)
        for at in [0, 100 * MIB - 2, 200 * MIB - 1, size - 4]:
            out.seek(at)
            out.write(b"edge")
    cache.import_files("me/sparse", sparse)
    file = cache.get_file("me/sparse", "sparse.bin")
    assert file is not None and len(file) == size
    with sparse.open("rb") as plain, mmap.mmap(plain.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert file[100 * MIB - 4 : 100 * MIB + 4] == mapped[100 * MIB - 4 : 100 * MIB + 4]
        assert file[200 * MIB - 4 : 200 * MIB + 4] == mapped[200 * MIB - 4 : 200 * MIB + 4]
    assert int(np.frombuffer(file, np.uint8).astype(bool).sum()) == 16


def test_several_threads_read_and_remove_side_by_side(cache: ModelCache, content: bytes) -> None:
    cache.download_file(REPO, BIG)
    failures: list[BaseException] = []

    def pull_beside_removals() -> None:
        try:
            cache.download_file(REPO, BIG)
        except StoreError as error:
            # The other thread removed it between its seal and the pull's end, which a pull does not keep quiet about.
            if "was removed while it was pulled" not in str(error):
                raise

    def read() -> None:
        try:
            for _ in range(30):
                file = cache.get_file(REPO, BIG)
                if file is None:
                    cache.download_file(REPO, BIG)
                else:
                    assert file[-1] == content[-1] and bytes(file[MIB : MIB + 9]) == content[MIB : MIB + 9]
        except BaseException as error:
            failures.append(error)

    def remove() -> None:
        try:
            for _ in range(10):
                try:
                    cache.delete_file(REPO, BIG)
                except FileNotInRepo:
                    pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for work in [read, read, read, remove]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_prefetched_file_is_resident_and_its_report_adds_up(cache: ModelCache, file: ModelFile) -> None:
    calls: list[tuple[int, int]] = []
    report = file.prefetch(progress=lambda done, total: calls.append((done, total)))
    assert report.size_bytes == len(file) == file.resident_bytes
    assert report.resident_bytes + report.read_bytes + report.left_bytes == len(file)
    assert report.files == 1 and report.seconds >= 0 and calls == sorted(calls) and calls[-1] == (len(file), len(file))
    again = cache.prefetch(REPO, files="*.safetensors")
    assert (again.size_bytes, again.resident_bytes, again.read_bytes) == (len(file), len(file), 0)


def test_a_prefetch_is_cancelled_by_its_token_and_by_what_progress_raises(cache: ModelCache, file: ModelFile) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        file.prefetch(cancel=cancel)
    with pytest.raises(Cancelled):
        cache.prefetch(REPO, cancel=cancel)

    def refuse(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        file.prefetch(progress=refuse)
    assert file.prefetch().size_bytes == len(file)


def test_what_is_not_here_can_not_be_prefetched(cache: ModelCache, file: ModelFile) -> None:
    with pytest.raises(NotInStore):
        cache.prefetch("org/absent")
    with pytest.raises(FileNotInRepo):
        cache.prefetch(REPO, files=["*.gguf"])
    file.close()
    with pytest.raises(ClosedError):
        file.prefetch()
