"""Workloads over the network, and those of whole programs: ours and its peers against nginx."""
from __future__ import annotations

import contextlib
import json
import pathlib
import random
import subprocess

from . import far, measure
from .bounds import CONNECTIONS, KILLS, OURS
from .figures import GIB, KIB, MIB, Run
from .origin import Origin, forget
from .workload import Prepared, Skip, Subject, Workload

FILE = "model-Q8_0.gguf"
NO_XET = ("hf download uses no Xet transport here, with hf_xet installed or without: this origin has Xet's headers and token route "
          "but no content-addressed store, and against those alone hf waits forever instead of falling back to HTTP (tried).")


class Programs:
    """The commands, for one origin; each run leaves nothing behind."""

    def __init__(self, bench, origin: Origin, before: tuple[str, ...] = ()):
        self.bench, self.origin, self.before = bench, origin, before
        self.room = bench.folder("programs")
        self.env = {**bench.peers.env, "HF_ENDPOINT": origin.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}

    def _run(self, command, made: pathlib.Path, transferred: int, **options) -> measure.Ended:
        ended = measure.measure([*self.before, *command], self.env, count_port=self.origin.cdn_port, fills=transferred, **options)
        ended.run.disk_bytes = measure.disk_bytes(made) if made.exists() else 0
        ended.run.bytes = transferred
        return ended

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.origin.files.values())

    def ours(self, *options: str, store: pathlib.Path | None = None) -> Subject:
        """`model-cache pull` into a new store: verified, durable."""

        def run(_round: int) -> Run:
            at = store or self.room / "store"
            forget(at)
            ended = self._run(self.bench.ours(at, "--json", "pull", self.origin.repo, "--all", *options), at, self.size)
            told = json.loads(ended.stdout)
            assert told["fetched_bytes"] == self.size, told
            ended.run.values.update(numbers(told))
            if not store:
                forget(at)
            return ended.run

        return Subject(OURS, run)

    def hf(self, name: str = "hf download") -> Subject:
        """`hf download` into a new cache: size checked, content not, not synced."""

        def run(_round: int) -> Run:
            home = self.room / "hf"
            self.env["HF_HOME"] = str(home)
            ended = self._run(["hf", "download", self.origin.repo], home, self.size)
            forget(home)
            return ended.run

        return Subject(name, run)

    def to_file(self, name: str, command: list[str], file: str = FILE) -> Subject:
        """A command that makes one file; of its words {out}, {dir}, {url}, {source}, {size} and {digest} are filled in."""

        def run(_round: int) -> Run:
            out, source = self.room / "file.out", self.origin.files[file]
            words = {"{out}": out, "{dir}": out.parent, "{url}": self.origin.url(file), "{source}": source, "{size}": source.stat().st_size}
            if any("{digest}" in part for part in command):
                words["{digest}"] = self.origin.digest(file)
            filled = []
            for part in command:
                for word, value in words.items():
                    part = part.replace(word, str(value))
                filled.append(part)
            ended = self._run(filled, out, source.stat().st_size)
            forget(out)
            return ended.run

        return Subject(name, run)


def numbers(told: dict) -> dict[str, float]:
    """Of a document of ours: what is a time, but for the whole's, which is measured from outside."""
    return {name: value for name, value in told.items() if name.endswith("_ms") and isinstance(value, (int, float)) and name != "elapsed_ms"}


CURL = ["curl", "-sSfL", "-o", "{out}", "{url}"]
CURL_OPENSSL = ["sh", "-c", "curl -sSfL -o '{out}' '{url}' && openssl dgst -sha256 '{out}'"]
# One for each sixteenth, to nowhere: what a server that limits each connection gives this machine at all.
CURLS = ["sh", "-c", "set -e; size={size}; for at in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do "
         "curl -sSfL -o /dev/null -r $((size / 16 * at))-$((size / 16 * (at + 1) - 1)) '{url}' & done; wait"]
COPY = ["sh", "-c", "cp '{source}' '{out}' && sync '{out}'"]


