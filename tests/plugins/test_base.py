"""What stand-ins share: how they answer an engine, many calls at once, and that none outlives its engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf import empty_pb2
from plugins import base
from plugins.base import Asked, Difference, FailedError, HalfDoneError, Plugin
from plugins.install import install, provide, published
from plugins.started import Calls, calling, failed, half_done
from plugins.values import Values, plain, struct
from pulumi.runtime.proto import provider_pb2

URN = "urn:pulumi:s::p::sample:index/thing:Thing::t"
AT_ONCE = 100


class Thing:
    """A resource whose inputs say what becomes of it; creations wait for each other if they are told to."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(AT_ONCE)

    def check(self, news: Values, olds: Values, asked: Asked) -> tuple[Values, dict[str, str]]:
        return {**olds, **news, "name": asked.name}, {"bad": "is bad"} if "bad" in news else {}

    def diff(self, state: Values, news: Values, ignored: tuple[str, ...]) -> Difference:
        names = sorted({*state, *news} - {*ignored})
        kinds = {name: "UPDATE_REPLACE" if name == "name" else "UPDATE" for name in names}
        return Difference({name: kinds[name] for name in names if state.get(name) != news.get(name)}, ("name",), True)  # noqa: FBT003

    def plan(self, inputs: Values) -> Values:
        return {**inputs, "planned": True}

    def create(self, inputs: Values) -> tuple[str, Values]:
        if "fails" in inputs:
            raise FailedError(inputs["fails"])
        if "half" in inputs:
            raise HalfDoneError(inputs["half"], "it", {"left": 1})
        if inputs.get("waits"):
            self.barrier.wait(30)
        return "it", inputs

    def read(self, identity: str, state: Values, inputs: Values) -> tuple[Values, Values] | None:
        return None if identity == "gone" else ({**state, "read": True}, inputs)

    def update(self, identity: str, state: Values, news: Values, *, preview: bool) -> Values:
        return {**state, **news, "id": identity, "preview": preview}

    def delete(self, identity: str, state: Values) -> None:
        if state.get("stuck"):
            message = f"{identity} is stuck"
            raise FailedError(message)


@pytest.fixture
def calls() -> Iterator[Calls]:
    server, port = base.listen(Plugin("sample", "1.2.3", {"sample:index/thing:Thing": Thing()}))
    with calling(port) as made:
        yield made
    server.stop(None).wait()


def test_an_engine_is_told_what_the_published_plugins_tell_it(calls: Calls) -> None:
    with pytest.raises(grpc.RpcError) as handshake:
        calls.stub.Handshake(provider_pb2.ProviderHandshakeRequest())

    assert failed(handshake.value).startswith("rpc error: code = Unimplemented")
    assert calls.stub.GetPluginInfo(empty_pb2.Empty()).version == "1.2.3"
    assert calls("CheckConfig", {"news": {"host": "h"}}) == {"inputs": {"host": "h"}}
    assert calls("Configure", {"args": {}}) == {"supportsPreview": True, "supportsAutonamingConfiguration": True}
    assert calls("DiffConfig", {"oldInputs": {"a": 1}, "news": {"a": 1}}) == {}
    assert calls("DiffConfig", {"oldInputs": {"a": 1}, "news": {"b": 1}})["diffs"] == ["a", "b"]


def test_a_resource_is_found_by_its_type_below_a_parent_too(calls: Calls) -> None:
    below = "urn:pulumi:s::p::my:index:Group$sample:index/thing:Thing::t"

    assert calls("Check", {"urn": below, "news": {}}) == {"inputs": {"name": "t"}}


def test_a_type_that_is_not_known_is_refused(calls: Calls) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        calls("Create", {"urn": "urn:pulumi:s::p::sample:index/other:Other::t"})

    assert "unrecognized resource type" in failed(caught.value)
    assert "sample:index/other:Other" in failed(caught.value)


def test_each_call_reaches_the_resource(calls: Calls) -> None:
    bad = calls("Check", {"urn": URN, "news": {"bad": 1}, "olds": {"old": 1}})
    diff = calls(
        "Diff", {"urn": URN, "olds": {"name": "a", "x": 1, "y": 1}, "news": {"name": "b"}, "ignoreChanges": ["x"]}
    )

    assert bad == {
        "inputs": {"bad": 1, "old": 1, "name": "t"},
        "failures": [{"property": "bad", "reason": "is bad"}],
    }
    assert diff == {
        "changes": "DIFF_SOME",
        "diffs": ["name", "y"],
        "replaces": ["name"],
        "deleteBeforeReplace": True,
        "stables": ["name"],
        "hasDetailedDiff": True,
        "detailedDiff": {"name": {"kind": "UPDATE_REPLACE"}, "y": {"kind": "UPDATE"}},
    }
    assert calls("Create", {"urn": URN, "preview": True})["properties"] == {"planned": True}
    assert calls("Create", {"urn": URN, "properties": {"a": 1.5}}) == {"id": "it", "properties": {"a": 1.5}}
    assert calls("Read", {"urn": URN, "id": "gone"}) == {}
    assert calls("Read", {"urn": URN, "id": "it", "inputs": {"i": 1}}) == {
        "id": "it",
        "inputs": {"i": 1},
        "properties": {"read": True},
    }
    assert calls("Update", {"urn": URN, "id": "it", "olds": {"a": 1}, "news": {"b": 2}})["properties"] == {
        "a": 1,
        "b": 2,
        "id": "it",
        "preview": False,
    }
    assert calls("Delete", {"urn": URN, "id": "it"}) == {}


