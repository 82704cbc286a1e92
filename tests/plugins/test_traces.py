"""The plugin answers every call as pulumi-resource-docker 5.2.0 did when its calls were recorded.

traces/*.jsonl has one call a line. Where the published plugin is installed, it is the one that is held against them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest
from images import BUSYBOX
from plugins.started import Calls, failed, half_done, started

if TYPE_CHECKING:
    import docker
    from dockerd import Daemon

TRACES: Final = Path(__file__).with_name("traces")
_ADDRESS: Final = "the daemon's networks have addresses of their own"
EXCEPTIONS: Final = {
    ("networkDatas", "gateway"): _ADDRESS,
    ("networkDatas", "ipAddress"): _ADDRESS,
    ("networkDatas", "ipPrefixLength"): _ADDRESS,
    ("networkDatas", "macAddress"): "it is made of the address",
    ("ipamConfigs", "gateway"): _ADDRESS,
    ("ipamConfigs", "subnet"): _ADDRESS,
    ("bridge",): "the daemon may have a bridge of its own, which then has a name",
    ("mountpoint",): "the daemon's data is in a folder of its own",
}
"""Where an answer may have another value than the recorded one, and why; but for a bridge, empty stays empty."""
_RESOLVER: Final = re.compile(r"Get \"https://registry-1.docker.io/v2/\": .*")
"""What a daemon says that does not reach the registry; how, is the machine's."""


