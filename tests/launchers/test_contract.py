"""The contract on every target, backend and engine that is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Place
from targets import ROWS, ProcessRow, take_engine

from launchers.testing.contract import LauncherContract


@pytest.fixture(params=["file", "s3", "postgres"])
def place(request: pytest.FixtureRequest) -> Place | None:
    """A fresh backend; None for a folder of the row's home."""
    name: str = request.param
    chosen = request.config.getoption("--backend")
    if chosen and name not in chosen:
        pytest.skip("not chosen with --backend")
    return None if name == "file" else request.getfixturevalue(f"{name}_place")


@pytest.fixture(params=["cli", "warm"])
def engine(request: pytest.FixtureRequest) -> str:
    return take_engine(request, request.param)


@pytest.fixture(params=sorted(ROWS))
def target(request: pytest.FixtureRequest, tmp_path: Path, place: Place | None, engine: str) -> Iterator[ProcessRow]:
    chosen, required = request.config.getoption("--target"), request.config.getoption("--require")
    row = ROWS[request.param]
    if chosen and row.name not in chosen:
        pytest.skip("not chosen with --target")
    if row.absent is not None:
        (pytest.fail if row.name in required else pytest.skip)(f"{row.name} is absent: {row.absent}")
    made = row(tmp_path, place, engine)
    yield made
    made.close()


class TestContract(LauncherContract):
    """Each promise, on each target, backend and engine."""

    @pytest.fixture
    def row(self, target: ProcessRow) -> ProcessRow:
        return target
