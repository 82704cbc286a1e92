"""One template file, read but not judged: a layer of the template that extends others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from launchers.yaml_nodes import Problem, SourceError
from launchers.yaml_source import Source, parse, report
from stacks.errors import TemplateError

if TYPE_CHECKING:
    from pathlib import Path

    from launchers.yaml_nodes import Location

EXTENDS: Final = "extends"


@dataclass(frozen=True, eq=False)
class Layer:
    """A template's file: its name, what messages call it, and what it says. `path` is None for one without a file."""

    name: str
    origin: str
    source: Source
    path: Path | None = None

    @classmethod
    def of(cls, text: str | bytes, origin: str, name: str, path: Path | None = None) -> Layer:
        """Read a template's text; raises TemplateError where it is no YAML, or empty."""
        try:
            source = parse(text)
        except SourceError as error:
            raise TemplateError(report(origin, [error.problem])) from error
        if source.empty:
            raise TemplateError(report(origin, [Problem(1, "the template is empty; it needs at least a target")]))
        return cls(name, origin, source, path)

    @property
    def data(self) -> dict[str, Any]:
        """What it says, as plain data."""
        return self.source.data

    @property
    def extends(self) -> str | None:
        """The template that it extends, if it says so in text."""
        base = self.data.get(EXTENDS)
        return base if isinstance(base, str) and base else None

    def line(self, *location: str | int) -> int:
        """The line of the key at a place, or of the nearest one around it."""
        return self.source.mark(location).key_line

    def where(self, *location: str | int) -> str:
        """File and line of a place."""
        return f"{self.origin}:{self.line(*location)}"

    def places(self) -> dict[Location, str]:
        """File and line of every value."""
        return {location: f"{self.origin}:{mark.key_line}" for location, mark in self.source.marks.items()}

    def wrong(self, *problems: Problem) -> TemplateError:
        """The error that tells these problems."""
        return TemplateError(report(self.origin, list(problems)))
