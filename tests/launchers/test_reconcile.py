"""Reconcile puts right what nobody waits for any more; the kernel and the files are asked, not our code."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from interrupted import interrupted_launch
from targets import ProcessRow, terminate_all

from launchers import Run, load_launcher
from launchers.factory import make_workspace
from launchers.launcher import RunLauncher
from launchers.overdue import Kind, Seen, Step, overdue
from launchers.reconcile import Action, Reconciler
from launchers.settings import Config, ReconcileSettings, RecordSettings
from launchers.testing.contract import written
from launchers.workspace import Workspace
from programs.args import Keep
from programs.process.template import ProcessTemplate
from stacks.engine import shard
from stacks.errors import RunNotFoundError, StackLockedError
from stacks.handle import WorkerState, WorkerStatus
from stacks.records import Phase, Record

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
AT_ONCE = {"succeeded": "0s", "failed": "0s"}
_HOLD = """
import datetime, pathlib, sys
from stacks.backend import Backend
from stacks.engine import stack_name
with Backend.at(pathlib.Path(sys.argv[1])).claims.hold(stack_name(sys.argv[2], 0), "launch", datetime.timedelta(0)):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def row(tmp_path: Path) -> Iterator[ProcessRow]:
    row = ProcessRow(tmp_path)
    yield row
    terminate_all(row.launcher())
    assert row.leftovers() == []
    row.close()


def reconciler(row: ProcessRow, **records: timedelta) -> Reconciler:
    config = Config(
        home=row.home,
        records=RecordSettings(**records),
        reconcile=ReconcileSettings(orphan_age=timedelta(0)),
    )
    return Reconciler(make_workspace(config))


def did(actions: Iterator[Action]) -> list[tuple[str, str]]:
    told = list(actions)
    assert [each.error for each in told] == [""] * len(told)
    return [(each.subject, each.what) for each in told]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_launch(row: ProcessRow, run: Run, moment: str) -> None:
    """A launcher that is killed once its worker is there, or as soon as the record says that it is wanted."""
    command = interrupted_launch(row, run, moment)
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def ended(row: ProcessRow, launcher: RunLauncher[ProcessTemplate], script: str = "exit 0") -> Run:
    run = row.run(script)
    launcher.wait(launcher.launch(run).handle)
    return run


# ---- launches and terminations whose command died ----


def test_a_worker_that_a_dead_launch_left_is_adopted(row: ProcessRow) -> None:
    lines = row.shared / "lines"
    run = row.run('echo once >>"$1"; sleep 600', str(lines))
    kill_launch(row, run, "worker")

    assert did(reconciler(row).once()) == [(run.id, "mended")]
    record = row.launcher().record(run.id)
    assert record.handle is not None
    assert row.alive(record.handle)
    assert written(lines) == "once\n"
    assert did(reconciler(row).once()) == []


def test_a_launch_that_died_before_its_worker_leaves_nothing_but_its_record(row: ProcessRow) -> None:
    run = row.run("sleep 600")
    kill_launch(row, run, "wanted")

    told = did(reconciler(row).once())

    status = row.launcher().status(run.id)
    assert told == [(run.id, "mended")]
    assert status.state in {WorkerState.FAILED, WorkerState.RUNNING}  # killed late, its worker was there
    if status.state is WorkerState.FAILED:
        assert "died" in status.message
        assert row.leftovers() == []
        assert row.stacks() == []


def test_a_launch_in_flight_is_left_alone(row: ProcessRow) -> None:
    run = row.run("sleep 600")
    seen: list[tuple[str, str]] = []
    with ThreadPoolExecutor() as threads:
        launch = threads.submit(row.launcher().launch, run)
        while not launch.done():
            seen += did(reconciler(row).once())
            seen += [(each.subject, each.what) for each in reconciler(row).once(dry_run=True)]

    assert seen == []
    assert row.alive(launch.result().handle)


def test_a_termination_that_died_is_finished(row: ProcessRow) -> None:
    launcher = row.launcher()
    handle = launcher.launch(row.run("sleep 600")).handle
    launcher.workspace.records.wish_end(launcher.record(handle), "somebody")

    assert did(reconciler(row).once()) == [(handle.run_id, "terminated")]
    assert not row.alive(handle)
    assert (row.stacks(), row.leftovers()) == ([], [])


# ---- limits ----


