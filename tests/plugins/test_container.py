"""Containers of the Docker plugin: what they are created with, how they end, and what counts as a change."""

from __future__ import annotations

import base64
import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from images import BUSYBOX
from plugins.started import Calls, failed, started
from plugins.values import UNKNOWN

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container
    from dockerd import Daemon, Dockerd

URN = "urn:pulumi:s::p::docker:index/container:Container::worker"
NET = "urn:pulumi:s::p::docker:index/network:Network::net"
MEGABYTE = 1024 * 1024


@dataclass
class Plugin:
    """A plugin at work, and the daemon that it works on."""

    calls: Calls
    daemon: docker.DockerClient
    name: str

    def check(self, **inputs: Any) -> dict[str, Any]:  # noqa: ANN401 - of the container
        given = {"image": BUSYBOX, "command": ["sleep", "600"], "mustRun": False, "name": self.name, **inputs}
        checked: dict[str, Any] = self.calls("Check", {"urn": URN, "news": given})["inputs"]
        return checked

    def create(self, **inputs: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ANN401
        """The inputs as they were checked, and the outputs."""
        checked = self.check(**inputs)
        return checked, self.calls("Create", {"urn": URN, "properties": checked})["properties"]

    def refused(self, **inputs: Any) -> str:  # noqa: ANN401
        with pytest.raises(grpc.RpcError) as caught:
            self.create(**inputs)
        return failed(caught.value)

    def read(self, state: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        return self.calls("Read", {"urn": URN, "id": state["id"], "properties": state, "inputs": inputs})

    def diff(self, state: dict[str, Any], news: dict[str, Any]) -> dict[str, str]:
        answer = self.calls("Diff", {"urn": URN, "id": state["id"], "olds": state, "news": news})
        return {name: each.get("kind", "ADD") for name, each in answer.get("detailedDiff", {}).items()}

    def delete(self, state: dict[str, Any]) -> float:
        """Seconds that it took."""
        begun = time.monotonic()
        self.calls("Delete", {"urn": URN, "id": state["id"], "properties": state})
        return time.monotonic() - begun

    @property
    def container(self) -> Container:
        return self.daemon.containers.get(self.name)

    def states(self) -> list[str]:
        return [each.status for each in self.daemon.containers.list(all=True, filters={"name": self.name})]


@pytest.fixture
def plugin(dockerd: Daemon, tmp_path: Path) -> Iterator[Plugin]:
    environment = {**os.environ, "DOCKER_HOST": dockerd.url}
    with contextlib.closing(dockerd.client()) as client, started("docker", tmp_path / "bin", environment) as calls:
        name = f"container-{os.urandom(4).hex()}"
        yield Plugin(calls, client, name)
        for left in client.containers.list(all=True, filters={"name": name}):
            left.remove(force=True, v=True)
        for left in (*client.networks.list(names=[name]), *client.volumes.list(filters={"name": name})):
            left.remove()


GIVEN: dict[str, dict[str, Any]] = {
    "process": {
        "command": ["600"],
        "entrypoints": ["/bin/sleep"],
        "envs": ["B=2", "A=a b\n$HOME é", "C=", "A2=1=1"],
        "user": "1000:1000",
        "workingDir": "/etc",
        "groupAdds": ["5", "4"],
        "hostname": "worker",
        "domainname": "example",
        "labels": [{"label": "run-launcher/run", "value": "r"}, {"label": "a", "value": ""}],
        "init": True,
        "tty": True,
        "stdinOpen": True,
        "stopSignal": "SIGINT",
        "stopTimeout": 7,
        "destroyGraceSeconds": 1,
        "uploads": [{"file": "/etc/note", "content": "é"}],
    },
    "limits": {
        "memory": 64,
        "memorySwap": 64,
        "memoryReservation": 32,
        "cpus": "0.5",
        "cpuShares": 512,
        "cpuSet": "0",
        "shmSize": 32,
        "ulimits": [{"name": "nofile", "soft": 100, "hard": 200}, {"name": "core", "soft": 0, "hard": 0}],
        "restart": "on-failure",
        "maxRetryCount": 3,
    },
    "no limit of swap": {"memory": 64, "memorySwap": -1},
    "CPU by quota": {"cpuPeriod": 50000, "cpuQuota": 25000},
    "files": {
        "readOnly": True,
        "tmpfs": {"/t": "size=1m", "/u": ""},
        "volumes": [
            {"containerPath": "/v", "volumeName": "{name}"},
            {"containerPath": "/h", "hostPath": "/etc/hosts", "readOnly": True},
            {"containerPath": "/anonymous"},
        ],
        "mounts": [
            {"type": "tmpfs", "target": "/m", "tmpfsOptions": {"sizeBytes": MEGABYTE, "mode": 448}},
            {
                "type": "bind",
                "target": "/b",
                "source": "/etc",
                "readOnly": True,
                "bindOptions": {"propagation": "rprivate"},
            },
            {
                "type": "volume",
                "target": "/w",
                "source": "{name}-w",
                "volumeOptions": {"noCopy": True, "labels": [{"label": "a", "value": "b"}]},
            },
        ],
        "devices": [{"hostPath": "/dev/null", "containerPath": "/dev/void"}],
    },
    "rights": {
        "capabilities": {"adds": ["CAP_SYS_TIME"], "drops": ["CAP_NET_RAW", "CAP_CHOWN"]},
        "securityOpts": ["no-new-privileges"],
        "sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"},
        "ipcMode": "shareable",
        "runtime": "runc",
    },
    "nothing of its own": {"pidMode": "host", "networkMode": "host", "ipcMode": "host"},
    "privileged": {"privileged": True, "start": False},
    "names": {
        "dns": ["192.0.2.2", "192.0.2.1"],
        "dnsOpts": ["ndots:1"],
        "dnsSearches": ["example"],
        "hosts": [{"host": "b", "ip": "192.0.2.2"}, {"host": "a", "ip": "192.0.2.1"}],
    },
    "ports": {"ports": [{"internal": 80, "ip": "127.0.0.1"}, {"internal": 53, "protocol": "udp", "ip": "127.0.0.1"}]},
    "logs": {"logDriver": "local", "logOpts": {"max-size": "1m"}},
    "health": {"healthcheck": {"tests": ["CMD", "true"], "interval": "1s", "retries": 3}},
    "image's command": {"command": None},
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_a_container_is_as_it_was_told_and_unchanged_afterwards(plugin: Plugin, given: dict[str, Any]) -> None:
    named = _named(given, plugin.name)
    inputs, state = plugin.create(**named)
    answer = plugin.read(state, inputs)

    assert plugin.diff(state, inputs) == {}
    assert answer["inputs"] == inputs
    assert plugin.diff(answer["properties"], inputs) == {}
    assert set(answer["properties"]) == set(state)


def _named(value: Any, name: str) -> Any:  # noqa: ANN401 - any of JSON's types
    if isinstance(value, dict):
        return {key: _named(each, name) for key, each in value.items()}
    if isinstance(value, list):
        return [_named(each, name) for each in value]
    return value.format(name=name) if isinstance(value, str) else value


def test_the_daemon_is_told_what_the_container_is_to_be(plugin: Plugin) -> None:
    wanted = {**GIVEN["process"], **GIVEN["limits"], **GIVEN["rights"], **GIVEN["names"], **GIVEN["logs"]}
    plugin.create(**wanted)
    attrs = plugin.container.attrs
    config, host = attrs["Config"], attrs["HostConfig"]

    assert (config["Entrypoint"], config["Cmd"]) == (["/bin/sleep"], ["600"])
    assert [each for each in config["Env"] if each[0] in "ABC"] == ["A2=1=1", "A=a b\n$HOME é", "B=2", "C="]
    assert (config["User"], config["WorkingDir"], config["Hostname"]) == ("1000:1000", "/etc", "worker")
    assert config["Labels"] == {"run-launcher/run": "r", "a": ""}
    assert (config["StopSignal"], config["StopTimeout"]) == ("SIGINT", 7)
    assert (host["Memory"], host["MemorySwap"], host["MemoryReservation"]) == (2**26, 2**26, 2**25)
    assert (host["NanoCpus"], host["CpuShares"], host["CpusetCpus"]) == (5 * 10**8, 512, "0")
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert (host["CapAdd"], host["CapDrop"]) == (["CAP_SYS_TIME"], ["CAP_CHOWN", "CAP_NET_RAW"])
    assert (host["IpcMode"], host["Init"]) == ("shareable", True)
    assert host["LogConfig"] == {"Type": "local", "Config": {"max-size": "1m"}}
    assert host["ExtraHosts"] == ["a:192.0.2.1", "b:192.0.2.2"]


def test_the_daemon_is_told_what_is_mounted(plugin: Plugin) -> None:
    plugin.create(**_named(GIVEN["files"], plugin.name))
    host = plugin.container.attrs["HostConfig"]
    mounts = {mount["Destination"]: (mount["Type"], mount["RW"]) for mount in plugin.container.attrs["Mounts"]}

    assert mounts == {
        "/v": ("volume", True),
        "/h": ("bind", False),
        "/anonymous": ("volume", True),
        "/m": ("tmpfs", True),
        "/b": ("bind", False),
        "/w": ("volume", True),
    }
    assert (host["ReadonlyRootfs"], host["Tmpfs"]) == (True, {"/t": "size=1m", "/u": ""})
    assert {each["Target"]: each.get("TmpfsOptions") for each in host["Mounts"]}["/m"] == {
        "SizeBytes": MEGABYTE,
        "Mode": 448,
    }
    assert plugin.daemon.volumes.get(f"{plugin.name}-w").attrs["Labels"] == {"a": "b"}


def test_a_container_is_in_its_networks_and_not_in_the_default_one(plugin: Plugin) -> None:
    network = plugin.calls("Create", {"urn": NET, "properties": {"name": plugin.name, "ipamDriver": "default"}})
    inputs, state = plugin.create(networksAdvanced=[{"name": plugin.name, "aliases": ["b", "a"]}])
    networks = plugin.container.attrs["NetworkSettings"]["Networks"]
    changes = [plugin.diff(each, inputs) for each in (state, plugin.read(state, inputs)["properties"])]
    plugin.delete(state)
    plugin.calls("Delete", {"urn": NET, "id": network["id"], "properties": network["properties"]})

    assert list(networks) == [plugin.name]
    assert {"a", "b"} <= set(networks[plugin.name]["Aliases"])
    assert changes == [{}, {}]
    assert plugin.daemon.networks.list(names=[plugin.name]) == []


def test_a_network_that_is_not_there_leaves_a_container_that_destroy_removes(plugin: Plugin) -> None:
    said = plugin.refused(networksAdvanced=[{"name": plugin.name}])

    assert f"Error response from daemon: network {plugin.name} not found" in said
    assert plugin.states() == ["created"]


def test_files_are_uploaded_before_it_starts(plugin: Plugin) -> None:
    uploads = [
        {"file": "/srv/text", "content": "é"},
        {"file": "/srv/bytes", "contentBase64": base64.b64encode(b"\xff").decode(), "executable": True},
    ]
    script = "cat /srv/text && od -An -tx1 /srv/bytes && test -x /srv/bytes"
    plugin.create(uploads=uploads, command=["sh", "-c", script], attach=True)

    assert plugin.container.logs() == "é ff\n".encode()
    assert plugin.container.attrs["State"]["ExitCode"] == 0


def test_memory_without_swap_is_a_change_ever_after(plugin: Plugin) -> None:
    inputs, state = plugin.create(memory=64)

    assert plugin.diff(state, inputs) == {"memorySwap": "DELETE"}


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"command": ["sleep", "700"]}, {"command": "UPDATE_REPLACE"}),
        ({"envs": ["A=2"]}, {"envs": "UPDATE_REPLACE"}),
        ({"envs": None}, {}),
        ({"labels": [{"label": "a", "value": "b"}]}, {"labels": "ADD_REPLACE"}),
        ({"tmpfs": None}, {"tmpfs": "DELETE"}),
        ({"memory": 32, "memorySwap": 32}, {"memory": "UPDATE", "memorySwap": "UPDATE"}),
        ({"destroyGraceSeconds": 5}, {"destroyGraceSeconds": "ADD"}),
        ({"user": "1000"}, {"user": "ADD_REPLACE"}),
    ],
)
def test_a_changed_input_replaces_the_container_unless_the_daemon_can_change_it(
    plugin: Plugin, change: dict[str, Any], kinds: dict[str, str]
) -> None:
    given = {"envs": ["A=1"], "tmpfs": {"/t": ""}, "memory": 64, "memorySwap": 64}
    _, state = plugin.create(**given)
    news = plugin.check(**{**given, **change})

    assert plugin.diff(state, news) == kinds


