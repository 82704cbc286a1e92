"""Removals during launches, and a kill at each write of what is shared: no worker misses its files, nothing is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sharing_bench import SharingBench, shared_home
from targets import take_engine

from launchers.retiring import retire

SEED = "2026-11"
SHORT = pytest.param(20, id="short")
SOAK = pytest.param(200, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(1800)])
WRITES = r"^(?!open .* rb?$|os\.listdir)\S+ .*/(shared/|claims/shared-)"
EACH_NINTH = pytest.param(9, id="short")
EACH = pytest.param(1, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(1800)])


@pytest.fixture
def warm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SharingBench]:
    with shared_home(tmp_path, take_engine(request, "warm")) as bench:
        yield bench


@pytest.mark.parametrize("count", [SHORT, SOAK])
def test_removals_during_launches_take_no_files_from_a_worker(warm: SharingBench, count: int) -> None:
    until, template = warm.folder / "until", warm.template()
    with (
        warm.begin("reconcile", str(until)) as reconcile,
        warm.begin("again", template, "a", SEED, str(count)) as one,
        warm.begin("again", template, "b", SEED, str(count)) as two,
    ):
        lost = [process.communicate(timeout=1700) for process in (one, two)]
        until.touch()
        _, done = warm.ended(reconcile)

    assert (one.returncode, two.returncode, lost) == (0, 0, [("", ""), ("", "")]), done
    assert [each for each in done if each[2]] == []
    assert [each[1] for each in done].count("removed") >= count // 10


@pytest.mark.parametrize("step", [EACH_NINTH, EACH])
def test_a_kill_at_any_write_of_what_is_shared_is_put_right(warm: SharingBench, step: int) -> None:
    """Every write of the first launch that concerns what is shared; each trial has files of its own."""
    at, died = 1, True
    while died:
        template = warm.template(files={"f": f"trial {at}"}, shared_folder=True)
        code, _ = warm.run("launch", template, f"r{at}", kill=f"{at}:{WRITES}")
        died = code == -signal.SIGKILL
        code, told = warm.run("launch", template, f"s{at}")
        assert (code, told[0].get("said", "").endswith(f"trial {at}")) == (0, True), (at, told)
        at += step
    assert at > step
    warm.clean()
    retire(warm.launcher().workspace, "etl")
