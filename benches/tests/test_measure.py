import os
import pathlib
import sys

import pytest
from bench import far, machine, measure, origin


def test_a_program_and_its_children_are_measured_together():
    child = "x = bytearray(64 << 20); import time; t = time.process_time()\nwhile time.process_time() < t + 0.3: pass"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True); print('done')"
    ended = measure.measure([sys.executable, "-c", program])
    assert ended.stdout == b"done\n" and not ended.killed
    assert ended.run.cpu_seconds >= 0.3
    assert ended.run.seconds >= 0.3
    assert ended.run.rss_anon_peak_bytes >= 64 << 20


def test_time_that_the_host_stole_is_read_where_the_kernel_tells_it(monkeypatch):
    monkeypatch.setattr(measure, "_read", lambda path: f"cpu  1 2 3 4 5 6 7 {3 * os.sysconf('SC_CLK_TCK')} 9 10\ncpu0 1 1 1 1 1 1 1 1\n")
    assert measure.stolen_seconds() == 3.0


def test_what_a_program_said_is_told_when_it_fails():
    with pytest.raises(measure.Failed, match="ended with 3: no such thing"):
        measure.measure(["sh", "-c", "echo no such thing >&2; exit 3"])


def test_a_program_is_killed_when_asked_or_ends_before():
    assert measure.measure(["sleep", "60"], kill_after=0.05).killed
    assert not measure.measure(["true"], kill_after=60).killed


def test_connections_to_a_port_are_counted_and_no_others():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert measure.connections(os.getpid(), port) == 0
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
            assert measure.connections(os.getpid(), port) == 2


def test_disk_is_counted_in_blocks_and_holes_are_none(tmp_path):
    origin.write_sparse(tmp_path / "sparse", 1 << 30)
    assert measure.disk_bytes(tmp_path) < 1 << 20
    origin.write_random(tmp_path / "random", 1 << 20)
    assert measure.disk_bytes(tmp_path) >= 1 << 20


def test_served_bytes_are_those_of_files():
    log = ('18081 GET /xet-bridge/ab?X 206 bytes=100 range=- \n18080 GET /api/models/a/b 200 bytes=7 range=- \n'
           '18080 GET /o/r/resolve/main/c.json 200 bytes=20 range=- \n18080 GET /o/r/resolve/main/c.json 302 bytes=9 range=- \n')
    assert origin.bytes_served(log) == 120


def test_nginx_is_given_its_address_and_rate():
    conf = (pathlib.Path(origin.TOP) / "tests/origin/nginx-hf.conf").read_text()
    far_away = origin.settings(conf, 20_000_000, "10.0.0.2")
    assert "127.0.0.1" not in far_away and "limit_rate 20000000;" in far_away
    assert origin.settings(conf, None, "127.0.0.1") == conf


def test_the_file_system_of_a_path_is_the_last_mounted_above_it():
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp xfs rw 0 0\n/dev/c /tmpfoo btrfs rw 0 0\n"
    assert machine.file_system(pathlib.Path("/tmp"), mounts) == ("/dev/b", "xfs")
    assert machine.file_system(pathlib.Path("/usr"), mounts) == ("/dev/a", "ext4")


def test_who_is_not_root_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(far.Unavailable, match="needs root.*sudo make bench"):
        far.Far(0.05)