def test_a_finished_run_is_removed_with_its_output_when_its_keep_has_passed(row: ProcessRow) -> None:
    kept, past = ended(row, row.launcher()), ended(row, row.launcher(keep=AT_ONCE), "echo said; exit 3")

    assert did(reconciler(row).once()) == [(past.id, "removed")]
    status = row.launcher().status(past.id)
    assert (status.state, status.exit_code) == (WorkerState.FAILED, 3)
    assert [path.name for path in row.home.glob("runs/*/*")] == [kept.id]
    assert not list(row.home.glob("logs/*/*"))


def test_the_output_of_a_terminated_run_is_kept_as_long_and_then_discarded(row: ProcessRow) -> None:
    for keep in (AT_ONCE, {}):
        launcher = row.launcher(keep=keep)
        launcher.terminate(launcher.launch(row.run("echo said; sleep 600")).handle)
    past, kept = sorted(launcher.workspace.records.ids(), key=lambda name: launcher.record(name).wanted_at)
    assert len(list(row.home.glob("logs/*/*.log"))) == 2

    assert did(reconciler(row).once()) == [(past, "discarded")]
    assert [path.stem for path in row.home.glob("logs/*/*.log")] == [kept]
    assert did(reconciler(row).once()) == []


def test_a_worker_that_outlives_its_limit_is_ended_although_its_shim_sleeps(row: ProcessRow) -> None:
    launcher = row.launcher(max_runtime="10s", grace="0s")
    handle = launcher.launch(row.run("sleep 600")).handle
    (identity,) = row.home.glob("runs/*/*/worker.json")
    data = json.loads(identity.read_text())
    psutil.Process(data["shim"]["pid"]).suspend()
    identity.write_text(json.dumps({**data, "started_at": data["started_at"] - 60_000}))

    assert did(reconciler(row).once()) == [(handle.run_id, "ended")]
    status = row.launcher().status(handle)
    assert (status.state, status.reason) == (WorkerState.FAILED, "max_runtime")
    assert not row.alive(handle)


def test_a_run_whose_worker_somebody_removed_is_written_off(row: ProcessRow) -> None:
    launcher = row.launcher()
    handle = launcher.launch(row.run("sleep 600")).handle
    for found in launcher.find([launcher.record(handle)]):
        launcher.remove(found, timedelta(seconds=1))
    for path in row.home.glob("logs/*/*"):
        path.unlink()

    assert did(reconciler(row).once()) == [(handle.run_id, "written off")]
    assert (launcher.status(handle).reason, row.stacks()) == ("lost", [])


def test_records_are_forgotten_when_they_are_old(row: ProcessRow) -> None:
    launcher = row.launcher()
    live, gone = launcher.launch(row.run("sleep 600")).handle, launcher.launch(row.run("echo said")).handle
    launcher.terminate(gone)

    assert did(reconciler(row, keep=timedelta(0)).once()) == [(gone.run_id, "forgotten")]
    assert launcher.workspace.records.ids() == [live.run_id]
    assert not list(row.home.glob("logs/*/*"))
    with pytest.raises(RunNotFoundError):
        launcher.record(gone)


# ---- what no run owns ----


def test_a_worker_that_no_run_owns_is_ended_with_its_stack(row: ProcessRow) -> None:
    launcher = row.launcher()
    handle = launcher.launch(row.run("sleep 600")).handle
    launcher.workspace.records.delete(handle.run_id)

    assert did(reconciler(row).once()) == [(handle.run_id, "removed"), (f"stack {handle.run_id}", "removed")]
    assert not row.alive(handle)
    assert (row.stacks(), row.leftovers()) == ([], [])


def test_a_young_worker_that_no_run_owns_is_given_time(row: ProcessRow) -> None:
    launcher = row.launcher()
    handle = launcher.launch(row.run("sleep 600")).handle
    record = launcher.record(handle)
    launcher.workspace.records.delete(handle.run_id)
    (row.home / "state/.pulumi/stacks" / record.stack.project / f"{record.stack.stack}.json").unlink()

    assert did(Reconciler(make_workspace(Config(home=row.home))).once()) == []
    assert row.alive(handle)
    launcher.workspace.records.write(record)