def test_changes_that_are_to_be_ignored_are_none(plugin: Plugin) -> None:
    _, state = plugin.create()
    news = plugin.check(command=["sleep", "700"], user="1000")
    request = {"urn": URN, "id": state["id"], "olds": state, "news": news}

    assert plugin.calls("Diff", {**request, "ignoreChanges": ["command"]})["diffs"] == ["user"]
    assert plugin.calls("Diff", {**request, "ignoreChanges": ["*"]})["changes"] == "DIFF_NONE"


def test_a_preview_knows_what_was_said_and_not_what_the_daemon_chooses(plugin: Plugin) -> None:
    planned = plugin.calls("Create", {"urn": URN, "properties": plugin.check(user="1000"), "preview": True})
    state = planned["properties"]

    assert (state["user"], state["command"], state["workingDir"]) == ("1000", ["sleep", "600"], None)
    assert [state[name] for name in ("id", "hostname", "networkDatas", "entrypoints")] == [UNKNOWN] * 4
    assert plugin.states() == []


TRAP = "trap 'echo asked > /mark/asked; exit 0' TERM; echo > /mark/ready; while :; do sleep 0.1; done"


@pytest.mark.parametrize(("grace", "marks"), [({"destroyGraceSeconds": 20}, ["asked", "ready"]), ({}, ["ready"])])
def test_a_container_is_asked_to_end_only_if_it_has_a_grace(
    plugin: Plugin, tmp_path: Path, grace: dict[str, Any], marks: list[str]
) -> None:
    folder = tmp_path / "mark"
    folder.mkdir()
    volumes = [{"containerPath": "/mark", "hostPath": str(folder)}, {"containerPath": "/anonymous"}]
    _, state = plugin.create(command=["sh", "-c", TRAP], volumes=volumes, **grace)
    while not (folder / "ready").exists():
        time.sleep(0.01)
    (anonymous,) = [mount["Name"] for mount in plugin.container.attrs["Mounts"] if mount["Type"] == "volume"]
    took = plugin.delete(state)

    assert sorted(path.name for path in folder.iterdir()) == marks
    assert took < 10
    assert plugin.states() == []
    assert anonymous not in [each.name for each in plugin.daemon.volumes.list()]


