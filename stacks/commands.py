"""Runs other people's tools: bounded in time, with progress, and with nothing of the user's Pulumi settings."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_TICK: Final = 0.2
_FIRST_LINE: Final = 1.0
_NEXT_LINE: Final = 10.0
_LAST_LINES: Final = 6


class ToolError(Exception):
    """A tool did not do what it was asked for; the text is the reason, in its own words where it had any."""


def silent(_line: str) -> None:
    """Progress for nobody."""


class Elapsed:
    """Says how long something has taken: first after a second, then every ten."""

    def __init__(self, what: str, progress: Callable[[str], None]) -> None:
        """Start the clock."""
        self._what = what
        self._progress = progress
        self._started = time.monotonic()
        self._next = _FIRST_LINE

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self._started

    def tick(self) -> None:
        """Say a line if it is time for one; called as often as one likes."""
        if self.seconds >= self._next:
            self._progress(f"{self._what}: {self.seconds:.0f} s")
            self._next = self.seconds + _NEXT_LINE


def tool_environment(pulumi_home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment without its PULUMI_* variables, which could lead a tool to another backend or version.

    `pulumi_home` takes the logs that every Pulumi command writes; the caller removes it.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PULUMI_")}
    return {**kept, "PULUMI_HOME": str(pulumi_home), "PULUMI_SKIP_UPDATE_CHECK": "1", **(more or {})}


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path,
    limit: float,
    watch: Callable[[], None],
) -> str:
    """Run the command to its end and return its stdout; no process of it is left when this returns or raises.

    `limit` is in seconds. `watch` is called several times a second and stops the command by raising. Raises ToolError
    for a command that cannot be started, exits with another code than 0, or outlives its limit.
    """
    started = time.monotonic()
    try:
        # A session of its own: the whole group can be ended, and Ctrl-C reaches the tool by way of us only.
        process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        message = f"cannot be executed: {error.strerror}"
        raise ToolError(message) from error
    with process, _ended(process):
        while (output := _output(process)) is None:
            if time.monotonic() - started > limit:
                message = f"gave no answer within {limit:g} s"
                raise ToolError(message)
            watch()
    return _checked(process.returncode, *output)


def _output(process: subprocess.Popen[str]) -> tuple[str, str] | None:
    """The whole stdout and stderr once the command has ended, else None after a fraction of a second."""
    try:
        return process.communicate(timeout=_TICK)
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill the command's group where its end was not waited for: time limit, Ctrl-C, a watch that raised."""
    try:
        yield
    except BaseException:
        # The leader may be gone while a child of its keeps our pipes open.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise


def _checked(code: int, out: str, err: str) -> str:
    if code == 0:
        return out
    lines = [line for line in (err.strip() or out.strip()).splitlines() if line.strip()]
    words = "\n".join(lines[-_LAST_LINES:])
    message = f"ended with exit code {code}" + (f": {words}" if words else "")
    raise ToolError(message)
