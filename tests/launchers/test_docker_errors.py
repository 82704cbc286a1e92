"""What a Docker daemon refuses: one clear error with its reason, and nothing left but the record."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Final

import pytest
from dockerd import Daemon
from targets import DockerRow

from launchers import Run, load_launcher
from programs.docker.template import DockerTemplate
from stacks.errors import ConfigurationError, LaunchFailedError, RunLauncherError, SetupError, TargetAwayError
from stacks.handle import WorkerState

REFUSED: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "no image": ({"image": "busybox:absent", "pull": "never"}, "busybox:absent is not on the Docker daemon"),
    "registry away": ({"image": "127.0.0.1:1/none:1"}, "cannot be pulled: .*connection refused"),
    "bad mount": ({"volumes": [{"mount": "/m", "host": "/no/such/folder:x"}]}, "refused it: invalid"),
    "mount of a bad kind": ({"volumes": [{"mount": "/etc/passwd", "host": "/proc"}]}, "refused it: .*not a directory"),
    "missing network": ({"networks": ["absent-net"]}, "refused it: .*network absent-net not found"),
    "a second host network": ({"networks": [{"create": "run", "driver": "host"}]}, "refused it: only one instance"),
    "bad option of a volume": (
        {"volumes": [{"mount": "/m", "create": "run", "options": {"absent": "1"}}]},
        "refused it: .*invalid option.*absent",
    ),
    "a second host network, shared": (
        {"networks": [{"create": "shared", "driver": "host"}]},
        "what runs of template docker share could not be made: the Docker daemon refused it: only one instance",
    ),
    "bad option of a volume, after a network": (
        {"networks": [{"create": "run"}], "volumes": [{"mount": "/m", "create": "run", "options": {"absent": "1"}}]},
        "refused it: .*invalid option.*absent",
    ),
    "network mode of nobody": ({"network_mode": "container:absent"}, "refused it: .*[Nn]o such container: absent"),
    "unknown runtime": ({"runtime": "absent"}, "refused it: .*[Uu]nknown runtime.* absent"),
    "unknown log option": ({"log": {"driver": "json-file", "options": {"absent": "1"}}}, "refused it: .*absent"),
    "unknown log driver": ({"log": {"driver": "absent"}}, 'refused it: .*plugin "absent" not found'),
    "unknown capability": ({"cap_add": ["ABSENT"]}, "refused it: .*ABSENT"),
    "no such user": ({"user": "nobody-here"}, "refused it: .*unable to find user nobody-here"),
    "no such device": ({"devices": [{"host": "/dev/absent"}]}, "refused it: .*/dev/absent"),
    "no GPU": ({"resources": {"gpu": 1}}, 'refused it: .*could not select device driver "nvidia"'),
    "bad tmpfs": ({"tmpfs": {"/t": "size=absent"}}, "refused it: .*absent"),
}


def is_clear(error: RunLauncherError) -> bool:
    """One line without the frames of engine, plugin and client."""
    text = str(error)
    return not any(each in text for each in ("\n", "1 error occurred", "daemon: ", "rpc error", "Traceback", "urn:"))


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_daemon_refuses_is_told_with_its_reason(docker_row: DockerRow, case: str) -> None:
    template, reason = REFUSED[case]
    run = docker_row.run("true")
    launcher = docker_row.launcher(**template)

    with pytest.raises(LaunchFailedError, match=reason) as caught:
        launcher.launch(run)

    status = launcher.status(run.id)
    assert is_clear(caught.value), caught.value
    assert caught.value.exit_code == 4
    assert (status.state, status.reason) == (WorkerState.FAILED, "launch failed")
    assert docker_row.executions(run.id) == 0
    assert [*docker_row.leftovers(), *docker_row.stacks()] == []


def test_a_host_port_that_is_taken_is_told(docker_row: DockerRow) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launcher = docker_row.launcher(ports=[{"container": 80, "host": port, "ip": "127.0.0.1"}])

        with pytest.raises(LaunchFailedError, match=f"refused it: .*{port}.*address already in use") as caught:
            launcher.launch(docker_row.run("true"))

    assert is_clear(caught.value), caught.value
    assert [*docker_row.leftovers(), *docker_row.stacks()] == []


def test_a_name_that_a_foreign_container_has_is_told_and_that_one_left_alone(
    docker_row: DockerRow,
) -> None:
    run = docker_row.run("true")
    foreign = docker_row.client.containers.run("busybox:local", ["sleep", "600"], name=f"run-{run.id}", detach=True)
    launcher = docker_row.launcher()
    try:
        with pytest.raises(LaunchFailedError) as caught:
            launcher.launch(run)
        launcher.terminate(run.id)
        seen, logs = launcher.status(run.id), docker_row.output(run.id)
        foreign.reload()

        assert f"the name run-{run.id} is taken by the container {foreign.id[:12]} that run-launcher" in str(
            caught.value
        )
        assert f"docker rm run-{run.id}" in str(caught.value)
        assert is_clear(caught.value)
        assert (foreign.status, logs) == ("running", b"")
        assert seen.state is WorkerState.FAILED
    finally:
        foreign.remove(force=True)


def test_a_name_that_another_backend_has_is_told_with_that_backend(docker_row: DockerRow, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = DockerRow(tmp_path / "other", Daemon(os.environ["DOCKER_HOST"]), "warm")
    run = docker_row.run("echo theirs; sleep 600")
    theirs = other.launcher(grace="0s").launch(run).handle
    launcher = docker_row.launcher()
    with pytest.raises(LaunchFailedError) as caught:
        launcher.launch(run)
    shown, told = docker_row.output(run.id), launcher.why(run.id).facts
    launcher.terminate(run.id)

    assert (
        f"is taken by the container {str(theirs.coordinates['container'])[:12]} of the backend {theirs.backend}"
        in str(caught.value)
    )
    assert (shown, told) == (b"", {})
    assert other.alive(theirs)
    other.launcher().terminate(theirs)
    assert [*other.leftovers(), *other.stacks()] == []
    other.close()


# ---- the daemon is away, or no daemon ----


@pytest.mark.parametrize(
    ("host", "kind", "reason"),
    [
        ("unix:///no/such.sock", TargetAwayError, "there is no Docker daemon at unix:///no/such.sock"),
        ("tcp://127.0.0.1:1", TargetAwayError, "the Docker daemon at tcp://127.0.0.1:1 does not answer: .*refused"),
        ("garbage", ConfigurationError, "the Docker host 'garbage' cannot be read: .*port is required"),
        ("ftp://x:1", ConfigurationError, "the Docker host 'ftp://x:1' cannot be read"),
        ("tcp://127.0.0.1:x", ConfigurationError, "the Docker host 'tcp://127.0.0.1:x' cannot be read"),
    ],
)
def test_a_launch_without_a_daemon_is_refused_before_any_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, kind: type[RunLauncherError], reason: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    launcher = load_launcher(DockerTemplate(image="busybox:local"))

    with pytest.raises(kind, match=reason) as caught:
        launcher.launch(Run(id="r", command=("true",)))

    assert is_clear(caught.value)
    assert caught.value.exit_code == (2 if kind is ConfigurationError else 4)
    assert not (tmp_path / "home").exists()


def test_a_provider_that_is_not_installed_is_told_with_what_brings_it(
    docker_row: DockerRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "pulumi"))
    run = docker_row.run("true")

    with pytest.raises(SetupError, match=r"`pulumi plugin install resource docker 5\.[0-9.]+` brings it") as caught:
        docker_row.launcher().launch(run)

    assert is_clear(caught.value)
    assert docker_row.launcher().status(run.id).state is WorkerState.NOT_FOUND
    assert not docker_row.home.exists()