def test_a_container_that_does_not_end_is_killed_after_its_grace(plugin: Plugin) -> None:
    _, state = plugin.create(command=["sh", "-c", "trap '' TERM; sleep 600"], destroyGraceSeconds=1)
    took = plugin.delete(state)

    assert 0.9 < took < 10
    assert plugin.states() == []


@pytest.mark.parametrize("grace", [{"destroyGraceSeconds": 20}, {}])
def test_a_container_that_is_not_there_is_gone_at_refresh_and_removed_at_destroy(
    plugin: Plugin, grace: dict[str, Any]
) -> None:
    inputs, state = plugin.create(**grace)
    plugin.container.remove(force=True)

    assert plugin.read(state, inputs) == {}
    assert plugin.delete(state) < 5


def test_two_may_remove_a_container_at_once(plugin: Plugin) -> None:
    _, state = plugin.create(command=["sh", "-c", "trap '' TERM; sleep 600"], destroyGraceSeconds=1)
    with ThreadPoolExecutor() as threads:
        list(threads.map(plugin.delete, [state] * 4))

    assert plugin.states() == []


def test_containers_are_created_at_once(plugin: Plugin) -> None:
    names = [f"{plugin.name}-{number}" for number in range(8)]
    with ThreadPoolExecutor(len(names)) as threads:
        created = list(threads.map(lambda name: plugin.create(name=name), names))
    running = {each.id: each.name for each in plugin.daemon.containers.list(filters={"name": plugin.name})}

    assert running == {state["id"]: name for (_, state), name in zip(created, names, strict=True)}


