"""How a shell is arranged for a test: files, settings, runs that are there, disks, users."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from other_user import as_user
from shell import Shell

Arrange = Callable[[Shell], None]
STRANGER: Final = 123456
"""An uid that no passwd entry names."""
ROOT_ONLY: Final = "only root can mount a file system" if os.geteuid() != 0 or shutil.which("mount") is None else ""


def variables(**values: str) -> Arrange:
    return lambda shell: shell.environment.update(values)


def without(*names: str) -> Arrange:
    def arrange(shell: Shell) -> None:
        for name in names:
            shell.environment.pop(name, None)

    return arrange


def file(name: str, content: str | bytes = "", mode: int = 0o644) -> Arrange:
    return lambda shell: void(shell.write(name, content, mode))


def folder(name: str) -> Arrange:
    return lambda shell: (shell.work / name).mkdir(parents=True)


def settings(text: str) -> Arrange:
    return file("run-launcher.yaml", text)


def launched(run_id: str, *command: str, then: str = "") -> Arrange:
    """A run that is there already, and where it is led before the wrong call."""

    def arrange(shell: Shell) -> None:
        shell.does("launch", "--run-id", run_id, "--", *(command or ("true",)))
        if then:
            shell.does(then, run_id)

    return arrange


def kept(pattern: str, content: str | bytes | None) -> Arrange:
    """Replace a file that is kept, or remove it; at the end it is as it was."""

    def arrange(shell: Shell) -> None:
        (path,) = shell.home.glob(pattern)
        before = path.read_bytes()
        shell.at_end.callback(lambda: restore(path, before))
        path.unlink()
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return arrange


def restore(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def home_at(*words: str) -> Arrange:
    """The home is mounted: a file system of its own."""

    def arrange(shell: Shell) -> None:
        shell.home.mkdir(mode=0o700, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", *words, "none", str(shell.home)], check=True)
        shell.last.callback(lambda: void(subprocess.run(["umount", "-l", str(shell.home)], check=True)))

    return arrange


def filled(room: int = 0) -> Arrange:
    """All of the home's disk is used but for some bytes."""

    def arrange(shell: Shell) -> None:
        ballast = shell.home / "ballast"
        free = os.statvfs(shell.home)
        with ballast.open("wb") as heavy:
            heavy.write(bytes(max(0, free.f_bavail * free.f_bsize - room)))
        shell.at_end.callback(lambda: ballast.unlink(missing_ok=True))

    return arrange


def remounted_read_only(shell: Shell) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(shell.home)], check=True)
    shell.at_end.callback(lambda: void(subprocess.run(["mount", "-o", "remount,rw", str(shell.home)], check=True)))


def as_stranger(shell: Shell) -> None:
    """A user without a passwd entry, and without anything of their own."""
    for path in (shell.root, *shell.root.rglob("*")):
        os.chown(path, STRANGER, STRANGER)
    shell.before = as_user(STRANGER, [])


def limited(words: str) -> Arrange:
    """Under `ulimit` and the like, as a shell sets it."""
    return lambda shell: shell.before.extend(["sh", "-c", f'{words}; exec "$@"', "sh"])


FOUR_MB: Final = """\
word=$(head -c 100000 /dev/zero | tr '\\0' x); n=0
while [ $n -lt 40 ]; do set -- "$@" "$word"; n=$((n + 1)); done"""
"""More than a caller could pass on under the usual limit of a stack."""


def void(_: object) -> None:
    """Let an expression be a step."""


def wished_nothing(shell: Shell) -> None:
    wish = shell.home / "state/wishes/45/r.json"
    wish.parent.mkdir(parents=True)
    wish.touch()
    shell.at_end.callback(wish.unlink)
