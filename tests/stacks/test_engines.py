"""Which engine performs, by what is there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from stacks import engines
from stacks.backend import Backend
from stacks.engines import Kind, choose_engine, make_engine
from stacks.errors import SetupError

TOOLS: Final = Path("/tools")
WARM, CLI, NAMED = Path("/tools/run-launcher-engine"), Path("/tools/pulumi"), Path("/named/pulumi")
ALL: Final = (WARM, CLI, True)


@pytest.mark.parametrize(
    ("kind", "there", "named", "chosen", "why"),
    [
        ("auto", ALL, None, ("warm", WARM), "it is there"),
        ("auto", (None, CLI, True), None, ("cli", CLI), "`run-launcher setup` builds it where there is Go"),
        ("auto", (None, None, True), None, ("warm", None), "Go can build it"),
        ("auto", (None, None, False), None, ("cli", None), "nor Go to build"),
        ("auto", ALL, NAMED, ("cli", NAMED), "as configured"),
        ("cli", ALL, None, ("cli", CLI), "as configured"),
        ("cli", (WARM, None, True), None, ("cli", None), "as configured"),
        ("warm", ALL, NAMED, ("warm", WARM), "as configured"),
        ("warm", (None, CLI, False), None, ("warm", None), "as configured"),
    ],
)
def test_the_engine_is_the_configured_one_or_the_best_that_is_there_or_can_be_had(  # noqa: PLR0913, PLR0917
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    there: tuple[Path | None, Path | None, bool],
    named: Path | None,
    chosen: tuple[str, Path | None],
    why: str,
) -> None:
    warm, cli, go = there

    def find_cli(_: Path, configured: Path | None) -> SimpleNamespace | None:
        path = configured or cli
        return None if path is None else SimpleNamespace(path=path)

    monkeypatch.setattr(engines, "find_warm", lambda _: warm)
    monkeypatch.setattr(engines, "find_cli", find_cli)
    monkeypatch.setattr(engines, "can_build", lambda: go)
    choice = choose_engine(kind, TOOLS, named)

    assert (choice.kind, choice.program) == chosen
    assert why in choice.why


def test_where_the_warm_engine_cannot_be_built_the_command_line_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> Path:
        message = "Go is too old"
        raise SetupError(message)

    monkeypatch.setattr(engines, "find_warm", lambda _: None)
    monkeypatch.setattr(engines, "find_cli", lambda *_, **__: None)
    monkeypatch.setattr(engines, "can_build", lambda: True)
    monkeypatch.setattr(engines, "ensure_warm", fail)
    told: list[str] = []
    backend = Backend.at(tmp_path)

    assert make_engine(backend, "auto", TOOLS, told.append).name == "cli"
    assert told == ["Launches take the command line: Go is too old"]
    assert make_engine(backend, "warm", TOOLS, told.append).name == "warm"  # which says at its first use what is wrong
