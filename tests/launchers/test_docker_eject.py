"""A run on disk: a plain `pulumi` in the ejected folder neither starts a container again nor replaces a live one."""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from disk import TOOLS, Disk
from targets import DockerRow

from launchers import WorkerHandle
from stacks.records import Phase

LIMIT: Final = timedelta(seconds=60)
REFUSED: Final = "this run was launched before, and a run is executed once"


@pytest.fixture
def disk(empty_home: Path, docker_row: DockerRow, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:  # noqa: ARG001 - nothing of the user's
    """A user whose environment leads to no daemon at all; what is left at the end, the row says."""
    monkeypatch.setenv("RUN_LAUNCHER_TOOLS", str(TOOLS))
    launcher = docker_row.launcher(
        grace="1s", networks=[{"create": "run"}], volumes=[
            {"mount": "/own", "create": "run"}, {"mount": str(docker_row.shared), "host": str(docker_row.shared)},
        ],
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="rl-") as root:
        disk = Disk(Path(root), docker_row, launcher)
        disk.environment |= {"DOCKER_HOST": "unix:///no/such.sock", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": root}
        disk.environment["HOME"] = root  # where pip, which Pulumi asks for its packages, keeps what it likes
        yield disk


def container(disk: Disk, handle: WorkerHandle) -> str:
    """The id of the container that has the run's name, if it runs."""
    assert isinstance(disk.row, DockerRow)
    found = disk.row.client.containers.list(filters={"name": f"^run-{handle.run_id}$"})
    return str(found[0].id) if found else ""


def test_an_unchanged_live_run_stays_as_it_is(disk: Disk) -> None:
    handle = disk.ejected()
    said = [disk.pulumi(words) for words in ("preview", "up --yes", "refresh --yes", "up --yes --refresh")]

    assert ["4 unchanged" in text for text in said] == [True] * 4
    assert json.loads(disk.pulumi("stack output handle --json")) == handle.model_dump(mode="json")
    assert container(disk, handle) == handle.coordinates["container"]
    assert disk.executions() == 1


def test_an_unchanged_ended_run_stays_as_it_is(disk: Disk) -> None:
    handle = disk.launch("exit 3")
    disk.launcher.wait(handle, timeout=LIMIT)
    disk.launcher.eject(handle.run_id, disk.folder)
    said = [disk.pulumi(words) for words in ("preview", "up --yes", "up --yes --refresh")]

    assert ["4 unchanged" in text for text in said] == [True] * 3
    assert disk.launcher.status(handle).exit_code == 3
    assert disk.executions() == 1


def test_an_adopted_run_is_operated_as_any_other(disk: Disk) -> None:
    handle = disk.launch()
    workspace, record = disk.launcher.workspace, disk.launcher.record(handle)
    with workspace.backend.claims.hold(record.stack, "a test", LIMIT) as claim:
        workspace.engine.remove(record.stack, claim)
    workspace.records.write(record.changed(phase=Phase.WANTED, handle=None, launched_at=None))
    disk.launcher.adopt(handle.run_id)
    disk.launcher.eject(handle, disk.folder)
    said = [disk.pulumi(words) for words in ("preview", "up --yes --refresh")]
    ended = disk.pulumi("destroy --yes --skip-preview")

    assert ["4 unchanged" in text for text in said] == [True] * 2
    assert "worker deleted" in ended
    assert (container(disk, handle), disk.executions()) == ("", 1)
    assert list(disk.row._living()) == []


def test_a_replacement_is_refused_and_the_worker_lives(disk: Disk) -> None:
    handle = disk.ejected()
    urn = shlex.quote(disk.urn(handle))
    ways = [f"up --yes --skip-preview --replace {urn}", f"up --yes --target-replace {urn}"]
    said = [disk.pulumi(way, code=1) for way in ways]
    disk.pulumi(f"state taint {urn} --yes")
    said.append(disk.pulumi("up --yes --skip-preview", code=1))
    disk.pulumi(f"state untaint {urn} --yes")

    assert [REFUSED in text for text in said] == [True] * 3
    assert container(disk, handle) == handle.coordinates["container"]
    assert disk.executions() == 1


def test_a_container_that_was_removed_by_hand_is_not_started_again(disk: Disk) -> None:
    handle = disk.ejected()
    disk.row.container(handle).remove(force=True)  # type: ignore[union-attr]
    unchanged = disk.pulumi("up --yes")
    refused = [disk.pulumi(words, code=1) for words in ("up --yes --refresh", "up --yes --skip-preview")]

    assert "4 unchanged" in unchanged
    assert [REFUSED in text for text in refused] == [True] * 2
    assert (container(disk, handle), disk.executions()) == ("", 1)


def test_a_live_container_that_the_state_forgot_is_left_alone(disk: Disk) -> None:
    handle = disk.ejected()
    disk.pulumi(f"state delete {shlex.quote(disk.urn(handle))} --yes")
    disk.pulumi("up --yes --skip-preview", code=1)
    living = container(disk, handle)
    ended = disk.launcher.terminate(handle)

    assert living == handle.coordinates["container"]
    assert (ended.left, disk.executions()) == (0, 1)


def test_after_a_plain_destroy_nothing_is_left_and_nothing_starts(disk: Disk) -> None:
    handle = disk.ejected()
    ended = disk.pulumi("destroy --yes --skip-preview")
    left = list(disk.row._living())
    refused = disk.pulumi("up --yes --skip-preview", code=1)
    done = disk.launcher.terminate(handle)

    assert "worker deleted" in ended
    assert left == []
    assert REFUSED in refused
    assert (done.left, disk.executions()) == (0, 1)
    assert disk.row.leftovers() == []


def test_a_run_on_a_named_connection_is_operated_where_it_lives(disk: Disk) -> None:
    handle = disk.ejected()
    said = subprocess.run(
        ["sh", "-c", ". ./env >/dev/null; env"],
        cwd=disk.folder,
        env=disk.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert f"DOCKER_HOST={disk.launcher.daemon.host}\n" in said  # type: ignore[attr-defined]
    assert "DOCKER_TLS_VERIFY=\n" in said
    assert container(disk, handle)
