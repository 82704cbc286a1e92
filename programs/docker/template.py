"""What a worker on the `docker` target may be. Loads pydantic only, so that reading a template loads no SDK.

Names are those of Compose (https://docs.docker.com/reference/compose-file/services/) where it has one.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, TypedDict

from pydantic import BaseModel, Field, field_validator, model_validator

from programs.args import (
    LABEL_PREFIX,
    Connection,
    Duration,
    KeepOverrides,
    LauncherTemplate,
    Resources,
    ResourcesOverrides,
    Size,
)
from programs.references import EnvReference, FileReference

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SMALLEST: Final = 6 * 2**20  # bytes that the daemon demands at least
_MEBI: Final = 2**20


class DockerConnection(Connection, frozen=True, extra="forbid"):
    """A Docker Engine: `host` is unix:///path, tcp://host:port or ssh://user@host.

    `cert_path` is a folder with ca.pem, cert.pem and key.pem, as DOCKER_CERT_PATH names one; with it tcp is TLS.
    """

    host: str
    cert_path: Path | None = None

    @field_validator("host")
    @classmethod
    def _known(cls, value: str) -> str:
        if not re.fullmatch(r"(unix:///.+|tcp://[^/@]+:\d+|ssh://[^/]+)", value):
            message = f"{value!r} must be unix:///path, tcp://host:port or ssh://user@host"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _tls(self) -> DockerConnection:
        if self.cert_path is not None and not self.host.startswith("tcp://"):
            message = "cert_path is for tcp:// alone"
            raise ValueError(message)
        return self


class Registry(BaseModel, frozen=True, extra="forbid"):
    """Who pulls the image; without it, the credentials of Docker's own configuration on the launcher's host hold."""

    username: str
    password: EnvReference | FileReference


class Network(BaseModel, frozen=True, extra="forbid"):
    """A network that the worker joins.

    `create` is empty for one that is there; `run` makes one for the worker alone, which goes with it, and `shared` one
    for all runs of the template, with this driver and these options of Docker's.
    """

    name: str = ""
    aliases: tuple[str, ...] = ()
    create: Literal["", "run", "shared"] = ""
    driver: str = ""
    options: dict[str, str] = Field(default_factory=dict)
    internal: bool = False

    @model_validator(mode="after")
    def _named(self) -> Network:
        _check_name(self.name, self.create, made_as=self.driver or self.options or self.internal)
        return self


class Volume(BaseModel, frozen=True, extra="forbid"):
    """Something mounted at `mount`: a folder of the daemon's host (`host`), or a volume (`name`).

    `create` as for a network: a volume of the run's own goes with its worker, a shared one outlives all runs.
    """

    mount: str
    host: str = ""
    name: str = ""
    create: Literal["", "run", "shared"] = ""
    driver: str = ""
    options: dict[str, str] = Field(default_factory=dict)
    read_only: bool = False

    @model_validator(mode="after")
    def _one(self) -> Volume:
        if not self.mount.startswith("/"):
            message = f"mount: {self.mount!r} must be an absolute path in the container"
            raise ValueError(message)
        if self.host:
            if self.name or self.create or self.driver or self.options:
                message = "host: a folder of the host is no volume: leave name, create, driver and options out"
                raise ValueError(message)
            if not self.host.startswith("/"):
                message = f"host: {self.host!r} must be an absolute path on the daemon's host"
                raise ValueError(message)
        else:
            _check_name(self.name, self.create, made_as=self.driver or self.options)
        return self


class Gpus(BaseModel, frozen=True, extra="forbid"):
    """Which devices `resources.gpu` asks for, where it is not just any: by id, by driver, with capabilities."""

    driver: str = "nvidia"
    device_ids: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ("gpu",)


class Log(BaseModel, frozen=True, extra="forbid"):
    """Where the daemon keeps the output; logs can be read back from json-file, local and journald alone."""

    driver: str
    options: dict[str, str] = Field(default_factory=dict)


class Device(BaseModel, frozen=True, extra="forbid"):
    """A device of the daemon's host."""

    host: str
    container: str = ""
    permissions: str = "rwm"


class DeviceRates(BaseModel, frozen=True, extra="forbid"):
    """How fast block devices may be read and written, by their path: bytes, or operations, a second."""

    read_bps: dict[str, Size] = Field(default_factory=dict)
    write_bps: dict[str, Size] = Field(default_factory=dict)
    read_iops: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    write_iops: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)


class Ulimit(BaseModel, frozen=True, extra="forbid"):
    """A limit of one kind, such as nofile."""

    name: str
    soft: int
    hard: int


class Port(BaseModel, frozen=True, extra="forbid"):
    """A port of the container, and where it is published; `host` 0 takes any free one."""

    container: Annotated[int, Field(gt=0, lt=65536)]
    host: Annotated[int, Field(ge=0, lt=65536)] = 0
    ip: str = ""
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"


class Healthcheck(BaseModel, frozen=True, extra="forbid"):
    """Docker's own check; what it says is shown by `why` and changes no state."""

    test: tuple[str, ...] = Field(min_length=1)
    interval: Duration | None = None
    timeout: Duration | None = None
    start_period: Duration | None = None
    retries: Annotated[int, Field(ge=0)] | None = None


