"""The target `docker`: a container on a Docker Engine."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Final

from launchers.launcher import RunLauncher
from launchers.shared import Shared
from launchers.values import Event, Found
from launchers.watching import gone
from programs.args import LABEL_PREFIX, Connection, ProgramArgs, Run
from programs.docker import images
from programs.docker.containers import ContainerEvent, Containers
from programs.docker.environment import build_environment
from programs.docker.names import PLACE, container_name
from programs.docker.reach import Daemon, daemon_at
from programs.docker.shared import Kind, inspect_made, made_name, marks, shared_key, to_make
from programs.docker.states import status_of
from programs.docker.template import DockerConnection, DockerTemplate, Network, Volume
from programs.provider.folder import discard, ending_path, write_own
from stacks.engine import Adoption, InstalledProvider, StackName
from stacks.errors import EngineError, Started
from stacks.handle import WorkerHandle, WorkerState, WorkerStatus
from stacks.records import Record, Wish
from stacks.shared_records import SharedKind, SharedRecord

_BACKEND: Final = f"{LABEL_PREFIX}backend"
_RUN: Final = f"{LABEL_PREFIX}run-id"
_ATTEMPT: Final = f"{LABEL_PREFIX}attempt"
_MANY: Final = 16  # from so many runs on, one list of all containers is asked for
_CONFLICT: Final = re.compile(r'The container name "/(?P<name>[^"]+)" is already in use by container "(?P<id>\w+)"')
_REFUSED: Final = re.compile(
    r"(?:Unable to (?:create|start) (?:container|network|volume)[^:]*: "
    r"|[Uu]nable to (?:pull image|connect to network)[^:]*: )"
    r"(?P<reason>[^\n]+)"
)
_FRAMES: Final = re.compile(r"(Error response from daemon: |error pulling image [^:]+(:[^: ]+)?: )")


class DockerLauncher(RunLauncher[DockerTemplate]):
    """Runs each command in a container of its own, that executes it once."""

    target: ClassVar[str] = "docker"
    tells_why_it_ended: ClassVar[bool] = False
    keeps_limits: ClassVar[bool] = False
    program_on_disk: ClassVar[str] = "programs.docker.program"

    def program(self, args: ProgramArgs[DockerTemplate]) -> None:
        """See RunLauncher."""
        from programs.docker.program import program  # noqa: PLC0415 - loads Pulumi

        program(args)

    # ---- where ----

    @property
    def daemon(self) -> Daemon:
        """The daemon that the connection leads to, else the one of the caller's environment."""
        connection: Connection | None = self.connection
        return daemon_at(connection if isinstance(connection, DockerConnection) else None, os.environ)

    def place(self) -> str:
        """See RunLauncher: the daemon's id, by whatever way it is reached."""
        return f"{PLACE}{self.daemon.identity()}"

    def where(self, place: str) -> str:
        """See RunLauncher."""
        return f"the Docker daemon {place.removeprefix(PLACE)}"

    def providers(self) -> tuple[InstalledProvider, ...]:
        """See RunLauncher."""
        return (InstalledProvider("docker", _version(), self.daemon.environment),)

    # ---- before a launch ----

    def coordinates(self, args: ProgramArgs[DockerTemplate]) -> dict[str, str]:
        """See RunLauncher."""
        return {"name": container_name(args.run.id, args.run.attempt)}

    def check(self, run: Run) -> None:
        """See RunLauncher: the daemon answers, and what the template refers to is there."""
        self.place()
        build_environment(self.template, run, os.environ)
        images.credentials(self.template, os.environ)

    def prepared(self, args: ProgramArgs[DockerTemplate], left: timedelta) -> ProgramArgs[DockerTemplate]:
        """See RunLauncher: the image is there, as the pull policy says, and pinned where the template says so."""
        prepared = images.fetch(self.daemon, self.template, os.environ, left)
        return args.model_copy(update={"context": args.context.model_copy(update={"prepared": prepared})})

    # ---- what runs share ----

    def shared(self, run: Run) -> Sequence[Shared]:  # noqa: ARG002 - the template alone says it
        """See RunLauncher: networks and volumes, all durable."""
        found = {}
        for kind, index, each in to_make(self.template, "shared"):
            inputs = each.model_dump(mode="json", include={"name", "driver", "options", "internal"})
            name = shared_key(kind, index, each)
            found[name] = Shared(SharedKind.DURABLE, name, inputs, self._shared_program(kind, each))
        return list(found.values())

    def has_shared(self, record: SharedRecord) -> bool:
        """See RunLauncher."""
        kind: Kind = "network" if record.name.startswith("network") else "volume"
        return inspect_made(self.daemon, kind, str(record.outputs.get("name"))) is not None

    def sweep_shared(self, record: SharedRecord, *, data: bool) -> None:
        """See RunLauncher: what the stack made, and a volume only with the data that it holds."""
        made = marks(record.stack.stack, self.workspace.backend.identity())
        self._containers.remove_made(made, volumes=data)

    def _shared_program(self, kind: Kind, wanted: Network | Volume) -> Callable[[StackName], None]:
        def declare(stack: StackName) -> None:
            from programs.docker.shared_program import program  # noqa: PLC0415 - loads Pulumi

            made = marks(stack.stack, self.workspace.backend.identity())
            labels = {**made, f"{LABEL_PREFIX}template": self.name}
            program(self.daemon, kind, wanted, wanted.name or made_name(stack.stack, made), labels)

        return declare

    # ---- a launch that died, or failed ----

    def is_idle(self, found: Found) -> bool:
        """See RunLauncher: created, and never told to start or unable to."""
        return found.status.started_at is None

    def is_taken(self, details: str) -> bool:
        """See RunLauncher."""
        return _CONFLICT.search(details) is not None

    def adoptions(self, args: ProgramArgs[DockerTemplate], found: Found) -> Sequence[Adoption]:
        """See RunLauncher: the provider's own rules of what is unchanged are in programs.docker.adopting."""
        from programs.docker import adopting  # noqa: PLC0415 - loads Pulumi

        version, made = _version(), []
        for kind, resource, inputs in adopting.own_resources(args):
            there = inspect_made(self.daemon, "network", inputs["name"]) if kind == adopting.NETWORK else None
            known = str((there or {}).get("Id") or inputs["name"])
            made.append(Adoption(kind, resource, known, inputs, inputs, version))
        container = str(found.handle.coordinates["container"])
        image = images.of(self._containers.inspect(container) or {}, args.run.command)
        context = args.context.model_copy(update={"prepared": image})
        inputs, outputs = adopting.worker_state(args.model_copy(update={"context": context}))
        before = tuple(each.name for each in made)
        secret = adopting.SECRET
        return [
            *made,
            Adoption(adopting.CONTAINER, adopting.WORKER, container, inputs, outputs, version, secret, before),
        ]

    def failure(self, details: str) -> str | None:
        """See RunLauncher: the daemon's reason."""
        taken = _CONFLICT.search(details)
        if taken is not None:
            return self._taken(taken["name"], taken["id"])
        match = _REFUSED.search(details)
        if match is None:
            return None
        return f"the Docker daemon refused it: {_FRAMES.sub('', match['reason']).strip()}"

    # ---- looking ----

    def find(self, runs: Collection[Record] | None) -> Iterator[Found]:
        """See RunLauncher: by label among all containers, or by name where few are asked for."""
        backend, place = self.workspace.backend.identity(), self.place()
        wanted = None if runs is None else {(record.run_id, record.attempt): record for record in runs}
        if wanted is None or len(wanted) > _MANY:
            yield from self._listed(wanted, backend, place)
            return
        inspected = self._containers.inspect_all([self._name(record) for record in wanted.values()])
        for found in (_found(each, place) for each in inspected if _is_of(each, backend)):
            if (found.handle.run_id, found.handle.attempt) in wanted:
                yield found

    def facts(self, record: Record) -> Mapping[str, str]:
        """See RunLauncher: image, limits, and what the daemon says of the end."""
        inspected = self._own(record)
        if inspected is None:
            return {}
        config, host, told = inspected["Config"], inspected["HostConfig"], inspected["State"]
        facts = {"image": str(config["Image"]), "container": str(inspected["Id"])[:12]}
        if host.get("Memory"):
            facts["limit memory"] = f"{host['Memory'] / 2**20:g} MiB"
        if host.get("NanoCpus"):
            facts["limit cpu"] = f"{host['NanoCpus'] / 1e9:g}"
        if told.get("OOMKilled"):
            facts["out of memory"] = "yes, the kernel ended a process of it"
        if told.get("Error"):
            facts["daemon's error"] = str(told["Error"])
        if record.env_names:
            facts["environment of the run"] = ", ".join(record.env_names)
        return facts

    def logs(self, record: Record, *, follow: bool = False) -> Iterator[bytes]:
        """The worker's output in pieces, each stream in order; with `follow` until the worker has ended."""
        there = self._own(record)
        pieces = None if there is None else self._output(there, follow=follow)
        if pieces is not None:
            yield from pieces
        elif record.archive is not None:
            with suppress(FileNotFoundError), Path(record.archive).open("rb") as file:
                while piece := file.read(65536):
                    yield piece

    def watch(self, cursor: str = "") -> Iterator[Event]:
        """See RunLauncher: the daemon's own events; where they break off, all is looked at again."""
        labels = {_BACKEND: self.workspace.backend.identity() or ""}
        since = cursor or f"{time.time():.9f}"
        while True:
            place = self.place()
            with self._containers.events(labels, since) as events:
                for found in self._listed(None, labels[_BACKEND], place):
                    yield Event(found, since)
                for told in events:
                    since = told.moment
                    inspected = self._containers.inspect(told.container)
                    yield Event(_told(told, inspected, place), since)

    # ---- the end ----

    def begin_end(self, record: Record) -> bool:
        """See RunLauncher: the daemon itself sends the signal, waits for the grace, and kills."""
        found = self._own(record)
        if found is None:
            return False
        self._containers.stop(str(found["Id"]), self.template.grace, waits=False)
        return True

    def save(self, record: Record, grace: timedelta) -> None:
        """See RunLauncher: the container is stopped, its output archived, and how it ended is kept beside that."""
        for found in self.find([record]):
            name = str(found.handle.coordinates["container"])
            ours = found.status.state in {WorkerState.RUNNING, WorkerState.STARTING} and not self.is_idle(found)
            if ours:
                self._containers.stop(name, grace, waits=True)
            inspected = self._containers.inspect(name)
            if inspected is None or record.archive is None:
                continue
            status = status_of(inspected)
            wish = self.workspace.records.wish(record.stack) or Wish.of(record, "its launcher")
            self._archive(inspected, Path(record.archive), wish.account(status) if ours else status)

    def remove(self, found: Found, grace: timedelta) -> None:
        """See RunLauncher."""
        container = str(found.handle.coordinates["container"])
        self._containers.stop(container, grace, waits=True)
        self._containers.remove(container)

    def sweep(self, record: Record) -> None:
        """See RunLauncher: networks and volumes of the run's own."""
        backend = self.workspace.backend.identity() or ""
        self._containers.remove_made({_RUN: record.run_id, _ATTEMPT: str(record.attempt), _BACKEND: backend})

    def ended_of(self, record: Record) -> WorkerStatus | None:
        """See RunLauncher: what was kept beside the archived output."""
        if record.archive is None:
            return None
        try:
            return WorkerStatus.model_validate_json(ending_path(Path(record.archive)).read_bytes())
        except (OSError, ValueError):
            return None

    def discard(self, record: Record) -> None:
        """See RunLauncher: the archived output of this attempt."""
        if record.archive is not None:
            discard(Path(record.archive))

    # ---- the daemon ----

    @staticmethod
    def _name(record: Record) -> str:
        known = record.coordinates.get("container") or record.coordinates.get("name")
        return str(known or container_name(record.run_id, record.attempt))

    def _own(self, record: Record) -> dict[str, Any] | None:
        """The run's own container; None where there is none, or another backend's or person's has its name."""
        if record.removed is not None:
            return None
        found = self._containers.inspect(self._name(record))
        return found if found is not None and _is_of(found, self.workspace.backend.identity()) else None

    @property
    def _containers(self) -> Containers:
        return Containers(self.daemon)

    def _listed(self, wanted: Collection[tuple[str, int]] | None, backend: str | None, place: str) -> Iterator[Found]:
        """The backend's containers; those that run are told of by the list alone, the others are inspected."""
        others = []
        for each in self._containers.listed({_BACKEND: backend or ""}):
            labels = each["Labels"]
            if wanted is not None and (labels.get(_RUN), int(labels.get(_ATTEMPT) or -1)) not in wanted:
                continue
            if each["State"] == "running":
                handle = _handle(labels, each["Id"], str(each["Names"][0]).lstrip("/"), place)
                made = datetime.fromtimestamp(each["Created"], UTC)  # it was started in the same moment
                yield Found(handle, WorkerStatus(state=WorkerState.RUNNING, started_at=made), labels)
            else:
                others.append(str(each["Id"]))
        yield from (_found(each, place) for each in self._containers.inspect_all(others))

    def _output(self, container: Mapping[str, Any], *, follow: bool = False) -> Iterator[bytes] | None:
        tty = bool(container["Config"].get("Tty"))
        return self._containers.output(str(container["Id"]), follow=follow, tty=tty)

    def _archive(self, container: Mapping[str, Any], path: Path, status: WorkerStatus) -> None:
        """Keep output and end of a container, whole or not at all."""
        part = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns():x}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                for piece in self._output(container) or ():
                    file.write(piece)
            part.replace(path)
            write_own(ending_path(path), status.model_dump_json().encode())
        except OSError as error:
            part.unlink(missing_ok=True)
            message = f"its output cannot be kept at {path}: {error.strerror}; make room, then terminate it again"
            raise EngineError(message, started=Started.YES) from error

    def _taken(self, name: str, container: str) -> str:
        """Whose the container is that has the name."""
        there = self._containers.inspect(container)
        backend = ((there or {}).get("Config", {}).get("Labels") or {}).get(_BACKEND)
        whose = "that run-launcher did not make" if backend is None else f"of the backend {backend}"
        return (
            f"the name {name} is taken by the container {container[:12]} {whose}: remove it (docker rm {name}), "
            "or launch under another id"
        )


