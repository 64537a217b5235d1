"""A place 50 ms away: two network namespaces, a TUN device in each, and a process that holds every packet half that long.

`tc netem` would do the same where the kernel has it; this needs only TUN, so the figure is made the same way everywhere. It needs root.
Run as a program it is the relay: `python -m bench.far HERE THERE SECONDS` makes both devices, says "ready", and relays until it is ended.
"""
from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import pathlib
import re
import select
import shutil
import struct
import subprocess
import sys
import time

# linux/if_tun.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1500
HERE_ADDRESS, THERE_ADDRESS = "10.213.50.1", "10.213.50.2"


class Unavailable(Exception):
    """What is missing for it on this machine."""


class Far:
    """Two places, `round_trip` seconds from each other. Programs are started there by the words `here` and `there` before them."""

    def __init__(self, round_trip: float):
        if os.geteuid() != 0:
            raise Unavailable("needs root, for network namespaces: sudo make bench")
        if not shutil.which("ip") or not os.path.exists("/dev/net/tun"):
            raise Unavailable("needs ip (iproute2) and /dev/net/tun")
        own = f"mcb{os.getpid()}"
        self.names = [f"{own}a", f"{own}b"]
        self.here, self.there = (("ip", "netns", "exec", name) for name in self.names)
        self.address = THERE_ADDRESS
        self.relay = None
        try:
            for name in self.names:
                _ip("netns", "add", name)
            self.relay = subprocess.Popen([sys.executable, "-m", "bench.far", *self.names, str(round_trip / 2)], stdin=subprocess.DEVNULL,
                                          stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])})
            if self.relay.stdout.readline() != b"ready\n":
                raise Unavailable("no TUN device to be had")
            for name, address, other in ((self.names[0], HERE_ADDRESS, THERE_ADDRESS), (self.names[1], THERE_ADDRESS, HERE_ADDRESS)):
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "addr", "add", address, "peer", other, "dev", name)
                _ip("-n", name, "link", "set", name, "up", "mtu", str(MTU))
        except BaseException:
            self.stop()
            raise

    def stop(self):
        """Ends the relay; takes the namespaces and their devices away."""
        if self.relay:
            self.relay.terminate()
            self.relay.wait()
        for name in self.names:
            with contextlib.suppress(Unavailable):
                _ip("netns", "del", name)

    def round_trip_ms(self) -> float:
        """What the way there and back takes, measured: the median of ten connections refused."""
        told = subprocess.run([*self.here, sys.executable, "-c", REFUSED, THERE_ADDRESS], check=True, capture_output=True, text=True)
        return float(told.stdout)


# One way there and one back: a port that nobody listens on refuses at once. ping is not on every machine.
REFUSED = """
import socket, statistics, sys, time
def once():
    start = time.monotonic()
    try:
        socket.create_connection((sys.argv[1], 9)).close()
    except ConnectionRefusedError:
        pass
    return time.monotonic() - start
print(statistics.median(once() for _ in range(10)) * 1000)
"""


def _ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


def relay(names: list[str], delay: float) -> None:
    """Carries packets between two TUN devices, each `delay` seconds late, in order."""
    devices = [_tun(name) for name in names]
    for name in names:
        _ip("link", "set", name, "netns", name)
    print("ready", flush=True)
    # For each device: the packets that are to be written to it, and when.
    waiting = {device: collections.deque() for device in devices}
    other = {devices[0]: devices[1], devices[1]: devices[0]}
    poll = select.epoll()
    for device in devices:
        poll.register(device, select.EPOLLIN)
    while True:
        due = min((queue[0][0] for queue in waiting.values() if queue), default=None)
        ready = poll.poll(None if due is None else max(0.0, due - time.monotonic()))
        for device, _ in ready:
            # A device that is down has nothing to say yet.
            with contextlib.suppress(BlockingIOError, OSError):
                while True:
                    packet = os.read(device, MTU + 100)
                    waiting[other[device]].append((time.monotonic() + delay, packet))
        now = time.monotonic()
        for device, queue in waiting.items():
            while queue and queue[0][0] <= now:
                # A full device drops packets, as a router does.
                with contextlib.suppress(OSError):
                    os.write(device, queue.popleft()[1])


if __name__ == "__main__":
    relay(sys.argv[1:3], float(sys.argv[3]))
