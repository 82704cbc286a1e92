"""The two procedures that change something: a launch and a termination.

Races, listed once:
- two launches of one id: the claim lets one in; the other finds the record and returns the same handle.
- terminate during a launch: the wish is a file of its own, so it is never lost; the launch reads it last.
- death anywhere: the record says `wanted` before anything is made and `launched` after, so the next command knows.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from launchers.limits import Room
from launchers.sharing import Sharing, with_outputs
from launchers.values import Found, Launched, Terminated
from programs.args import HANDLE_OUTPUT, ProgramArgs, Run, fingerprints
from stacks.engine import stack_name
from stacks.errors import (
    BackendError,
    EngineError,
    LaunchConflictError,
    LaunchFailedError,
    RunCancelledError,
    RunLauncherError,
    RunNotFoundError,
    StackLockedError,
    Started,
    TargetAwayError,
    TimeLimitError,
    UsageError,
    WrongPlaceError,
)
from stacks.handle import WorkerHandle, WorkerState, WorkerStatus
from stacks.records import TERMINATED, Attempt, Phase, Record, Removal, Wish

if TYPE_CHECKING:
    from launchers.launcher import RunLauncher
    from stacks.claims import Claim


@dataclass(frozen=True)
class Cause:
    """Why an attempt is ended: because somebody asked (`terminated`), or because of a limit or a loss (`account`).

    The account stands for the end of a worker that had not ended before.
    """

    terminated: bool
    account: WorkerStatus | None = None


@dataclass(frozen=True)
class Times:
    """What the end of an attempt may take: of the engine, and of the worker; the template says where this does not."""

    limit: timedelta | None = None
    grace: timedelta | None = None


_AS_EVER: Final = Times()
_LOOK_AGAIN: Final = timedelta(seconds=2)  # between two looks at a run that somebody else launches
_PATIENCE: Final = timedelta(seconds=3)
"""How long a launch that is cancelled gets to write down what it made; after that it is found without the state."""
ASKED: Final = Cause(terminated=True)
ENDED: Final = Cause(terminated=False)
_FORCE: Final = timedelta(seconds=5)  # that a target gets to end by force, after the grace, what it was asked to end


class Launch:
    """One call of `launch`."""

    def __init__(
        self,
        launcher: RunLauncher[Any],
        run: Run,
        timeout: timedelta,
        *,
        break_lock: bool = False,
        waits: bool = False,
    ) -> None:
        self._launcher = launcher
        self._workspace = launcher.workspace
        self._run = run
        self._room = Room(launcher, run.id)
        self._waits = waits
        self._stack = stack_name(run.id, run.attempt)
        self._digest = launcher.template.digest()
        self._prints = fingerprints(run, self._digest)
        self._timeout = timeout
        self._break_lock = break_lock
        self._deadline = 0.0

    def perform(self) -> Launched:
        """See RunLauncher.launch."""
        seen, held_by_others = self._glance()
        known = self._known(seen)
        if known is not None:
            return known
        self._launcher.admit(self._run, again=seen is not None and seen.fingerprints.get("all") == self._prints["all"])
        self._room.check()
        self._workspace.engine.prepare(self._launcher.providers())
        backend_id = self._workspace.backend.open()
        self._deadline = time.monotonic() + self._timeout.total_seconds()
        return self._room.patiently(
            lambda: self._begin(backend_id, held_by_others=held_by_others),
            self._left,
            waits=self._waits,
            looks_first=self._run.attempt > 0,
        )

    def _begin(self, backend_id: str, *, held_by_others: bool) -> Launched:
        """Launch under the run's claim."""
        with ExitStack() as held:
            claim: Claim | None = None
            while claim is None:
                claim = self._try_claim(held, seems_free=not held_by_others)
                held_by_others = True
                record = self._workspace.records.read(self._run.id)
                known = self._known(record)
                if known is not None:
                    return known
            if self._break_lock:
                self._workspace.engine.unlock(self._stack, claim, force=True)
            self._refuse_elsewhere(record)
            earlier: tuple[Attempt, ...] = ()
            if record is not None and record.attempt < self._run.attempt:
                earlier = (*record.earlier, self._retire(record))
                record = None
            return self._launch(claim, record, backend_id, earlier)

    def _glance(self) -> tuple[Record | None, bool]:
        """What is known of the run, and whether somebody works on it."""
        seen: list[Record | None] = []
        held: list[bool] = []
        self._workspace.backend.store.together(
            lambda: seen.append(self._workspace.records.read(self._run.id)),
            lambda: held.append(self._workspace.backend.claims.held(self._stack)),
        )
        return seen[0], held[0]

    def _try_claim(self, held: ExitStack, *, seems_free: bool) -> Claim | None:
        """The claim, or None after a while: many who wait for one launch see what came of it, and need no turn."""
        left = self._left()
        try:
            limit = min(left, _LOOK_AGAIN)
            claim = self._workspace.backend.claims.hold(self._stack, "launch", limit, seems_free=seems_free)
            return held.enter_context(claim)
        except StackLockedError:
            if left <= _LOOK_AGAIN:
                raise
        return None

    def foresee(self) -> Launched | None:
        """See RunLauncher.foresee."""
        record = self._workspace.records.read(self._run.id)
        known = self._known(record)
        if record is not None and record.attempt < self._run.attempt and record.removed is None:
            self._refuse_unended(record)
        if known is None:
            self._room.check()
            self._room.look()
        return known

    def _known(self, record: Record | None) -> Launched | None:
        """The answer for a run that was launched before; None where there is something to launch."""
        if record is None or record.attempt < self._run.attempt:
            self._refuse_gap(record)
            return None
        if record.attempt > self._run.attempt:
            message = f"run {record.run_id} is at attempt {record.attempt} already"
            raise LaunchConflictError(message, started=Started.YES)
        if record.phase is Phase.FAILED:
            return None  # nothing of it ever ran, so it may be launched again, corrected
        if self._prints["all"] != record.fingerprints["all"]:
            raise LaunchConflictError(self._differs(record), started=Started.YES)
        over = record.removed is not None and record.removed.terminated
        if over or self._workspace.records.wish(record.stack) is not None:
            again = f"launch it again as attempt {record.attempt + 1}, or under another id"
            message = f"run {record.run_id} was terminated: {again}"
            raise LaunchConflictError(message, started=Started.UNKNOWN)
        if record.handle is not None:
            return Launched(record.handle, created=False, status=self._launcher.status(record.run_id))
        return None

    def _refuse_elsewhere(self, record: Record | None) -> None:
        """Refuse to go on with a launch that died where this launcher cannot see what it had made by then."""
        if record is not None and record.phase is Phase.WANTED and not self._launcher.reaches(record.place):
            raise WrongPlaceError(_died_elsewhere(self._launcher, record), started=Started.UNKNOWN)

    def _refuse_gap(self, record: Record | None) -> None:
        if record is not None and self._run.attempt > record.attempt + 1:
            message = f"run {record.run_id} is at attempt {record.attempt}: the next one is {record.attempt + 1}"
            raise LaunchConflictError(message)

    def _differs(self, record: Record) -> str:
        names = {"command": "its command", "env": "its environment", "template": "its template"}
        parts = [names[part] for part in names if record.fingerprints.get(part) != self._prints[part]]
        return (
            f"run {record.run_id} was launched before with something else (differs: {', '.join(parts)}): "
            "use another id, or the next attempt once it has ended"
        )

    def _left(self) -> timedelta:
        return timedelta(seconds=max(0.0, self._deadline - time.monotonic()))

    def _retire(self, record: Record) -> Attempt:
        """Prove that the attempt before has ended, and remove what it left; returns what is kept of it."""
        with self._workspace.backend.claims.hold(record.stack, "launch of the next attempt", self._left()) as claim:
            current = self._workspace.records.read(record.run_id) or record
            if current.removed is None:
                self._refuse_unended(record)
                current = end(self._launcher, current, claim, ENDED)
            return Attempt(
                attempt=current.attempt,
                handle=current.handle,
                ended=current.ended,
                removed=current.removed,
                archive=current.archive,
            )

    def _refuse_unended(self, record: Record) -> None:
        status = self._launcher.status(record.run_id)
        if not status.state.ended and status.state is not WorkerState.NOT_FOUND:
            message = (
                f"attempt {record.attempt} of run {record.run_id} is {status.state}: it must have ended before "
                f"attempt {self._run.attempt} starts; terminate it first"
            )
            raise LaunchConflictError(message, started=Started.YES)

    def _launch(
        self, claim: Claim, half_made: Record | None, backend_id: str, earlier: tuple[Attempt, ...]
    ) -> Launched:
        like = half_made if half_made is not None and half_made.phase is Phase.WANTED else None
        args = self._launcher.args(self._run, backend_id, like)
        sharing = Sharing.of(self._launcher, self._run, backend_id, self._left)
        record = self._wanted(args, earlier or (half_made.earlier if half_made else ())).changed(shared=sharing.uses)
        is_begun = False
        try:
            with self._room.taken(self._left):
                self._workspace.records.write_first(record, self._launcher.template.canonical())
                is_begun = True
            record, args = sharing.provide(record, args)
            args = self._launcher.prepared(args, self._left())
            handle = enter(self._launcher, args, record, claim, self._left(), half_made=like is not None)
            launched = record.changed(phase=Phase.LAUNCHED, launched_at=datetime.now(UTC), handle=handle)
            wish = self._workspace.records.write_and_see(launched)
        except BaseException as error:
            # Interrupted while it was written, the record may be there.
            if is_begun or not isinstance(error, Exception):
                self._undo(record, claim, error)
            raise
        self._refuse_late(launched, wish, claim)
        return Launched(handle, created=True, status=self._launcher.status_of(launched))

    def _wanted(self, args: ProgramArgs[Any], earlier: tuple[Attempt, ...]) -> Record:
        run = self._run
        return Record(
            run_id=run.id,
            attempt=run.attempt,
            phase=Phase.WANTED,
            target=self._launcher.target,
            template=self._launcher.name,
            digest=self._digest,
            fingerprints=self._prints,
            command=run.command,
            env_names=tuple(sorted(run.env)),
            tags=run.tags,
            place=args.context.place,
            coordinates=dict(self._launcher.coordinates(args)),
            cwd=args.context.cwd,
            archive=args.context.archive,
            owner=self._workspace.owner,
            wanted_at=datetime.now(UTC),
            earlier=earlier,
        )

    def _refuse_late(self, record: Record, wish: Wish | None, claim: Claim) -> None:
        """End the worker again where somebody asked for it meanwhile, or the time has passed: nothing starts late."""
        if wish is not None:
            end(self._launcher, record, claim, ASKED)
            message = f"run {record.run_id} was terminated by {wish.by} while it was launched; its worker is gone"
            raise RunCancelledError(message, started=Started.YES)
        if time.monotonic() > self._deadline:
            end(self._launcher, record, claim, ASKED)
            message = (
                f"run {record.run_id} was not launched within {self._timeout.total_seconds():g} s; its worker is gone"
            )
            raise TimeLimitError(message, started=Started.YES)

    def _undo(self, record: Record, claim: Claim, error: BaseException) -> None:
        """Leave nothing of a failed launch but its record; raises the error in the caller's words."""
        wish = None
        with suppress(BackendError):  # a backend that is away keeps nobody from ending what was started here
            wish = self._workspace.records.wish(record.stack)
        failed = self._in_words(record, error, wish is not None)
        try:
            objects, left = dismantle(self._launcher, record, claim)
            started = Started.YES if objects else Started.NO
        except (RunLauncherError, OSError):
            left, started = 1, Started.UNKNOWN  # the record still says `wanted`: the next command goes on here
        if isinstance(failed, RunLauncherError) and not isinstance(failed, LaunchFailedError):
            failed.started = started
        if left == 0:
            self._launcher.discard(record)
            removed = Removal(at=datetime.now(UTC), objects=0) if wish is not None else None
            phase, account = (Phase.FAILED if wish is None else Phase.REMOVED), (str(failed) or "interrupted")
            self._workspace.records.write(record.changed(phase=phase, error=account, removed=removed))
            self._workspace.records.grant(record.stack)
        if failed is not error:
            raise failed from error

    def _in_words(self, record: Record, error: BaseException, wished: bool) -> BaseException:  # noqa: FBT001
        if wished and isinstance(error, EngineError):
            return RunCancelledError(f"run {record.run_id} was terminated while it was launched")
        if isinstance(error, TimeLimitError):
            message = (
                f"run {record.run_id} was not launched within {self._timeout.total_seconds():g} s; nothing was left"
            )
            return TimeLimitError(message, details=error.details)
        if isinstance(error, EngineError) and not isinstance(error, StackLockedError):
            account = self._launcher.failure(error.details)
            if account is not None:
                return LaunchFailedError(account, details=error.details)
        return error


