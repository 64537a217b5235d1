"""Opens a small file from Python, over and over: `get_file.py model-cache|"open + mmap" STORE REPO PATH TIMES`; prints a Run as JSON.

Meant for a Python that has the wheel; it imports nothing else of this package.
"""
import json
import mmap
import os
import pathlib
import resource
import sys
import tempfile
import time


def main(subject, store, repo, path, times):
    from tabagent_model_cache import ModelCache

    with ModelCache(store) as cache, tempfile.NamedTemporaryFile() as plain:
        plain.write(bytes(memoryview(cache.get_file(repo, path))))
        plain.flush()

        def ours():
            with memoryview(cache.get_file(repo, path)) as view:
                return view[0]

        def by_path():
            descriptor = os.open(plain.name, os.O_RDONLY)
            try:
                mapping = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)
            with memoryview(mapping) as view:
                byte = view[0]
            mapping.close()
            return byte

        once = ours if subject == "model-cache" else by_path
        for _ in range(100):
            once()
        took = []
        used = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(int(times)):
            start = time.perf_counter_ns()
            once()
            took.append(time.perf_counter_ns() - start)
        after = resource.getrusage(resource.RUSAGE_SELF)
        took.sort()
        status = pathlib.Path("/proc/self/status").read_text()
    print(json.dumps({
        "seconds": sum(took) / 1e9,
        "cpu_seconds": after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime,
        "rss_anon_peak_bytes": int(status.split("RssAnon:")[1].split()[0]) * 1024,
        "values": {"p50_us": took[len(took) // 2] / 1000, "p99_us": took[len(took) * 99 // 100] / 1000},
    }))


if __name__ == "__main__":
    main(*sys.argv[1:])
