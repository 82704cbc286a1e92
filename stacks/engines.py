"""Which engine performs: the one that is configured, else the best that is here or can be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stacks.errors import SetupError
from stacks.setup import ensure_cli, find_cli
from stacks.warm_setup import can_build, ensure_warm, find_warm

if TYPE_CHECKING:
    from stacks.backend import Backend
    from stacks.engine import Engine

Kind = Literal["auto", "warm", "cli"]


@dataclass(frozen=True)
class Choice:
    """The engine that is used, why, and where its program is; None where the first launch brings it."""

    kind: Literal["warm", "cli"]
    why: str
    program: Path | None


def choose_engine(kind: Kind, tools: Path, cli: Path | None = None) -> Choice:
    """The engine for what is configured: its kind, and the path of a `pulumi`. Brings and changes nothing.

    By itself it takes the warm engine where that is there, the command line where that alone is, and of what can be
    brought the warm engine where there is Go. A path that is named is a wish for the command line.
    """
    warm = find_warm(tools)
    if kind == "warm":
        return Choice("warm", "as configured", warm)
    found = find_cli(tools, configured=cli)
    command = found.path if found else None
    if kind == "cli" or cli is not None:
        return Choice("cli", "as configured", command)
    if warm is not None:
        return Choice("warm", "it is there", warm)
    if command is not None:
        return Choice("cli", "the warm engine is not there: `run-launcher setup` builds it where there is Go", command)
    if can_build():
        return Choice("warm", "neither is there, and Go can build it", None)
    return Choice("cli", "neither is there, nor Go to build the warm engine", None)


def make_engine(
    backend: Backend, kind: Kind, tools: Path, progress: Callable[[str], None], cli: Path | None = None
) -> Engine:
    """The engine of a backend; loads Pulumi, and brings the engine's program at the first operation.

    Where nothing is there and nothing is configured it is built now, to take the command line if that fails.
    """
    choice = choose_engine(kind, tools, cli)
    only_wished = kind == "auto" and choice.program is None
    if choice.kind == "warm" and not (only_wished and bring_warm(tools, progress) is None):
        from stacks.warm import WarmEngine  # noqa: PLC0415 - the other engine does without

        return WarmEngine(backend, lambda: ensure_warm(tools, progress))
    from stacks.cli import CliEngine  # noqa: PLC0415

    return CliEngine(backend, lambda: ensure_cli(tools, progress, configured=cli))


def bring_warm(tools: Path, progress: Callable[[str], None]) -> Path | None:
    """The warm engine, built where there is Go; where that fails it is told, and the command line has to do."""
    try:
        return ensure_warm(tools, progress) if can_build() else find_warm(tools)
    except SetupError as error:
        progress(f"Launches take the command line: {error}")
        return None