def aria2c(connections: int) -> list[str]:
    """aria2c at its best: falloc, since its default writes zeros first where a file system can't allocate."""
    return ["aria2c", "-q", f"-x{min(connections, 16)}", f"-s{connections}", "-k1M", "--file-allocation=falloc",
            "--checksum=sha-256={digest}", "--allow-overwrite=true", "-d", "{dir}", "-o", "file.out", "{url}"]


def of(bench, offered: dict[str, Subject]) -> Prepared:
    """Of the subjects, by the program each needs, those whose program is here."""
    subjects, missing = [], {}
    for need, subject in offered.items():
        if need == OURS or bench.peers.which(need):
            subjects.append(subject)
        else:
            missing[subject.name] = f"no {need} here"
    return Prepared(subjects, missing)


@contextlib.contextmanager
def pull(bench):
    with bench.served({FILE: bench.random(4 * GIB)}) as origin:
        programs = Programs(bench, origin)
        prepared = of(bench, {
            OURS: programs.ours(),
            "hf": programs.hf(),
            "curl": programs.to_file("curl", CURL),
            "openssl": programs.to_file("curl + openssl dgst", CURL_OPENSSL),
            "aria2c": programs.to_file("aria2c -x8 --checksum", aria2c(8)),
            "wget2": programs.to_file("wget2", ["wget2", "-q", "-O", "{out}", "{url}"]),
            "cp": programs.to_file("cp + sync", COPY),
        })
        prepared.notes = ["Verified against the Hub's digest: model-cache, aria2c, curl + openssl dgst. Durable: model-cache, cp + sync.",
                          "aria2c with --file-allocation=falloc -k1M. cp + sync is a floor: it has no network.", NO_XET]
        yield prepared


@contextlib.contextmanager
def pull_40(bench):
    size = bench.size(40 * GIB)
    bench.needs_disk(size + GIB)
    with bench.served({FILE: bench.sparse(40 * GIB)}) as origin:
        yield of(bench, {OURS: Programs(bench, origin).ours()})


LIMIT_BYTES_PER_SECOND = 20_000_000


@contextlib.contextmanager
def throttled(bench):
    """A rate per connection: what a Hub's CDN does to its callers."""
    size = bench.size(4 * GIB)
    small = "small-Q8_0.gguf"
    with bench.served({FILE: bench.random(4 * GIB)}, bytes_per_second=LIMIT_BYTES_PER_SECOND) as origin, \
            bench.served({small: bench.random(64 * MIB)}, bytes_per_second=LIMIT_BYTES_PER_SECOND) as slow:
        programs, single = Programs(bench, origin), Programs(bench, slow)

        def share(subject: Subject) -> Subject:
            def run(round: int) -> Run:
                told = subject.run(round)
                told.values["bytes_per_second"] = told.bytes / told.seconds
                used = max(1, int(told.values["connections"]))
                told.values["share_of_limit"] = told.values["bytes_per_second"] / (LIMIT_BYTES_PER_SECOND * used)
                return told

            return Subject(subject.name, run)

        prepared = of(bench, {
            OURS: share(programs.ours()),
            "aria2c": share(programs.to_file("aria2c -x16", aria2c(16))),
            "hf": share(single.hf()),
            "curl": share(single.to_file("curl", CURL, small)),
        })
        if bench.peers.which("curl"):
            prepared.subjects.append(share(programs.to_file("16 curls to /dev/null", CURLS)))
        prepared.notes = [f"nginx: limit_rate {LIMIT_BYTES_PER_SECOND} on each answer of the CDN. The share is of 20 MB/s x the "
                          f"median of the connections seen. {size} bytes; hf and curl, which use one connection, 64 MiB."]
        yield prepared


@contextlib.contextmanager
def small_files(bench):
    """Where the round trips are what costs."""
    files = {f"tokens/part-{i:03}.json": bench.random(20_000, f"small/{i}", exact=True) for i in range(bench.count(200, 8))}
    try:
        place = far.Far(0.05)
    except far.Unavailable as e:
        raise Skip(str(e)) from e
    try:
        with bench.served(files, address=place.address, prefix=place.there) as origin:
            measured = place.round_trip_ms()
            programs = Programs(bench, origin, place.here)
            prepared = of(bench, {OURS: programs.ours(), "hf": programs.hf()})
            prepared.notes = [f"Round trip {measured:.1f} ms, measured: two network namespaces, and a relay that holds every packet 25 ms "
                              "each way. Both with their default number of connections."]
            yield prepared
    finally:
        place.stop()


