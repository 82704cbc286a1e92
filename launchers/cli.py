"""The command `run-launcher`. This file loads next to nothing, so that `--version` answers at once."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Run the command line; ends the process with the exit code that the command answers with."""
    if sys.platform == "win32":
        sys.exit("run-launcher: this runs on Linux and macOS; on Windows use WSL")
    from launchers.commands.interrupts import Interrupted, leave, listen  # noqa: PLC0415 - not on Windows

    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character gets its code
    try:
        listen()
        if sys.argv[1:] == ["--version"]:
            from importlib.metadata import version  # noqa: PLC0415 - loads only what this answer needs

            sys.stdout.write(f"run-launcher {version('run-launcher')}\n")
            return
        from launchers.commands.app import app  # noqa: PLC0415

        app(prog_name="run-launcher")
    except Interrupted as interrupted:
        leave(interrupted.exit_code)


def _open_closed() -> None:
    """Let what nobody reads go nowhere: a closed stream is None, and its number would become another file's."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            os.dup2(fd, number, inheritable=True)
            if fd != number:
                os.close(fd)
            setattr(sys, name, os.fdopen(number, mode))
