"""The containers of a Docker Engine: looked at, stopped, read and removed."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import requests

from programs.docker.reach import APIError, Daemon, DockerException, NotFound, refusal
from stacks.errors import EngineError, Started

_SENT: Final = 0.5  # seconds after which the daemon has what it was asked, whether it answered or not
_FORCE: Final = 30  # seconds beyond the grace that the daemon gets to answer that a container has ended
_CONNECT: Final = 10  # seconds
_ANSWER: Final = 30
_HEADER: Final = struct.Struct(">4xL")  # of a frame of output: which stream, and how many bytes follow
_AT_ONCE: Final = 8
_UNREADABLE: Final = 501  # what the daemon answers where its log driver cannot be read
_EVENTS: Final = ("create", "start", "pause", "unpause", "oom", "die", "destroy")
_STOPPED: Final = frozenset({204, 304, 404})  # it is now, it was before, or there is none


@dataclass(frozen=True)
class ContainerEvent:
    """Something happened to a container at a moment of the daemon's clock, in seconds; `labels` has its name too."""

    container: str
    labels: Mapping[str, str]
    moment: str


@dataclass(frozen=True)
class Containers:
    """See the module. A container is named by its id or name."""

    daemon: Daemon

    def inspect(self, container: str) -> dict[str, Any] | None:
        """All that the daemon knows of a container; None where there is none."""
        with self.daemon.answering():
            try:
                found: dict[str, Any] = self.daemon.api.inspect_container(container)
            except NotFound:
                return None
        return found

    def inspect_all(self, containers: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The same of many, some at once; those that are not there are left out."""
        if len(containers) == 1:
            answers: Iterator[dict[str, Any] | None] = map(self.inspect, containers)
            yield from filter(None, answers)
        elif containers:
            with ThreadPoolExecutor(min(_AT_ONCE, len(containers))) as threads:
                yield from filter(None, threads.map(self.inspect, containers))

    def listed(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """One line for each container with these labels, running or not."""
        with self.daemon.answering():
            found: list[dict[str, Any]] = self.daemon.api.containers(all=True, filters=label_filter(labels))
        return found

    def stop(self, container: str, grace: timedelta, *, waits: bool) -> None:
        """Have the daemon send the stop signal, wait for the grace, and kill; one that has ended or is gone is fine.

        Without waiting the daemon goes on by itself once it was asked, whatever becomes of whoever asked.
        """
        api, seconds = self.daemon.api, round(grace.total_seconds() + 0.499)
        url = f"{api.base_url}/v{api.api_version}/containers/{container}/stop?t={seconds}"
        with self.daemon.answering():
            try:
                answer = api.post(url, timeout=(_CONNECT, seconds + _FORCE if waits else _SENT))
            except requests.exceptions.ReadTimeout:
                if waits:
                    raise
                return
        if answer.status_code not in _STOPPED:
            message = f"the container {container[:12]} does not stop: {answer.text.strip()}"
            raise EngineError(message, started=Started.YES)

    def remove(self, container: str) -> None:
        """Remove a container with the volumes that have no name; repeatable."""
        with self.daemon.answering():
            try:
                self.daemon.api.remove_container(container, v=True, force=True)
            except NotFound:
                return
            except APIError as error:
                if error.status_code != requests.codes.conflict:
                    message = f"the container {container[:12]} cannot be removed: {refusal(error)}"
                    raise EngineError(message, started=Started.YES) from error
                with suppress(NotFound):  # somebody else removes it just now
                    self.daemon.api.wait(container, timeout=_FORCE, condition="removed")

    def output(self, container: str, *, follow: bool = False, tty: bool = False) -> Iterator[bytes] | None:
        """What the container printed, each stream in order; None where there is no container.

        Empty where its log driver cannot be read. A daemon that goes away before the end is told of, whereas the SDK's
        stream just ends then.
        """
        api = self.daemon.api
        url = f"{api.base_url}/v{api.api_version}/containers/{container}/logs?stdout=1&stderr=1&follow={int(follow)}"
        with self.daemon.answering():
            answer = api.get(url, stream=True, timeout=(_CONNECT, None if follow else _ANSWER))
        if answer.ok:
            return self._read(answer, tty=tty)
        with answer:
            if answer.status_code not in {requests.codes.not_found, _UNREADABLE}:
                message = f"the output of container {container[:12]} cannot be read: {answer.text.strip()}"
                raise EngineError(message, started=Started.YES)
        return None if answer.status_code == requests.codes.not_found else iter(())

    def _read(self, answer: requests.Response, *, tty: bool) -> Iterator[bytes]:
        with self.daemon.answering(), answer:
            pieces: Iterator[bytes] = answer.iter_content(None)
            yield from pieces if tty else _payloads(pieces)

    @contextmanager
    def events(self, labels: Mapping[str, str], since: str) -> Iterator[Iterator[ContainerEvent]]:
        """What happens to containers with these labels, from a moment on; what it yields ends where that breaks off."""
        wanted = {"type": ["container"], "event": [*_EVENTS], **label_filter(labels)}
        with self.daemon.answering():
            stream = self.daemon.api.events(since=since, filters=wanted, decode=True)
        try:
            yield (_event(each) for each in _until_broken(stream))
        finally:
            stream.close()

    def remove_made(self, labels: Mapping[str, str], *, volumes: bool = True) -> None:
        """Remove the networks and volumes with these labels; repeatable."""
        api, filters = self.daemon.api, label_filter(labels)
        with self.daemon.answering():
            for each in api.networks(filters=filters):
                _remove(api.remove_network, each["Id"], f"the network {each['Name']}")
            for each in (api.volumes(filters=filters)["Volumes"] or []) if volumes else ():
                _remove(api.remove_volume, each["Name"], f"the volume {each['Name']}")


def _payloads(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """What is in the frames of both streams: https://docs.docker.com/reference/api/engine/version/v1.41/ (attach)."""
    buffer = b""
    for piece in pieces:
        buffer += piece
        while len(buffer) >= _HEADER.size and len(buffer) >= (end := _HEADER.size + _HEADER.unpack_from(buffer)[0]):
            yield buffer[_HEADER.size : end]
            buffer = buffer[end:]


def _remove(remove: Callable[[str], Any], identity: str, what: str) -> None:
    try:
        remove(identity)
    except NotFound:  # somebody else removes it just now
        return
    except APIError as error:
        message = f"{what} cannot be removed: {refusal(error)}"
        raise EngineError(message, started=Started.UNKNOWN) from error


def _until_broken(stream: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with suppress(requests.RequestException, DockerException, OSError):
        yield from stream


def _event(told: Mapping[str, Any]) -> ContainerEvent:
    nanoseconds = int(told["timeNano"])
    moment = f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}"
    return ContainerEvent(str(told["Actor"]["ID"]), dict(told["Actor"]["Attributes"]), moment)


def label_filter(labels: Mapping[str, str]) -> dict[str, Any]:
    """What the daemon takes to list only what has these labels."""
    return {"label": [f"{name}={value}" for name, value in labels.items()]}
