"""Daemons that are away, elsewhere, several, or reached by TLS."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from dockerd import Daemon, Dockerd, running
from images import BUSYBOX
from plugins.install import lead_to
from targets import DockerRow, take_engine, terminate_all

from launchers import WorkerHandle, launcher_for, load_launcher
from launchers.factory import make_workspace
from launchers.launcher import HasLogs, RunLauncher
from launchers.reconcile import Reconciler
from launchers.settings import ConnectionSettings
from programs.docker.reach import daemon_at
from programs.docker.template import DockerConnection, DockerTemplate
from stacks.errors import TargetAwayError, WrongPlaceError
from stacks.handle import WorkerState

LIMIT: Final = timedelta(seconds=60)
# The SDK leaves a socket to the garbage collector whose connect was refused.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def own_row(
    request: pytest.FixtureRequest, tmp_path: Path, own_dockerd: Dockerd, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DockerRow]:
    """A row on a daemon that the test may kill, which leaves nothing."""
    lead_to(own_dockerd, tmp_path / "plugins", monkeypatch)
    row = DockerRow(tmp_path, own_dockerd, take_engine(request, "warm"))
    yield row
    monkeypatch.setenv("DOCKER_HOST", own_dockerd.url)
    terminate_all(row.launcher(grace="0s"))
    left = [*row.leftovers(), *row.stacks()]
    row.close()
    assert left == []


def reconcile(row: DockerRow) -> list[str]:
    told = list(Reconciler(make_workspace(row.config())).once())
    assert [each.error for each in told if each.error] == []
    return [f"{each.subject}: {each.what}" for each in told]


# ---- away ----


def test_while_the_daemon_is_away_nothing_is_lost(own_row: DockerRow, own_dockerd: Dockerd) -> None:
    launcher = own_row.launcher(grace="0s")
    run, ended = own_row.run("echo said; sleep 600"), own_row.run("echo kept")
    handle = launcher.launch(run).handle
    launcher.wait(launcher.launch(ended).handle, timeout=LIMIT)
    launcher.terminate(ended.id)
    own_dockerd.kill()

    statuses = launcher.statuses([handle, ended.id])
    again, kept = launcher.launch(run), own_row.output(ended.id)
    with pytest.raises(TargetAwayError, match=r"does not answer|there is no Docker daemon") as asked:
        launcher.terminate(handle)
    with pytest.raises(TargetAwayError):
        launcher.launch(own_row.run("true", run_id="late"))
    reconciled = reconcile(own_row)
    own_dockerd.start()

    assert [each.state for each in statuses] == [WorkerState.UNKNOWN, WorkerState.SUCCEEDED]
    assert own_dockerd.url in statuses[0].message
    assert (again.created, again.handle, again.status.state) == (False, handle, WorkerState.UNKNOWN)
    assert kept == b"kept\n"
    assert f"the wish to end run {run.id} is recorded, and `run-launcher reconcile`" in str(asked.value)
    assert reconciled == []
    assert launcher.workspace.records.read("late") is None
    assert own_row.alive(handle)
    assert reconcile(own_row) == [f"{run.id}: terminated"]
    assert not own_row.alive(handle)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_output_that_is_followed_tells_of_a_daemon_that_goes_away(
    own_row: DockerRow, own_dockerd: Dockerd, end: str
) -> None:
    launcher = own_row.launcher(grace="0s")
    run = own_row.run("echo said; sleep 600")
    launcher.launch(run)
    followed = launcher.logs(launcher.record(run.id), follow=True)  # type: ignore[attr-defined]
    first = next(followed)
    getattr(own_dockerd, end)()
    with pytest.raises(TargetAwayError):
        list(followed)
    own_dockerd.start()

    assert first == b"said\n"


# ---- elsewhere ----


def test_from_another_daemon_a_worker_is_unknown_and_its_end_is_wished_for(
    own_row: DockerRow, own_dockerd: Dockerd, dockerd: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = own_row.launcher(grace="0s")
    run = own_row.run("sleep 600")
    handle = launcher.launch(run).handle
    monkeypatch.setenv("DOCKER_HOST", dockerd.url)
    elsewhere = own_row.launcher()

    status, named = elsewhere.status(handle), launcher_for(handle, config=own_row.config()).status(handle)
    with pytest.raises(WrongPlaceError, match="the wish to end it is recorded"):
        elsewhere.terminate(handle)
    there = reconcile(own_row), own_row.alive(handle)
    monkeypatch.setenv("DOCKER_HOST", own_dockerd.url)

    assert status == named
    assert (status.state, handle.place in status.message) == (WorkerState.UNKNOWN, True)
    assert there == ([], True)
    assert reconcile(own_row) == [f"{run.id}: terminated"]
    assert not own_row.alive(handle)


# ---- several, and TLS ----


def sh(script: str, *words: str, cwd: Path) -> None:
    subprocess.run(["sh", "-ec", script, "sh", *words], cwd=cwd, check=True, capture_output=True)


KEYS: Final = """
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca-key.pem -out ca.pem
for name in server cert; do
    openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout "$name-key.pem" -out "$name.csr"
    printf 'subjectAltName = IP:127.0.0.1\\nextendedKeyUsage = serverAuth, clientAuth\\n' >ext
    openssl x509 -req -days 2 -in "$name.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -extfile ext -out "$name.pem"
