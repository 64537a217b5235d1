"""nginx as a Hub on this machine: one repo with one set of files, unthrottled, throttled per connection, or far away."""
from __future__ import annotations

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
from urllib.parse import quote

from . import measure

TOP = pathlib.Path(__file__).resolve().parents[2]


class Origin:
    """A repo served by nginx. `stop` ends it."""

    def __init__(self, room: pathlib.Path, repo: str, files: dict[str, pathlib.Path], bytes_per_second: int | None = None,
                 address: str = "127.0.0.1", prefix: tuple[str, ...] = ()):
        """Serves `files`, by their names in the repo, at `address` from a program started behind the words `prefix`."""
        self.repo, self.files, self.out, self.prefix = repo, files, room / "out", prefix
        model = room / "src" / repo
        model.mkdir(parents=True)
        for name, path in files.items():
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            # The origin's scripts resolve links.
            (model / name).symlink_to(path)
        self.port, self.cdn_port = free_port(), free_port()
        beside = TOP / "../shared/origin"
        scripts = beside if beside.is_dir() else TOP / "tests/origin"
        subprocess.run([sys.executable, scripts / "mkhf.py", room / "src", self.out, "--port", str(self.port), "--cdn-port",
                        str(self.cdn_port)], check=True, stdout=subprocess.DEVNULL)
        conf = self.out / "nginx.conf"
        conf.write_text(settings(conf.read_text(), bytes_per_second, address))
        self.endpoint = f"http://{address}:{self.port}"
        self.nginx = subprocess.Popen([*prefix, os.environ.get("MODEL_CACHE_NGINX", "nginx"), "-e", "logs/error.log", "-p", self.out,
                                       "-c", conf], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()

    def _wait(self):
        # The address may be one of another network namespace, so what tells is the file that nginx writes once it listens.
        for _ in range(200):
            if (self.out / "tmp/nginx.pid").exists():
                return
            if self.nginx.poll() is not None:
                break
            time.sleep(0.05)
        said = (self.out / "logs/error.log").read_text() if (self.out / "logs/error.log").exists() else ""
        self.stop()
        raise measure.Failed(f"nginx does not serve {self.out}: {said}")

    def stop(self):
        """Ends nginx; the files stay."""
        self.nginx.terminate()
        self.nginx.wait()

    def url(self, name: str) -> str:
        """Where the Hub has a file."""
        return f"{self.endpoint}/{self.repo}/resolve/main/{quote(name)}"

    def digest(self, name: str) -> str:
        """The SHA-256 of a file, as the Hub tells it."""
        source = os.path.realpath(self.files[name])
        for link in (self.out / "www/lfs").iterdir():
            if os.path.realpath(link) == source:
                return link.name
        raise KeyError(f"{name} is none of the large files of {self.repo}")

    def warm(self):
        """Reads what is served into the page cache."""
        for path in self.files.values():
            measure.warm(path)

    def take_bytes_served(self) -> int:
        """Bytes of files served since the last call."""
        time.sleep(0.5)  # nginx writes a line when the answer is over
        log = self.out / "logs/access.log"
        served = bytes_served(log.read_text())
        os.truncate(log, 0)
        return served


def settings(conf: str, bytes_per_second: int | None, address: str) -> str:
    """nginx.conf for another address, and with each answer of the CDN held to a rate.

    nginx waits after each piece it sends but the last, in whole milliseconds. By default a piece is 2 MiB, and 20 MB/s become 24 where
    each request is for 5 MiB; with 100 KiB they are 19.8, and 19.3 for a whole file.
    """
    conf = conf.replace("127.0.0.1", address)
    if bytes_per_second:
        served = "try_files /lfs/$hf_blob =404;"
        assert served in conf, "the CDN's part of nginx.conf is not what it was"
        conf = conf.replace(served, f"limit_rate {bytes_per_second}; sendfile_max_chunk 100k; {served}")
    return conf


def bytes_served(log: str) -> int:
    """Of nginx's access log: the bytes of every file served, whole or in part."""
    return sum(int(found[1]) for found in re.finditer(r" GET /(?!api/models/)\S* 20[06] bytes=(\d+)", log))


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def write_random(path: pathlib.Path, size: int) -> pathlib.Path:
    """A file of random bytes, no two blocks of which are alike; made once."""
    if not (path.exists() and path.stat().st_size == size):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            while file.tell() < size:
                file.write(os.urandom(min(16 << 20, size - file.tell())))
    return path


def write_sparse(path: pathlib.Path, size: int) -> pathlib.Path:
    """A file of zeros that takes nothing of the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def forget(path: pathlib.Path):
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
