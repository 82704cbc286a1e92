"""What limits say: at most so much at once for the runs of one template, or of one owner. Counting is in limits.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, model_validator

from programs.args import Cpu, Resources, Size

RUNS: Final = "concurrent_runs"
_Name = Annotated[str, Field(min_length=1)]
_UNITS: Final = (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))


class Limit(BaseModel, frozen=True, extra="forbid"):
    """At most so many runs at once, and so much for all their workers together; None is no limit."""

    concurrent_runs: Annotated[int, Field(ge=0)] | None = None
    cpu: Cpu | None = None
    memory: Size | None = None
    gpu: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Limit:
        if not self.model_fields_set:
            message = "must limit something: concurrent_runs, cpu, memory or gpu"
            raise ValueError(message)
        return self


class LimitSettings(BaseModel, frozen=True, extra="forbid"):
    """Limits by the name of a template and by the owner that templates name, and what a launch does above one."""

    templates: dict[_Name, Limit] = Field(default_factory=dict)
    owners: dict[_Name, Limit] = Field(default_factory=dict)
    when_full: Literal["refuse", "wait"] = "refuse"


@dataclass(frozen=True)
class Cap:
    """One limit of one thing; `origin` is where it was set."""

    kind: Literal["template", "owner"]
    name: str
    what: str
    most: Decimal
    origin: str

    @property
    def whose(self) -> str:
        """Whose runs are counted, in words."""
        return f"{self.kind} {self.name}"

    @property
    def where(self) -> str:
        """What sets it, in words: the key, then file and line."""
        return f"limits.{self.kind}s.{self.name}.{self.what}, {self.origin}"

    def share(self, takes: Resources) -> Decimal | None:
        """How much of it one worker takes; None where that is not known."""
        if self.what == RUNS:
            return Decimal(1)
        amount: Decimal | int | None = getattr(takes, self.what)
        return None if amount is None else Decimal(amount)

    def amount(self, value: Decimal) -> str:
        """So much of it, in words."""
        return _memory(int(value)) if self.what == "memory" else f"{value.normalize():f}"

    @property
    def unit(self) -> str:
        """What is counted, in words."""
        return "runs" if self.what == RUNS else self.what


@dataclass(frozen=True)
class Caps:
    """All limits of a configuration."""

    each: tuple[Cap, ...] = ()
    waits: bool = False
    """True if a launch above a limit waits where it does not say otherwise."""

    def of(self, template: str, owner: str) -> tuple[Cap, ...]:
        """Those that hold for the runs of a template and its owner."""
        return tuple(each for each in self.each if each.name == (template if each.kind == "template" else owner))


def read_caps(settings: LimitSettings, origin_of: Callable[..., str]) -> Caps:
    """The limits of a configuration; `origin_of` tells where the value at a place comes from."""
    return Caps(tuple(_caps(settings, origin_of)), waits=settings.when_full == "wait")


def _caps(settings: LimitSettings, origin_of: Callable[..., str]) -> Iterator[Cap]:
    kinds: tuple[tuple[Literal["template", "owner"], dict[str, Limit]], ...]
    kinds = (("template", settings.templates), ("owner", settings.owners))
    for kind, named in kinds:
        for name, limit in named.items():
            for what in type(limit).model_fields:
                most: Decimal | int | None = getattr(limit, what)
                if most is not None:
                    yield Cap(kind, name, what, Decimal(most), origin_of("limits", f"{kind}s", name, what))


def _memory(value: int) -> str:
    """The amount in the largest unit that leaves no more than two decimals."""
    for unit, size in _UNITS:
        if value >= size and value * 100 % size == 0:
            return f"{value / size:g}{unit}"
    return str(value)
