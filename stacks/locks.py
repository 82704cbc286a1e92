"""Proof that whoever took a Pulumi lock is gone.

The lock names pid, user, host name and time, but neither a boot nor a pid namespace: a live process of a container
looks just like a dead one of this host. What proves it gone is a file system that only one kernel can have mounted, and
that kernel's word: it was booted after the lock was taken, or it shows no engine that had this pid, in any pid
namespace, when the lock was taken. From inside a container nobody sees all; only a restart is proof there.
https://man7.org/linux/man-pages/man5/proc_pid_status.5.html (NSpid), https://man7.org/linux/man-pages/man7/pid_namespaces.7.html
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil

from stacks.processes import start_of

_ONE_KERNEL: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "ramfs", "overlay"})
_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO of Linux
_ENGINES: Final = ("pulumi", "run-launcher")
"""What the name of every process that takes such locks begins with; pid 1 of a container is also that of the host."""
_MARGIN: Final = 5.0  # seconds by which the clock may have been set since


def proven_dead(lock: dict[str, Any], folder: Path) -> bool:
    """True if the process that took this lock, a file below the folder, cannot be at work any more."""
    pid, taken = lock.get("pid"), _time(str(lock.get("timestamp", "")))
    if sys.platform != "linux" or not isinstance(pid, int) or taken is None:
        return False
    if _file_system(folder, Path("/proc/self/mountinfo").read_text(encoding="utf-8")) not in _ONE_KERNEL:
        return False
    if taken + _MARGIN < psutil.boot_time():
        return True
    return _sees_all() and not any(born <= taken + _MARGIN for born in _births(pid))


def _time(text: str) -> float | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _file_system(folder: Path, mounts: str) -> str:
    """The type of the file system that a folder is on, from what the kernel tells of its mounts."""
    path = folder.resolve()
    found = (0, "")
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].encode().decode("unicode_escape"))
        if path.is_relative_to(point) and len(point.parts) >= found[0]:
            found = len(point.parts), right.split()[0]
    return found[1]


def _sees_all() -> bool:
    """True if /proc shows every process of this kernel: the first pid namespace, and nothing hidden from us."""
    try:
        own = Path("/proc/self/ns/pid").stat().st_ino
        hidden = any("hidepid=" in line for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines())
    except OSError:
        return False
    return own == _FIRST_PID_NAMESPACE and (os.geteuid() == 0 or not hidden)


def _births(pid: int) -> Iterator[float]:
    """When the engines were born that have this pid in some pid namespace, in seconds since the epoch."""
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            status = (folder / "status").read_text(encoding="utf-8", errors="replace")
            told = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            fits = told["Name"].strip().startswith(_ENGINES) and str(pid) in told["NSpid"].split()
            start = start_of(int(folder.name)) if fits else None
            if start is not None:
                yield psutil.boot_time() + start / ticks
