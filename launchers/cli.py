"""The command `run-launcher`. This file loads next to nothing, so that `--version` answers at once."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line; ends the process with the exit code that the command answers with."""
    if sys.platform == "win32":
        sys.exit("run-launcher: this runs on Linux and macOS; on Windows use WSL")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character gets its code
    try:
        if sys.argv[1:] == ["--version"]:
            from importlib.metadata import version  # noqa: PLC0415 - loads only what this answer needs

            sys.stdout.write(f"run-launcher {version('run-launcher')}\n")
            return
        from launchers.commands.app import app  # noqa: PLC0415

        app(prog_name="run-launcher")
    except KeyboardInterrupt:
        sys.exit(130)
