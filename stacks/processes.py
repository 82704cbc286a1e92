"""Which process of which host: what proves that somebody is still at work, or is not."""

from __future__ import annotations

import functools
import getpass
import hashlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

_START_FIELD: Final = 19  # of the fields after the name: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that no other is ever taken for: host name and boot, pid namespace, pid, start time.

    `start` is in clock ticks since boot on Linux and in microseconds elsewhere.
    """

    host: str
    place: str
    pid: int
    start: int

    @classmethod
    def own(cls) -> ProcessIdentity:
        """This process."""
        return cls(os.uname().nodename, here(), os.getpid(), start_of(os.getpid()) or 0)

    @classmethod
    def read(cls, data: dict[str, Any]) -> ProcessIdentity:
        """What `to_dict` gave; unknown fields are ignored."""
        return cls(str(data["host"]), str(data["place"]), int(data["pid"]), int(data["start"]))

    @classmethod
    def stands_in(cls, data: dict[str, Any]) -> bool:
        """True if `read` finds an identity there."""
        return {"host", "place", "pid", "start"} <= data.keys()

    def to_dict(self) -> dict[str, Any]:
        """The identity as JSON holds it."""
        return asdict(self)

    def alive(self) -> bool | None:
        """True while the process runs, False when it is proven gone, None from another place, where nobody can tell."""
        if self.place != here():
            return None
        return start_of(self.pid) == self.start

    def await_end(self, seconds: float) -> bool:
        """Wait until the process is gone; False if the time passed first."""
        deadline = time.monotonic() + seconds
        with _watch(self.pid) as poll:
            while self.alive():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                poll(left)
        return True


def await_exit(process: subprocess.Popen[bytes], seconds: float | None) -> bool:
    """Wait for a child, without the pauses of Popen.wait; False if the time passed first."""
    deadline = None if seconds is None else time.monotonic() + seconds
    with _watch(process.pid) as poll:
        while process.poll() is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            poll(left)
    return True


def stat_of(pid: int) -> str:
    """What the kernel tells of a process in one line, from which its start can be read again; empty elsewhere."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def user_name() -> str:
    """Who this user is, in words; by number where passwd has no entry."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.geteuid()}"


@contextmanager
def _watch(pid: int) -> Iterator[Callable[[float | None], object]]:
    """Yields a function that returns when the process has ended, or some time has passed."""
    if sys.platform != "linux":
        yield lambda seconds: time.sleep(0.01 if seconds is None else min(0.01, seconds))
        return
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        yield lambda _: None
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        yield lambda seconds: poll.poll(None if seconds is None else max(1, round(seconds * 1000)))
    finally:
        os.close(fd)


def here() -> str:
    """The place of this process: boot of the host, and pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = str(psutil.boot_time())
    namespace = 0
    with suppress(OSError):
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    return f"{boot}/{namespace}"


@functools.cache
def maker_place() -> str:
    """A short name of the place that a maker's pid belongs to: another place's pids say nothing here."""
    return hashlib.sha256(here().encode()).hexdigest()[:8]


def maker() -> str:
    """What in a file's name tells who made it: the place and the pid of this process."""
    return f"{maker_place()}-{os.getpid()}"


def maker_died(name: str) -> bool:
    """True for a name that begins with a maker of this place who is gone."""
    place, _, rest = name.partition("-")
    pid = rest.partition("-")[0]
    return place == maker_place() and pid.isdigit() and not psutil.pid_exists(int(pid))


def start_in(stat: str) -> int | None:
    """The start time in what follows the name in a line of /proc/PID/stat; None for any other text."""
    fields = stat.split()
    return int(fields[_START_FIELD]) if len(fields) > _START_FIELD else None


def start_of(pid: int) -> int | None:
    """When a process started; None for one that is gone or a zombie."""
    if sys.platform == "linux":
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
            return None if fields.split()[0] in "ZX" else start_in(fields)
        return None
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time() * 1_000_000)
    return None
