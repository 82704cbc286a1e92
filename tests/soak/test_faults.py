"""Kill -9 at every write point: at most one worker ever ran, the next command ends right, and nothing is left.

The driver is tests/fault_driver.py; a failure names its trial.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_driver import Bench, Trial, attempt

CASES = [
    ("launch", "launcher"), ("launch", "cli"), ("launch", "shim"),
    ("terminate", "launcher"), ("terminate", "cli"), ("terminate", "shim"),
    ("reconcile", "launcher"), ("reconcile", "cli"),
    ("plain destroy", "cli"), ("plain destroy", "provider"),
]  # fmt: skip
SHOWN = 10
SHORT = pytest.param(3, id="short")
SOAK = pytest.param(50, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(3600)])


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="rl-fault-") as name:
        bench = Bench(Path(name))
        yield bench
        bench.close()


@pytest.fixture(params=CASES, ids=" ".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    command, victim = request.param
    if victim in {"cli", "shim"} and shutil.which("strace") is None:
        required = "strace" in request.config.getoption("--require")
        (pytest.fail if required else pytest.skip)("strace is absent: it kills the command line and the shim")
    return command, victim


@pytest.mark.parametrize("count", [SHORT, SOAK])
def test_a_kill_at_any_write_is_put_right_by_the_next_command(
    bench: Bench, case: tuple[str, str], count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    died = [attempt(bench, Trial(*case, number)) for number in range(count)]

    if count > SHOWN:
        with capsys.disabled():
            print(f"\n{' '.join(case)} killed in {sum(died)} of {count} trials")  # noqa: T201
    assert any(died)
