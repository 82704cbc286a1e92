"""What a dockerd of our own needs on this machine, and how what is missing comes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
_PACKAGES: Final = {
    "dockerd": "docker.io",
    "busybox": "busybox-static",
    "ip": "iproute2",
    "mount": "mount",
    "setpriv": "util-linux",
}
"""What a daemon needs, and the Debian package that brings it."""
_SYS_ADMIN: Final = 1 << 21  # of the capabilities, the one to mount


class UnavailableError(Exception):
    """No daemon can be had; says why."""


def cannot() -> str | None:
    """Why no daemon of our own can be had here, though missing packages be installed; None if it can."""
    if sys.platform != "linux":
        return "dockerd needs Linux"
    if os.geteuid() != 0:
        return "dockerd needs root"
    status = Path("/proc/self/status").read_text()
    if not int(status.partition("CapEff:")[2].split()[0], 16) & _SYS_ADMIN:
        return "dockerd needs the right to mount (CAP_SYS_ADMIN)"
    lacking = _lacking()
    if lacking and shutil.which("apt-get") is None:
        return f"not installed, and there is no apt-get: {', '.join(lacking)}"
    return None


def install() -> None:
    """Install what is missing. No service is started: a policy forbids it meanwhile, where there is none."""
    lacking = _lacking()
    if not lacking:
        return
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for words in (["update"], ["install", "--no-install-recommends", *lacking]):
            told = subprocess.run([*apt, *words], env=environment, capture_output=True, text=True, check=False)
            sys.stderr.write(told.stdout + told.stderr)
            if told.returncode != 0:
                message = f"{' '.join(lacking)} could not be installed: {(told.stdout + told.stderr)[-1000:]}"
                raise UnavailableError(message)
    finally:
        if ours:
            policy.unlink(missing_ok=True)


def _lacking() -> list[str]:
    return [package for tool, package in _PACKAGES.items() if shutil.which(tool, path=PATH) is None]
