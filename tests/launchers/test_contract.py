"""The contract on every target, backend and engine that is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dockerd import Daemon
from servers import Place
from targets import TARGETS, DockerRow, ProcessRow, Row, take_engine

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


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path: Path, place: Place | None, engine: str) -> Iterator[Row]:
    chosen = request.config.getoption("--target")
    if chosen and request.param not in chosen:
        pytest.skip("not chosen with --target")
    if request.param == "process":
        made: Row = ProcessRow(tmp_path, place, engine)
    else:
        made = request.getfixturevalue("docker_row")
    yield made
    made.close()


@pytest.fixture
def docker_row(tmp_path: Path, engine: str, docker_host: Daemon) -> DockerRow:
    return DockerRow(tmp_path, docker_host, engine)


class TestContract(LauncherContract):
    """Each promise, on each target, backend and engine."""

    @pytest.fixture
    def row(self, target: Row) -> Row:
        return target
