"""docker:index/container:Container over a real daemon."""

from __future__ import annotations

import base64
import io
import tarfile
import time
from pathlib import Path
from typing import Any, Final

from plugins.base import Asked, Difference, FailedError, HalfDoneError
from plugins.bridge import one_error
from plugins.docker.container_request import body, changes, endpoint
from plugins.docker.container_schema import CONTAINER
from plugins.docker.container_state import facts
from plugins.docker.daemon import Daemon, gone, pause, raising
from plugins.values import Values

_CHANGEABLE: Final = ("cpuSet", "cpuShares", "maxRetryCount", "memory", "memorySwap", "restart")


class Container:
    """Containers of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def check(self, news: Values, olds: Values, asked: Asked) -> tuple[Values, dict[str, str]]:
        return CONTAINER.check(news, olds, asked), {}

    def diff(self, state: Values, news: Values, ignored: tuple[str, ...]) -> Difference:
        return CONTAINER.diff(state, news, ignored)

    def plan(self, inputs: Values) -> Values:
        return CONTAINER.plan(inputs)

    def create(self, inputs: Values) -> tuple[str, Values]:
        wanted = CONTAINER.state(inputs)
        if "" in (wanted["command"] or []):
            raise FailedError(one_error("values for command may not be empty"))
        identity = self._make(wanted)
        try:
            logs = self._start(identity, wanted)
            found = self._settled(identity, wanted)
        except _UnreadyError as error:
            raise HalfDoneError(str(error), identity, CONTAINER.state(inputs, {"id": identity})) from error
        if found is None:
            raise FailedError(one_error("container exited immediately"))
        return identity, CONTAINER.state(inputs, {"containerLogs": logs}, facts(found, wanted))

    def read(self, identity: str, state: Values, inputs: Values) -> tuple[Values, Values] | None:
        with self._raising("Error reading container"):
            found = self._settled(identity, state)
        return None if found is None else (CONTAINER.state(state, facts(found, state), was_read=True), inputs)

    def update(self, identity: str, state: Values, news: Values, *, preview: bool) -> Values:
        changed = CONTAINER.change(state, news)
        if not preview and any((state.get(name) or None) != (changed[name] or None) for name in _CHANGEABLE):
            with self._raising("Unable to update a container"):
                self._daemon.client.update_container(identity, **changes(changed))
        return changed

    def delete(self, identity: str, state: Values) -> None:
        client, grace = self._daemon.client, state.get("destroyGraceSeconds") or 0
        if grace and not state.get("attach"):
            with self._raising(f"Error stopping container {identity}"):
                gone(lambda: client.stop(identity, timeout=grace))
        with self._raising(f"Error deleting container {identity}"):
            self._remove(identity, state)

    def _make(self, wanted: Values) -> str:
        client, request = self._daemon.client, body(wanted)
        from docker.errors import ImageNotFound  # noqa: PLC0415

        with self._raising("Unable to create container"):
            try:
                made = client.create_container_from_config(request, wanted["name"], wanted["platform"])
            except ImageNotFound:
                self._pull(wanted["image"], wanted["platform"])
                made = client.create_container_from_config(request, wanted["name"], wanted["platform"])
        return str(made["Id"])

    def _pull(self, image: str, platform: str | None) -> None:
        doing = (
            f"Unable to create container with image {image}: unable to pull image {image}: error pulling image {image}"
        )
        with self._raising(doing):
            for line in self._daemon.client.pull(image, stream=True, decode=True, platform=platform):
                if "error" in line:
                    raise FailedError(one_error(f"{doing}: {line['error']}"))

    def _start(self, identity: str, wanted: Values) -> str | None:
        """Connect, fill and start a container; what it printed, where it is to be waited for. Raises _UnreadyError."""
        client = self._daemon.client
        if wanted["networksAdvanced"]:
            with self._unready("Unable to disconnect the default network"):
                gone(lambda: client.disconnect_container_from_network(identity, "bridge"))
        for network in wanted["networksAdvanced"]:
            with self._unready(f"Unable to connect to network '{network['name']}'"):
                client.connect_container_to_network(identity, network["name"], **endpoint(network))
        for upload in wanted["uploads"]:
            with self._unready("Unable to upload volume content"):
                client.put_archive(identity, "/", _archive(upload))
        if wanted["start"]:
            with self._unready("Unable to start container"):
                client.start(identity)
        if wanted["start"] and wanted["wait"]:
            self._await_health(identity, wanted["waitTimeout"])
        if not wanted["attach"]:
            return None
        with self._unready("Unable to wait container end of execution"):
            client.wait(identity)
            return client.logs(identity).decode(errors="replace") if wanted["logs"] else None

    def _await_health(self, identity: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self._unready("Error inspecting container state"):
                health = self._daemon.client.inspect_container(identity)["State"].get("Health", {})
            if health.get("Status") == "healthy":
                return
            pause()
        raise _UnreadyError(one_error("container failed to be in healthy state"))

    def _settled(self, identity: str, state: Values) -> Values | None:
        """The container; None if it is not there, or if it must run and does not: then it is removed."""
        client = self._daemon.client
        found: Values | None = gone(lambda: client.inspect_container(identity))
        if found is None or found["State"]["Running"] or not state.get("mustRun") or not state.get("start", True):
            return found
        self._remove(identity, state)
        return None

    def _remove(self, identity: str, state: Values) -> None:
        client = self._daemon.client
        from docker.errors import APIError  # noqa: PLC0415

        try:
            gone(lambda: client.remove_container(identity, v=bool(state.get("removeVolumes")), force=True))
        except APIError as error:
            if "is already in progress" not in str(error.explanation):
                raise
            gone(lambda: client.wait(identity, condition="removed"))

    def _raising(self, doing: str) -> Any:  # noqa: ANN401 - a context manager
        return raising(doing, self._daemon.host)

    def _unready(self, doing: str) -> Any:  # noqa: ANN401
        return raising(doing, self._daemon.host, _UnreadyError)


class _UnreadyError(Exception):
    """The container is there, but does not run as it should."""


def _archive(upload: Values) -> bytes:
    """A file to lay into a container, as the daemon takes it."""
    if upload.get("source"):
        content = Path(upload["source"]).read_bytes()
    elif upload.get("contentBase64"):
        content = base64.b64decode(upload["contentBase64"])
    else:
        content = upload["content"].encode()
    entry = tarfile.TarInfo(upload["file"])
    entry.size = len(content)
    entry.mode = int(upload.get("permissions") or ("0744" if upload.get("executable") else "0644"), 8)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