class Replay:
    """Sends recorded requests to a plugin. Ids are the daemon's: each recorded one is read as the one it has now."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._ids: dict[str, str] = {}
        self.left: dict[str, Any] = {}

    def know(self, recorded: str, now: str) -> None:
        self._ids |= {recorded: now}
        if len(recorded) == 64:
            self._ids |= {recorded[:12]: now[:12]}  # a container's host name

    def recording(self, name: str) -> int:
        """Replay a recording; answers how many calls it has."""
        count = 0
        for line in (TRACES / f"{name}.jsonl").read_text().splitlines():
            call = json.loads(self._now(line))
            if call["method"] != "Cancel":
                self._replay(call, json.loads(line), f"{name}: {call['method']} {call['request'].get('name')}")
                count += 1
        return count

    def _replay(self, call: dict[str, Any], recorded: dict[str, Any], what: str) -> None:
        answer, said = self._call(call)
        expected = call.get("errors", [])
        assert [_RESOLVER.sub("", each) for each in said] == [_RESOLVER.sub("", each) for each in expected], what
        if call["method"] == "Create" and answer is not None:
            self.know(recorded["response"]["id"], answer["id"])
        response = json.loads(self._now(json.dumps(recorded["response"])))
        assert _differences(response, answer) == [], what

    def _call(self, call: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
        try:
            return self._calls(call["method"], call["request"]), []
        except grpc.RpcError as error:
            self.left = half_done(error) or self.left
            return None, [failed(error)]

    def _now(self, text: str) -> str:
        for recorded, now in self._ids.items():
            text = text.replace(recorded, now)
        return text


def _differences(recorded: Any, answer: Any, path: tuple[str, ...] = ()) -> list[str]:  # noqa: ANN401 - any of JSON's types
    if isinstance(recorded, dict) and isinstance(answer, dict):
        keys = [f"{'.'.join(path)}: only one has {key}" for key in recorded.keys() ^ answer.keys()]
        both = recorded.keys() & answer.keys()
        return [*keys, *(each for key in both for each in _differences(recorded[key], answer[key], (*path, key)))]
    if isinstance(recorded, list) and isinstance(answer, list) and len(recorded) == len(answer):
        return [each for old, new in zip(recorded, answer, strict=True) for each in _differences(old, new, path)]
    may_differ = path[-2:] in EXCEPTIONS or path[-1:] in EXCEPTIONS
    if recorded == answer or (may_differ and (bool(recorded) == bool(answer) or path[-1] == "bridge")):
        return []
    return [f"{'.'.join(path)}: {recorded!r} was recorded, it is {answer!r}"]


@pytest.fixture
def client(own_dockerd: Daemon) -> Iterator[docker.DockerClient]:
    with contextlib.closing(own_dockerd.client()) as client:
        yield client


@pytest.fixture
def replay(own_dockerd: Daemon, client: docker.DockerClient, tmp_path: Path) -> Iterator[Replay]:
    with started("docker", tmp_path, {**os.environ, "DOCKER_HOST": own_dockerd.url}) as calls:
        yield Replay(calls)
    for container in _ours(client.containers.list(all=True)):
        container.remove(force=True)
    for network in _ours(client.networks.list()):
        network.remove()
    for volume in _ours(client.volumes.list()):
        volume.remove()


def _ours(things: list[Any]) -> list[Any]:
    return [each for each in things if each.name in {"run-t1", "run-net", "run-netc", "run-vol", "run-bad", "taken"}]


def test_a_container_lives_as_recorded(replay: Replay, client: docker.DockerClient) -> None:
    replay.recording("docker-up")
    container = client.containers.get("run-t1")
    replay.recording("docker-refresh")
    replay.recording("docker-up2")
    container.kill()
    container.wait()
    replay.recording("docker-refresh-exited")
    replay.recording("docker-destroy")

    assert _ours(client.containers.list(all=True)) == []


def test_a_network_a_volume_and_a_container_in_them_live_as_recorded(
    replay: Replay, client: docker.DockerClient
) -> None:
    replay.recording("docker-network-up")
    container = client.containers.get("run-netc")
    replay.recording("docker-network-refresh")
    replay.recording("docker-network-destroy")

    networks, host = container.attrs["NetworkSettings"]["Networks"], container.attrs["HostConfig"]
    assert list(networks) == ["run-net"]
    assert {mount["Destination"]: mount["RW"] for mount in container.attrs["Mounts"]} == {"/v": True, "/h": False}
    assert container.attrs["Config"]["Env"][:2] == ["A=b c", "B="]
    assert (host["Memory"], host["NanoCpus"], host["Tmpfs"]) == (64 * 1024 * 1024, 5 * 10**8, {"/t": "size=1m"})
    assert [_ours(all_of()) for all_of in (client.networks.list, client.volumes.list)] == [[], []]


def test_a_container_that_does_not_start_is_left_and_removed_as_recorded(
    replay: Replay, client: docker.DockerClient
) -> None:
    replay.recording("docker-badcommand-up")
    container = client.containers.get("run-bad")
    refresh = [json.loads(line) for line in (TRACES / "docker-badcommand-refresh.jsonl").read_text().splitlines()]
    (read,) = [call["request"] for call in refresh if call["method"] == "Read"]
    replay.know(read["id"], str(container.id))
    state = json.loads(json.dumps(read["properties"]).replace(read["id"], str(container.id)))

    assert container.status == "created"
    assert replay.left["id"] == container.id
    assert _differences(state, replay.left["properties"]) == []
    replay.recording("docker-badcommand-refresh")
    replay.recording("docker-badcommand-destroy")
    assert _ours(client.containers.list(all=True)) == []


def test_a_name_that_is_taken_is_refused_as_recorded(replay: Replay, client: docker.DockerClient) -> None:
    there = client.containers.create(BUSYBOX, name="taken")
    trace = (TRACES / "docker-conflict-up.jsonl").read_text()
    (recorded,) = re.findall(r"by container \W+([0-9a-f]{64})", trace)
    replay.know(recorded, str(there.id))
    replay.recording("docker-conflict-up")

    assert [each.id for each in _ours(client.containers.list(all=True))] == [there.id]


def test_an_image_that_is_not_there_is_refused_as_recorded(replay: Replay, client: docker.DockerClient) -> None:
    replay.recording("docker-noimage-up")

    assert [each for each in client.containers.list(all=True) if each.name == "run-x"] == []


def test_every_recording_is_replayed() -> None:
    source = Path(__file__).read_text()

    assert [path.stem for path in TRACES.glob("*.jsonl") if f'replay.recording("{path.stem}")' not in source] == []