class Termination:
    """One call of `terminate`, or of `clean`."""

    def __init__(
        self,
        launcher: RunLauncher[Any],
        run: WorkerHandle | str,
        timeout: timedelta,
        *,
        break_lock: bool = False,
    ) -> None:
        self._launcher = launcher
        self._workspace = launcher.workspace
        self._asked = run
        self._deadline = time.monotonic() + timeout.total_seconds()
        self._break_lock = break_lock

    def perform(self, *, wait: bool) -> Terminated:
        """See RunLauncher.terminate."""
        record = self._record()
        if record.removed is not None or self._is_earlier(record) or self._is_nothing(record):
            return _told(record, self._launcher.status(self._asked), objects=0)
        if wait:
            self._workspace.engine.prepare()
        else:
            self._workspace.backend.prove()
        self._wish(record)
        if not self._reaches(record):
            message = (
                f"the worker of run {record.run_id} lives on {self._launcher.where(record.place)}; the wish to end it "
                "is recorded, and `run-launcher reconcile` or any other command on this run carries it out there"
            )
            raise WrongPlaceError(message, started=Started.YES)
        if record.phase is Phase.WANTED:
            self._cancel_launch(record, _PATIENCE if wait else timedelta(0))
        asked = self._launcher.begin_end(record)
        if not wait:
            return _told(record, self._launcher.status(record.run_id), objects=0, done=False)
        if asked:
            self._watch_end()
        with self._workspace.backend.claims.hold(record.stack, "terminate", self._left()) as claim:
            if self._is_current(record):
                if self._break_lock:
                    self._workspace.engine.unlock(record.stack, claim, force=True)
                return self._end(claim, record, ASKED, timedelta(0) if asked else None)
            self._workspace.records.grant(record.stack)
        return self.perform(wait=wait)

    def abandon(self) -> Terminated:
        """See RunLauncher.abandon."""
        record = self._record()
        self._workspace.engine.prepare()
        with self._workspace.backend.claims.hold(record.stack, "abandon", self._left()) as claim:
            record = self._workspace.records.read(record.run_id) or record
            if record.removed is not None or self._launcher.reaches(record.place):
                message = f"run {record.run_id} can be asked and ended here: terminate it instead"
                raise UsageError(message, started=Started.UNKNOWN)
            self._workspace.engine.remove(record.stack, claim)
            account = f"given up by {self._workspace.caller}: nobody reaches {self._launcher.where(record.place)}"
            ended = WorkerStatus(state=WorkerState.FAILED, reason="abandoned", message=account)
            removed = Removal(at=datetime.now(UTC), objects=0, left=0, terminated=True)
            self._workspace.records.write(record.changed(phase=Phase.REMOVED, ended=ended, removed=removed))
            self._workspace.records.grant(record.stack)
            return _told(record, ended, objects=0)

    def clean(self) -> Terminated:
        """See RunLauncher.clean."""
        record = self._record()
        self._workspace.engine.prepare()
        with self._workspace.backend.claims.hold(record.stack, "clean", self._left()) as claim:
            if not self._is_current(record):
                message = f"the next attempt of run {record.run_id} was launched meanwhile: terminate it instead"
                raise UsageError(message, started=Started.YES)
            status = self._launcher.status(record.run_id)
            if not status.state.ended and status.state is not WorkerState.NOT_FOUND:
                message = f"run {record.run_id} is {status.state}: terminate it instead"
                raise UsageError(message, started=Started.YES)
            return self._end(claim, record, ENDED)

    def _watch_end(self) -> None:
        """Let the grace pass without a claim and without an engine at work, so that who interrupts it leaves at once.

        A worker that does not end is ended by force below.
        """
        with suppress(TimeLimitError):
            self._launcher.wait(self._asked, timeout=min(self._left(), self._launcher.template.grace + _FORCE))

    def _left(self) -> timedelta:
        return timedelta(seconds=max(0.0, self._deadline - time.monotonic()))

    def _record(self) -> Record:
        try:
            return self._launcher.record(self._asked)
        except RunNotFoundError:
            if isinstance(self._asked, str):
                raise
            return record_of(self._asked)  # the handle is all it takes

    def _reaches(self, record: Record) -> bool:
        """True if the worker can be ended from here; a target that does not answer is told of with the wish."""
        try:
            return self._launcher.reaches(record.place)
        except TargetAwayError as error:
            message = (
                f"{error}; the wish to end run {record.run_id} is recorded, and `run-launcher reconcile` or any other "
                "command on this run carries it out once it does"
            )
            raise TargetAwayError(message, started=Started.UNKNOWN, details=error.details) from error

    def _is_nothing(self, record: Record) -> bool:
        """True of a failed launch in another place: it left nothing, or its own launcher says so there."""
        return record.phase is Phase.FAILED and not self._launcher.reaches(record.place)

    def _is_earlier(self, record: Record) -> bool:
        return isinstance(self._asked, WorkerHandle) and self._asked.attempt < record.attempt

    def _wish(self, record: Record) -> None:
        """Write the wish down; where it cannot be, the worker is asked to end: it may be what fills the disk."""
        try:
            self._workspace.records.wish_end(record, self._workspace.caller)
        except OSError:
            if self._launcher.reaches(record.place):
                self._launcher.begin_end(record)
            raise

    def _is_current(self, asked: Record) -> bool:
        """False if the next attempt was launched before the claim of this one was free; it has a claim of its own."""
        record = self._workspace.records.read(asked.run_id)
        return record is None or record.attempt == asked.attempt

    def _cancel_launch(self, record: Record, patience: timedelta) -> None:
        holder = self._workspace.backend.claims.holder(record.stack)
        if holder is not None and str(holder.get("what", "")).startswith("launch"):
            self._workspace.engine.cancel(record.stack, patience)

    def _end(self, claim: Claim, asked: Record, cause: Cause, grace: timedelta | None = None) -> Terminated:
        record = self._workspace.records.read(asked.run_id) or asked
        if record.removed is not None:
            self._workspace.records.grant(record.stack)
            return _told(record, self._launcher.status(record.run_id), objects=record.removed.objects)
        ended = end(self._launcher, record, claim, cause, Times(self._left(), grace))
        status = ended.ended or WorkerStatus(state=WorkerState.NOT_FOUND)
        return _told(ended, status, objects=ended.removed.objects if ended.removed else 0)


