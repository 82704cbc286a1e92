"""The contract on every target that is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from targets import ROWS, ProcessRow

from launchers.testing.contract import LauncherContract


@pytest.fixture(params=sorted(ROWS))
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProcessRow]:
    chosen, required = request.config.getoption("--target"), request.config.getoption("--require")
    row = ROWS[request.param]
    if chosen and row.name not in chosen:
        pytest.skip("not chosen with --target")
    if row.absent is not None:
        (pytest.fail if row.name in required else pytest.skip)(f"{row.name} is absent: {row.absent}")
    made = row(tmp_path)
    yield made
    made.close()


class TestContract(LauncherContract):
    """Each promise, on each target."""

    @pytest.fixture
    def row(self, target: ProcessRow) -> ProcessRow:
        return target
