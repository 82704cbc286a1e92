"""The process that keeps one dockerd, and leaves nothing of it: `dockerd_keeper.py FOLDER CONTROLLER LOCK [OPTION …]`.

It lives as long as somebody is connected to FOLDER/control, and no longer than the process CONTROLLER; the lock that it
inherits tells others that it lives. What it starts is in a mount namespace and in a cgroup of its own, FOLDER's name:
so all that is to be ended at the end is known to the kernel, whatever became of dockerd.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

import dockerd_network

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS: Final = 0x20000
_PR_SET_CHILD_SUBREAPER: Final = 36
_UNUSED: Final = 30  # seconds that a keeper waits for whoever began it to connect
_PATIENCE: Final = 60  # seconds until dockerd answers
_HIDDEN: Final = (Path("/etc/docker"), Path("/run/docker"), Path("/run/containerd"))
"""Where dockerd and containerd write whatever they are told; each daemon gets them empty and of its own."""
_JOIN: Final = 'echo $$ >"$0" && exec setpriv --pdeathsig KILL "$@"'


class Keeper:
    """One daemon, from its first start to the last trace of it."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder = folder
        self.options = options
        self.pid: int | None = None
        self._outside = os.open("/proc/self/ns/mnt", os.O_RDONLY)

    def prepare(self) -> None:
        """Make what is the daemon's own."""
        _call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans, as shims become, come to us
        for path in _HIDDEN:
            path.mkdir(parents=True, exist_ok=True)
        _call("unshare", _CLONE_NEWNS)
        _run("mount", "--make-rslave", "/")
        for path in _HIDDEN:
            _run("mount", "-t", "tmpfs", "-o", "mode=700", "none", str(path))
        (self.folder / "slice").write_text(str(dockerd_network.take()))
        (self.folder / "data").mkdir()
        if self.options[:1] == ["--size"]:
            _run("mount", "-t", "tmpfs", "-o", f"size={self.options[1]}", "none", str(self.folder / "data"))
            del self.options[:2]

    def start(self) -> str:
        """Start dockerd, unless it runs; returns why it does not answer, or nothing."""
        if self.pid is not None and self._answers():
            return ""
        if why := self._await_end():
            return why
        (self.folder / "docker.pid").unlink(missing_ok=True)
        group = next(each for each in _groups() if each.name not in {"cpuset", "memory", "cpu", "cpuacct"})
        group = group / self.folder.name / "daemon"
        group.mkdir(parents=True, exist_ok=True)
        words = ["sh", "-c", _JOIN, str(group / "cgroup.procs"), "dockerd", *self._words(), *self.options]
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        log = (os.POSIX_SPAWN_OPEN, 1, str(self.folder / "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.pid = os.posix_spawnp("sh", words, environment, file_actions=[log, (os.POSIX_SPAWN_DUP2, 1, 2)])
        until = time.monotonic() + _PATIENCE
        while not self._answers():
            self.reap()
            if self.pid is None or time.monotonic() > until:
                lines = (self.folder / "log").read_text(errors="replace").splitlines()
                return " | ".join(["dockerd does not answer", *lines[-3:]])
            time.sleep(0.01)
        return ""

    def kill(self) -> str:
        """SIGKILL dockerd, and nothing else; returns when it is gone, and containerd, which dies with it, too."""
        return self._end(signal.SIGKILL)

    def stop(self) -> str:
        """Stop dockerd in its own good order."""
        return self._end(signal.SIGTERM)

    def reap(self) -> None:
        """Take note of every child that has ended."""
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitpid(-1, os.WNOHANG)[0]:
                if ended == self.pid:
                    self.pid = None

    def clean(self) -> None:
        """End everything and remove it."""
        end_group(self.folder.name, self.reap)
        _call("setns", self._outside, _CLONE_NEWNS)  # with the last process in it, the other one and its mounts go
        clean(self.folder)

    def _words(self) -> list[str]:
        number = int((self.folder / "slice").read_text())
        settings = {
            "data-root": self.folder / "data",
            "exec-root": self.folder / "x",
            "pidfile": self.folder / "docker.pid",
            "host": f"unix://{self.folder}/docker.sock",
            "bridge": dockerd_network.bridge_of(number),
            "default-address-pool": f"base={dockerd_network.pool(number)},size=26",
            "cgroup-parent": f"/{self.folder.name}",
            "exec-opt": "native.cgroupdriver=cgroupfs",
            # What these would change is the whole machine's.
            "iptables": "false",
            "ip6tables": "false",
            "ip-masq": "false",
            "ip-forward": "false",
        }
        return [f"--{name}={value}" for name, value in settings.items()]

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.folder / "docker.sock"))
            client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in client.recv(100)
        return False

    def _end(self, number: signal.Signals) -> str:
        self.reap()
        with contextlib.suppress(ProcessLookupError):
            if self.pid is not None:
                os.kill(self.pid, number)
        return self._await_end()

    def _await_end(self) -> str:
        """Wait until dockerd is gone, and its containerd; returns why they are not, or nothing."""
        pid = _content(self.folder / "x" / "containerd" / "containerd.pid").decode().strip()
        containerd = Path("/proc", pid, "cmdline")
        until = time.monotonic() + _PATIENCE
        self.reap()
        while self.pid is not None or bytes(self.folder) in _content(containerd):
            if time.monotonic() > until:
                return "dockerd or its containerd does not end"
            time.sleep(0.01)
            self.reap()
        return ""


