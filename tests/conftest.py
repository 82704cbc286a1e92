"""Options that narrow the suite, and what every test shares."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite("launchers.testing.contract")
sys.path.insert(0, str(Path(__file__).parent))  # tests are no package: targets.py is found by its name


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", action="append", default=[], help="only this target's rows (may be repeated)")
    parser.addoption("--engine", action="append", default=[], choices=["cli"], help="only this engine")
    parser.addoption("--require", action="append", default=[], help="fail, not skip, where this target is absent")


@pytest.fixture(autouse=True)
def a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes what the user of this machine keeps; the engine in the tools folder is shared."""
    for name in [name for name in os.environ if name.startswith("RUN_LAUNCHER_") and name != "RUN_LAUNCHER_TOOLS"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUN_LAUNCHER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
