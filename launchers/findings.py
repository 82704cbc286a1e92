"""What an examination finds: lines of a report, each with how good it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from stacks.errors import RunLauncherError


class Level(StrEnum):
    """How good a finding is; `note` is worth knowing, but in nobody's way."""

    OK = "ok"
    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    level: Level = Level.OK


def asked(name: str, ask_for: Callable[[], str]) -> Finding:
    """What is asked for, or, as something broken, why it cannot be had."""
    try:
        return Finding(name, ask_for())
    except (RunLauncherError, OSError) as error:
        return Finding(name, str(error), Level.BROKEN)
