"""The result of a command on stdout: a table for people, JSON or YAML for programs, names for a shell."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from stacks.handle import WorkerStatus

_GAP: Final = "   "


class Shape(StrEnum):
    """How a result is written; `name` is the names of what it is about, one to a line: of runs, their ids."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class LogShape(StrEnum):
    """How output is written: as it was printed, or each line as a JSON object."""

    TEXT = "text"
    JSON = "json"


class OutputError(Exception):
    """Stdout takes no more: its reader has gone away, or what it leads to is full or closed."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"cannot write to standard output: {cause.strerror}")
        self.reader_left = isinstance(cause, BrokenPipeError)


def write(shape: Shape, data: Any, text: Callable[[], Iterable[str]], names: Iterable[str] = ()) -> None:  # noqa: ANN401 - shapes.py, or whatever JSON holds
    """Write a result in the shape that was asked for; `text` makes the lines of the table. Raises OutputError."""
    if shape is Shape.JSON:
        lines: Iterable[str] = [json.dumps(_plain(data), indent=2)]
    elif shape is Shape.YAML:
        import yaml  # noqa: PLC0415 - for the one who asks for it

        shown = sys.stdout.encoding.lower().startswith("utf")  # or YAML's own escapes say what stdout cannot
        lines = [yaml.safe_dump(_plain(data), sort_keys=False, allow_unicode=shown).rstrip("\n")]
    else:
        lines = names if shape is Shape.NAME else text()
    emit(*lines)


def emit(*lines: str) -> None:
    """Write lines to stdout, at once; raises OutputError."""
    with writing():
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()


@contextmanager
def writing() -> Iterator[None]:
    """Tell a failure of stdout from any other: raises OutputError, after which stdout leads to nowhere."""
    try:
        yield
    except OSError as error:
        # Or the interpreter's last flush would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(error) from error


def _plain(data: Any) -> Any:  # noqa: ANN401
    if isinstance(data, list):
        return [_plain(each) for each in data]
    return data.model_dump(mode="json") if hasattr(data, "model_dump") else data


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as they need; on a terminal a line is cut to its width."""
    cells = [tuple(header), *(tuple(one_line(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    if not sys.stdout.isatty():
        return lines
    width = max(40, shutil.get_terminal_size().columns)
    return [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]


def pairs(values: Iterable[tuple[str, str]]) -> list[str]:
    """Names and values in two columns; what has no value is left out."""
    filled = [(name, one_line(value)) for name, value in values if value]
    width = max((len(name) for name, _ in filled), default=0)
    return [f"{name.ljust(width)}{_GAP}{value}" for name, value in filled]


def cell(value: object) -> str:
    """A value of JSON as a table has it."""
    if value is None or value in ("", [], {}):
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def one_line(text: str) -> str:
    """The text with what would move the cursor written as its code."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in text)


def command_line(command: Iterable[str]) -> str:
    """A command as a shell would take it."""
    return shlex.join(command)


def lasted(status: WorkerStatus) -> str:
    """How long a worker ran, as the end of a sentence; empty where its target does not tell."""
    if status.started_at is None or status.ended_at is None:
        return ""
    return f" after {max(timedelta(), status.ended_at - status.started_at).total_seconds():.1f} s"


def in_words(status: WorkerStatus) -> str:
    """The state, and what its target says of it."""
    return f"{status.state}: {status.message}" if status.message else str(status.state)
