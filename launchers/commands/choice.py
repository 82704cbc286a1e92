"""How a call says which runs it means: by name, by selectors, or both. Loads typer alone; selecting.py reads it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Annotated, Any, Final

import typer

_Words = list[str] | None
_OPTIONS: Final[dict[str, Any]] = {
    "names": Annotated[
        _Words, typer.Argument(metavar="RUN", help="Ids of runs, unique prefixes, or @last.", show_default=False)
    ],
    "states": Annotated[
        _Words, typer.Option("--state", metavar="STATE", help="Only runs in this state; of several, any.")
    ],
    "template": Annotated[
        str | None,
        typer.Option("--template", "-t", metavar="NAME[@DIGEST]", help="Only runs of this launcher template."),
    ],
    "tags": Annotated[
        _Words, typer.Option("--tag", metavar="NAME[=VALUE]", help="Only runs with this tag; of several, all.")
    ],
    "older": Annotated[
        str | None, typer.Option("--older", metavar="DURATION", help="Only runs launched longer ago (30s, 5m, 2d).")
    ],
    "newer": Annotated[
        str | None, typer.Option("--newer", metavar="DURATION", help="Only runs launched since (30s, 5m, 2d).")
    ],
    "gone": Annotated[
        bool, typer.Option("--all", "-a", help="Also the runs that nothing but a record is left of.")
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """Names and selectors as they were given."""

    names: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    template: str | None = None
    tags: tuple[str, ...] = ()
    older: str | None = None
    newer: str | None = None
    gone: bool = False

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Choice:
        """The choice in a call's options, which lose what belongs to it."""
        given: dict[str, Any] = {field.name: options.pop(field.name) for field in fields(cls)}
        for name in ("names", "states", "tags"):
            given[name] = tuple(given[name] or ())
        return cls(**given)

    @property
    def selects(self) -> bool:
        """True if a selector was given; `--all` is none, it only widens what there is to choose from."""
        return bool(self.states or self.tags) or not {self.template, self.older, self.newer} <= {None}

    @property
    def one(self) -> bool:
        """True if the call can mean no more than one run: then its result is one object, else a list."""
        return len(self.names) == 1 and not self.selects

    def __str__(self) -> str:
        """The selectors, as they were given."""
        words = [("--state", each) for each in self.states]
        for name in ("template", "older", "newer"):
            value: str | None = getattr(self, name)
            words += [] if value is None else [(f"--{name}", value)]
        words += [("--tag", each) for each in self.tags]
        return " ".join(f"{flag} {value}" for flag, value in words)


def parameters() -> list[inspect.Parameter]:
    """The options of a command that takes a choice, as typer reads them."""
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if field.name == "gone" else None,
            annotation=_OPTIONS[field.name],
        )
        for field in fields(Choice)
    ]
