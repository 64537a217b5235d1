#!/usr/bin/env python3
"""One round of one workload in Python: a file of 10 kB opened, looked at as a memoryview, and let go; warm. Prints one JSON object.

    python_get_file.py list                                             what there is, as JSON
    python_get_file.py python-get-file --dir D --prepare                makes the data, for every subject
    python_get_file.py python-get-file --dir D --subject model-cache    one round

Called as model-cache-bench is, and answers in the same form. To be run by a Python that has the wheel, as scripts/wheel-env makes one.
"""
import argparse
import json
import mmap
import os
import pathlib
import resource
import sys
import time

NAME = "python-get-file"
REPO = "bench/small"
FILE_BYTES = 10_000
SIZE = {"bytes": FILE_BYTES, "count": 20_000}
TINY = {"bytes": FILE_BYTES, "count": 50}


def open_cache(folder):
    from tabagent_model_cache import ModelCache

    return ModelCache(folder / "store")


def prepare(folder):
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "small.bin"
    if not plain.exists():
        plain.write_bytes(os.urandom(FILE_BYTES))
    with open_cache(folder) as cache:
        if cache.get_file(REPO, "small.bin") is None:
            cache.import_files(REPO, plain)


def from_store(folder):
    cache = open_cache(folder)

    def call():
        assert memoryview(cache.get_file(REPO, "small.bin")).nbytes == FILE_BYTES

    return call


def by_mmap(folder):
    path = str(folder / "small.bin")

    def call():
        with open(path, "rb") as file:
            assert memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).nbytes == FILE_BYTES

    return call


def by_read(folder):
    path = str(folder / "small.bin")

    def call():
        with open(path, "rb") as file:
            assert memoryview(file.read()).nbytes == FILE_BYTES

    return call


SUBJECTS = {"model-cache": from_store, "plain-mmap": by_mmap, "plain-read": by_read}


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(call, count):
    """The round, as model-cache-bench tells its own; a tenth more calls come before, to warm up."""
    for _ in range(count // 10):
        call()
    took_ns = []
    cpu, start = cpu_seconds(), time.perf_counter_ns()
    for _ in range(count):
        before = time.perf_counter_ns()
        call()
        took_ns.append(time.perf_counter_ns() - before)
    seconds, cpu = (time.perf_counter_ns() - start) / 1e9, cpu_seconds() - cpu
    took_ns.sort()
    us = lambda percent: took_ns[max(-(-count * percent // 100), 1) - 1] / 1e3  # the nearest rank
    values = {"p50_us": us(50), "p99_us": us(99), "max_us": us(100), "calls": count}
    return {"seconds": seconds, "cpu_seconds": cpu, "values": values}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("workload", choices=["list", NAME])
    arguments.add_argument("--subject", choices=SUBJECTS)
    arguments.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("bench-data"))
    arguments.add_argument("--prepare", action="store_true")
    arguments.add_argument("--tiny", action="store_true")
    arguments.add_argument("--count", type=int)
    options = arguments.parse_args()
    if options.workload == "list":
        about = "opening a file of 10 kB from Python, a memoryview of it, and letting it go; warm"
        known = {"name": NAME, "about": about, "subjects": list(SUBJECTS), "needs_root": False, "prepared": "once"}
        print(json.dumps([{**known, "size": SIZE, "tiny": TINY}]))
        return
    folder = options.dir / "python-small"
    if options.prepare:
        prepare(folder)
        print(json.dumps({"workload": NAME, "prepared": list(SUBJECTS)}))
        return
    if options.subject is None:
        arguments.error(f"a round is one subject's: give --subject, one of {', '.join(SUBJECTS)}")
    count = options.count or (TINY if options.tiny else SIZE)["count"]
    round_ = {"workload": NAME, "subject": options.subject, **measure(SUBJECTS[options.subject](folder), count)}
    print(json.dumps({**round_, "rss_anon_peak_bytes": None, "disk_bytes": None, "bytes": None, "store": None}))


if __name__ == "__main__":
    sys.exit(main())
