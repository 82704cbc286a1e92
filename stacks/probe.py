"""Asks a `pulumi` executable for its version, once: the answer is kept beside the tools.

The cache is `cli.json` in the tools folder. An answer holds for the very file that gave it (path, modification time,
size, inode). A file that gave none is asked again after some minutes, since a busy machine may have been the reason.
Two writers at once lose one answer, which is asked for again.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stacks.commands import Elapsed, ToolError, run, silent, tool_environment

if TYPE_CHECKING:
    from collections.abc import Callable

SUPPORTED: Final = ("3.181.0", "4.0.0")
"""The lowest version that is used, and the one below which all must be.

3.181.0 is the first whose `destroy` has `--client`, which every inline program of ours is ended with
(https://github.com/pulumi/pulumi/releases/tag/v3.181.0); 4.0.0 may change state, flags or protocol.
"""

_CACHE: Final = "cli.json"
_FORMAT: Final = 1
_LIMIT: Final = 10.0
_ASK_AGAIN: Final = 600.0


@dataclass(frozen=True)
class Answer:
    """What an executable said: its version, or the reason why it is not used.

    `fresh` tells that it was asked just now.
    """

    path: Path
    version: str = ""
    problem: str = ""
    fresh: bool = False


def ask(path: Path, tools: Path, progress: Callable[[str], None] = silent) -> Answer:
    """Tell the version of the executable at `path`; starts a process only for a file that was not asked before.

    Never raises for what is wrong with the file. A tools folder that cannot be written costs a process each time.
    """
    try:
        key = _key(path)
    except OSError as error:
        return Answer(path, problem=f"cannot be read: {error.strerror}")
    known = _read(tools)
    entry = known.get(str(path), {})
    if entry.get("key") == key and (entry.get("version") or time.time() - entry.get("asked", 0) < _ASK_AGAIN):
        return Answer(path, entry.get("version", ""), entry.get("problem", ""))
    answer = _ask(path, Elapsed(f"Asking {path} for its version", progress))
    known[str(path)] = {"key": key, "version": answer.version, "problem": answer.problem, "asked": time.time()}
    with suppress(OSError):
        _write(tools, known)
    return answer


def _key(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_mtime_ns, stat.st_size, stat.st_ino]


def _read(tools: Path) -> dict[str, Any]:
    """The known answers; none where the file is absent, damaged, or judged by other bounds."""
    try:
        content = json.loads((tools / _CACHE).read_text())
        fits = content["format"] == _FORMAT and content["supported"] == list(SUPPORTED)
        return dict(content["answers"]) if fits else {}
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def _write(tools: Path, answers: dict[str, Any]) -> None:
    tools.mkdir(parents=True, exist_ok=True)
    there = {path: answer for path, answer in answers.items() if Path(path).exists()}
    content = {"format": _FORMAT, "supported": SUPPORTED, "answers": there}
    handle, name = tempfile.mkstemp(prefix="part-", dir=tools)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
        Path(name).replace(tools / _CACHE)
    except BaseException:
        Path(name).unlink()
        raise


def _ask(path: Path, elapsed: Elapsed) -> Answer:
    # The command writes a log to its home, even for `version`.
    with tempfile.TemporaryDirectory(prefix="run-launcher-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        try:
            text = run([path, "version"], env=tool_environment(home), cwd=home, limit=_LIMIT, watch=elapsed.tick)
        except ToolError as error:
            return Answer(path, problem=f"does not answer `pulumi version`: it {error}", fresh=True)
    return _judged(path, text.strip().removeprefix("v"))


def _judged(path: Path, text: str) -> Answer:
    from semver import Version  # noqa: PLC0415 - 28 ms, for a file that is asked for the first time

    lowest, below = SUPPORTED
    try:
        version = Version.parse(text)
    except ValueError:
        return Answer(path, problem=f"tells no version, but {text[:80]!r} (`pulumi version`)", fresh=True)
    if version < Version.parse(lowest):
        return Answer(path, text, f"is version {text}: too old, {lowest} is the lowest supported", fresh=True)
    # A pre-release sorts before its release, but belongs to it.
    if version.finalize_version() >= Version.parse(below):
        return Answer(path, text, f"is version {text}: too new, {below} and above are not supported", fresh=True)
    return Answer(path, text, fresh=True)