class DockerTemplate(LauncherTemplate, frozen=True, extra="forbid"):
    """A container on a Docker Engine.

    The run's command is the container's; `entrypoint` stands for the image's. Variables come from `env_files` (of the
    launcher's host), `env`, the run and `secrets`, in this order; whoever may use the daemon can read them
    (`docker inspect`). `pin` launches the image by the digest that its tag has then. `resources` are enforced:
    memory without swap unless `memory_swap` (of both together) says otherwise, CPU as a share of time, GPUs as devices.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"connection"})
    DURABLE: ClassVar[frozenset[str]] = frozenset({"networks", "volumes"})

    target: Literal["docker"] = "docker"
    image: str = Field(min_length=1)
    pin: bool = False
    pull: Literal["always", "missing", "never"] = "missing"
    registry: Registry | None = None
    platform: str = ""
    entrypoint: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    env_files: tuple[Path, ...] = ()
    secrets: dict[str, EnvReference | FileReference] = Field(default_factory=dict)
    user: str = ""
    working_dir: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    stop_signal: str = "SIGTERM"

    networks: tuple[Network, ...] = ()
    network_mode: str = ""
    ports: tuple[Port, ...] = ()
    hostname: str = ""
    domainname: str = ""
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_opt: tuple[str, ...] = ()
    extra_hosts: dict[str, str] = Field(default_factory=dict)

    volumes: tuple[Volume, ...] = ()
    tmpfs: dict[str, str] = Field(default_factory=dict)
    read_only: bool = False
    shm_size: Size | None = None
    storage_opt: dict[str, str] = Field(default_factory=dict)

    resources: Resources = Resources()
    memory_reservation: Size | None = None
    memory_swap: Size | None = None
    cpu_shares: Annotated[int, Field(ge=2)] | None = None
    cpuset: str = ""
    gpus: Gpus = Gpus()
    devices: tuple[Device, ...] = ()
    device_cgroup_rules: tuple[str, ...] = ()
    device_rates: DeviceRates = DeviceRates()
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: dict[str, str] = Field(default_factory=dict)

    init: bool | None = None
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    group_add: tuple[str, ...] = ()
    userns_mode: str = ""
    ipc: str = ""
    pid: str = ""
    cgroup_parent: str = ""
    cgroup: Literal["", "host", "private"] = ""
    runtime: str = ""
    tty: bool = False
    log: Log | None = None
    healthcheck: Healthcheck | None = None

    def counts(self) -> Resources:
        """See LauncherTemplate."""
        return self.resources

    @field_validator("networks", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return [{"name": each} if isinstance(each, str) else each for each in value]

    @field_validator("labels")
    @classmethod
    def _not_ours(cls, value: dict[str, str]) -> dict[str, str]:
        ours = next((name for name in value if name.startswith(LABEL_PREFIX)), None)
        if ours is not None:
            message = f"{ours!r}: labels below {LABEL_PREFIX} are the launcher's own"
            raise ValueError(message)
        return value

    @field_validator("stop_signal")
    @classmethod
    def _signal(cls, value: str) -> str:
        if not re.fullmatch(r"SIG[A-Z0-9+]+", value):
            message = f"{value!r} is no signal: write it like SIGTERM or SIGINT"
            raise ValueError(message)
        return value

    @field_validator("working_dir")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and not value.startswith("/"):
            message = f"{value!r} must be an absolute path in the container"
            raise ValueError(message)
        return value

    @field_validator("env_files")
    @classmethod
    def _anchored(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for path in value:
            if not path.is_absolute():
                message = f"{str(path)!r} must be an absolute path on the launcher's host"
                raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> DockerTemplate:
        memory = self.resources.memory
        if memory is not None and (memory < _SMALLEST or memory % _MEBI):
            message = "resources.memory: Docker takes whole Mi, and 6Mi at least"
            raise ValueError(message)
        if self.memory_swap is not None and (memory is None or self.memory_swap < memory or self.memory_swap % _MEBI):
            message = "memory_swap: is of memory and swap together: whole Mi, and no less than resources.memory"
            raise ValueError(message)
        if self.memory_reservation is not None and (
            self.memory_reservation % _MEBI or (memory is not None and self.memory_reservation > memory)
        ):
            message = "memory_reservation: takes whole Mi, and no more than resources.memory"
            raise ValueError(message)
        if self.network_mode and self.networks:
            message = "network_mode: goes without networks: leave one of them out"
            raise ValueError(message)
        if self.gpus.device_ids and self.resources.gpu not in {None, len(self.gpus.device_ids)}:
            message = f"gpus.device_ids: names {len(self.gpus.device_ids)} devices, resources.gpu {self.resources.gpu}"
            raise ValueError(message)
        return self


class DockerOverrides(TypedDict, total=False):
    """What a run may ask to have otherwise than its DockerTemplate says, as far as that one lets it."""

    image: str
    entrypoint: list[str]
    env: dict[str, str]
    user: str
    working_dir: str
    labels: dict[str, str]
    platform: str
    resources: ResourcesOverrides
    tmpfs: dict[str, str]
    shm_size: str | int | None
    grace: str | timedelta
    start_timeout: str | timedelta
    max_runtime: str | timedelta | None
    keep: KeepOverrides


def _check_name(name: str, create: str, *, made_as: object) -> None:
    """A network or volume: one that is there is named; the run's own has no name, a shared one may have one."""
    if made_as and not create:
        message = "create: driver and options are for what is made: say `create: run` or `create: shared`"
        raise ValueError(message)
    if name and not _NAME.fullmatch(name):
        message = f"name: {name!r} takes A-Z a-z 0-9 _ . -, and begins with a letter or digit"
        raise ValueError(message)
    if create == "run" and name:
        message = "name: what is made for each run has a name of its own: leave it out"
        raise ValueError(message)
    if not create and not name:
        message = "name: say which one, or `create: run` or `create: shared`"
        raise ValueError(message)
