"""What goes into a program and what comes out: the run, its context, the config in, the handle out."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Generic, TypedDict, TypeVar

import platformdirs
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, JsonValue, PlainSerializer, field_validator

from programs.bounds import Bound, Uses
from stacks.errors import UsageError
from stacks.handle import WorkerHandle, check_run_id

ARGS_KEY: Final = "run-launcher:args"
HANDLE_OUTPUT: Final = "handle"
LABEL_PREFIX: Final = "run-launcher/"

_ENV_NAME: Final = re.compile(r"[^=\x00]+")
_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)?")
_CPU: Final = re.compile(r"(\d+(?:\.\d+)?)(m)?")
_FACTORS: Final = {
    None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def parse_duration(value: object) -> object:
    """Read "1h30m", "45s", "250ms" or a number of seconds; anything else is left to pydantic to refuse."""
    if isinstance(value, str):
        parts = _DURATION.findall(value)
        if not parts or "".join(number + unit for number, unit in parts) != value:
            message = f"{value!r} is no duration: write it like 30s, 15m, 1h30m or 2d"
            raise ValueError(message)
        try:
            return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
        except OverflowError as error:
            message = "the duration is too long"
            raise ValueError(message) from error
    if isinstance(value, bool):
        message = f"{value} is no duration: write it like 30s, 15m, 1h30m or 2d"
        raise ValueError(message)  # noqa: TRY004 - pydantic turns a ValueError into a refusal, a TypeError into a crash
    return value


def parse_size(value: object) -> object:
    """Read "512Mi", "2G" or a number of bytes; anything else is left to pydantic to refuse."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            message = f"{value!r} is no amount of memory: write it like 512Mi, 2Gi or 500M"
            raise ValueError(message)
        try:
            return int(float(match[1]) * _FACTORS[match[2]])
        except OverflowError as error:
            message = "the amount of memory is too large"
            raise ValueError(message) from error
    if isinstance(value, bool):
        message = f"{value} is no amount of memory: write it like 512Mi, 2Gi or 500M"
        raise ValueError(message)  # noqa: TRY004 - pydantic turns a ValueError into a refusal, a TypeError into a crash
    return value


def parse_cpu(value: object) -> object:
    """Read "500m", "2" or a number of CPUs, down to a thousandth; anything else is left to pydantic to refuse."""
    if isinstance(value, str):
        match = _CPU.fullmatch(value)
        if match is None:
            message = f"{value!r} is no number of CPUs: write it like 500m, 2 or 1.5"
            raise ValueError(message)
        return Decimal(match[1]) / (1000 if match[2] else 1)
    if isinstance(value, bool):
        message = f"{value} is no number of CPUs: write it like 500m, 2 or 1.5"
        raise ValueError(message)  # noqa: TRY004 - pydantic turns a ValueError into a refusal, a TypeError into a crash
    return Decimal(str(value)) if isinstance(value, float) else value


def _refuse_bytes(words: Iterable[str]) -> None:
    """Refuse bytes that are no UTF-8, as Python has them from a command line: no state or record could hold them."""
    for word in words:
        if any("\udc80" <= char <= "\udcff" for char in word):
            message = f"{word[:40]!r} is not UTF-8 text: pass such bytes in a file, or in the value of a variable"
            raise ValueError(message)


def _not_negative(value: timedelta) -> timedelta:
    if value < timedelta():
        message = "a duration is never negative"
        raise ValueError(message)
    return value


def _whole_thousandths(value: Decimal) -> Decimal:
    if value % Decimal("0.001"):
        message = "the smallest part of a CPU is 1m, a thousandth"
        raise ValueError(message)
    return value


def _plain(value: Decimal) -> str:
    """No exponent and no trailing zeros, so that one amount has one spelling."""
    return f"{value.normalize():f}"


def _seconds(value: timedelta) -> str:
    """All digits and no exponent, so that parse_duration reads it back as the same value."""
    text = f"{value.total_seconds():.6f}"
    return f"{text.rstrip('0').rstrip('.')}s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    AfterValidator(_not_negative),
    PlainSerializer(_seconds, when_used="json"),
]
"""A length of time; in JSON the number of seconds with an "s", so that one value has one spelling."""
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
"""An amount of memory in bytes."""
Cpu = Annotated[
    Decimal,
    BeforeValidator(parse_cpu),
    Field(gt=0, le=10**6),
    AfterValidator(_whole_thousandths),
    PlainSerializer(_plain, when_used="json"),
]
"""A number of CPUs; in JSON text without an exponent, so that one amount has one spelling."""


class Resources(BaseModel, frozen=True, extra="forbid"):
    """How much a worker takes, as limits count it: None is not known, which is not the same as none."""

    cpu: Cpu | None = None
    memory: Size | None = None
    gpu: Annotated[int, Field(ge=0)] | None = None


