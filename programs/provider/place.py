"""Where a local process lives: the boot of a host, a pid namespace there, and the user whom it belongs to."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO of Linux
_TEXT: Final = re.compile(r"host:([^/]*)/([^/]*)/(\d+)(?:/(\d+)@([^/]*))?")


@dataclass(frozen=True)
class Place:
    """A place as a handle names it; `user` is None and `name` empty in handles of the first release.

    `host` is a hash of the host's machine id and name, the same after a restart; `name` is for people only.
    """

    host: str
    boot: str
    namespace: int
    user: int | None = None
    name: str = ""

    @classmethod
    def own(cls) -> Place:
        """Where processes that this process starts live."""
        return cls(host(), boot_id(), pid_namespace(), os.geteuid(), os.uname().nodename.replace("/", "-"))

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """What `str` wrote, by this release or an earlier one; None for the place of another target."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        user = None if match[4] is None else int(match[4])
        return cls(match[1], match[2], int(match[3]), user, match[5] or "")

    def __str__(self) -> str:
        """The place as handles and records hold it."""
        return f"host:{self.host}/{self.boot}/{self.namespace}/{self.user}@{self.name}"

    @property
    def here(self) -> bool:
        """True if this process sees and may end what lives there; a host may change its name meanwhile."""
        same = (self.boot, self.namespace) == (boot_id(), pid_namespace())
        return same and self.user in {None, os.geteuid()}

    @property
    def restarted(self) -> bool:
        """True if it was this very host before it was restarted: then nothing of it lives any more.

        Containers prove nothing, since many share a machine id: only the host's own pid namespace counts.
        https://www.freedesktop.org/software/systemd/man/latest/machine-id.html
        """
        same_host = self.host == host() != "-" and self.namespace == pid_namespace() == FIRST_PID_NAMESPACE
        return same_host and self.boot not in {"", boot_id()} and self.user in {None, os.geteuid()}

    def in_words(self) -> str:
        """Where to ask, as seen from here."""
        host = f"host {self.name}" if self.name else "another host"
        if self.boot != boot_id():
            return host
        if self.namespace != pid_namespace():
            return f"this host ({self.name}), in another container" if self.name else "this host, in another container"
        return f"this host, as user {self.user}"


@functools.cache
def boot_id() -> str:
    """The id of this boot of the host."""
    if sys.platform == "linux":
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    done = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def pid_namespace() -> int:
    """The inode of this process's pid namespace; 0 where the platform has none."""
    with suppress(OSError):
        return Path("/proc/self/ns/pid").stat().st_ino
    return 0


@functools.cache
def host() -> str:
    """A hash of the host's machine id and name, the same after a restart; "-" where it has no machine id."""
    with suppress(OSError):
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
        if machine:
            return hashlib.sha256(f"{machine} {os.uname().nodename}".encode()).hexdigest()[:16]
    return "-"
