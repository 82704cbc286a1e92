"""Networks and volumes: those that are there, a run's own, and what runs share; the daemon is asked what is there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from dockerd import Daemon
from targets import DockerRow, terminate_all

from launchers.launcher import RunLauncher
from launchers.retiring import durable_of, retire
from launchers.testing.contract import eventually
from stacks.engine import Change
from stacks.errors import UsageError
from stacks.handle import WorkerHandle, WorkerState
from stacks.records import Phase
from stacks.shared_records import SharedPhase

LIMIT: Final = timedelta(seconds=60)
MORE: Final = f"more-{os.getpid()}"
OWN: Final[dict[str, Any]] = {
    "networks": [{"create": "run", "internal": True}, {"create": "run", "aliases": ["worker"]}],
    "volumes": [{"mount": "/own", "create": "run"}],
}
SHARED: Final[dict[str, Any]] = {
    "networks": [{"create": "shared"}],
    "volumes": [{"mount": "/data", "create": "shared"}, {"mount": "/more", "create": "shared", "name": MORE}],
}
LAUNCH: Final = """
import sys
from concurrent.futures import ThreadPoolExecutor
from launchers import Run, load_launcher
from programs.docker.template import DockerTemplate
launcher = load_launcher(DockerTemplate.model_validate_json(sys.argv[1]))
runs = [Run(id=f"{sys.argv[2]}-{number}", command=("sh", "-c", "echo . >>/data/lines")) for number in range(10)]
with ThreadPoolExecutor(10) as threads:
    handles = [each.handle for each in threads.map(launcher.launch, runs)]
    states = {str(launcher.wait(handle).state) for handle in handles}
print(states)
"""


def made(row: DockerRow) -> list[str]:
    """The networks and volumes that carry the row's backend."""
    backend = row.launcher().workspace.backend.identity()
    label = {"label": [f"run-launcher/backend={backend}"]}
    there = (*row.client.networks.list(filters=label), *row.client.volumes.list(filters=label))
    return sorted(each.name for each in there)


def operations(launcher: RunLauncher[Any], handle: WorkerHandle) -> set[str]:
    """What an `up` of the run would do, with the arguments that it was launched with."""
    record = launcher.record(handle)
    workspace = launcher.workspace
    args = launcher.args_again(record, workspace.backend.open())
    changes: list[Change] = workspace.engine.preview(launcher.deployment(args), LIMIT)
    return {each.operation for each in changes}


@pytest.fixture
def shared_row(docker_row: DockerRow) -> Iterator[DockerRow]:
    """At the end what its templates share is retired, and what somebody else made is removed."""
    yield docker_row
    launcher = docker_row.launcher(grace="0s")
    terminate_all(launcher)
    retire(launcher.workspace, "docker")
    for each in (*docker_row.client.networks.list(names=[MORE]), *docker_row.client.volumes.list()):
        if each.name == MORE:
            each.remove()


# ---- a run's own ----


def test_what_a_run_has_for_its_own_goes_with_it(docker_row: DockerRow) -> None:
    launcher = docker_row.launcher(**OWN, grace="0s")
    handle = launcher.launch(docker_row.run("touch /own/file && sleep 600")).handle
    there = docker_row.container(handle)
    joined, own = set(there.attrs["NetworkSettings"]["Networks"]), made(docker_row)
    labels = [docker_row.client.networks.get(name).attrs["Labels"] for name in sorted(joined)]
    internal = [docker_row.client.networks.get(name).attrs["Internal"] for name in sorted(joined)]
    done = launcher.terminate(handle)

    name = f"run-{handle.run_id}"
    assert joined == {f"{name}.0", f"{name}.1"}
    assert own == [f"{name}.0", f"{name}.0", f"{name}.1"]
    assert internal == [True, False]
    assert {each["run-launcher/run-id"] for each in labels} == {handle.run_id}
    assert (done.left, made(docker_row)) == (0, [])


def test_a_run_with_its_own_is_adopted_whole_and_a_plain_destroy_ends_all_of_it(docker_row: DockerRow) -> None:
    launcher = docker_row.launcher(**OWN, grace="0s")
    run = docker_row.run("sleep 600")
    handle = launcher.launch(run).handle
    workspace, record = launcher.workspace, launcher.record(run.id)
    with workspace.backend.claims.hold(record.stack, "a test", LIMIT) as claim:
        workspace.engine.remove(record.stack, claim)
    workspace.records.write(record.changed(phase=Phase.WANTED, handle=None, launched_at=None))

    adopted = launcher.adopt(run.id).handle
    planned = operations(launcher, adopted)
    with workspace.backend.claims.hold(record.stack, "a test", LIMIT) as claim:
        workspace.engine.destroy(record.stack, claim, launcher.providers(), LIMIT)

    assert adopted == handle
    assert planned == {"same"}
    assert (docker_row.executions(run.id), made(docker_row)) == (0, [])


# ---- what is there already ----


def test_a_network_and_a_volume_that_are_there_are_used_and_stay(docker_row: DockerRow) -> None:
    network = docker_row.client.networks.create("there-net")
    volume = docker_row.client.volumes.create("there-volume")
    try:
        template = {"networks": ["there-net"], "volumes": [{"mount": "/v", "name": "there-volume", "read_only": True}]}
        launcher = docker_row.launcher(**template)
        handle = launcher.launch(docker_row.run("touch /v/file")).handle
        status = launcher.wait(handle, timeout=LIMIT)
        joined = set(docker_row.container(handle).attrs["NetworkSettings"]["Networks"])
        launcher.terminate(handle)

        assert (joined, status.exit_code) == ({"there-net"}, 1)
        assert docker_row.client.networks.get(network.id)
        assert docker_row.client.volumes.get("there-volume")
    finally:
        network.remove()
        volume.remove()


