"""Hosts of one machine: each with pid, network and host name of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import psutil
import pytest

needs_hosts = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("ip")),
    reason="makes namespaces, as root on Linux, with unshare and ip",
)
_INIT = """
import os, signal, socket, subprocess, sys
socket.sethostname(sys.argv[1])
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
print("up", flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        signal.sigtimedwait([signal.SIGCHLD], 0.05)
"""
_COMMAND = "import sys; from launchers.cli import main; main()"


class Host:
    """A host: namespaces that one process keeps, and a home."""

    def __init__(self, name: str, settings: dict[str, str]) -> None:
        self.name = name
        self.settings = settings
        self.boot()

    def boot(self) -> None:
        command = ["unshare", "--pid", "--net", "--uts", "--mount-proc", "--fork", "--kill-child"]
        self.keeper = subprocess.Popen(
            [*command, sys.executable, "-c", _INIT, self.name], stdout=subprocess.PIPE, text=True
        )
        assert self.keeper.stdout is not None
        assert self.keeper.stdout.readline() == "up\n"
        self.keeper.stdout.close()

    def halt(self) -> None:
        for child in psutil.Process(self.keeper.pid).children():
            child.kill()
        self.keeper.wait()

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """A command of `run-launcher`."""
        return self.python("-c", _COMMAND, *words)

    def python(self, *words: str) -> subprocess.Popen[str]:
        (inner,) = psutil.Process(self.keeper.pid).children()
        enter = ["nsenter", "-t", str(inner.pid), "-n", "-p", "-u", "-m", "--", sys.executable]
        return subprocess.Popen(
            [*enter, *words],
            env={**os.environ, **self.settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        with self.begin(*words) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def json(self, *words: str) -> Any:  # noqa: ANN401 - whatever the command says
        done = self.run(*words, "-o", "json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)