def test_what_a_dead_owner_left_is_removed_and_what_a_live_one_holds_is_not(row: ProcessRow) -> None:
    ended(row, row.launcher())
    command = row.another_process(_HOLD, str(row.home))
    dead = subprocess.Popen([*command, "dead"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    live = subprocess.Popen([*command, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with dead, live:
        assert dead.stdout is not None
        assert live.stdout is not None
        assert (dead.stdout.readline(), live.stdout.readline()) == (b"held\n", b"held\n")
        dead.kill()
        dead.wait()
        for lease in row.home.glob("state/leases/*.json"):  # as they are after a minute without renewal
            data = json.loads(lease.read_text())
            lease.write_text(json.dumps({**data, "renewed_at": "2026-01-01T00:00:00+00:00"}))

        told = [each.subject for each in reconciler(row).once(dry_run=True)]
        assert [each.partition(" ")[0] for each in told] == ["claim", "lease"]
        assert did(reconciler(row).once()) == [("claim on dead", "removed")]
        assert [path.name for path in row.home.glob("state/claims/*/*") if path.is_file()] == ["live"]
        assert len(list(row.home.glob("state/leases/*.json"))) == 1
        live.stdin.close() if live.stdin else None
        assert live.wait() == 0


# ---- what is left alone ----


def test_a_dry_run_tells_and_changes_nothing(row: ProcessRow) -> None:
    past = ended(row, row.launcher(keep=AT_ONCE))
    launcher = row.launcher()
    orphan = launcher.launch(row.run("sleep 600")).handle
    record = launcher.record(orphan)
    launcher.workspace.records.delete(orphan.run_id)
    before = contents(row.home)

    told = list(reconciler(row).once(dry_run=True))

    assert {(each.subject, each.done) for each in told} >= {(past.id, False), (orphan.run_id, False)}
    assert contents(row.home) == before
    assert row.alive(orphan)
    launcher.workspace.records.write(record)


def test_the_runs_of_another_owner_are_left_alone(row: ProcessRow) -> None:
    config = Config(home=row.home)
    workspace = make_workspace(config)
    theirs = Workspace(workspace.backend, progress=print, owner="dagster-1")
    launcher = load_launcher(ProcessTemplate(keep=Keep.model_validate(AT_ONCE)), config=config, workspace=theirs)
    run = ended(row, launcher)

    assert did(reconciler(row).once()) == []
    assert did(Reconciler(theirs).once()) == [(run.id, "removed")]


def test_runs_of_another_place_are_left_alone(row: ProcessRow) -> None:
    launcher = row.launcher(keep=AT_ONCE)
    run = ended(row, launcher)
    record = launcher.record(run.id)
    assert record.handle is not None
    elsewhere = "host:0123456789abcdef/another-boot/1/0@etl-3"
    moved = record.changed(place=elsewhere, handle=record.handle.model_copy(update={"place": elsewhere}))
    launcher.workspace.records.write(moved)
    launcher.workspace.records.wish_end(moved, "somebody")

    assert did(reconciler(row).once()) == []
    assert "host etl-3" in launcher.status(run.id).message
    launcher.workspace.records.write(record)


def test_where_a_record_cannot_be_read_nothing_is_taken_for_a_stray(row: ProcessRow) -> None:
    launcher = row.launcher()
    handle = launcher.launch(row.run("sleep 600")).handle
    (path,) = row.home.glob("state/records/*/*.json")
    kept = path.read_text()
    path.write_text("")

    (told,) = reconciler(row).once()

    assert (told.what, told.done) == ("left alone", False)
    assert str(path.name) in told.error
    assert row.alive(handle)
    path.write_text(kept)


def test_a_run_that_cannot_be_put_right_keeps_no_other(row: ProcessRow) -> None:
    launcher = row.launcher(keep=AT_ONCE)
    bad, good = ended(row, launcher), ended(row, launcher)
    (folder,) = row.home.glob(f"runs/*/{bad.id}")
    folder.chmod(0o777)  # not ours alone any more: nothing in it can be trusted

    told = list(reconciler(row).once())

    assert {each.subject: bool(each.error) for each in told} == {bad.id: True, good.id: False}
    folder.chmod(0o700)


def test_several_at_once_do_each_thing_once(row: ProcessRow) -> None:
    launcher = row.launcher(keep=AT_ONCE)
    runs = {ended(row, launcher).id for _ in range(4)}
    with ThreadPoolExecutor(3) as threads:
        told = list(threads.map(lambda _: did(reconciler(row).once()), range(3)))

    assert sorted(subject for each in told for subject, _ in each) == sorted(runs)
    assert (row.stacks(), row.leftovers()) == ([], [])


def test_one_leads(row: ProcessRow) -> None:
    ended(row, row.launcher())
    with reconciler(row).lead(), pytest.raises(StackLockedError), reconciler(row).lead():
        raise AssertionError


def test_where_nothing_was_ever_launched_nothing_is_made(row: ProcessRow) -> None:
    assert did(reconciler(row).once()) == []
    assert not row.home.exists()


# ---- the command ----


def command(row: ProcessRow, *words: str) -> list[str]:
    return row.another_process("from launchers.cli import main; main()", *words)


def test_the_command_says_what_it_did_and_why(row: ProcessRow) -> None:
    run = ended(row, row.launcher(keep=AT_ONCE))

    done = subprocess.run(command(row, "reconcile", "-o", "json"), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    (action,) = json.loads(done.stdout)
    assert (action["subject"], action["what"], action["done"]) == (run.id, "removed", True)
    assert "kept for 0s" in action["why"]


def test_the_command_goes_on_watching_and_another_stands_by(row: ProcessRow) -> None:
    words = command(row, "reconcile", "--watch", "100ms", "-o", "json")
    first = ended(row, row.launcher(keep=AT_ONCE))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as leader:  # type: ignore[call-overload]
        assert json.loads(leader.stdout.readline())["subject"] == first.id
        with subprocess.Popen(words, **pipes) as second:  # type: ignore[call-overload]
            assert second.stderr.readline().startswith("standing by")
            run = ended(row, row.launcher(keep=AT_ONCE))
            assert json.loads(leader.stdout.readline())["subject"] == run.id
            leader.kill()
            run = ended(row, row.launcher(keep=AT_ONCE))
            assert json.loads(second.stdout.readline())["subject"] == run.id
            second.send_signal(signal.SIGINT)
            assert second.wait() == 130
    assert [path for path in row.home.glob("state/claims/*/*") if path.is_file()] == []


@pytest.mark.parametrize("words", [("ps",), ("launch", "--run-id", "new", "--", "true")])
def test_ps_and_launch_remove_one_run_that_is_past_its_keep(row: ProcessRow, words: tuple[str, ...]) -> None:
    launcher = row.launcher(keep=AT_ONCE)
    beside = [f"b{index}" for index in range(2000) if shard(f"b{index}") == shard("new")][:2]
    for name in beside:
        launcher.wait(launcher.launch(row.run("exit 0", run_id=name)).handle)

    subprocess.run(command(row, *words), check=True, capture_output=True)

    assert len([name for name in beside if launcher.record(name).removed is None]) == 1


# ---- the decision ----


def seen(state: WorkerState, minutes: float, *, phase: Phase = Phase.LAUNCHED, **template: object) -> Seen:
    then = NOW - timedelta(minutes=minutes)
    record = Record(
        run_id="r",
        attempt=0,
        phase=phase,
        target="process",
        template="t",
        digest="d",
        fingerprints={},
        command=("true",),
        place="p",
        wanted_at=then,
        launched_at=then,
    )
    over = then if state.ended else None
    status = WorkerStatus(state=state, started_at=then, ended_at=over)
    return Seen(record, status, None, ProcessTemplate.model_validate(template))


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        (seen(WorkerState.SUCCEEDED, 59), None),
        (seen(WorkerState.SUCCEEDED, 61), Kind.REMOVE),
        (seen(WorkerState.FAILED, 61), None),
        (seen(WorkerState.FAILED, 24 * 60 + 1), Kind.REMOVE),
        (seen(WorkerState.RUNNING, 10**6), None),
        (seen(WorkerState.RUNNING, 60, max_runtime="1h"), None),
        (seen(WorkerState.RUNNING, 61, max_runtime="1h"), Kind.END),
        (seen(WorkerState.STARTING, 1), None),
        (seen(WorkerState.STARTING, 2), Kind.END),
        (seen(WorkerState.NOT_FOUND, 0), Kind.WRITE_OFF),
        (seen(WorkerState.RUNNING, 0, phase=Phase.WANTED), Kind.MEND),
        (seen(WorkerState.NOT_FOUND, 0, phase=Phase.WANTED), Kind.MEND),
        (seen(WorkerState.FAILED, 60, phase=Phase.FAILED), None),
        (seen(WorkerState.FAILED, 91 * 24 * 60, phase=Phase.FAILED), Kind.FORGET),
    ],
)
def test_what_is_overdue(what: Seen, kind: Kind | None) -> None:
    step: Step | None = overdue(what, NOW, timedelta(days=90))

    assert (step.kind if step else None) == kind
