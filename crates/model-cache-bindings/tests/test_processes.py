"""Forks, spawned processes, the end of the interpreter."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BIG, MIB, REPO, Hub

from tabagent_model_cache import ForkedError, ModelCache, ModelFile

Open = Callable[..., ModelCache]
# Python itself warns of a fork beside threads; what comes of it here is what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def in_child(work: Callable[[], object]) -> int:
    """Runs `work` in a forked child that is given half a minute; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            signal.alarm(30)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def pulled(open_cache: Open, hub: Hub) -> tuple[ModelCache, ModelFile]:
    cache = open_cache(hub)
    cache.download_file(REPO, BIG)
    file = cache.get_file(REPO, BIG)
    assert file is not None
    return cache, file


def test_what_a_fork_inherits_is_refused_with_both_processes_named(pulled: tuple[ModelCache, ModelFile]) -> None:
    cache, _ = pulled
    parent = os.getpid()

    def child() -> None:
        for use in [
            cache.list,
            cache.get_stats,
            cache.gc,
            lambda: cache.get_file(REPO, BIG),
            lambda: cache.has_file(REPO, BIG),
            lambda: cache.scan_repo(REPO),
            lambda: cache.download_file(REPO, BIG),
            lambda: cache.pull(REPO),
            lambda: cache.delete_model(REPO),
            cache.verify,
        ]:
            with pytest.raises(ForkedError, match=f"process {parent}; process {os.getpid()}"):
                use()
        cache.close()

    assert in_child(child) == 0
    assert cache.verify().bad == [] and cache.has_file(REPO, BIG)


def test_files_a_fork_inherits_stay_readable_and_the_child_opens_the_store_anew(
    pulled: tuple[ModelCache, ModelFile], hub: Hub
) -> None:
    cache, file = pulled
    view = memoryview(file)
    content = hub.content(BIG)

    def child() -> None:
        assert bytes(file) == content and view[-1] == content[-1] and file[MIB] == content[MIB]
        with ModelCache(cache.path, endpoint=hub.endpoint) as own:
            assert own.has_file(REPO, BIG)
            own.download_file(REPO, "config.json")
            small = own.get_file(REPO, "config.json")
            assert small is not None and bytes(small) == hub.content("config.json")

    assert in_child(child) == 0
    assert cache.has_file(REPO, "config.json")
    assert bytes(file) == content