def enter(  # noqa: PLR0913 - each is a thing of its own
    launcher: RunLauncher[Any],
    args: ProgramArgs[Any],
    record: Record,
    claim: Claim,
    timeout: timedelta,
    *,
    half_made: bool,
) -> WorkerHandle:
    """Make the worker, or bring the one that a dead launch left into the state; returns its handle.

    A provider that outlived its engine may make it only now: then its name is taken, and it is looked for again.
    """
    engine, deadline = launcher.workspace.engine, time.monotonic() + timeout.total_seconds()
    looks = half_made
    while True:
        known = _started(launcher, record) if looks else None
        if looks and known is None and not launcher.create_takes_over:
            dismantle(launcher, record, claim)  # what was made for it, or of it, would be in the way
        left = timedelta(seconds=max(0.0, deadline - time.monotonic()))
        if known is not None and not launcher.create_takes_over:
            return _take_over(launcher, args, known, claim, left)
        try:
            return WorkerHandle.model_validate(engine.up(launcher.deployment(args), claim, left)[HANDLE_OUTPUT])
        except EngineError as error:
            if not launcher.is_taken(error.details) or not any(launcher.find([record])):
                raise
        looks = True


def _started(launcher: RunLauncher[Any], record: Record) -> Found | None:
    """The worker that a launch left, unless it was made and never started."""
    found = next(iter(launcher.find([record])), None)
    return None if found is None or launcher.is_idle(found) else found


