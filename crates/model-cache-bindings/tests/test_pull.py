"""Pulls: waited for, watched, awaited; their progress, their cancellation, their errors."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BIG, REPO, Hub

from tabagent_model_cache import (
    AccessDenied,
    Cancelled,
    CancelToken,
    FileNotInRepo,
    Gated,
    InvalidInput,
    ModelCache,
    NetworkError,
    NotFound,
    Offline,
    Pull,
    QuantNotChosen,
    QuantNotFound,
    RepoNotFound,
    RevisionNotFound,
)

GGUF = "org/model-GGUF"
Open = Callable[..., ModelCache]


def test_a_quant_is_downloaded_once_pulled_and_its_files_are_what_the_hub_has(cache: ModelCache, hub: Hub) -> None:
    offered = cache.scan_repo(GGUF)
    assert offered.quants.keys() == {"Q4_K_M", "Q8_0"}
    assert offered["quants"]["Q4_K_M"]["status"] == "available"
    report = cache.download_quant(GGUF, "q4_k_m")
    assert report.quants == ["Q4_K_M"] and report["fetched_bytes"] == report.total_bytes
    manifest = cache.get_manifest(GGUF)
    assert manifest["quants"]["Q4_K_M"]["status"] == "downloaded"
    assert manifest.quants["Q8_0"].status == "available"
    assert manifest["quants"]["Q4_K_M"]["downloaded_size"] == manifest.quants["Q4_K_M"].total_size
    for path in manifest.quants["Q4_K_M"].files:
        file = cache.get_file(GGUF, path)
        assert file is not None and bytes(file) == hub.content(path, GGUF)
    assert cache.download_quant(GGUF, "Q4_K_M").fetched_bytes == 0


def test_progress_never_goes_back_and_ends_with_the_total_in_the_calling_thread(cache: ModelCache) -> None:
    told: list[tuple[int, int, int]] = []
    cache.download_file(REPO, BIG, progress=lambda loaded, total: told.append((loaded, total, threading.get_ident())))
    loaded = [one[0] for one in told]
    assert loaded == sorted(loaded)
    assert told[-1][0] == told[-1][1]
    assert {one[2] for one in told} == {threading.get_ident()}


def test_other_threads_run_while_one_waits_for_a_pull(open_cache: Open, slow_hub: Hub) -> None:
    cache, cancel, ran = open_cache(slow_hub), CancelToken(), threading.Event()
    other = threading.Thread(target=lambda: (ran.set(), time.sleep(0.2), cancel.cancel()))
    other.start()
    with pytest.raises(Cancelled):
        cache.download_file(REPO, BIG, cancel=cancel)
    assert ran.is_set()


def test_what_progress_raises_cancels_the_pull_and_surfaces(open_cache: Open, slow_hub: Hub) -> None:
    class Enough(Exception):
        pass

    def progress(loaded: int, total: int) -> None:
        raise Enough(loaded)

    cache = open_cache(slow_hub)
    with pytest.raises(Enough):
        cache.download_file(REPO, BIG, progress)
    assert cache.has_file(REPO, BIG) is False


@pytest.mark.parametrize("cancel", [CancelToken(), threading.Event()], ids=["token", "event"])
def test_a_pull_can_be_cancelled_from_another_thread(
    open_cache: Open, slow_hub: Hub, cancel: CancelToken | threading.Event
) -> None:
    timer = threading.Timer(0.3, cancel.cancel if isinstance(cancel, CancelToken) else cancel.set)
    timer.start()
    with pytest.raises(Cancelled) as raised:
        open_cache(slow_hub).download_file(REPO, BIG, cancel=cancel)
    assert raised.value.code == "interrupted"
    assert cancel.is_set()


def test_ctrl_c_ends_a_pull_and_the_next_one_goes_on(open_cache: Open, slow_hub: Hub, hub: Hub) -> None:
    cache = open_cache(slow_hub)
    # A shell that runs the tests in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            cache.download_file(REPO, BIG)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    report = open_cache(hub).download_file(REPO, BIG)
    assert report.total_bytes == len(hub.content(BIG))


def test_a_watched_pull_tells_its_events_and_ends_with_done_and_a_report(cache: ModelCache) -> None:
    pull = cache.pull(REPO, files=[BIG, "*.json"])
    events = list(pull)
    assert [event["event"] for event in events[:1]] == ["started"]
    assert [event["event"] for event in events].count("done") == 1 and events[-1]["event"] == "done"
    assert {event["path"] for event in events if event["event"] == "sealed"} == {BIG, "config.json"}
    assert all(event["repo"] == REPO and len(event["commit"]) == 40 for event in events)
    assert pull.report is not None and pull.report.files == 2
    assert list(pull) == []


def test_a_watched_pull_that_fails_tells_it_with_code_and_hint_then_raises(cache: ModelCache) -> None:
    for wrong, error in [({"quant": "Q9"}, QuantNotFound), ({"files": "no/such"}, FileNotInRepo), ({"files": "["}, InvalidInput)]:
        pull = cache.pull(GGUF, **wrong)  # type: ignore[arg-type]
        events = []
        with pytest.raises(error) as raised:
            for event in pull:
                events.append(event)
        assert [event["event"] for event in events] == ["failed"]
        assert events[0]["code"] == raised.value.code and events[0]["message"] == str(raised.value)
        assert events[0]["hint"] == raised.value.hint
        assert pull.report is None


def test_a_watched_pull_that_is_cancelled_tells_it_then_raises(open_cache: Open, slow_hub: Hub) -> None:
    pull = open_cache(slow_hub).pull(REPO, files=BIG)
    events = []
    with pytest.raises(Cancelled):
        for event in pull:
            events.append(event["event"])
            pull.cancel()
    assert events[-1] == "cancelled"


def test_leaving_the_context_of_a_pull_ends_it(open_cache: Open, slow_hub: Hub) -> None:
    cache = open_cache(slow_hub)
    with cache.pull(REPO, files=BIG) as pull:
        assert next(pull)["event"] == "started"
    # Nothing is at it any more, so its blocks can be freed.
    assert cache.gc().filling_bytes == 0
    assert cache.get_stats().filling_bytes == 0


def test_a_pull_that_is_dropped_is_cancelled(open_cache: Open, slow_hub: Hub) -> None:
    cache = open_cache(slow_hub)
    pull = cache.pull(REPO, files=BIG)
    next(pull)
    del pull
    deadline = time.monotonic() + 30
    while cache.gc().filling_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_awaited_calls_do_what_the_others_do(open_cache: Open, hub: Hub) -> None:
    async def work(cache: ModelCache) -> None:
        threads: set[int] = set()
        told: list[tuple[int, int]] = []

        def progress(loaded: int, total: int) -> None:
            threads.add(threading.get_ident())
            told.append((loaded, total))

        manifest = await cache.scan_repo_async(GGUF)
        assert manifest == await cache.get_manifest_async(GGUF)
        reports = await asyncio.gather(
            cache.download_quant_async(GGUF, "Q4_K_M", progress), cache.download_file_async(REPO, BIG, progress)
        )
        assert [report.files for report in reports] == [2, 1]
        assert threads == {threading.get_ident()} and told
        events = [event["event"] async for event in cache.pull(GGUF, quant="Q8_0")]
        assert events[0] == "started" and events[-1] == "done"

    asyncio.run(work(open_cache(hub)))


def test_cancelling_the_task_cancels_the_pull_and_the_next_goes_on(open_cache: Open, slow_hub: Hub) -> None:
    cache = open_cache(slow_hub)

    async def work() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(cache.download_file_async(REPO, BIG, lambda *_: begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # It has ended: nobody is at it.
        assert cache.gc().filling_bytes == 0

    asyncio.run(work())


def test_what_an_awaited_progress_raises_surfaces(open_cache: Open, slow_hub: Hub) -> None:
    async def work() -> None:
        with pytest.raises(ZeroDivisionError):
            await open_cache(slow_hub).download_file_async(REPO, BIG, lambda loaded, total: 1 // 0)

    asyncio.run(work())


def test_errors_have_the_class_a_caller_would_catch(cache: ModelCache, open_cache: Open, hub: Hub) -> None:
    for call, error, builtin in [
        (lambda: cache.scan_repo("org/none"), RepoNotFound, FileNotFoundError),
        (lambda: cache.scan_repo("org/model@none"), RevisionNotFound, FileNotFoundError),
        (lambda: cache.download_file(REPO, "none.bin"), FileNotInRepo, FileNotFoundError),
        (lambda: cache.download_quant(REPO, "Q9"), QuantNotFound, FileNotFoundError),
        (lambda: cache.download_quant("org/gated", "default"), Gated, PermissionError),
        (lambda: list(cache.pull(GGUF)), QuantNotChosen, ValueError),
        (lambda: cache.scan_repo("model"), InvalidInput, ValueError),
        (lambda: cache.pull("model"), InvalidInput, ValueError),
        (lambda: cache.download_file(REPO, "../x"), InvalidInput, ValueError),
        (lambda: cache.delete_file(REPO, "none.bin"), NotFound, FileNotFoundError),
        (lambda: cache.delete_model("org/never"), NotFound, FileNotFoundError),
        (lambda: open_cache(store="b", endpoint="http://127.0.0.1:1").scan_repo(REPO), NetworkError, ConnectionError),
        (lambda: open_cache(hub, store="c", offline=True).scan_repo(REPO), Offline, ConnectionError),
        (lambda: open_cache(hub, store="d", token="hf_wrong").scan_repo(REPO), AccessDenied, PermissionError),
        (lambda: open_cache(endpoint="nonsense"), InvalidInput, ValueError),
        (lambda: open_cache(connections=0), InvalidInput, ValueError),
        (lambda: open_cache(limit_rate=0), InvalidInput, ValueError),
        (lambda: open_cache(memory_budget_bytes=1 << 20), InvalidInput, ValueError),
    ]:
        with pytest.raises(error) as raised:
            call()
        assert isinstance(raised.value, builtin), raised.value
        assert "Error {" not in str(raised.value) and str(raised.value)


def test_a_number_that_can_not_be_is_refused_by_the_name_of_its_keyword(open_cache: Open) -> None:
    for keyword in ["connections", "limit_rate", "memory_budget_bytes"]:
        for number in [-1, 2**64, -(2**70)]:
            with pytest.raises(InvalidInput, match=f'{keyword}="{number}"'):
                open_cache(**{keyword: number})
        for wrong in [True, "10M", 1.5]:
            with pytest.raises(TypeError, match=keyword):
                open_cache(**{keyword: wrong})


def test_a_bad_variable_of_pulls_is_refused_by_what_pulls_and_not_where_an_option_is_given(
    open_cache: Open, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_CACHE_LIMIT_RATE", "0")
    monkeypatch.setenv("MODEL_CACHE_MEMORY_BUDGET", "1M")
    cache = open_cache(hub)
    assert cache.list() == []
    with pytest.raises(InvalidInput, match="MODEL_CACHE_LIMIT_RATE"):
        cache.download_file(REPO, BIG)
    open_cache(hub, store="given", limit_rate=1 << 30, memory_budget_bytes=8 << 20).download_file(REPO, BIG)


def test_an_awaited_iteration_can_be_left_and_cancelled_as_a_plain_one(open_cache: Open, slow_hub: Hub) -> None:
    async def work(cache: ModelCache) -> None:
        async with cache.pull(REPO, files=BIG) as pull:
            async for event in pull:
                if event["event"] == "progress":
                    break
        assert cache.gc().filling_bytes == 0
        cancel = CancelToken()
        events = []
        with pytest.raises(Cancelled):
            async for event in cache.pull(REPO, files=BIG, cancel=cancel):
                events.append(event["event"])
                cancel.cancel()
        assert events[-1] == "cancelled"

    asyncio.run(work(open_cache(slow_hub)))


def test_of_two_tasks_on_one_pull_the_second_is_refused_and_neither_waits_for_ever(open_cache: Open, slow_hub: Hub) -> None:
    async def consume(pull: Pull) -> str:
        async for _ in pull:
            await asyncio.sleep(0)
        return "ended"

    async def both() -> list[str | BaseException]:
        async with open_cache(slow_hub).pull(REPO, files=BIG) as pull:
            tasks = [asyncio.ensure_future(consume(pull)) for _ in range(2)]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=30)
            pull.cancel()
            return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)

    ends = asyncio.run(both())
    assert sorted(type(end).__name__ for end in ends) == ["Cancelled", "RuntimeError"], ends


def test_a_pull_whose_cancel_is_set_already_fetches_nothing(cache: ModelCache, hub: Hub) -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        list(cache.pull(REPO, files="config.json", cancel=cancel))
    assert not cache.has_file(REPO, "config.json")


def test_a_selection_that_came_out_empty_does_not_mean_everything(cache: ModelCache, tmp_path: Path) -> None:
    cache.download_file(REPO, "config.json")
    calls: list[Callable[[], object]] = [
        lambda: cache.pull(REPO, files=[]),
        lambda: cache.pull(REPO, quant=iter(())),
        lambda: cache.export(REPO, tmp_path / "out", files=()),
        lambda: cache.verify(REPO, files=[]),
        lambda: cache.delete_files(REPO, files=[]),
        lambda: cache.delete_files(REPO),
        lambda: cache.import_files("me/x", []),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match="files|quant|paths"):
            call()
    assert cache.has_file(REPO, "config.json") and not (tmp_path / "out").exists()


def test_leaving_a_pull_that_another_task_iterates_waits_for_its_end_and_hides_no_exception(
    open_cache: Open, slow_hub: Hub
) -> None:
    async def consume(pull: Pull) -> None:
        async for _ in pull:
            pass

    async def leave() -> None:
        async with open_cache(slow_hub).pull(REPO, files=BIG) as pull:
            other = asyncio.ensure_future(consume(pull))
            await asyncio.sleep(0.1)
            try:
                raise KeyError("of the body")
            finally:
                ends.append(other)

    ends: list[asyncio.Future[None]] = []

    async def main() -> BaseException | None:
        with pytest.raises(KeyError, match="of the body"):
            await leave()
        await asyncio.wait(ends, timeout=30)
        return ends[0].exception()

    assert isinstance(asyncio.run(main()), Cancelled)
