"""YAML text as nodes that know their line, and the limits and refusals that keep a file to one meaning."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 10_000

_INTEGER: Final = re.compile(r"[-+]?(0|[1-9]\d{0,17})")
_FLOAT: Final = re.compile(r"[-+]?\d+\.\d*(e[-+]\d{1,4})?", re.IGNORECASE)
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
_TRUE: Final = frozenset({"yes", "true", "on"})
_WIDTH: Final = 60

Step = str | int
Location = tuple[Step, ...]


@dataclass(frozen=True, order=True)
class Problem:
    """What is wrong in one line of a file; line 0 means the file as a whole."""

    line: int
    text: str


class SourceError(Exception):
    """The file cannot be read as YAML at all; `problem` says where it ends to make sense."""

    def __init__(self, line: int, text: str) -> None:
        """Keep the line and the reason."""
        super().__init__(text)
        self.problem = Problem(line, text)


def dotted(location: Location) -> str:
    """The name of a place as messages write it: limits.memory, folders[0], env.'a b'."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if _PLAIN_KEY.fullmatch(step) else repr(step))
    return shortened(text)


def shortened(text: str) -> str:
    """The text, cut where it is too long for a message."""
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


@dataclass
class Node:
    """A value with its line; `value` is a scalar, a list of nodes, or a dict of (key's line, node)."""

    line: int
    value: Any
    text: str | None = None
    refused: str = ""


class Composer:
    """Builds nodes from events, so that depth and number are counted before anything large exists."""

    def __init__(self, loader: Any) -> None:  # noqa: ANN401 - the stubs know no common base of both loaders
        """Start where the loader stands."""
        self.loader = loader
        self.problems: list[Problem] = []
        self.anchors: dict[str | None, Node | None] = {}
        self.count = 0

    def node(self, path: Location) -> Node:
        """The next value of the loader's, with all that is in it; SourceError beyond a limit."""
        event = self.loader.get_event()
        line = event.start_mark.line + 1
        self.count += 1
        if self.count > MAX_VALUES:
            raise SourceError(line, f"the file holds more than {MAX_VALUES} values")
        if len(path) > MAX_DEPTH:
            raise SourceError(line, f"values are nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor, line)
        anchor = event.anchor
        if anchor:
            self.anchors[anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Node(line, list(self._items(path)))
        else:
            node = Node(line, self._mapping(path))
        if event.tag is not None:
            node.refused = (
                f"tags such as {shortened(event.tag)} are not supported: write plain text, numbers, lists and mappings"
            )
        if anchor:
            self.anchors[anchor] = node
        return node

    def _alias(self, name: str | None, line: int) -> Node:
        if name not in self.anchors:
            raise SourceError(line, f"*{name} is used, but &{name} is not set above")
        node = self.anchors[name]
        if node is None:
            raise SourceError(line, f"*{name} stands inside its own &{name}")
        return Node(line, node.value, node.text, node.refused)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Node:
        text: str = event.value
        if _NO_TEXT.search(text):
            return Node(line, text, refused="the text holds a NUL or half a character: no program could receive it")
        if not event.implicit[0]:
            return Node(line, text)
        tag = str(self.loader.resolve(yaml.ScalarNode, text, event.implicit)).rpartition(":")[2]
        if tag in {"int", "float"}:
            return _number(text, line)
        values = {"null": None, "bool": text.lower() in _TRUE}
        return Node(line, values.get(tag, text), text)

    def _items(self, path: Location) -> Iterator[Node]:
        index = 0
        while not self.loader.check_event(yaml.SequenceEndEvent):
            yield self.node((*path, index))
            index += 1
        self.loader.get_event()

    def _mapping(self, path: Location) -> dict[str, tuple[int, Node]]:
        found: dict[str, tuple[int, Node]] = {}
        while not self.loader.check_event(yaml.MappingEndEvent):
            key = self.node((*path, "?"))
            name = key.value if isinstance(key.value, str) else None
            value = self.node((*path, name or "?"))
            if name is None or key.refused or (name == "<<" and key.text):
                self.problems.append(Problem(key.line, _odd_key(key)))
            elif name in found:
                first = found[name][0]
                self.problems.append(
                    Problem(key.line, f"duplicate key {dotted((*path, name))!r}, first in line {first}")
                )
            else:
                found[name] = (key.line, value)
        self.loader.get_event()
        return found


def _number(text: str, line: int) -> Node:
    value = int(text) if _INTEGER.fullmatch(text) else float(text) if _FLOAT.fullmatch(text) else math.nan
    refused = f"{shortened(text)} is no plain decimal number: write it as one, or put it in quotes to make it text"
    return Node(line, value, text, "" if math.isfinite(value) else refused)


def _odd_key(key: Node) -> str:
    if key.text == "<<":
        return "merge keys (<<) are not supported: repeat the keys"
    if isinstance(key.value, list | dict):
        return "a key must be text, not a list or a mapping"
    if key.text is None:
        return key.refused
    return f"key {key.text or 'null'} must be text: put it in quotes"