def _take_over(
    launcher: RunLauncher[Any], args: ProgramArgs[Any], known: Found, claim: Claim, left: timedelta
) -> WorkerHandle:
    outputs = {HANDLE_OUTPUT: known.handle.model_dump(mode="json")}
    deployment, adoptions = launcher.deployment(args), launcher.adoptions(args, known)
    launcher.workspace.engine.adopt(deployment, adoptions, outputs, claim, left)
    return known.handle


def adopt(launcher: RunLauncher[Any], record: Record) -> Launched:
    """Bring a worker that a dead launch left into the state; see RunLauncher.adopt."""
    workspace = launcher.workspace
    if record.handle is None and not launcher.reaches(record.place):
        raise WrongPlaceError(_died_elsewhere(launcher, record), started=Started.UNKNOWN)
    workspace.engine.prepare()
    workspace.backend.open()
    with workspace.backend.claims.hold(record.stack, "adopt", workspace.engine_timeout) as claim:
        record = workspace.records.read(record.run_id) or record
        if record.handle is not None:
            return Launched(record.handle, created=False, status=launcher.status(record.run_id))
        return adopt_under(launcher, record, claim)


def _died_elsewhere(launcher: RunLauncher[Any], record: Record) -> str:
    return (
        f"a launch of run {record.run_id} died on {launcher.where(record.place)}, and its worker may live there: "
        "launch it again there, or have `run-launcher reconcile` put it right there"
    )


