"""Runs a program and tells what it cost: wall time, CPU seconds of it and its children, private memory, connections."""
from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import pathlib
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time

from .figures import Run

# Often enough to see a peak that lasts, seldom enough to cost less than 1 % of a core.
SAMPLE_SECONDS = 0.05
SPARE_BYTES = 512 << 20
MADV_POPULATE_WRITE = 23  # linux/mman.h, since 5.14
DROP_CACHES = pathlib.Path("/proc/sys/vm/drop_caches")


class Failed(Exception):
    """A program that was measured did not end as it should."""


@dataclasses.dataclass
class Ended:
    """A run, and what the program said on stdout."""

    run: Run
    stdout: bytes
    killed: bool


def measure(command, env=None, kill_after: float | None = None, count_port: int | None = None, fills: int = 0) -> Ended:
    """Runs a command to its end, or, with `kill_after` seconds, until it is killed -9. It is about to fill so many bytes of memory.

    CPU seconds are those of the command and every child it waited for. Private memory is the largest sum of RssAnon over its process
    tree that was sampled. Stolen time is the whole machine's. With `count_port`, `values["connections"]` is the median of the numbers of
    connections to that port sampled while there were any, `values["connections_max"]` the most at once.
    Raises Failed with what the command said on stderr where it ends otherwise.
    """
    command = [str(part) for part in command]
    # Not to be waited for by what is measured.
    os.sync()
    touch(fills)
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stolen = stolen_seconds()
        start = time.monotonic()
        # posix_spawn-like: the child is reaped by wait4 below and by nobody else.
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        sampler = _Sampler(process.pid, count_port)
        killer = threading.Timer(kill_after, _kill, [process.pid]) if kill_after is not None else None
        if killer:
            killer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - start
            stolen = stolen_seconds() - stolen
        except BaseException:
            _kill(process.pid)
            raise
        finally:
            if killer:
                killer.cancel()
            sampler.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        killed = kill_after is not None and process.returncode == -signal.SIGKILL
        if process.returncode != 0 and not killed:
            said = stderr.read()[-2000:].decode(errors="replace").strip()
            raise Failed(f"{' '.join(command)} ended with {process.returncode}: {said}")
        seen = sampler.connections or [0]
        values = {"connections": statistics.median_high(seen), "connections_max": max(seen)} if count_port else {}
        run = Run(seconds, usage.ru_utime + usage.ru_stime, sampler.rss_anon, stolen_seconds=stolen, values=values)
        return Ended(run, stdout.read(), killed)


def touch(size: int) -> None:
    """Has the host of a virtual machine back as much free memory as is about to be filled, be it with page cache.

    Where the machine gives free memory back to its host (free page reporting does, 2 s after it was freed), filling it anew costs
    whoever comes first: a pull of 4 GiB took 10.1 s so, and 5.3 s right after another.
    """
    free = re.search(r"^MemFree:\s+(\d+) kB", _read("/proc/meminfo"), re.M)
    size = min(size, int(free[1]) * 1024 - SPARE_BYTES if free else 0) & -mmap.PAGESIZE
    if size <= 0 or "hypervisor" not in _read("/proc/cpuinfo"):
        return
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        with contextlib.suppress(OSError):
            memory.madvise(MADV_POPULATE_WRITE)


def stolen_seconds() -> float:
    """What the host of a virtual machine has taken of its processors since they started, summed over them: `steal` of proc_stat(5)."""
    # cpu user nice system idle iowait irq softirq steal ..
    fields = _read("/proc/stat").split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else 0.0


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class _Sampler(threading.Thread):
    """Looks at a process tree every SAMPLE_SECONDS until it is stopped."""

    def __init__(self, pid: int, port: int | None):
        super().__init__(daemon=True)
        self.pid, self.port, self.rss_anon, self.over = pid, port, 0, threading.Event()
        self.connections: list[int] = []
        self.start()

    def run(self):
        while True:
            self.rss_anon = max(self.rss_anon, sum(rss_anon(pid) for pid in tree(self.pid)))
            if self.port and (now := connections(self.pid, self.port)):
                self.connections.append(now)
            if self.over.wait(SAMPLE_SECONDS):
                return

    def stop(self):
        self.over.set()
        self.join()


def rss_anon(pid: int) -> int:
    """Bytes of private memory; VmHWM would count mapped files, which are the page cache's."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", _read(f"/proc/{pid}/status"), re.M)
    return int(found[1]) * 1024 if found else 0


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    below = [pid]
    for at in below:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{at}/task"):
                below += map(int, _read(f"/proc/{at}/task/{task}/children").split())
    return below


def connections(pid: int, port: int) -> int:
    """Established connections to a port, as the network of `pid` has them."""
    # local_address rem_address st: 01 is ESTABLISHED.
    return len(re.findall(rf"^ *\d+: \S+ [0-9A-F]+:{port:04X} 01 ", _read(f"/proc/{pid}/net/tcp"), re.M))


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def disk_bytes(folder: pathlib.Path) -> int:
    """What a file, or a folder with all in it, takes of the disk."""
    if not folder.is_dir():
        return os.lstat(folder).st_blocks * 512
    inside = (os.path.join(at, name) for at, dirs, files in os.walk(folder) for name in files + dirs)
    return sum(os.lstat(path).st_blocks * 512 for path in inside)


def may_drop_caches() -> bool:
    """Whether cold runs can be had here."""
    return os.access(DROP_CACHES, os.W_OK)


def warm(path: pathlib.Path) -> None:
    """Reads a file once, so that it is in the page cache."""
    with open(path, "rb", buffering=0) as file:
        block = bytearray(4 << 20)
        while file.readinto(block):
            pass