def test_a_daemon_that_was_started_again_is_reached(own_dockerd: Dockerd, tmp_path: Path) -> None:
    environment = {**os.environ, "DOCKER_HOST": own_dockerd.url}
    with contextlib.closing(own_dockerd.client()) as client, started("docker", tmp_path / "bin", environment) as calls:
        plugin = Plugin(calls, client, "survivor")
        inputs, state = plugin.create()
        own_dockerd.kill()
        with pytest.raises(grpc.RpcError) as caught:
            plugin.read(state, inputs)
        own_dockerd.start()

        assert f"Cannot connect to the Docker daemon at {own_dockerd.url}" in failed(caught.value)
        assert plugin.read(state, inputs)["id"] == state["id"]
        plugin.delete(state)


def test_what_must_run_and_does_not_is_removed_at_refresh(plugin: Plugin) -> None:
    inputs, state = plugin.create(mustRun=True)
    plugin.container.kill()

    assert plugin.read(state, inputs) == {}
    assert plugin.states() == []


def test_a_container_may_be_created_and_not_started(plugin: Plugin) -> None:
    inputs, state = plugin.create(start=False)

    assert plugin.states() == ["created"]
    assert plugin.diff(plugin.read(state, inputs)["properties"], inputs) == {}


def test_a_container_may_be_waited_for_until_it_ends(plugin: Plugin) -> None:
    _, state = plugin.create(command=["sh", "-c", "echo out; sleep 0.3; exit 3"], attach=True, logs=True)

    assert (state["containerLogs"], state["exitCode"]) == ("out\n", 3)


