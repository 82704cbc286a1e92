"""A watch that begins where another one ended, on a daemon whose own events tell of what happened meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dockerd import Daemon, Dockerd
from targets import DockerRow

from launchers.values import Event
from stacks.errors import TargetAwayError
from stacks.handle import WorkerState


@pytest.fixture
def row(tmp_path: Path, docker_host: Daemon) -> Iterator[DockerRow]:
    row = DockerRow(tmp_path, docker_host, "warm")
    yield row
    row.close()


def first(events: Iterator[Event], run_id: str, state: WorkerState) -> Event:
    return next(each for each in events if (each.found.handle.run_id, each.found.status.state) == (run_id, state))


def test_what_happened_between_two_watches_is_told_by_the_second(row: DockerRow) -> None:
    launcher, gone, stays = row.launcher(), row.run("sleep 600"), row.run("sleep 600")
    for run in (gone, stays):
        launcher.launch(run)
    cursor = first(launcher.watch(), stays.id, WorkerState.RUNNING).cursor
    launcher.terminate(gone.id)

    later = launcher.watch(cursor)

    assert first(later, gone.id, WorkerState.NOT_FOUND).found.labels["run-launcher/run-id"] == gone.id
    assert first(launcher.watch(cursor), stays.id, WorkerState.RUNNING)
    launcher.terminate(stays.id)
    assert row.leftovers() == []


def test_a_watch_of_a_daemon_that_goes_away_raises_and_the_next_one_tells_all(
    tmp_path: Path, docker_host: Daemon, own_dockerd: Dockerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert docker_host.url != own_dockerd.url
    monkeypatch.setenv("DOCKER_HOST", own_dockerd.url)
    row = DockerRow(tmp_path, own_dockerd, "warm")
    launcher, run = row.launcher(), row.run("sleep 600")
    launcher.launch(run)
    events = launcher.watch()
    first(events, run.id, WorkerState.RUNNING)
    own_dockerd.kill()

    with pytest.raises(TargetAwayError, match=r"does not answer|no Docker daemon"):
        first(events, run.id, WorkerState.NOT_FOUND)
    own_dockerd.start()
    assert first(launcher.watch(), run.id, WorkerState.RUNNING)
    launcher.terminate(run.id)
    assert row.leftovers() == []
    row.close()