@contextlib.contextmanager
def rate_cap(bench):
    """A rate we are asked to keep to."""
    rate = 100 * MIB
    if "--limit-rate" not in bench.told_by_ours("pull", "--help"):
        raise Skip("model-cache pull has no --limit-rate")
    with bench.served({FILE: bench.random(512 * MIB, tiny=64 * MIB)}) as origin:
        programs = Programs(bench, origin)

        def off(subject: Subject) -> Subject:
            def run(round: int) -> Run:
                told = subject.run(round)
                told.values["bytes_per_second"] = told.bytes / told.seconds
                told.values["off_by"] = abs(told.values["bytes_per_second"] / rate - 1)
                return told

            return Subject(subject.name, run)

        limited = f"{rate >> 20}M"
        prepared = of(bench, {
            OURS: off(programs.ours("--limit-rate", f"{rate >> 20}MiB")),
            "curl": off(programs.to_file("curl --limit-rate", [*CURL, "--limit-rate", limited])),
        })
        prepared.notes = ["100 MiB/s asked for; off by: of bytes over wall time, start and seal included."]
        yield prepared


@contextlib.contextmanager
def import_file(bench):
    source = bench.random(4 * GIB)
    size = source.stat().st_size
    measure.warm(source)
    store = bench.folder("programs") / "store"
    env = bench.peers.env

    def ours(_round: int) -> Run:
        forget(store)
        run = measure.measure(bench.ours(store, "--json", "import", "bench/import", source), env, fills=size).run
        run.disk_bytes, run.bytes = measure.disk_bytes(store), size
        forget(store)
        return run

    def hashed(_round: int) -> Run:
        run = measure.measure(["openssl", "dgst", "-sha256", source], env).run
        run.bytes = size
        return run

    def copied(_round: int) -> Run:
        out = store.parent / "file.out"
        run = measure.measure(["sh", "-c", f"cp '{source}' '{out}' && sync '{out}'"], env, fills=size).run
        run.disk_bytes, run.bytes = measure.disk_bytes(out), size
        forget(out)
        return run

    yield of(bench, {OURS: Subject(OURS, ours), "openssl": Subject("openssl dgst", hashed), "cp": Subject("cp + sync", copied)})


@contextlib.contextmanager
def kill_and_resume(bench):
    """Killed -9 three times on the way: what is fetched twice."""
    with bench.served({FILE: bench.random(4 * GIB)}) as origin:
        programs = Programs(bench, origin)
        unkilled = programs.ours().run(0).seconds
        store = programs.room / "store"

        def ours(round: int) -> Run:
            forget(store)
            origin.take_bytes_served()
            # The same moments in every record.
            moments = random.Random(round)
            command = bench.ours(store, "--json", "pull", origin.repo, "--all")
            whole = Run(0.0, 0.0)
            kills = 0
            for kill_after in [*(moments.uniform(0.1, 0.3) * unkilled for _ in range(KILLS)), None]:
                ended = measure.measure(command, programs.env, kill_after=kill_after, fills=programs.size)
                kills += ended.killed
                whole.seconds += ended.run.seconds
                whole.cpu_seconds += ended.run.cpu_seconds
                whole.rss_anon_peak_bytes = max(whole.rss_anon_peak_bytes or 0, ended.run.rss_anon_peak_bytes)
            whole.bytes = programs.size
            whole.values = {"beyond_max_bytes": origin.take_bytes_served() - programs.size, "kills": kills}
            subprocess.run(bench.ours(store, "verify", "--digest"), check=True, env=programs.env, capture_output=True)
            whole.disk_bytes = measure.disk_bytes(store)
            forget(store)
            return whole

        prepared = Prepared([Subject(OURS, ours)])
        prepared.notes = [f"Killed after 10 to 30 % of the time of a pull each. The bound is {CONNECTIONS} requests of a block a kill. Verified with "
                          "--digest afterwards."]
        yield prepared