# ---- what runs share ----


def test_many_launches_at_once_share_one_network_and_volume_that_outlive_them(shared_row: DockerRow) -> None:
    launcher = shared_row.launcher(**SHARED, grace="0s")
    words = launcher.template.canonical()
    processes = [
        subprocess.Popen(shared_row.another_process(LAUNCH, words, name), stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    said = [process.communicate(timeout=250)[0] for process in processes]
    there = made(shared_row)
    users = durable_of(launcher.workspace, "docker")
    terminate_all(launcher)
    run = shared_row.run("wc -l </data/lines")
    launcher.wait(launcher.launch(run).handle, timeout=LIMIT)
    counted = shared_row.output(run.id)
    launcher.terminate(run.id)

    assert said == ["{'SUCCEEDED'}\n"] * 2
    assert len(there) == len(set(there)) == 3
    assert MORE in there
    assert {len(each.users) for each in users} == {20}
    assert counted == b"20\n"
    assert made(shared_row) == there
    assert sorted(each.name for each in retire(launcher.workspace, "docker")) == sorted(each.name for each in users)
    assert made(shared_row) == []


def test_what_a_live_run_uses_is_not_retired(shared_row: DockerRow) -> None:
    launcher = shared_row.launcher(**SHARED, grace="0s")
    handle = launcher.launch(shared_row.run("sleep 600")).handle

    with pytest.raises(UsageError, match=handle.run_id):
        retire(launcher.workspace, "docker")
    assert shared_row.alive(handle)
    assert len(made(shared_row)) == 3


def test_what_somebody_else_made_is_used_and_never_removed(shared_row: DockerRow) -> None:
    theirs = shared_row.client.volumes.create(MORE, labels={"of": "somebody"})
    launcher = shared_row.launcher(volumes=[{"mount": "/m", "create": "shared", "name": MORE}])
    handle = launcher.launch(shared_row.run("echo kept >/m/file")).handle
    launcher.wait(handle, timeout=LIMIT)
    launcher.terminate(handle)
    retire(launcher.workspace, "docker")

    theirs.reload()
    assert theirs.attrs["Labels"] == {"of": "somebody"}


def test_another_backend_uses_what_this_one_made_and_never_removes_it(shared_row: DockerRow, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = DockerRow(tmp_path / "other", Daemon(os.environ["DOCKER_HOST"]), "warm")
    template: dict[str, Any] = {"volumes": [{"mount": "/data", "create": "shared", "name": MORE}]}
    ours, others = shared_row.launcher(**template), other.launcher(**template)
    first = ours.launch(shared_row.run("echo ours >/data/file")).handle
    ours.wait(first, timeout=LIMIT)
    ours.terminate(first)
    there = made(shared_row)
    run = other.run("cat /data/file")
    others.wait(others.launch(run).handle, timeout=LIMIT)
    read = other.output(run.id)
    others.terminate(run.id)
    retire(others.workspace, "docker")
    other.close()

    assert read == b"ours\n"
    assert made(shared_row) == there


def test_a_template_that_changes_keeps_what_its_runs_share_with_its_data(shared_row: DockerRow) -> None:
    data = {"mount": "/data", "create": "shared"}
    first = shared_row.launcher(volumes=[data])
    first.wait(first.launch(shared_row.run("echo kept >/data/file")).handle, timeout=LIMIT)
    other = shared_row.launcher(
        volumes=[{"mount": "/a", "create": "shared"}, {**data, "options": {"type": "tmpfs", "device": "tmpfs"}}]
    )
    run = shared_row.run("cat /data/file; ls /a")
    other.wait(other.launch(run).handle, timeout=LIMIT)

    assert shared_row.output(run.id) == b"kept\n"


def test_what_somebody_removed_is_made_again(shared_row: DockerRow) -> None:
    launcher = shared_row.launcher(networks=[{"create": "shared"}])
    launcher.terminate(launcher.launch(shared_row.run("exit 0")).handle)
    shared_row.client.networks.get(made(shared_row)[0]).remove()

    status = launcher.wait(launcher.launch(shared_row.run("exit 0")).handle, timeout=LIMIT)

    assert status.state is WorkerState.SUCCEEDED
    assert len(made(shared_row)) == 1


@pytest.mark.parametrize("forgotten", [True, False], ids=["before the state", "after the state"])
def test_what_a_dead_maker_left_is_put_right_by_the_next_launch(shared_row: DockerRow, *, forgotten: bool) -> None:
    launcher = shared_row.launcher(networks=[{"create": "shared"}], volumes=[{"mount": "/d", "create": "shared"}])
    launcher.terminate(launcher.launch(shared_row.run("exit 0")).handle)
    workspace = launcher.workspace
    for record in list(workspace.shared_records.all(lambda _: None)):
        half = record.changed(phase=SharedPhase.WANTED, made_at=None, outputs={})
        workspace.shared_records.write(half)
        if forgotten:
            with workspace.backend.claims.hold(record.stack, "a test", LIMIT) as claim:
                workspace.engine.remove(record.stack, claim)

    status = launcher.wait(launcher.launch(shared_row.run("touch /d/file")).handle, timeout=LIMIT)

    assert status.state is WorkerState.SUCCEEDED
    assert len(made(shared_row)) == 2


def test_a_preview_of_what_is_not_made_yet_tells_of_the_worker(docker_row: DockerRow) -> None:
    changes = docker_row.launcher(**SHARED).preview(docker_row.run("true"))

    assert "create" in {each.operation for each in changes}
    assert eventually(lambda: made(docker_row) == [])