done
mv cert-key.pem key.pem
"""


@pytest.fixture
def port() -> int:
    """Of loopback, where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        number: int = unused.getsockname()[1]
        return number


def secured(keys: Path, port: int) -> list[str]:
    """The options of a daemon that also listens on a port, to those alone who have a key."""
    files = {"tlscacert": "ca.pem", "tlscert": "server.pem", "tlskey": "server-key.pem"}
    return [
        f"--host=tcp://127.0.0.1:{port}",
        "--tlsverify",
        *(f"--{name}={keys / file}" for name, file in files.items()),
    ]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    sh(KEYS, cwd=folder)
    return folder


def test_a_connection_by_tls_serves_a_whole_life_beside_another_one(
    docker_row: DockerRow, keys: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = {
        "near": ConnectionSettings.model_validate({"target": "docker", "host": os.environ["DOCKER_HOST"]}),
        "far": ConnectionSettings.model_validate(
            {"target": "docker", "host": f"tcp://127.0.0.1:{port}", "cert_path": str(keys)}
        ),
    }
    config = docker_row.config().model_copy(update={"connections": connections})
    templates = {name: DockerTemplate(image=BUSYBOX, connection=name, grace=timedelta(0)) for name in connections}
    launchers = {name: load_launcher(each, config=config) for name, each in templates.items()}
    with running(*secured(keys, port)) as far, closing(far.client()) as client, monkeypatch.context() as patched:
        patched.setenv("DOCKER_HOST", "unix:///no/such.sock")
        handles = {
            name: each.launch(docker_row.run(f"echo {name}; sleep 600")).handle for name, each in launchers.items()
        }
        seen = {name: launcher_for(handle, config=config).status(handle).state for name, handle in handles.items()}
        there = [each.name for each in client.containers.list()]
        said = {name: first_words(each, handles[name]) for name, each in launchers.items()}
        done = [each.terminate(handles[name]).left for name, each in launchers.items()]

    assert said == {"near": b"near\n", "far": b"far\n"}
    assert seen == dict.fromkeys(("near", "far"), WorkerState.RUNNING)
    assert there == [f"run-{handles['far'].run_id}"]
    assert handles["near"].place != handles["far"].place
    assert done == [0, 0]


def first_words(launcher: RunLauncher[Any], handle: WorkerHandle) -> bytes:
    assert isinstance(launcher, HasLogs)
    return next(iter(launcher.logs(launcher.record(handle), follow=True)))


def test_a_daemon_that_does_not_know_our_keys_is_told_with_its_reason(keys: Path, tmp_path: Path, port: int) -> None:
    sh(KEYS, cwd=tmp_path)
    connection = DockerConnection(host=f"tcp://127.0.0.1:{port}", cert_path=tmp_path)

    with running(*secured(keys, port)), pytest.raises(TargetAwayError, match=r"does not answer: .*certificate"):
        daemon_at(connection, {}).identity()