def adopt_under(launcher: RunLauncher[Any], record: Record, claim: Claim) -> Launched:
    """Bring the worker of a half-made launch into the state and write its handle down; raises RunNotFoundError.

    Nothing is started here: the values of the run's environment are kept nowhere.
    """
    workspace, limit = launcher.workspace, launcher.workspace.engine_timeout
    found = _started(launcher, record)
    if found is None:
        message = f"run {record.run_id} has no worker to adopt"
        raise RunNotFoundError(message)
    args = launcher.args_again(record, workspace.backend.open())
    if launcher.create_takes_over:
        handle = enter(launcher, args, record, claim, limit, half_made=True)
    else:
        handle = _take_over(launcher, args, found, claim, limit)
    launched = record.changed(phase=Phase.LAUNCHED, launched_at=datetime.now(UTC), handle=handle)
    workspace.records.write(with_outputs(launched, args.context.shared))
    return Launched(handle, created=False, status=found.status)


def end(
    launcher: RunLauncher[Any],
    record: Record,
    claim: Claim,
    cause: Cause,
    times: Times = _AS_EVER,
) -> Record:
    """End and remove everything of an attempt, and write down how it ended; returns the new record."""
    before, wish = launcher.status_of(record), launcher.workspace.records.wish(record.stack)
    objects, left = dismantle(launcher, record, claim, times)
    ended = before if before.state.ended else _account(launcher.ended_of(record), cause)
    if ended is None and record.handle is not None:
        ended = Wish.of(record, launcher.workspace.caller).account(WorkerStatus(state=WorkerState.FAILED))
    if left:
        message = f"{left} objects of run {record.run_id} do not end; terminate it again"
        raise EngineError(message, started=Started.YES)
    asked = wish is not None and not launcher.tells_why_it_ended and wish.accounts_for(before)
    by_itself = before.state.ended and before.reason != TERMINATED and not asked
    removed = Removal(at=datetime.now(UTC), objects=objects, left=left, terminated=cause.terminated and not by_itself)
    record = record.changed(phase=Phase.REMOVED, ended=ended, removed=removed)
    launcher.workspace.records.write(record)
    launcher.workspace.records.grant(record.stack)
    return record