def test_a_container_may_be_waited_for_until_it_is_healthy(plugin: Plugin) -> None:
    check = {"tests": ["CMD", "test", "-e", "/well"], "interval": "100ms"}
    plugin.create(command=["sh", "-c", "sleep 0.5; touch /well; sleep 600"], healthcheck=check, wait=True)

    assert plugin.container.attrs["State"]["Health"]["Status"] == "healthy"


def test_a_container_that_is_not_healthy_in_time_is_left_for_destroy(plugin: Plugin) -> None:
    check = {"tests": ["CMD", "false"], "interval": "100ms"}

    assert "container failed to be in healthy state" in plugin.refused(healthcheck=check, wait=True, waitTimeout=1)
    assert plugin.states() == ["running"]


def test_an_empty_word_of_a_command_is_refused_but_not_one_of_an_entrypoint(plugin: Plugin) -> None:
    said = plugin.refused(command=["printf", "%s", ""])
    plugin.create(command=None, entrypoints=["printf", "[%s]", "", "a b"], attach=True)

    assert "values for command may not be empty" in said
    assert plugin.container.logs() == b"[][a b]"


def test_a_gpu_that_is_not_there_leaves_a_container_that_does_not_start(plugin: Plugin) -> None:
    request = {"driver": "nobody", "count": 1, "capabilities": ["gpu", "compute"]}

    assert "could not select device driver" in plugin.refused(deviceRequests=[request])
    assert plugin.container.attrs["HostConfig"]["DeviceRequests"][0]["Capabilities"] == [["gpu", "compute"]]
    plugin.container.remove()
    assert "could not select device driver" in plugin.refused(gpus="all")


def test_a_daemon_that_is_not_there_is_named(dockerd: Daemon, tmp_path: Path) -> None:
    environment = {**os.environ, "DOCKER_HOST": dockerd.url}
    with started("docker", tmp_path / "bin", environment) as calls:
        calls("Configure", {"args": {"host": f"unix://{tmp_path}/nobody.sock"}})
        with pytest.raises(grpc.RpcError) as caught:
            calls("Create", {"urn": URN, "properties": {"image": BUSYBOX, "name": "nobody"}})

    assert f"Cannot connect to the Docker daemon at unix://{tmp_path}/nobody.sock" in failed(caught.value)
