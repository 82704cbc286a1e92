"""The one reader of YAML files: plain data, the line of every key and value, and every problem of the file.

It reads less than YAML allows, so that a file means one thing to everybody. Refused, with the line: keys that are no
text, duplicate keys, tags, merge keys, several documents, numbers that are written in base 8, 16 or 60, NaN and
infinity. Dates stay the text they are. Files are small: the limits below bound the time that any file takes.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from launchers.yaml_nodes import MAX_DEPTH, MAX_VALUES, Composer, Location, Node, Problem, SourceError, dotted

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BYTES: Final = 1_000_000
MAX_PROBLEMS: Final = 50
MAX_TEXT: Final = 1000

_LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Mark:
    """Where a value stands: the line of its key (or list item), its own line, and its text if it is a plain scalar."""

    key_line: int
    line: int
    text: str | None = None


@dataclass(frozen=True)
class Source:
    """A YAML file that holds one mapping, as plain data with marks.

    `refused` are the places that have a problem already; in `data` they hold None.
    """

    data: dict[str, object] = field(default_factory=dict)
    marks: Mapping[Location, Mark] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    refused: frozenset[Location] = frozenset()
    empty: bool = False

    def mark(self, location: Location) -> Mark:
        """The mark of the value there, or of the nearest mapping or list around it."""
        while location and location not in self.marks:
            location = location[:-1]
        return self.marks.get(location, Mark(1, 1))


def shown(path: Path) -> str:
    """The path as messages write it: relative where it lies under the working folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def report(origin: str, problems: tuple[Problem, ...] | list[Problem]) -> str:
    """All problems of one file, one to a line, in the order of the file; a very long list is cut and says so."""
    ordered = sorted(set(problems))
    lines = [
        f"{origin}{f':{problem.line}' if problem.line else ''}: {' '.join(problem.text[:MAX_TEXT].splitlines())}"
        for problem in ordered
    ]
    if len(lines) > MAX_PROBLEMS:
        lines[MAX_PROBLEMS:] = [f"{origin}: and {len(lines) - MAX_PROBLEMS} problems more"]
    return "\n".join(lines)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most 1 MB; SourceError says why there is none."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise SourceError(0, "is a folder, not a file")
        if not stat.S_ISREG(mode):
            raise SourceError(0, "is not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SourceError(0, f"cannot be read: {reason}") from error


def parse(content: bytes | str) -> Source:
    """Read one YAML document that holds a mapping; SourceError where no data can be made of it."""
    text = _decoded(content)
    loader = _LOADER(text)
    try:
        return _document(loader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text) from error
    except yaml.YAMLError as error:
        raise SourceError(1, f"is no YAML: {error}") from error
    except (ValueError, OverflowError) as error:  # the Python scanner's chr() of an escape beyond Unicode
        raise SourceError(getattr(loader, "line", 0) + 1, f"is no YAML: {error}") from error
    finally:
        loader.dispose()


def _decoded(content: bytes | str) -> str:
    if isinstance(content, str):
        text, size = content, len(content)
    else:
        size = len(content)
        try:
            text = content[: MAX_BYTES + 1].decode()
        except UnicodeDecodeError as error:
            if size <= MAX_BYTES:
                line = content.count(b"\n", 0, error.start) + 1
                raise SourceError(line, "is not UTF-8 text: save the file as UTF-8") from error
            text = ""
    if size > MAX_BYTES:
        raise SourceError(1, "the file is larger than 1 MB")
    if odd := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, odd.start()) + 1
        raise SourceError(line, f"character {odd[0]!r} cannot stand in a YAML file")
    return text


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> SourceError:
    mark = error.problem_mark or error.context_mark
    number = mark.line if mark else 0
    lines = text.splitlines()
    line = lines[number] if number < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return SourceError(number + 1, "a tab indents this line: YAML is indented with spaces")
    context = f" ({error.context})" if error.context else ""
    return SourceError(number + 1, f"is no YAML: {error.problem}{context}")


class _Expander:
    """Turns nodes into plain data, counting what aliases stand for."""

    def __init__(self) -> None:
        self.marks: dict[Location, Mark] = {}
        self.problems: list[Problem] = []
        self.refused: set[Location] = set()
        self.count = 0

    def value(self, node: Node, path: Location, key_line: int) -> object:
        self.count += 1
        if self.count > MAX_VALUES:
            raise SourceError(key_line, f"with its aliases replaced the file holds more than {MAX_VALUES} values")
        if len(path) > MAX_DEPTH:
            raise SourceError(key_line, f"values are nested more than {MAX_DEPTH} deep")
        self.marks[path] = Mark(key_line, node.line, node.text)
        if node.refused:
            self.refused.add(path)
            self.problems.append(Problem(node.line, f"{dotted(path)}: {node.refused}"))
            return None
        if isinstance(node.value, list):
            return [self.value(item, (*path, index), item.line) for index, item in enumerate(node.value)]
        if isinstance(node.value, dict):
            return {name: self.value(item, (*path, name), line) for name, (line, item) in node.value.items()}
        return node.value


def _document(loader: Any) -> Source:  # noqa: ANN401 - the stubs know no common base of both loaders
    loader.get_event()
    if loader.check_event(yaml.StreamEndEvent):
        return Source(empty=True)
    loader.get_event()
    composer = Composer(loader)
    root = composer.node(())
    loader.get_event()
    if not loader.check_event(yaml.StreamEndEvent):
        line = loader.peek_event().start_mark.line + 1
        raise SourceError(line, "a second document starts here: a file holds one")
    if root.value is None:
        return Source(empty=True)
    if root.refused:
        raise SourceError(root.line, root.refused)
    if not isinstance(root.value, dict):
        raise SourceError(root.line, "the file must hold a mapping, lines of the form `key: value`")
    expander = _Expander()
    data = expander.value(root, (), root.line)
    assert isinstance(data, dict)  # noqa: S101 - for the type checker: a mapping's node expands to a dict
    problems = (*composer.problems, *expander.problems)
    return Source(data, expander.marks, problems, frozenset(expander.refused))