def _account(told: WorkerStatus | None, cause: Cause) -> WorkerStatus | None:
    if cause.account is None:
        return told
    account = cause.account.model_dump(include={"state", "reason", "message"})
    return (told or cause.account).model_copy(update=account)


def dismantle(
    launcher: RunLauncher[Any],
    record: Record,
    claim: Claim,
    times: Times = _AS_EVER,
) -> tuple[int, int]:
    """Keep what would be lost, destroy the stack, end what the target still knows of the attempt, forget the stack.

    Returns how many objects were removed and how many are left. Needs no state: a stack that cannot be destroyed is
    tried again once its worker is gone.
    """
    engine, stack = launcher.workspace.engine, record.stack
    limit = launcher.workspace.engine_timeout if times.limit is None else times.limit
    grace = launcher.template.grace if times.grace is None else times.grace
    objects, failed = 0, False
    launcher.save(record, grace)
    try:
        objects = engine.destroy(stack, claim, launcher.providers(), limit)
    except StackLockedError:
        raise
    except EngineError:
        failed = True
    for found in _ours(launcher, record):
        launcher.remove(found, grace)
        objects = max(objects, 1)
    launcher.sweep(record)
    left = len(_ours(launcher, record))
    if failed:
        objects = max(objects, engine.destroy(stack, claim, launcher.providers(), limit))
    if left == 0:
        engine.remove(stack, claim)
    return objects, left


def _ours(launcher: RunLauncher[Any], record: Record) -> list[Found]:
    """The target's workers of exactly this attempt: the whole id is compared."""
    mine = (record.run_id, record.attempt)
    return [found for found in launcher.find([record]) if (found.handle.run_id, found.handle.attempt) == mine]


def record_of(handle: WorkerHandle) -> Record:
    """What a handle alone tells of its run, for a backend that has no record of it."""
    return Record(
        run_id=handle.run_id,
        attempt=handle.attempt,
        phase=Phase.LAUNCHED,
        target=handle.target,
        template=handle.template,
        digest=handle.digest,
        fingerprints={"all": handle.fingerprint},
        command=(),
        place=handle.place,
        coordinates=handle.coordinates,
        wanted_at=datetime.now(UTC),
        handle=handle,
    )


def _told(record: Record, status: WorkerStatus, *, objects: int, done: bool = True) -> Terminated:
    left = 0 if done else 1
    return Terminated(record.run_id, record.attempt, status, objects, left, done=done)