class Connection(BaseModel, frozen=True, extra="forbid"):
    """What the connections of all targets have in common: they are strict values. A target adds its own fields."""


class Keep(BaseModel, frozen=True, extra="forbid"):
    """How long a finished worker and its logs are kept."""

    succeeded: Duration = timedelta(hours=1)
    failed: Duration = timedelta(days=1)


class ResourcesOverrides(TypedDict, total=False):
    """See Resources."""

    cpu: str | float
    memory: str | int
    gpu: int


class KeepOverrides(TypedDict, total=False):
    """See Keep."""

    succeeded: str | timedelta
    failed: str | timedelta


class LauncherTemplate(BaseModel, frozen=True, extra="forbid"):
    """What the templates of every target have in common.

    `extends` names the template that a file is laid over; it is empty once that was done. `final` names fields that no
    child and no run may change, `overrides` what a run may change of the others, by field
    ("limits.memory", or a JSON Pointer), `use` who may choose the template; without it, everybody.

    GOVERNANCE: the fields that say what may be done with the template, and nothing of a worker.
    LATER: fields that an earlier release did not have; a template that leaves them out keeps the digest that it had.
    SHARED_ONLY: fields that only shared objects are made of; the arguments of a run leave them out.
    DURABLE: fields that say what a durable shared object is, which no run may ever change.
    """

    GOVERNANCE: ClassVar[frozenset[str]] = frozenset({"extends", "final", "overrides", "use"})
    LATER: ClassVar[frozenset[str]] = frozenset({"connection"})
    SHARED_ONLY: ClassVar[frozenset[str]] = frozenset()
    DURABLE: ClassVar[frozenset[str]] = frozenset()

    target: str
    description: str = ""
    owner: str = ""
    grace: Duration = timedelta(seconds=30)
    start_timeout: Duration = timedelta(minutes=1)
    max_runtime: Duration | None = None
    keep: Keep = Keep()
    extends: str | None = Field(default=None, min_length=1)
    final: tuple[str, ...] = ()
    overrides: dict[str, Bound] = Field(default_factory=dict)
    use: Uses | None = None
    connection: str = ""

    @field_validator("start_timeout", "max_runtime")
    @classmethod
    def _not_zero(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value < timedelta(milliseconds=1):
            message = "the smallest limit is 1ms; leave max_runtime out for a worker that may run for ever"
            raise ValueError(message)
        return value

    def canonical(self) -> str:
        """The template as JSON with sorted keys and no blanks: one spelling per meaning, in every release."""
        fields = type(self).model_fields
        unset = {
            each for each in self.LATER if getattr(self, each) == fields[each].get_default(call_default_factory=True)
        }
        worker = self.model_dump(mode="json", exclude=set(self.GOVERNANCE) | unset)
        rules = self.model_dump(mode="json", include=set(self.GOVERNANCE), exclude_defaults=True)
        return json.dumps(worker | rules, sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def counts(self) -> Resources:
        """What one worker counts for where the resources of many are limited; None where the template does not say."""
        return Resources()


class Run(BaseModel, frozen=True, extra="forbid"):
    """One execution of a command, with an id that exists before it is launched.

    `env` is the run's own part of the environment; its values never enter the state. `attempt` counts from 0.
    """

    id: str
    command: tuple[str, ...]
    env: dict[str, str] = Field(default_factory=dict, repr=False)
    tags: dict[str, str] = Field(default_factory=dict)
    attempt: Annotated[int, Field(ge=0, lt=10**6)] = 0

    @classmethod
    def new(
        cls,
        command: tuple[str, ...] | list[str],
        *,
        env: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> Run:
        """A run with a readable id of its own: the command's name and eight random characters."""
        words = [word for word in command if not word.startswith("-")]
        name = words[0].rsplit("/", 1)[-1] if words else "run"
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:40] or "run"
        return cls(id=f"{stem}-{secrets.token_hex(4)}", command=tuple(command), env=env or {}, tags=tags or {})

    @field_validator("id")
    @classmethod
    def _id(cls, value: str) -> str:
        try:
            return check_run_id(value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    @field_validator("command")
    @classmethod
    def _command(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not value[0]:
            message = "a run needs a command"
            raise ValueError(message)
        if any("\0" in word for word in value):
            message = "a command's words cannot hold a NUL character"
            raise ValueError(message)
        _refuse_bytes(value)
        return value

    @field_validator("tags")
    @classmethod
    def _tags(cls, value: dict[str, str]) -> dict[str, str]:
        _refuse_bytes((*value, *value.values()))
        return value

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not _ENV_NAME.fullmatch(name) or "\0" in text:
                message = f"{name!r} cannot be an environment variable"
                raise ValueError(message)
        _refuse_bytes(value)
        return value


class Context(BaseModel, frozen=True):
    """What a program must know beyond template and run; values only, so that the same run works from any folder.

    `folder` is the run's own folder on this host, for targets that keep files, and `archive` the file that its output
    is moved to when the worker is removed; `cwd` is the caller's working folder; `shared` holds the outputs of each
    shared object that the template needs, by its name; `prepared` what the target found or fetched for the worker.
    """

    backend: str
    template: str
    digest: str
    fingerprint: str
    place: str
    folder: str
    archive: str
    cwd: str
    owner: str = ""
    shared: dict[str, JsonValue] = Field(default_factory=dict)
    prepared: dict[str, JsonValue] = Field(default_factory=dict)


T = TypeVar("T", bound=LauncherTemplate)


class ProgramArgs(BaseModel, Generic[T], frozen=True):
    """The whole input of a program. In its JSON the values of the run's environment are left out."""

    v: int = 1
    template: T
    run: Run
    context: Context

    def to_config(self) -> tuple[str, dict[str, str]]:
        """The arguments without a secret value, as one JSON string, and the run's environment, for a secret map."""
        plain = self.model_dump(mode="json", exclude={"run": {"env"}, "template": set(self.template.SHARED_ONLY)})
        return json.dumps(plain, sort_keys=True), dict(self.run.env)

    def labels(self) -> dict[str, str]:
        """The labels that every worker carries, whole; a target cleans them to its own rules."""
        return {
            f"{LABEL_PREFIX}run-id": self.run.id,
            f"{LABEL_PREFIX}attempt": str(self.run.attempt),
            f"{LABEL_PREFIX}fingerprint": self.context.fingerprint,
            f"{LABEL_PREFIX}template": self.context.template,
            f"{LABEL_PREFIX}digest": self.context.digest,
            f"{LABEL_PREFIX}backend": self.context.backend,
        }

    def handle(self, **coordinates: JsonValue) -> WorkerHandle:
        """The worker handle of this run with the target's own coordinates."""
        return WorkerHandle(
            target=self.template.target,
            run_id=self.run.id,
            attempt=self.run.attempt,
            place=self.context.place,
            backend=self.context.backend,
            template=self.context.template,
            digest=self.context.digest,
            fingerprint=self.context.fingerprint,
            coordinates=coordinates,
        )


def fingerprints(run: Run, digest: str) -> dict[str, str]:
    """SHA-256 hashes of what makes two launches the same: command, own environment, digest, and `all` of them."""

    def of(value: object) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    parts = {"command": of(run.command), "env": of(run.env), "template": digest}
    return {**parts, "all": of(parts)}


def local_paths(home: Path, shard: str, name: str) -> tuple[Path, Path]:
    """Where the run folder and the archived output of an attempt are, below the folder of all that is kept."""
    return home / "runs" / shard / name, home / "logs" / shard / f"{name}.log"


def read_config(model: type[T], place: str) -> ProgramArgs[T]:
    """The arguments from the stack's configuration, with a context of their own, for debugging a program on disk.

    `run-launcher:args` holds template and run, `run-launcher:secrets` the run's environment. Raises pulumi.RunError
    for the arguments of a run that was launched.
    """
    import pulumi  # noqa: PLC0415 - reading a template must not load it

    config = pulumi.Config("run-launcher")
    data = json.loads(config.require("args"))
    if "context" in data:
        message = "these are the arguments of a run that was launched: `run-launcher eject` writes the folder for it"
        raise pulumi.RunError(message)
    data.setdefault("template", {}).setdefault("target", model.model_fields["target"].default)
    data["run"] = {**data.get("run", {}), "env": json.loads(config.get("secrets") or "{}")}
    template, run = model.model_validate(data["template"]), Run.model_validate(data["run"])
    home = Path(os.environ.get("RUN_LAUNCHER_HOME") or platformdirs.user_data_path("run-launcher"))
    folder, archive = local_paths(home, "debug", f"{pulumi.get_project()}.{pulumi.get_stack()}")
    digest = template.digest()
    context = Context(
        backend="debug",
        template="debug",
        digest=digest,
        fingerprint=fingerprints(run, digest)["all"],
        place=place,
        folder=str(folder),
        archive=str(archive),
        cwd=str(Path.cwd()),
    )
    return ProgramArgs(template=template, run=run, context=context)


def export_handle(args: ProgramArgs[T], coordinates: Mapping[str, Any]) -> None:
    """Export the worker handle as the stack's output; coordinates may be outputs of resources."""
    import pulumi  # noqa: PLC0415

    def build(known: Mapping[str, Any]) -> dict[str, Any]:
        return args.handle(**known).model_dump(mode="json")

    pulumi.export(HANDLE_OUTPUT, pulumi.Output.from_input(dict(coordinates)).apply(build))
