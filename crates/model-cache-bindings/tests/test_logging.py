"""What is logged: to `logging`, under the name of the package."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from conftest import REPO, Hub

from tabagent_model_cache import ModelCache

Open = Callable[..., ModelCache]


def test_what_a_pull_does_is_logged_to_the_packages_logger_where_that_wants_it(
    open_cache: Open, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    open_cache(hub, store="quiet").scan_repo(REPO)
    assert caplog.records == []
    caplog.set_level(logging.DEBUG, logger="tabagent_model_cache")
    open_cache(hub).download_file(REPO, "config.json")
    asked = [record for record in caplog.records if record.getMessage().startswith("asking")]
    assert asked and {record.name for record in caplog.records} == {"tabagent_model_cache"}
    assert {record.levelno for record in asked} == {logging.DEBUG}
    assert any(REPO in record.getMessage() for record in asked)


def test_warnings_are_told_and_the_rest_is_not_by_default(open_cache: Open, hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_cache(hub)
    cache.download_file(REPO, "config.json")
    assert caplog.records == []
    cache.close()
    # The Hub is gone; what was listed before serves.
    gone = open_cache(store="store", endpoint="http://127.0.0.1:1")
    gone.download_file(REPO, "config.json")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "going by its last listing" in caplog.text


def test_a_handler_that_raises_does_not_fail_the_call(open_cache: Open, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no room for logs")

    told: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    logger, handler = logging.getLogger("tabagent_model_cache"), Broken()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        assert open_cache(hub).download_file(REPO, "config.json").files == 1
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert told