@contextlib.contextmanager
def disk_after_rm(bench):
    """What a store keeps of the disk when all of it was removed."""
    source = bench.random(4 * GIB)
    store = bench.folder("programs") / "store"

    def ours(_round: int) -> Run:
        forget(store)
        subprocess.run(bench.ours(store, "import", "bench/removed", source), check=True, env=bench.peers.env, capture_output=True)
        before = measure.disk_bytes(store)
        run = measure.measure(bench.ours(store, "rm", "bench/removed", "--yes"), bench.peers.env).run
        run.bytes, run.disk_bytes = source.stat().st_size, measure.disk_bytes(store)
        run.values = {"before_bytes": before}
        forget(store)
        return run

    yield Prepared([Subject(OURS, ours)])


# -- scaling ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pull_of_size(bench, size: float):
    bench.needs_disk(2 * int(size) // bench.shrink)
    source = bench.random(int(size) // bench.shrink, exact=True)
    try:
        with _pulls(bench, {FILE: source}, {}, hf=size <= 4 * GIB, aria2=size <= 4 * GIB) as prepared:
            yield prepared
    finally:
        if size > 4 * GIB:
            forget(source)


def pull_over_connections(bench, count: float):
    return _pulls(bench, {FILE: bench.random(160 * MIB, tiny=16 * MIB)}, {"bytes_per_second": LIMIT_BYTES_PER_SECOND}, int(count),
                  hf=False, curl=False)


def pull_of_files(bench, count: float):
    each = bench.size(GIB, 16 * MIB) // int(count)
    files = {f"model-{i:02}-Q8_0.gguf": bench.random(each, f"parts/{each}-{i}", exact=True) for i in range(int(count))}
    return _pulls(bench, files, {}, curl=False, aria2=False)


@contextlib.contextmanager
def _pulls(bench, files, options, connections: int | None = None, hf=True, curl=True, aria2=True):
    with bench.served(files, **options) as origin:
        programs = Programs(bench, origin)
        offered = {OURS: programs.ours(*(["--connections", str(connections)] if connections else []))}
        if hf:
            offered["hf"] = programs.hf()
        if curl:
            offered["curl"] = programs.to_file("curl", CURL)
        if aria2:
            # One that a server has; more than 16 aria2c does not open to one.
            offered["aria2c"] = programs.to_file("aria2c", aria2c(connections or 8))
        yield of(bench, offered)


WORKLOADS = [
    Workload("pull", "pull of 4 GiB from nginx on loopback", "origin's file in the page cache, target new", pull),
    Workload("pull-40", "pull of 40 GiB of zeros: memory", "target new", pull_40, rounds=1),
    Workload("throttled", "pull of 4 GiB at 20 MB/s for each connection", "origin's file in the page cache, target new", throttled),
    Workload("small-files", "pull of 200 files of 20 kB, 50 ms away", "target new", small_files, root=True),
    Workload("rate-cap", "pull of 512 MiB held to 100 MiB/s", "target new", rate_cap),
    Workload("import", "import of a local file of 4 GiB, digest computed, durable", "source in the page cache, target new", import_file),
    Workload("kill-and-resume", "pull of 4 GiB, killed three times", "origin's file in the page cache", kill_and_resume),
    Workload("disk-after-rm", "rm of everything: 4 GiB", "warm", disk_after_rm, rounds=3),
    Workload("curve-size", "pull over file size", "origin's file in the page cache", pull_of_size, rounds=3, x="file size, bytes",
             points=(64 * MIB, 256 * MIB, GIB, 4 * GIB, 16 * GIB), smoke_points=(256 * KIB, 8 * MIB)),
    Workload("curve-connections", "pull of 160 MiB over connections, each held to 20 MB/s", "origin's file in the page cache",
             pull_over_connections, rounds=3, x="connections", points=(1, 2, 4, 8, 16, 32), smoke_points=(1, 4)),
    Workload("curve-files", "pull of 1 GiB over the number of its files", "origin's file in the page cache", pull_of_files, rounds=3,
             x="files", points=(1, 4, 16, 64), smoke_points=(1, 4)),
]