@cache
def _version() -> str:
    """Of the package that declares the resources."""
    return metadata.version("pulumi-docker")


def _told(event: ContainerEvent, inspected: Mapping[str, Any] | None, place: str) -> Found:
    """The container of an event as it is by now; the event has its labels where it is gone."""
    if inspected is not None:
        return _found(inspected, place)
    handle = _handle(event.labels, event.container, event.labels.get("name", ""), place)
    return gone(Found(handle, WorkerStatus(state=WorkerState.NOT_FOUND), event.labels))


def _is_of(inspected: Mapping[str, Any], backend: str | None) -> bool:
    labels = inspected["Config"].get("Labels") or {}
    return backend is not None and labels.get(_BACKEND) == backend


def _found(inspected: Mapping[str, Any], place: str) -> Found:
    labels = inspected["Config"]["Labels"]
    handle = _handle(labels, inspected["Id"], str(inspected["Name"]).lstrip("/"), place)
    return Found(handle, status_of(inspected), labels)


def _handle(labels: Mapping[str, str], container: str, name: str, place: str) -> WorkerHandle:
    """The handle of a container, from its labels."""
    told = {key.removeprefix(LABEL_PREFIX): value for key, value in labels.items() if key.startswith(LABEL_PREFIX)}
    return WorkerHandle(
        target=DockerLauncher.target,
        run_id=told["run-id"],
        attempt=int(told["attempt"]),
        place=place,
        backend=told["backend"],
        template=told["template"],
        digest=told["digest"],
        fingerprint=told["fingerprint"],
        coordinates={"container": container, "name": name},
    )
