"""The contract of every launcher, told once: a target fills in `program`, `place`, `find` and `remove`."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeVar, runtime_checkable

from launchers.limits import Room
from launchers.shared import Shared
from launchers.templates.rules import Rules
from launchers.values import Data, Ejected, Event, Explanation, Found, Launched, Terminated
from launchers.workspace import Workspace
from programs.args import ARGS_KEY, Connection, Context, LauncherTemplate, ProgramArgs, Run, fingerprints
from stacks.engine import Adoption, Change, Deployment, Provider, stack_name
from stacks.errors import RunNotFoundError, TimeLimitError
from stacks.handle import WorkerHandle, WorkerState, WorkerStatus
from stacks.records import Record
from stacks.shared_records import SharedRecord

T = TypeVar("T", bound=LauncherTemplate)
_POLL: Final = (0.02, 0.5)  # seconds between two looks at a worker that is waited for: first, last
LAST_LINES: Final = 20


@runtime_checkable
class HasLogs(Protocol):
    """A target that can show what a worker printed."""

    def logs(self, record: Record, *, follow: bool = False) -> Iterator[bytes]:
        """The worker's output in pieces, as it was printed; with `follow` until the worker has ended."""


@runtime_checkable
class Ejects(Protocol):
    """A target whose program also runs from disk, for a worker that was launched before."""

    program_on_disk: ClassVar[str]
    """The module that has a function `launched`: it declares the worker again and never starts one."""


