"""What tests of the settings stand on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CommandLine, user_in
from dockerd import Daemon
from rich_target import TARGET
from targets import DockerRow, take_engine, terminate_all

from launchers import registry


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own, no settings in the environment, and an empty folder to work in."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("RUN_LAUNCHER_", "XDG_", "PULUMI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


@pytest.fixture
def rich(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The target `rich`, and a folder to have templates in."""
    monkeypatch.setattr(registry, "TARGETS", {**registry.TARGETS, "rich": TARGET})
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(empty_home: Path) -> Iterator[CommandLine]:  # noqa: ARG001 - nothing of this machine's user is read
    """A user of the command line, with a home that is there for this test only."""
    with tempfile.TemporaryDirectory(prefix="rl-") as root, user_in(Path(root)) as user:
        yield user


@pytest.fixture
def docker_row(request: pytest.FixtureRequest, tmp_path: Path, docker_host: Daemon) -> Iterator[DockerRow]:
    """Runs on the session's Docker Engine by the warm engine, of which nothing is left at the end."""
    row = DockerRow(tmp_path, docker_host, take_engine(request, "warm"))
    yield row
    terminate_all(row.launcher(grace="0s"))
    left = [*row.leftovers(), *row.stacks()]
    row.close()
    assert left == []
