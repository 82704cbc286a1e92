"""A template model with every kind of field that a bound can be on, for tests of what is the same on all targets."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from launchers.registry import Target
from programs.args import LauncherTemplate, Size


class Room(BaseModel, frozen=True, extra="forbid"):
    cpu: Annotated[Decimal, Field(gt=0)] = Decimal(1)
    memory: Size | None = None
    gpu: Annotated[int, Field(ge=0)] = 0


class Reference(BaseModel, frozen=True, extra="forbid"):
    env: str


class RichTemplate(LauncherTemplate, frozen=True, extra="forbid"):
    target: Literal["rich"] = "rich"
    image: str
    namespace: str = "default"
    room: Room = Room()
    env: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    secrets: dict[str, Reference] = Field(default_factory=dict)
    privileged: bool = False


TARGET: Final = Target("rich_target:Launcher", "rich_target:RichTemplate")


class Launcher:
    """Nothing is launched here."""
