"""Which machine a record was made on, and from which commit."""
from __future__ import annotations

import os
import pathlib
import platform
import re
import subprocess

from .figures import iec
from .origin import TOP


def describe(room: pathlib.Path) -> dict[str, str | int]:
    """CPU, memory, kernel, and the file system and disk that `room` is on."""
    cpuinfo = _read("/proc/cpuinfo")
    cpu = re.search(r"^model name\s*: (.*)$", cpuinfo, re.M)
    flags = set((re.search(r"^flags\s*: (.*)$", cpuinfo, re.M) or [None, ""])[1].split())
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo"), re.M)
    source, kind = file_system(room, _read("/proc/self/mounts"))
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "instructions": " ".join(name for name in ("sha_ni", "avx2", "avx512f", "vpclmulqdq") if name in flags),
        "virtual": "hypervisor" in flags,
        "memory_bytes": int(memory[1]) * 1024 if memory else 0,
        "kernel": platform.release(),
        "file_system": kind,
        "disk": disk_model(source),
        # What plain mmap's cold reads depend on.
        "read_ahead_kib": int(_read(f"/sys/block/{disk_name(source)}/queue/read_ahead_kb") or 0),
    }


def file_system(path: pathlib.Path, mounts: str) -> tuple[str, str]:
    """Device and type of the file system of a path: of /proc/mounts the longest folder above it, the last of equals."""
    best = ("", "", "unknown")
    for line in mounts.splitlines():
        source, at, kind = line.split()[:3]
        if (path.resolve().is_relative_to(at)) and len(at) >= len(best[1]):
            best = (source, at, kind)
    return best[0], best[2]


def disk_model(source: str) -> str:
    """A disk's model where it tells one, else its device."""
    return _read(f"/sys/block/{disk_name(source)}/device/model").strip() or source


def disk_name(source: str) -> str:
    """The disk of a device: sda of /dev/sda1, and of /dev/sda."""
    device = pathlib.Path("/sys/class/block", os.path.basename(source))
    return device.resolve().parent.name if (device / "partition").exists() else device.name


def words(machine: dict) -> str:
    """One line that says it."""
    virtual = ", virtual machine" if machine["virtual"] else ""
    extra = f" ({machine['instructions']})" if machine["instructions"] else ""
    return (f"{machine['cpu']}{extra}, {machine['cores']} cores{virtual}, {iec(machine['memory_bytes'])} of memory, Linux "
            f"{machine['kernel']}, {machine['file_system']} on {machine['disk']}, "
            f"read-ahead {machine['read_ahead_kib']} KiB")


def slug(machine: dict) -> str:
    """Short, for a file's name: amd-epyc-2-cores."""
    kept = [word for word in re.findall(r"[a-z0-9]+", re.sub(r"\((?:r|tm)\)", "", machine["cpu"].lower())) if word not in NOISE]
    return "-".join([*kept[:3], str(machine["cores"]), "cores"])


NOISE = {"processor", "cpu", "core", "with", "at"}


def commit() -> str:
    """The commit measured, with a + where files differ from it."""
    told = subprocess.run(["git", "describe", "--always", "--abbrev=12", "--dirty=+"], cwd=TOP, capture_output=True, text=True)
    return told.stdout.strip() or "unknown"


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""