class RunLauncher(ABC, Generic[T]):
    """Launches, watches and ends the workers of one template on one target.

    Safe from many threads. Nothing lives in memory only: any other launcher of the same backend can go on where this
    one stops. `launch` and `terminate` repair what a dead process left; `status`, `statuses`, `find`, `wait`, `logs`
    and `why` never change anything. Installs no signal handler, and leaves folder and environment of the process alone.
    """

    target: ClassVar[str]
    create_takes_over: ClassVar[bool] = False
    """True if the program's `up` takes over a worker that is there already; else it is adopted into the state."""
    tells_why_it_ended: ClassVar[bool] = True
    """False if the target cannot tell a worker that was asked to end from one that ended by itself just then."""
    keeps_limits: ClassVar[bool] = True
    """False if the target does not end by itself what is past start_timeout or max_runtime: then reconcile does."""
    runs_here: ClassVar[bool] = False
    """True if workers find the files of the launcher's own host, and only these."""

    def __init__(self, workspace: Workspace, template: T, name: str, connection: Connection | None = None) -> None:
        self.workspace = workspace
        self.template = template
        self.name = name
        self.connection = connection
        self.rules: Rules | None = None
        """What runs may change of the template; None where nobody says."""
        self.renew: Callable[[], RunLauncher[Any]] | None = None
        """The launcher of the template's file as it is now: this one, as long as the file has not changed."""

    # ---- what a target fills in ----

    @abstractmethod
    def program(self, args: ProgramArgs[T]) -> None:
        """Declare the worker's resources and export its handle; runs inside `up`."""

    @abstractmethod
    def place(self) -> str:
        """Where this launcher's connection leads, as the target itself tells it."""

    def reaches(self, place: str) -> bool:
        """True if this launcher can tell how workers of that place are: its own, or one that is proven gone."""
        return place == self.place()

    def where(self, place: str) -> str:
        """A place that is not reached, in words that tell a person where to ask."""
        return place

    def may_ask(self, record: Record) -> bool:
        """True if what this launcher's target shows of a run can only be the run's own."""
        return self.runs_here or record.removed is not None or self.reaches(record.place)

    @abstractmethod
    def find(self, runs: Collection[Record] | None) -> Iterator[Found]:
        """The workers of these runs, or all of this backend that the target knows; changes nothing."""

    @abstractmethod
    def remove(self, found: Found, grace: timedelta) -> None:
        """End a worker and what belongs to it without any state; repeatable."""

    # ---- what a target may fill in ----

    def admit(self, run: Run, *, again: bool = False) -> None:
        """Refuse, before any effect, what this launcher may not or cannot launch.

        `again`: the same command, environment and template were admitted as this run before, maybe by an earlier
        release; who asks now may be another. Raises PolicyError, which names who may or what may be, UsageError or
        TemplateError.
        """
        if self.rules is not None:
            self.rules.refuse_use(run.tags)
            if not again:
                self.rules.refuse_env(run.env)
        self.check(run)

    def check(self, run: Run) -> None:
        """Refuse, before any effect, what this target cannot launch; raises UsageError or TemplateError."""

    def coordinates(self, args: ProgramArgs[T]) -> dict[str, str]:
        """What the record must know before the worker is made, for `find` after a crash."""
        return {}

    def providers(self) -> tuple[Provider, ...]:
        """How the provider plugins of its resources are run: inside this process, or as they are installed."""
        return ()

    def prepared(self, args: ProgramArgs[T], left: timedelta) -> ProgramArgs[T]:
        """Fetch what the worker needs before it is made, within the time that is left; the arguments tell of it."""
        return args

    def is_taken(self, details: str) -> bool:
        """True if the engine's account of a failed launch says that a worker of this name is there already."""
        return False

    def is_idle(self, found: Found) -> bool:
        """True of a worker that was made and never started, by a launch that died between the two."""
        return False

    def adoptions(self, args: ProgramArgs[T], found: Found) -> Sequence[Adoption]:
        """How a worker that is there enters the state, with what was made for it and comes before it.

        For targets whose create does not take over.
        """
        message = f"target {self.target} takes workers over when it creates them"
        raise NotImplementedError(message)

    def failure(self, details: str) -> str | None:
        """The target's own account of a failed launch, found in the engine's; None if it does not say."""
        return None

    def sweep(self, record: Record) -> None:
        """Remove what a launch prepares before it makes a worker; called when the run's worker is gone."""

    def save(self, record: Record, grace: timedelta) -> None:
        """End the worker, and keep what its removal would lose: its output, and how it ended; repeatable."""

    def begin_end(self, record: Record) -> bool:
        """Ask the worker to end, and return at once; True if it was asked, and `terminate` leaves it its grace.

        By default nothing is asked: the engine's destroy does all of it.
        """
        return False

    def ended_of(self, record: Record) -> WorkerStatus | None:
        """How a worker that is gone ended, if the target or its archive still knows."""
        return None

    def discard(self, record: Record) -> None:
        """Remove what is still kept of a removed attempt's output; repeatable."""

    def facts(self, record: Record) -> Mapping[str, str]:
        """What `why` shows beyond status and last lines."""
        return {}

    def inherited(self) -> Collection[str]:
        """The names of the caller's variables that a worker gets."""
        return ()

    # ---- what runs share ----

    def shared(self, run: Run) -> Sequence[Shared]:
        """The objects that this run shares with others: of the template alone, made at first use."""
        return ()

    def shared_place(self) -> str:
        """Where shared objects of this launcher are; every launcher of that place finds the same ones."""
        return self.place()

    def reaches_shared(self, place: str) -> bool:
        """True if shared objects of that place can be removed from here; changes nothing."""
        return place == self.shared_place()

    def has_shared(self, record: SharedRecord) -> bool:
        """False where the target tells, at next to no cost, that a shared object is gone: then it is made again."""
        return True

    def sweep_shared(self, record: SharedRecord, *, data: bool) -> None:
        """Remove what the engine's state does not know of a shared object that goes; repeatable.

        What a durable one holds is removed where `data` says so, and else kept.
        """

    def data_of(self, record: SharedRecord) -> Data | None:
        """How much a durable object holds; None if the target cannot tell."""
        return None

    # ---- the life of a run ----

    def launch(
        self,
        run: Run,
        *,
        overrides: Mapping[str, object] | None = None,
        timeout: timedelta | None = None,
        break_lock: bool = False,
        wait_for_capacity: bool = False,
    ) -> Launched:
        """Start the run's worker once, or return the one that was started before.

        `overrides` are fields of the template that this run wants otherwise, nested as they are there (a target has a
        type for them, like ProcessOverrides); PolicyError tells what the template does not allow. Returns when the
        target has accepted the worker. Raises LaunchConflictError for an id that is taken, LaunchFailedError,
        TimeLimitError (60 s by default; nothing starts later), RunCancelledError if it is terminated meanwhile. After
        an error nothing is left but the record; the same call may be made again. `break_lock` is the caller's word that
        no other Pulumi command works on this run, where that cannot be proven. Where a limit of the configuration is
        reached, LimitReachedError is raised: at once, or, with `wait_for_capacity` or `when_full: wait`, when within
        the time limit there was no room.
        """
        from launchers.life import Launch  # noqa: PLC0415 - the procedure builds on this contract

        launcher = self.renew() if self.renew is not None else self
        launcher = launcher.overridden(overrides) if overrides else launcher
        limit, waits = timeout or self.workspace.launch_timeout, wait_for_capacity or self.workspace.limits.waits
        return Launch(launcher, run, limit, break_lock=break_lock, waits=waits).perform()

    def overridden(self, overrides: Mapping[str, object] | Sequence[str]) -> Self:
        """The launcher of the template with some fields as a run wants them: nested data, or "field=value" words.

        Raises PolicyError for what the template does not allow, UsageError for what is no field or no value of it.
        """
        from launchers.templates.overriding import changed, read_mapping, read_words  # noqa: PLC0415

        rules = self.rules or Rules(self.name, self.template)
        wanted = read_mapping(rules, overrides) if isinstance(overrides, Mapping) else read_words(rules, overrides)
        return self._with(changed(rules, wanted))

    def _with(self, template: LauncherTemplate) -> Self:
        """This launcher with another template of the same name."""
        other = copy.copy(self)
        other.template = template  # type: ignore[assignment] # changed() keeps the type
        other.renew = None
        return other

    def adopt(self, run_id: str) -> Launched:
        """Put right a launch that died half-way: its worker enters the state, and its handle comes back.

        Raises RunNotFoundError where there is no such run, or nothing of it to adopt.
        """
        from launchers.life import adopt  # noqa: PLC0415

        return adopt(self, self.record(run_id))

    def terminate(
        self,
        run: WorkerHandle | str,
        *,
        wait: bool = True,
        timeout: timedelta | None = None,
        break_lock: bool = False,
    ) -> Terminated:
        """End the run's worker gracefully, then by force, and remove everything that the run made.

        Repeatable. With `wait=False` the end is begun within 2 s, and finished by the next terminate or reconcile.
        Raises WrongPlaceError for a worker that lives elsewhere (the wish is recorded), and RunNotFoundError.
        Past the time limit (the template's grace and the engine's limit) it raises TimeLimitError, or StackLockedError
        where it could not begin. `break_lock` as in `launch`.
        """
        from launchers.life import Termination  # noqa: PLC0415

        limit = timeout or self.workspace.engine_timeout + self.template.grace
        return Termination(self, run, limit, break_lock=break_lock).perform(wait=wait)

    def abandon(self, run_id: str) -> Terminated:
        """Give up a run whose place is gone for good: forget its stack and write that down. It ends nothing.

        Raises UsageError for a run that can be asked from here.
        """
        from launchers.life import Termination  # noqa: PLC0415

        return Termination(self, run_id, self.workspace.engine_timeout).abandon()

    def clean(self, run_id: str) -> Terminated:
        """Remove a run that has ended, with all it made; raises UsageError while its worker lives."""
        from launchers.life import Termination  # noqa: PLC0415

        return Termination(self, run_id, self.workspace.engine_timeout).clean()

    def preview(self, run: Run) -> list[Change]:
        """What a launch would make, without an effect; but the engine is brought where there is none.

        Raises what a launch would refuse the run with before it makes anything.
        """
        self.admit(run)
        Room(self, run.id).check()
        backend = self.workspace.backend
        backend_id = backend.prove() or "made by the first launch"
        self.workspace.engine.prepare()
        return self.workspace.engine.preview(self.deployment(self.args(run, backend_id)), self.workspace.launch_timeout)

    def foresee(self, run: Run) -> Launched | None:
        """What a launch would answer where it starts nothing; None where it would start a worker. Changes nothing.

        Raises LaunchConflictError and LimitReachedError as the launch would.
        """
        from launchers.life import Launch  # noqa: PLC0415

        return Launch(self, run, self.workspace.launch_timeout).foresee()

    def eject(self, run: WorkerHandle | str, folder: Path) -> Ejected:
        """Write a folder in which a plain `pulumi` operates the run's stack; the run itself is not touched.

        `preview` and `up` change nothing there and never start a worker, `destroy` ends it. No secret is written.
        Raises RunNotFoundError where nothing is left of the run, LaunchConflictError while it is not launched, and
        UsageError for a folder that is not empty.
        """
        from launchers.eject import eject  # noqa: PLC0415

        return eject(self, self.record(run), folder)

    # ---- looking ----

    def record(self, run: WorkerHandle | str) -> Record:
        """The record of a run; raises RunNotFoundError."""
        run_id = run if isinstance(run, str) else run.run_id
        record = self.workspace.records.read(run_id)
        if record is None:
            message = f"no run {run_id!r} is known at {self.workspace.backend.location}"
            raise RunNotFoundError(message)
        return record

    def status(self, run: WorkerHandle | str) -> WorkerStatus:
        """How the worker is; never raises for absence."""
        return self.statuses([run])[0]

    def statuses(self, runs: Iterable[WorkerHandle | str]) -> list[WorkerStatus]:
        """How the workers are, in the order asked."""
        from launchers.looking import look  # noqa: PLC0415

        return look(self, list(runs))

    def status_of(self, record: Record) -> WorkerStatus:
        """How the worker of a record that was just read or written is."""
        from launchers.looking import look  # noqa: PLC0415

        return look(self, [record])[0]

    def wait(self, run: WorkerHandle | str, *, timeout: timedelta | None = None) -> WorkerStatus:
        """Wait until the worker has ended, is gone, or cannot be asked here; raises TimeLimitError."""
        deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
        pause = _POLL[0]
        while (status := self.status(run)).state in {WorkerState.STARTING, WorkerState.RUNNING}:
            if deadline is not None and time.monotonic() >= deadline:
                run_id = run if isinstance(run, str) else run.run_id
                message = f"run {run_id} is still {status.state} after {timeout}; it goes on"
                raise TimeLimitError(message)
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(pause * 1.3, _POLL[1])
        return status

    def why(self, run: WorkerHandle | str) -> Explanation:
        """Status, command, limits met, and the last lines that the worker printed."""
        record = self.record(run)
        lines: list[str] = []
        asks = self.may_ask(record)
        if isinstance(self, HasLogs) and asks:
            tail = b""
            for piece in self.logs(record):
                tail = (tail + piece)[-65536:]
            lines = tail.decode(errors="replace").splitlines()[-LAST_LINES:]
        status, facts = self.status(record.run_id), self.facts(record) if asks else {}
        return Explanation(record.run_id, record.attempt, status, record.command, facts, tuple(lines))

    def watch(self, cursor: str = "") -> Iterator[Event]:
        """Every worker of this backend in the launcher's place, and from then on each change of one; never ends.

        Each state is told at least once, those of one worker in their order. `cursor` is of the last event that was
        seen: what happened since then is told too, as far as the target still knows. Raises TargetAwayError.
        """
        from launchers.watching import watch  # noqa: PLC0415

        return watch(self)

    # ---- building ----

    def args(self, run: Run, backend_id: str, like: Record | None = None) -> ProgramArgs[T]:
        """The program's arguments; those of a launch that died half-way keep their folders."""
        digest = self.template.digest()
        folder, archive = self.workspace.backend.paths(stack_name(run.id, run.attempt))
        context = Context(
            backend=backend_id,
            template=self.name,
            digest=digest,
            fingerprint=fingerprints(run, digest)["all"],
            place=self.place(),
            folder=str(like.coordinates.get("folder", folder)) if like else str(folder),
            archive=(like.archive if like else None) or str(archive),
            cwd=like.cwd if like else str(Path.cwd()),
            owner=self.workspace.owner,
        )
        return ProgramArgs(template=self.template, run=run, context=context)

    def args_again(self, record: Record, backend_id: str) -> ProgramArgs[T]:
        """The arguments that a run was launched with, but for the values of its environment, which are kept nowhere."""
        from launchers.sharing import outputs_of  # noqa: PLC0415 - the procedure builds on this contract

        run = Run(id=record.run_id, command=record.command, tags=record.tags, attempt=record.attempt)
        args = self.args(run, backend_id, record)
        as_launched = {
            "template": record.template,
            "digest": record.digest,
            "fingerprint": record.fingerprints["all"],
            "place": record.place,
            "owner": record.owner,
            "shared": outputs_of(self.workspace, record),
        }
        return args.model_copy(update={"context": args.context.model_copy(update=as_launched)})

    def deployment(self, args: ProgramArgs[T]) -> Deployment:
        """What the engine performs for these arguments."""
        config, _ = args.to_config()
        return Deployment(
            stack=stack_name(args.run.id, args.run.attempt),
            program=lambda: self.program(args),
            config={ARGS_KEY: config},
            providers=self.providers(),
        )