def test_a_child_keeps_what_it_inherited_from_being_freed(pulled: tuple[ModelCache, ModelFile], hub: Hub) -> None:
    cache, file = pulled
    content, (here, there) = hub.content(BIG), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            os.read(here, 1)
            assert bytes(file) == content
            os._exit(0)
        finally:
            os._exit(99)
    file.close()
    assert cache.delete_file(REPO, BIG).freed_bytes == 0
    os.write(there, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert cache.gc().busy_bytes == 0 and cache.get_stats().doomed_bytes == 0
    for end in [here, there]:
        os.close(end)


def test_a_child_that_drops_what_it_inherited_harms_nobody(pulled: tuple[ModelCache, ModelFile], hub: Hub) -> None:
    cache, file = pulled
    held = [cache, file, memoryview(file), file.open()]

    def child() -> None:
        nonlocal cache, file, pulled
        held.clear()
        pulled = cache = file = None  # type: ignore[assignment]
        gc.collect()

    assert in_child(child) == 0
    cache.download_file(REPO, "config.json")
    assert bytes(file) == hub.content(BIG) and cache.verify().bad == []


def test_a_fork_beside_a_pull_under_way_disturbs_neither(open_cache: Open, slow_hub: Hub, hub: Hub) -> None:
    cache = open_cache(slow_hub)
    with cache.pull(REPO, files=BIG) as pull:
        while next(pull)["event"] != "progress":
            pass

        def child() -> None:
            for use in [lambda: next(pull), pull.cancel]:
                with pytest.raises(ForkedError):
                    use()
            with ModelCache(cache.path, endpoint=hub.endpoint) as own:
                own.download_file(REPO, "config.json")

        assert in_child(child) == 0
        assert next(pull)["event"] == "progress"
    assert cache.has_file(REPO, "config.json")


def test_a_forked_child_ends_by_itself_as_any_other(pulled: tuple[ModelCache, ModelFile]) -> None:
    cache, _ = pulled
    program = f"""
import os, sys
from tabagent_model_cache import ModelCache
cache = ModelCache({str(cache.path)!r})
file = cache.get_file({REPO!r}, {BIG!r})
cache.verify()
pid = os.fork()
if pid == 0:
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert len(file) > 0 and cache.verify().bad == []
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)


def read_last_byte(arguments: tuple[Path, str, str]) -> int:
    store, repo, path = arguments
    with ModelCache(store) as cache:
        file = cache.get_file(repo, path)
        assert file is not None
        return file[-1]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_open_the_store_by_its_path(pulled: tuple[ModelCache, ModelFile], hub: Hub, method: str) -> None:
    cache, _ = pulled
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_last_byte, [(cache.path, REPO, BIG)] * 4) == [hub.content(BIG)[-1]] * 4


def test_a_cache_and_a_file_refuse_to_be_pickled(pulled: tuple[ModelCache, ModelFile]) -> None:
    import copy
    import pickle

    for thing in pulled:
        for use in [pickle.dumps, copy.copy, copy.deepcopy]:
            with pytest.raises(TypeError, match=type(thing).__name__):
                use(thing)


@pytest.mark.parametrize(
    "pull",
    [
        "threading.Thread(target=cache.download_file, args=(REPO, BIG), daemon=True).start(); time.sleep(0.3)",
        "pull = cache.pull(REPO, files=BIG); next(pull); next(pull)",
        "pull = cache.pull(REPO, files=BIG); next(pull); cache.close()",
    ],
    ids=["a daemon thread", "a pull kept", "a cache closed"],
)
def test_the_interpreter_ends_while_a_pull_is_under_way(
    open_cache: Open, slow_hub: Hub, hub: Hub, tmp_path: Path, pull: str
) -> None:
    program = f"""
import threading, time
from tabagent_model_cache import ModelCache
REPO, BIG = {REPO!r}, {BIG!r}
cache = ModelCache({str(tmp_path / "store")!r}, endpoint={slow_hub.endpoint!r})
{pull}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # The thread may still be told; nothing dies on the way out.
    assert "Fatal" not in done.stderr and "panicked" not in done.stderr, done.stderr
    cache = open_cache(hub)
    cache.download_file(REPO, BIG)
    assert cache.verify(digest=True).bad == []


def test_ctrl_c_ends_a_program_that_waits_for_a_pull(slow_hub: Hub, tmp_path: Path) -> None:
    # A shell that runs the tests in the background has its programs ignore Ctrl-C.
    program = f"""
import signal
from tabagent_model_cache import ModelCache
signal.signal(signal.SIGINT, signal.default_int_handler)
cache = ModelCache({str(tmp_path / "store")!r}, endpoint={slow_hub.endpoint!r})
cache.download_file({REPO!r}, {BIG!r}, lambda loaded, total: print(loaded, flush=True))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stdout.readline()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == -signal.SIGINT and said.rstrip().endswith("KeyboardInterrupt")


def test_two_processes_pull_one_file_and_one_of_them_fetches_it(hub: Hub, tmp_path: Path) -> None:
    program = f"""
import sys
from tabagent_model_cache import ModelCache
print(ModelCache({str(tmp_path / "both")!r}, endpoint={hub.endpoint!r}).download_file({REPO!r}, {BIG!r}).fetched_bytes)
"""
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    fetched = [int(process.communicate(timeout=60)[0]) for process in both]
    assert sum(fetched) == len(hub.content(BIG))


def test_threads_that_pull_the_same_are_each_given_a_report(open_cache: Open, hub: Hub) -> None:
    cache = open_cache(hub)
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(cache.download_file(REPO, BIG))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 4 and sum(report.fetched_bytes for report in reports) == len(hub.content(BIG))


def test_threads_that_meet_a_closed_cache_and_a_fresh_runtime_do_not_wait_for_each_other(tmp_path: Path, hub: Hub) -> None:
    # With a switch of threads at almost every step of Python's, in a process whose first work this is.
    program = f"""
import sys, threading
from tabagent_model_cache import ClosedError, ModelCache
sys.setswitchinterval(1e-6)
cache = ModelCache({str(tmp_path / "store")!r}, endpoint={hub.endpoint!r})
closed = ModelCache({str(tmp_path / "store")!r})
closed.close()
def work():
    for _ in range(20):
        cache.scan_repo({REPO!r})
        try:
            closed.list()
        except ClosedError:
            pass
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("done\n", "")
