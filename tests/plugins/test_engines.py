"""The stand-in under the engines that the launcher has: the life of a container, from its program to its end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pulumi
import pulumi_docker
import pytest
from images import BUSYBOX
from plugins.install import STAND_INS, lead_to
from targets import take_engine

from stacks.backend import Backend
from stacks.cli import CliEngine
from stacks.engine import Adoption, Deployment, Engine, stack_name
from stacks.errors import EngineError
from stacks.setup import ensure_cli, tools_folder
from stacks.warm import WarmEngine
from stacks.warm_setup import ensure_warm

if TYPE_CHECKING:
    import docker
    from dockerd import Daemon

LIMIT = timedelta(seconds=60)
STACK = stack_name("r", 0)
PROVIDERS = (STAND_INS["docker"],)
CONTAINER = "docker:index/container:Container"


@dataclass
class Bench:
    """An engine whose programs find a Docker plugin, and the daemon that it works on."""

    engine: Engine
    backend: Backend
    daemon: docker.DockerClient
    name: str

    def deployment(self, **inputs: Any) -> Deployment:  # noqa: ANN401 - of the container
        """An input may be a function, which is called where the program runs: secrets can be made only there."""
        given = {"image": BUSYBOX, "command": ["sleep", "600"], "must_run": False, "name": self.name, **inputs}

        def program() -> None:
            values = {name: value() if callable(value) else value for name, value in given.items()}
            pulumi_docker.Container("worker", **values)

        return Deployment(STACK, program, providers=PROVIDERS)

    def up(self, deployment: Deployment) -> None:
        with self.backend.claims.hold(STACK, "test", LIMIT) as claim:
            self.engine.up(deployment, claim, LIMIT)

    def destroy(self) -> None:
        with self.backend.claims.hold(STACK, "test", LIMIT) as claim:
            self.engine.destroy(STACK, claim, PROVIDERS, LIMIT)

    def adopt(self, deployment: Deployment, inputs: dict[str, Any], **more: Any) -> None:  # noqa: ANN401
        outputs = {**inputs, **more}
        identity = str(self.daemon.containers.get(self.name).id)
        record = Adoption(CONTAINER, "worker", identity, inputs, outputs, "5.2.0")
        with self.backend.claims.hold(STACK, "test", LIMIT) as claim:
            self.engine.adopt(deployment, [record], {}, claim, LIMIT)

    def changes(self, deployment: Deployment) -> list[str]:
        changes = self.engine.preview(deployment, LIMIT)
        return [change.operation for change in changes if f"::{CONTAINER}::" in change.urn]

    def states(self) -> list[str]:
        return [each.status for each in self.daemon.containers.list(all=True, filters={"name": self.name})]


@pytest.fixture(params=["cli", "warm"])
def bench(
    request: pytest.FixtureRequest, tmp_path: Path, dockerd: Daemon, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    take_engine(request, request.param)
    lead_to(dockerd, tmp_path / "bin", monkeypatch)
    backend = Backend.at(tmp_path / "home")
    backend.open()
    engines: dict[str, Engine] = {
        "cli": CliEngine(backend, lambda: ensure_cli(tools_folder(), print)),
        "warm": WarmEngine(backend, lambda: ensure_warm(tools_folder(), print)),
    }
    with contextlib.closing(dockerd.client()) as client:
        made = Bench(engines[request.param], backend, client, f"engines-{os.urandom(4).hex()}")
        yield made
        for left in client.containers.list(all=True, filters={"name": made.name}):
            left.remove(force=True)


def test_a_container_is_made_stays_the_same_and_is_removed(bench: Bench) -> None:
    wanted = bench.deployment(labels=[{"label": "run", "value": "r"}], envs=["B=2", "A=1"], tmpfs={"/t": "size=1m"})
    before = bench.changes(wanted)
    bench.up(wanted)
    running, after = bench.states(), bench.changes(wanted)
    bench.up(wanted)
    again = bench.states()
    bench.destroy()

    assert before == ["create"]
    assert (running, after, again) == (["running"], ["same"], ["running"])
    assert bench.states() == []


def test_a_container_that_ended_stays_the_same(bench: Bench) -> None:
    wanted = bench.deployment(command=["true"])
    bench.up(wanted)
    bench.daemon.containers.get(bench.name).wait()

    assert bench.changes(wanted) == ["same"]
    bench.destroy()
    assert bench.states() == []


def test_another_command_replaces_the_container(bench: Bench) -> None:
    bench.up(bench.deployment())

    assert "replace" in bench.changes(bench.deployment(command=["sleep", "700"]))


def test_another_limit_is_changed_in_place(bench: Bench) -> None:
    bench.up(bench.deployment(memory=64, memory_swap=64))
    wanted = bench.deployment(memory=32, memory_swap=32)
    changes = bench.changes(wanted)
    bench.up(wanted)

    assert changes == ["update"]
    assert bench.daemon.containers.get(bench.name).attrs["HostConfig"]["Memory"] == 32 * 1024 * 1024
    assert bench.changes(wanted) == ["same"]


def test_a_container_that_does_not_start_is_recorded_and_removed_by_destroy(bench: Bench) -> None:
    with pytest.raises(EngineError) as caught:
        bench.up(bench.deployment(command=["/no/such/executable"]))
    there = bench.states()
    bench.destroy()

    assert "Unable to start container: Error response from daemon" in caught.value.details
    assert there == ["created"]
    assert bench.states() == []


def test_a_name_that_is_taken_is_refused(bench: Bench) -> None:
    bench.daemon.containers.create(BUSYBOX, name=bench.name)

    with pytest.raises(EngineError) as caught:
        bench.up(bench.deployment())

    assert f'Conflict. The container name "/{bench.name}" is already in use' in caught.value.details
    assert bench.states() == ["created"]


def all_secret() -> object:
    return pulumi.Output.secret(["Z=geheim", "A=1"])


def one_secret() -> object:
    return [pulumi.Output.secret("Z=geheim"), "A=1"]  # in another order than the plugin answers


@pytest.mark.parametrize("envs", [one_secret, all_secret])
@pytest.mark.parametrize("command", [["sleep", "600"], ["/no/such/executable"]], ids=["it starts", "it does not"])
def test_a_secret_in_the_environment_is_in_no_plain_state(
    bench: Bench, envs: Callable[[], object], command: list[str]
) -> None:
    wanted = bench.deployment(command=command, envs=envs)
    with contextlib.suppress(EngineError):
        bench.up(wanted)
    kept = b"".join(path.read_bytes() for path in bench.backend.root.rglob("*") if path.is_file())

    assert bench.daemon.containers.get(bench.name).id in kept.decode()
    assert bench.daemon.containers.get(bench.name).attrs["Config"]["Env"][:2] == ["A=1", "Z=geheim"]
    assert b"geheim" not in kept


DEFAULTS = {
    "containerReadRefreshTimeoutMilliseconds": 15000,
    "networkMode": "bridge",
    "removeVolumes": True,
    "restart": "no",
    "start": True,
    "waitTimeout": 60,
}
UNREAD = {"attach": False, "logs": False, "wait": False, "envs": []}


@pytest.mark.parametrize(
    ("more", "change"), [(UNREAD, "same"), ({}, "replace"), ({**UNREAD, "attach": None}, "update")]
)
def test_a_container_is_adopted_with_what_the_plugin_does_not_read(
    bench: Bench, more: dict[str, Any], change: str
) -> None:
    command, restart = ["sleep", "600"], {"Name": "no", "MaximumRetryCount": 0}  # as the plugin creates it
    made = bench.daemon.containers.run(
        BUSYBOX,
        command,
        name=bench.name,
        labels={"run": "r"},
        network_mode="bridge",
        restart_policy=restart,
        detach=True,
    )
    wanted = bench.deployment(labels=[{"label": "run", "value": "r"}])
    inputs = {
        "__defaults": sorted(DEFAULTS),
        **DEFAULTS,
        "image": BUSYBOX,
        "command": command,
        "mustRun": False,
        "name": bench.name,
        "labels": [{"__defaults": [], "label": "run", "value": "r"}],
    }
    bench.adopt(wanted, inputs, **more)

    assert change in bench.changes(wanted)
    assert bench.daemon.containers.get(bench.name).id == made.id
    bench.destroy()
    assert bench.states() == []