def test_a_failure_keeps_its_words(calls: Calls) -> None:
    with pytest.raises(grpc.RpcError) as created:
        calls("Create", {"urn": URN, "properties": {"fails": "no é\n"}})
    with pytest.raises(grpc.RpcError) as deleted:
        calls("Delete", {"urn": URN, "id": "it", "properties": {"stuck": True}})

    assert failed(created.value) == "rpc error: code = Unknown desc = no é\n"
    assert half_done(created.value) == {}
    assert failed(deleted.value) == "rpc error: code = Unknown desc = it is stuck"


def test_a_resource_that_is_half_done_is_handed_to_the_engine(calls: Calls) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        calls("Create", {"urn": URN, "properties": {"half": "not started"}})

    message = f"creating {URN}: not started"
    assert failed(caught.value) == f"rpc error: code = Unknown desc = {message}"
    assert half_done(caught.value) == {"id": "it", "properties": {"left": 1.0}, "reasons": [message]}


def test_calls_do_not_wait_for_each_other(calls: Calls) -> None:
    request = {"urn": URN, "properties": {"waits": True}}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lambda _: calls("Create", request)["id"], range(AT_ONCE)))

    assert answers == ["it"] * AT_ONCE


@pytest.mark.parametrize("value", [{}, {"a": None, "b": [1, 2.5, "é", True, {"c": []}], "d": {"e": {}}}])
def test_values_come_back_as_they_were_sent(value: Values) -> None:
    assert plain(struct(value)) == value


# ---- as a process ----

SERVE = """
import sys
sys.path.insert(0, {tests!r})
from plugins.lean import only_the_protocol
only_the_protocol()
from plugins.base import Plugin, serve
class Slow:
    def delete(self, identity, state):
        import time
        time.sleep(600)
serve(Plugin("sample", "1.2.3", {{"sample:index/thing:Thing": Slow()}}))
"""
ENGINE = """
import subprocess, sys
plugin = subprocess.Popen([sys.executable, "-I", "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(plugin.pid, plugin.stdout.readline().strip(), flush=True)
plugin.wait()
"""


@pytest.fixture
def served() -> Iterator[tuple[psutil.Process, psutil.Process, int]]:
    """An engine that was started, the plugin that it started, and the plugin's port."""
    code = SERVE.format(tests=str(Path(__file__).parents[1]))
    command = [sys.executable, "-c", ENGINE, code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        pid, port = engine.stdout.readline().split()
        plugin = psutil.Process(int(pid))
        try:
            yield psutil.Process(engine.pid), plugin, int(port)
        finally:
            engine.kill()
            for left in psutil.wait_procs([plugin], timeout=10)[1]:
                left.kill()


@pytest.mark.parametrize("end", ["its engine is killed", "it is asked to"])
def test_a_plugin_ends_also_in_the_midst_of_a_call_when(
    served: tuple[psutil.Process, psutil.Process, int], end: str
) -> None:
    engine, plugin, port = served
    with calling(port) as calls:
        waiting = calls.stub.Delete.future(provider_pb2.DeleteRequest(urn=URN, id="it"))
        calls.stub.GetPluginInfo(empty_pb2.Empty())  # the one before has been sent, too
        if end == "it is asked to":
            plugin.send_signal(signal.SIGTERM)
        else:
            engine.kill()

        ended, _ = psutil.wait_procs([plugin], timeout=10)

        assert ended == [plugin]
        assert waiting.code() == grpc.StatusCode.UNAVAILABLE


def test_a_process_that_is_a_plugin_loads_no_more_of_pulumi_than_its_protocol() -> None:
    code = SERVE.format(tests=str(Path(__file__).parents[1])).rpartition("serve(")[0]
    seen = "print(sorted(name for name in sys.modules if name.startswith('pulumi') and 'proto' not in name))"
    done = subprocess.run([sys.executable, "-I", "-c", code + seen], capture_output=True, text=True, check=True)

    assert done.stdout == "['pulumi', 'pulumi.runtime']\n"


# ---- which plugin is used ----


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without plugins; answers PULUMI_HOME."""
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "pulumi"))
    return tmp_path / "pulumi"


def put(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "pulumi-resource-docker").touch(0o755)
    return folder / "pulumi-resource-docker"


def test_without_a_published_plugin_there_is_none(nobody: Path) -> None:
    put(nobody / "plugins" / "resource-docker-v4.11.0")  # not the one that programs are written for

    assert published("docker") is None
    assert provide(nobody / "bin", "docker") == nobody / "bin"


def test_of_published_plugins_the_latest_is_used(nobody: Path) -> None:
    for version in ("5.9.0", "5.10.1", "5.2.0"):
        put(nobody / "plugins" / f"resource-docker-v{version}")

    assert published("docker") == nobody / "plugins" / "resource-docker-v5.10.1" / "pulumi-resource-docker"


def test_a_published_plugin_on_path_comes_before_others(nobody: Path, tmp_path: Path) -> None:
    put(nobody / "plugins" / "resource-docker-v5.2.0")
    there = put(tmp_path / "path")

    assert published("docker") == there
    assert provide(nobody / "bin", "docker") == there.parent


def test_a_stand_in_that_was_installed_is_executable(tmp_path: Path) -> None:
    folder = install(tmp_path / "bin with space")
    there = folder / "pulumi-resource-docker"
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": "/nonexistent"}
    with subprocess.Popen([there, "127.0.0.1:9"], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        with calling(int(process.stdout.readline())) as calls:
            version = calls.stub.GetPluginInfo(empty_pb2.Empty()).version
        process.terminate()

    assert version == "5.2.0"
    assert process.returncode == 0
