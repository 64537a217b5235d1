"""The example of README.md, as its readers run it: the wheel in a new environment with nothing else in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

from conftest import Hub

TOP = Path(__file__).parents[3]


def interpreter(folder: Path) -> Path:
    """A Python that has the wheel MODEL_CACHE_WHEEL names, and nothing else; where none is named, this one."""
    wheel = os.environ.get("MODEL_CACHE_WHEEL")
    if not wheel:
        return Path(sys.executable)
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    options = ["--quiet", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], check=True)
    return python


def test_the_readme_example_runs_from_the_wheel_in_a_new_environment(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (TOP / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    minilm = tmp_path / "hub" / "sentence-transformers" / "all-MiniLM-L6-v2"
    minilm.parent.mkdir(parents=True)
    minilm.symlink_to(os.environ["MODEL_CACHE_MINILM"], target_is_directory=True)
    python = interpreter(tmp_path / "venv")
    hub = Hub(tmp_path / "hub")
    try:
        environment = {"HF_ENDPOINT": hub.endpoint, "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run([python, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True)
    finally:
        hub.stop()
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "{'default': 'available'}"
    size = (minilm / "model.safetensors").stat().st_size
    assert f"{size:,} of {size:,} bytes" in said
    assert f"{size:,} bytes, of which 11,408 are header" in said
    assert said[-1].split()[1] in ("F32", "I64")
    assert done.stderr == ""
