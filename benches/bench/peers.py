"""The programs ours is measured beside: where they are, which versions, and how they are asked for the same thing.

`hf` and matplotlib come from PyPI into .build/bench/venv, with versions pinned; aria2 and wget2 from Debian, installed as root, else
unpacked below .build/bench. Nothing is got but on demand, and what can't be had is named and left out.
"""
from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

from .origin import TOP

BUILD = TOP / ".build/bench"
VENV = BUILD / "venv"
REQUIREMENTS = ["huggingface_hub==2.4.0", "hf-xet==1.8.0", "matplotlib==3.11.2"]
# In Cargo.lock: what is measured within model-cache-bench.
CRATES = {"heed", "lmdb-master-sys", "redb", "libmdbx", "sha2", "ring", "aws-lc-rs", "crc32c", "crc-fast", "crc32fast"}
VERSION = {"curl": ["--version"], "openssl": ["version"], "aria2c": ["--version"], "wget2": ["--version"], "cp": ["--version"],
           "hf": ["version"], "nginx": ["-v"]}


def python() -> pathlib.Path | None:
    """The Python that has hf and matplotlib, made where it is missing or has other versions; None where it can't be."""
    stamp, wanted = VENV / "requirements", "\n".join(REQUIREMENTS)
    if stamp.exists() and stamp.read_text() == wanted and _quietly([VENV / "bin/python", "-c", ""]):
        return VENV / "bin/python"
    print("bench: installing " + ", ".join(REQUIREMENTS) + " into .build/bench/venv", file=sys.stderr, flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    base = os.environ.get("MODEL_CACHE_PYTHON", sys.executable)
    made = _quietly([base, "-m", "venv", VENV]) or _quietly([base, "-m", "venv", "--without-pip", VENV])
    # A pip from outside installs into an environment that has none.
    pips = [[VENV / "bin/python", "-m", "pip"], ["python3", "-m", "pip", "--python", VENV / "bin/python"]]
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-input", *REQUIREMENTS]
    if not made or not any(_quietly([*pip, *install]) for pip in pips):
        shutil.rmtree(VENV, ignore_errors=True)
        return None
    stamp.write_text(wanted)
    return VENV / "bin/python"


def _quietly(command) -> bool:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    except OSError:
        return False


class Peers:
    """Programs by name; `env` is what they need to run."""

    def __init__(self, install: bool):
        """With `install`, missing ones are got from Debian."""
        self.env = dict(os.environ)
        self.env["PATH"] += ":/usr/sbin:/sbin"
        unpacked = BUILD / "debian"
        self._see(unpacked)
        missing = [name for name in ("aria2c", "wget2", "curl", "openssl") if not self._runs(name)]
        if missing and install and shutil.which("apt-get"):
            self._install(["aria2" if name == "aria2c" else name for name in missing], unpacked)
            self._see(unpacked)
        self.python = python()
        if self.python:
            self.env["PATH"] = f"{self.python.parent}:{self.env['PATH']}"

    def _see(self, unpacked: pathlib.Path):
        if unpacked.is_dir() and str(unpacked) not in self.env["PATH"]:
            libraries = {str(path.parent) for path in unpacked.rglob("*.so*")}
            self.env["PATH"] += f":{unpacked}/usr/bin"
            self.env["LD_LIBRARY_PATH"] = ":".join([*sorted(libraries), self.env.get("LD_LIBRARY_PATH", "")]).rstrip(":")

    def _runs(self, name: str) -> bool:
        return self.version(name) is not None

    def _install(self, packages: list[str], unpacked: pathlib.Path):
        if os.geteuid() == 0 and not os.environ.get("MODEL_CACHE_NO_APT"):
            print(f"bench: installing {', '.join(packages)} from Debian", file=sys.stderr, flush=True)
            _quietly(["apt-get", "update"])
            _quietly(["apt-get", "install", "-y", "--no-install-recommends", *packages])
            return
        # What root's install would bring, libraries too, unpacked instead.
        told = subprocess.run(["apt-get", "--simulate", "--no-install-recommends", "install", *packages], capture_output=True, text=True)
        names = re.findall(r"^Inst (\S+)", told.stdout, re.M)
        debs = BUILD / "debs"
        debs.mkdir(parents=True, exist_ok=True)
        print(f"bench: unpacking {', '.join(names) or 'nothing'} from Debian into .build/bench", file=sys.stderr, flush=True)
        if names:
            subprocess.run(["apt-get", "download", *names], cwd=debs, capture_output=True)
        for deb in debs.glob("*.deb"):
            _quietly(["dpkg", "-x", deb, unpacked])
        shutil.rmtree(debs)

    def which(self, name: str) -> str | None:
        """Where a program is."""
        return shutil.which(name, path=self.env["PATH"])

    def version(self, name: str) -> str | None:
        """A program's version in its own words, without its name; None where there is no such program, or it doesn't run."""
        found = self.which(name)
        if not found:
            return None
        told = subprocess.run([found, *VERSION[name]], env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        number = re.search(r"\d+(?:\.\d+)+\S*", told.stdout or told.stderr) if told.returncode == 0 else None
        return number[0] if number else None

    def versions(self) -> dict[str, str]:
        """Of every peer that is here."""
        told = {name: self.version(name) for name in VERSION}
        for requirement in REQUIREMENTS[:2] if self.python else []:
            told.update([requirement.split("==")])
        told.pop("hf")
        locked = tomllib.loads((TOP / "Cargo.lock").read_text())["package"]
        told.update((package["name"], package["version"]) for package in locked if package["name"] in CRATES)
        return {name: version for name, version in told.items() if version}
