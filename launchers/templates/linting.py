"""What is wrong with templates before anybody launches with them, and what is right but probably not meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from launchers.templates.bounding import loose_dots
from launchers.templates.fields import parse_path, value_at
from launchers.templates.library import BUILT_IN, Library
from launchers.templates.resolving import Loaded
from stacks.errors import ConfigurationError, TemplateError

if TYPE_CHECKING:
    from launchers.settings import Config

_LINE: Final = re.compile(r"(?P<origin>.+?):(?P<line>\d+): (?P<text>.*)")


@dataclass(frozen=True, order=True)
class Flaw:
    """One thing that is wrong, or, where it is no error, worth a second look; line 0 is the file as a whole."""

    origin: str
    line: int
    text: str
    is_error: bool = True

    def __str__(self) -> str:
        """As compilers tell it."""
        line = f":{self.line}" if self.line else ""
        return f"{self.origin}{line}: {'' if self.is_error else 'note: '}{self.text}"


def lint(library: Library, names: Iterable[str] = (), config: Config | None = None) -> list[Flaw]:
    """The flaws of these templates, names or paths, by default of all; and of the routes that a configuration has."""
    wanted = list(names) or [each.name for each in library.names()]
    found: set[Flaw] = set()
    for name in wanted:
        try:
            loaded = library.load(name)
        except (TemplateError, ConfigurationError) as error:
            found |= set(_told(str(error), name))
        else:
            found |= set(_odd(loaded))
    if config is not None:
        found |= set(_routes(library, config))
    return sorted(found)


def _told(message: str, name: str) -> Iterator[Flaw]:
    """The problems in an error's text, one to a line."""
    for line in message.splitlines():
        match = _LINE.fullmatch(line)
        yield Flaw(match["origin"], int(match["line"]), match["text"]) if match else Flaw(name, 0, line)


def _odd(loaded: Loaded) -> Iterator[Flaw]:
    data = loaded.template.model_dump(mode="json")
    for text, bound in loaded.template.overrides.items():
        path = parse_path(text)
        place = loaded.places.get(("overrides", text), loaded.origin)
        if bound.pattern is not None and loose_dots(bound.pattern):
            why = (
                f"overrides: {text}: a dot in pattern {bound.pattern} stands for any character: write \\., or use glob"
            )
            yield _at(place, why, is_error=True)
        if bound.max is not None and value_at(data, path) is None:
            why = f"overrides: {text} has a max, but no value: a run that does not set it is above that bound"
            yield _at(place, why, is_error=False)
    if not loaded.template.owner and loaded.origin != BUILT_IN:
        yield _at(loaded.origin, "names no owner, who would be named in refusals", is_error=False)


def _routes(library: Library, config: Config) -> Iterator[Flaw]:
    for index, route in enumerate(config.routes):
        name = route.template.partition("@")[0]
        try:
            library.load(name)
        except (TemplateError, ConfigurationError) as error:
            first = str(error).splitlines()[0]
            yield _at(config.origin_of("routes", index), f"the route leads nowhere: {first}", is_error=True)


def _at(place: str, text: str, *, is_error: bool) -> Flaw:
    origin, _, line = place.rpartition(":")
    return Flaw(origin, int(line), text, is_error) if origin and line.isdigit() else Flaw(place, 0, text, is_error)
