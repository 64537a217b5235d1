"""The stubs: what mypy makes of them, and whether they say what is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tabagent_model_cache as package

HERE = Path(__file__).parent
#: The configuration names packages without types of their own.
STRICTLY = ["--strict", "--config-file", HERE.parent / "pyproject.toml"]


def run(*command: object, cwd: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_program_that_uses_all_of_it_type_checks_strictly(tmp_path: Path) -> None:
    run("mypy", *STRICTLY, "--cache-dir", tmp_path, HERE / "usage.py", cwd=tmp_path)


def test_the_package_itself_type_checks_strictly(tmp_path: Path) -> None:
    run("mypy", *STRICTLY, "--cache-dir", tmp_path, "-p", "tabagent_model_cache", cwd=tmp_path)


def test_the_stubs_say_what_is_there(tmp_path: Path) -> None:
    allowed = ["--mypy-config-file", HERE.parent / "pyproject.toml", "--allowlist", HERE / "stubtest-allowlist", "--ignore-unused-allowlist"]
    run("mypy.stubtest", "tabagent_model_cache", *allowed, cwd=tmp_path)


@pytest.mark.parametrize("kind", [package.ModelCache, package.ModelFile])
def test_help_has_a_line_for_everything_public(kind: type) -> None:
    for name, member in vars(kind).items():
        if not name.startswith("_"):
            assert member.__doc__, f"{kind.__name__}.{name}"
            if callable(member):
                assert member.__text_signature__ is not None, f"{kind.__name__}.{name}"
    assert kind.__doc__


def test_everything_named_public_is_there() -> None:
    for name in package.__all__:
        assert hasattr(package, name)
