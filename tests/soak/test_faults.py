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
from targets import take_engine

CASES = [
    ("cli", "launch", "launcher"), ("cli", "launch", "cli"), ("cli", "launch", "shim"),
    ("cli", "terminate", "launcher"), ("cli", "terminate", "cli"), ("cli", "terminate", "shim"),
    ("cli", "reconcile", "launcher"), ("cli", "reconcile", "cli"),
    ("cli", "plain destroy", "cli"), ("cli", "plain destroy", "provider"),
    ("warm", "launch", "launcher"), ("warm", "launch", "engine"), ("warm", "launch", "shim"),
    ("warm", "terminate", "launcher"), ("warm", "terminate", "engine"), ("warm", "terminate", "shim"),
    ("warm", "reconcile", "launcher"), ("warm", "reconcile", "engine"),
]  # fmt: skip
SHOWN = 10
SHORT = pytest.param(3, id="short")
SOAK = pytest.param(50, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(3600)])


@pytest.fixture
def bench(case: tuple[str, str, str]) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="rl-fault-") as name:
        bench = Bench(Path(name), case[0])
        yield bench
        bench.close()


@pytest.fixture(params=CASES, ids=" ".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    engine, command, victim = request.param
    take_engine(request, engine)
    if victim in {"cli", "engine", "shim"} and shutil.which("strace") is None:
        required = "strace" in request.config.getoption("--require")
        (pytest.fail if required else pytest.skip)("strace is absent: it kills engines and the shim")
    return engine, command, victim


@pytest.mark.parametrize("count", [SHORT, SOAK])
def test_a_kill_at_any_write_is_put_right_by_the_next_command(
    bench: Bench, case: tuple[str, str, str], count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    died = [attempt(bench, Trial(*case[1:], number)) for number in range(count)]

    if count > SHOWN:
        with capsys.disabled():
            print(f"\n{' '.join(case)} killed in {sum(died)} of {count} trials")  # noqa: T201
    assert any(died)