def clean(folder: Path) -> None:
    """End and remove what a daemon has left, whose keeper is gone or sees to it."""
    end_group(folder.name)
    if (folder / "slice").exists():
        dockerd_network.free(int((folder / "slice").read_text()))
    shutil.rmtree(folder, ignore_errors=True)


def end_group(name: str, reap: Callable[[], None] = lambda: None) -> None:
    """SIGKILL every process of a daemon and of its containers, and remove their cgroups."""
    tops = [group / name for group in _groups()]
    until = time.monotonic() + _PATIENCE
    while any(top.exists() for top in tops):
        for group in (Path(each[0]) for top in tops for each in os.walk(top, topdown=False)):
            with contextlib.suppress(OSError):  # only in the hierarchy of the freezer (cgroup v1)
                (group / "freezer.state").write_text("THAWED")  # what is frozen does not die
            for pid in _content(group / "cgroup.procs").decode().split():
                _kill(int(pid))
            with contextlib.suppress(OSError):  # not empty yet
                group.rmdir()
        reap()
        if time.monotonic() > until:
            message = f"processes of {name} do not end"
            raise OSError(message)
        time.sleep(0.01)


def serve(keeper: Keeper, listener: socket.socket, controller: int) -> None:
    """Do what those who are connected ask for, until the last one leaves or the controller ends."""
    greeting = keeper.start()
    actions = {"start": keeper.start, "kill": keeper.kill, "stop": keeper.stop}
    until, connected = time.monotonic() + _UNUSED, 0
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(os.pidfd_open(controller), selectors.EVENT_READ, "controller")
        while connected or time.monotonic() < until:
            for key, _ in selector.select(0.5):
                if key.data == "controller":
                    return
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    selector.register(connection, selectors.EVENT_READ)
                    connected, until = connected + 1, 0
                    _answer(connection, greeting)
                    continue
                assert isinstance(key.fileobj, socket.socket)
                word = _heard(key.fileobj)
                if word in actions:
                    _answer(key.fileobj, actions[word]())
                    continue
                connected -= 1
                if not connected:
                    key.fileobj.detach()  # it stays open until this process ends, which the last one waits for
                    return
                selector.unregister(key.fileobj)
                key.fileobj.close()
            keeper.reap()


def main() -> None:
    folder, controller = Path(sys.argv[1]), int(sys.argv[2])
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, _leave)
    fcntl.fcntl(int(sys.argv[3]), fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    keeper = Keeper(folder, sys.argv[4:])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "control"))
        listener.listen(100)
        try:
            keeper.prepare()
            serve(keeper, listener, controller)
        except (OSError, subprocess.SubprocessError):
            traceback.print_exc()  # whoever began this reads it when the folder is gone
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            (folder / "control").unlink(missing_ok=True)
            listener.close()
            keeper.clean()
    os._exit(0)  # no command line of it is to be seen any more when the last one's connection closes


def _groups() -> Iterator[Path]:
    """The roots of cgroups: a single one, or one for each controller."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        if right.split()[0] in {"cgroup", "cgroup2"}:
            yield Path(left.split()[4])


def _content(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def _kill(pid: int) -> None:
    assert pid != 0, "a process of another pid namespace"  # to kill 0 is to kill our own group
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _heard(connection: socket.socket) -> str:
    with contextlib.suppress(OSError):
        return connection.recv(100).decode().strip()
    return ""


def _answer(connection: socket.socket, why: str) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(why).encode() + b"\n")


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _call(name: str, *arguments: int) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


def _leave(*_: object) -> NoReturn:
    raise SystemExit


if __name__ == "__main__":
    main()
