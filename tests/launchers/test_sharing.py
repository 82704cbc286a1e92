"""What runs share is made once, is there as long as one of them needs it, and goes when none does.

Asked of the kernel, the files and the workers themselves; makings are counted by Python's account of a process.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hosts import Host, needs_hosts
from sharing_bench import PROGRAM, SharingBench, shared_home
from targets import take_engine, terminate_all

from launchers.launcher import HasLogs, RunLauncher
from launchers.process import ProcessLauncher
from launchers.reconcile import Reconciler
from launchers.retiring import Doing, durable_of, overdue, retire
from launchers.shared import Shared
from launchers.testing.contract import eventually, written
from launchers.token_bucket import TokenBucket
from programs.args import Run
from programs.process.template import ProcessTemplate
from stacks.engine import StackName, shared_stack, stack_name
from stacks.errors import LaunchFailedError, RunCancelledError, TimeLimitError, UsageError
from stacks.handle import WorkerState
from stacks.records import Phase, Record, Removal, SharedUse
from stacks.shared_records import SharedKind, SharedPhase, SharedRecord

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
SHOWS = 'cat "$RUN_LAUNCHER_FILES/f"; sleep 600'
APPENDS = 'echo "$RUN_LAUNCHER_RUN_ID" >>"$RUN_LAUNCHER_SHARED_FOLDER/lines"; sleep 600'
REMOVES = "locks/organization/shared-"
READS = r"after open .*/state/shared/[0-9a-f]{2}/"


@pytest.fixture(params=["cli", "warm"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SharingBench]:
    with shared_home(tmp_path, take_engine(request, request.param)) as bench:
        yield bench


@pytest.fixture
def warm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SharingBench]:
    with shared_home(tmp_path, take_engine(request, "warm")) as bench:
        yield bench


def said(launcher: RunLauncher[Any], run: Run) -> str:
    """What a worker has printed, once it has printed something."""
    assert isinstance(launcher, HasLogs)
    logs = launcher.logs
    assert eventually(lambda: b"".join(logs(launcher.record(run.id))) != b"")
    return b"".join(logs(launcher.record(run.id))).decode()


def launched(bench: SharingBench, script: str = SHOWS, **template: object) -> tuple[RunLauncher[Any], Run]:
    launcher, run = bench.launcher(**template), bench.row.run(script)
    launcher.launch(run)
    return launcher, run


# ---- use ----


def test_runs_with_the_same_files_share_one_folder_that_is_made_once(bench: SharingBench) -> None:
    files = {"f": "some téxt\n", "queries/a b.sql": "select 1"}
    launcher, first = launched(bench, files=files)
    before = bench.content().stat()
    _, second = launched(bench, files=files, max_runtime="1h")
    _, other = launched(bench, files={"f": "another text"})

    texts = [said(launcher, run) for run in (first, second, other)]

    folder = next(path for path in bench.row.home.glob("shared/*/content") if (path / "queries").exists())
    assert texts == ["some téxt\n", "some téxt\n", "another text"]
    assert (folder / "queries" / "a b.sql").read_text() == "select 1"
    assert (folder.stat().st_ino, folder.stat().st_ctime_ns) == (before.st_ino, before.st_ctime_ns)
    assert bench.folders() == ["process.files", "process.files"]
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert (modes, folder.stat().st_mode & 0o777) == ({0o400}, 0o500)


def test_a_worker_finds_no_folders_that_its_template_does_not_name(
    warm: SharingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_LAUNCHER_FILES", "/of/an/outer/worker")
    launcher, run = launched(warm, 'echo "[$RUN_LAUNCHER_FILES$RUN_LAUNCHER_SHARED_FOLDER]"; sleep 600', files={})

    assert said(launcher, run) == "[]\n"
    assert warm.folders() == []


def test_of_many_threads_that_need_one_object_one_contends_for_its_claim(warm: SharingBench) -> None:
    code, told = warm.run("launch", warm.template(), *(f"r{number}" for number in range(20)))

    assert code == 0
    assert [each.get("code") for each in told] == [0] * 20, told
    assert (warm.makings(), warm.watched("fcntl.flock")) == (1, 1)


@needs_hosts
@pytest.mark.timeout(900)
def test_launched_fifty_times_at_once_on_two_hosts_it_is_made_once(warm: SharingBench) -> None:
    """Pid namespaces and networks of their own; home and backend are the same."""
    hosts = [Host(name, warm.settings) for name in ("etl-1", "etl-2")]
    template = warm.template()
    try:
        programs = [
            host.python(PROGRAM, "launch", template, *(f"{host.name}-{part}-{number}" for number in numbers))
            for host in hosts
            for part, numbers in (("a", range(12)), ("b", range(13)))
        ]
        told = [line for process in programs for line in warm.ended(process)[1]]
        for host in hosts:
            for run in host.json("ps"):
                host.run("terminate", run["run_id"])
    finally:
        for host in hosts:
            host.halt()

    assert [each for each in told if each.get("code") != 0] == []
    assert len({each["said"] for each in told}) == 1  # the same inode, the same moment, the same text
    assert (len(told), warm.makings(), warm.folders()) == (50, 1, ["process.files"])


def test_a_run_that_ended_is_answered_for_without_what_it_shared(warm: SharingBench) -> None:
    launcher, run = launched(warm, "exit 0")
    launcher.wait(run.id)
    again = launcher.launch(run)

    assert not again.created
    assert [use.name for use in launcher.record(run.id).shared] == ["files"]


def test_a_launch_that_died_and_is_gone_on_with_ends_in_the_same_context(warm: SharingBench) -> None:
    template = warm.template()
    code, _ = warm.run("launch", template, "r", kill=r"1:os\.rename .*/runs/.*/handover$")
    launcher = warm.launcher()
    died = launcher.record("r")

    code_again, told = warm.run("launch", template, "r")

    record = launcher.record("r")
    assert (code, code_again, died.phase) == (-signal.SIGKILL, 0, Phase.WANTED)
    assert [use.stack for use in record.shared] == [use.stack for use in died.shared]
    assert record.shared[0].outputs == {"path": str(warm.content())}
    assert told[0]["said"].endswith("text")
    assert warm.makings() == 1


def test_a_worker_that_is_adopted_keeps_what_it_was_launched_with(warm: SharingBench) -> None:
    launcher, run = launched(warm)
    record = launcher.record(run.id)
    bare = tuple(SharedUse(name=use.name, stack=use.stack) for use in record.shared)
    launcher.workspace.records.write(record.changed(phase=Phase.WANTED, handle=None, shared=bare))

    launcher.adopt(run.id)

    assert launcher.record(run.id).shared == record.shared
    assert launcher.args_again(launcher.record(run.id), "b").context.shared == {"files": {"path": str(warm.content())}}


def test_what_somebody_removed_by_hand_is_made_again(bench: SharingBench) -> None:
    launcher, run = launched(bench, shared_folder=True)
    for name in ("files", "folder"):
        path = bench.content(name)
        path.chmod(0o700)
        shutil.rmtree(path if name == "files" else path.parent)

    launcher, again = launched(bench, f'test -d "$RUN_LAUNCHER_SHARED_FOLDER" && {SHOWS}', shared_folder=True)

    assert said(launcher, again) == "text"
    for each in (run, again):
        launcher.terminate(each.id)
    retire(launcher.workspace, "process")


def test_a_preview_makes_nothing_of_what_is_shared(warm: SharingBench) -> None:
    launcher = warm.launcher(shared_folder=True)
    changes = launcher.preview(warm.row.run("true"))

    assert {change.operation for change in changes} == {"create"}
    assert not (warm.row.home / "shared").exists()


@pytest.mark.parametrize("server", ["s3", "postgres"])
def test_where_files_cannot_be_locked_it_is_made_once_too(
    request: pytest.FixtureRequest, tmp_path: Path, server: str
) -> None:
    take_engine(request, "warm")
    bench = SharingBench(tmp_path, "warm", request.getfixturevalue(f"{server}_place"))
    template = bench.template()
    with bench.begin("launch", template, *"abcd") as one, bench.begin("launch", template, *"efgh") as two:
        told = [line for process in (one, two) for line in bench.ended(process)[1]]
    bench.clean()

    assert [each.get("code") for each in told] == [0] * 8, told
    assert (len({each["said"] for each in told}), bench.makings()) == (1, 1)
    assert (bench.left(), bench.folders()) == ([], [])


# ---- removal ----


def test_what_no_run_uses_is_marked_and_then_removed(bench: SharingBench) -> None:
    launcher, run = launched(bench)
    used = bench.reconcile()
    launcher.terminate(run.id)
    shown = [(each.what, each.done) for each in Reconciler(launcher_at_once(bench).workspace).once(dry_run=True)]

    assert used == []
    assert shown == [("marked", False)]
    assert bench.reconcile() == [("shared process.files", "marked")]
    assert bench.folders() == ["process.files"]
    assert bench.reconcile() == [("shared process.files", "removed")]
    assert (bench.folders(), bench.records(), bench.row.stacks()) == ([], [], [])
    assert bench.reconcile() == []


def launcher_at_once(bench: SharingBench) -> RunLauncher[Any]:
    from launchers import load_launcher  # noqa: PLC0415

    return load_launcher(bench.launcher().template, config=bench.config())


def test_a_launch_takes_the_mark_back(bench: SharingBench) -> None:
    launcher, run = launched(bench)
    launcher.terminate(run.id)
    inode = bench.content().stat().st_ino
    assert bench.reconcile() == [("shared process.files", "marked")]

    launcher, run = launched(bench)

    assert said(launcher, run) == "text"
    assert bench.reconcile() == []
    assert bench.content().stat().st_ino == inode


def test_a_launch_that_has_read_what_is_there_does_not_lose_it(warm: SharingBench) -> None:
    """It stands still once it has read the object's record, while reconcile does its passes."""
    launcher, run = launched(warm)
    launcher.terminate(run.id)
    with warm.paused("launch", warm.template(), "late", at=READS) as launch:
        passes = [action for _ in range(4) for action in warm.reconcile()]
        warm.gate.touch()
        _, told = warm.ended(launch)

    assert told[0]["said"].endswith("text"), (told, passes)
    assert ("shared process.files", "removed") not in passes


def test_a_removal_looks_for_runs_once_more_after_the_mark(warm: SharingBench) -> None:
    """It stands still with its list; meanwhile a run is launched, and a slower reconcile than it writes a mark."""
    launcher, run = launched(warm)
    launcher.terminate(run.id)
    until = warm.folder / "until"
    until.touch()
    with warm.paused("reconcile", str(until), at=READS.removeprefix("after ")) as removal:
        launcher, run = launched(warm)
        records = launcher.workspace.shared_records
        (record,) = records.all(lambda _: None)
        records.write(record.changed(marked_at=datetime.now(UTC)))
        warm.gate.touch()
        _, done = warm.ended(removal)

    assert done == []
    assert said(launcher, run) == "text"
    assert warm.reconcile() == [("shared process.files", "kept")]
    assert warm.content().is_dir()


def test_a_launch_during_a_removal_waits_for_its_end_and_makes_it_anew(warm: SharingBench) -> None:
    """The removal stands still between its list of runs and its deed."""
    launcher, run = launched(warm)
    launcher.terminate(run.id)
    assert warm.reconcile() == [("shared process.files", "marked")]
    until = warm.folder / "until"
    until.touch()
    with warm.paused("reconcile", str(until), at=REMOVES) as removal, ThreadPoolExecutor() as threads:
        launch = threads.submit(launched, warm)
        waits = not eventually(launch.done, timedelta(seconds=1))
        warm.gate.touch()
        _, done = warm.ended(removal)
        launcher, run = launch.result()

    assert (waits, [each[1] for each in done]) == (True, ["removed"])
    assert said(launcher, run) == "text"
    assert warm.folders() == ["process.files"]


@pytest.mark.parametrize("used", ["by nobody", "by a live run", "long ago", "lately", "by a failed launch"])
@pytest.mark.parametrize("marked", [None, 1, 5])
def test_what_is_due_follows_from_the_records(used: str, marked: int | None) -> None:
    ago = {minutes: NOW - timedelta(minutes=minutes) for minutes in (1, 5, 60, 600)}
    run = Record(
        run_id="r", attempt=0, phase=Phase.LAUNCHED, target="process", template="t", digest="d", fingerprints={},
        command=("true",), place="p", wanted_at=ago[600], shared=(SharedUse(name="files", stack="s"),),
    )  # fmt: skip
    runs = {
        "by nobody": [],
        "by a live run": [run],
        "long ago": [run.changed(phase=Phase.REMOVED, removed=Removal(at=ago[60], objects=1))],
        "lately": [run.changed(phase=Phase.REMOVED, removed=Removal(at=ago[5], objects=1))],
        "by a failed launch": [run.changed(phase=Phase.FAILED)],
    }
    record = shared_record(made_at=ago[600], marked_at=None if marked is None else ago[marked])

    step = overdue(record, runs[used], NOW, keep=timedelta(minutes=30), wait=timedelta(minutes=2))

    expected = {None: {"by a live run": None, "lately": None}.get(used, Doing.MARK), 1: None, 5: Doing.REMOVE}[marked]
    if marked is not None and used == "by a live run":
        expected = Doing.KEEP
    assert (None if step is None else step.what) is expected
    durable = record.changed(kind=SharedKind.DURABLE, marked_at=None)
    assert overdue(durable, runs[used], NOW, keep=timedelta(0), wait=timedelta(0)) is None


def shared_record(**fields: Any) -> SharedRecord:  # noqa: ANN401 - SharedRecord's own
    known = {
        "name": "files", "stack_name": "s", "kind": SharedKind.VERSIONED, "phase": SharedPhase.READY,
        "target": "process", "template": "t", "digest": "d", "place": "p", "inputs": "i", "wanted_at": NOW,
    }  # fmt: skip
    return SharedRecord.model_validate({**known, **fields})


# ---- makers that fail or die ----

KILLS = {
    "the provider builds": r"1:open .*/part-[^/]*/f",
    "the provider puts it in its place": r"1:os\.rename .*/content$",
    "it was made and is not known to be ready": r"2:os\.rename .*/state/shared/",
    "it is wanted and nothing is made": r"1:os\.rename .*/shared/[^/]+/handover\.json$",
}


@pytest.mark.parametrize("then", ["launch", "another launch", "reconcile"])
@pytest.mark.parametrize("moment", KILLS)
def test_what_a_killed_maker_left_is_put_right(bench: SharingBench, moment: str, then: str) -> None:
    template = bench.template()
    code, _ = bench.run("launch", template, "r", kill=KILLS[moment])
    assert code == -signal.SIGKILL

    if then == "reconcile":
        done = [*bench.reconcile(), *bench.reconcile()]
        assert ("r", "mended") in done
        assert (bench.folders(), bench.records(), bench.row.stacks()) == ([], [], [])
        return
    code, told = bench.run("launch", template, "r" if then == "launch" else "s")
    assert (code, told[0].get("code")) == (0, 0), told
    assert told[0]["said"].endswith("text")
    assert [path.name for path in bench.content().parent.iterdir() if path.name.startswith("part-")] == []
    assert json.loads(bench.records()[0].read_text())["phase"] == "ready"


def test_a_making_that_fails_leaves_nothing_and_says_why(bench: SharingBench) -> None:
    launcher = bench.launcher()
    launcher.shared_place()
    (stack,) = (
        each.stack("process", "process", launcher.shared_place(), bench_id(launcher)) for each in shared_of(launcher)
    )
    obstacle = bench.row.home / "shared" / stack.stack
    obstacle.write_text("in the way")

    with pytest.raises(LaunchFailedError) as failed:
        launcher.launch(bench.row.run("true", run_id="r"))
    obstacle.unlink()

    assert "process.files" in str(failed.value)
    assert "Traceback" not in str(failed.value)
    assert launcher.record("r").phase is Phase.FAILED
    assert launcher.record("r").error == str(failed.value)
    assert (bench.folders(), bench.records(), bench.row.stacks()) == ([], [], [])
    assert launcher.wait(launcher.launch(bench.row.run("true", run_id="r")).handle).state is WorkerState.SUCCEEDED


def bench_id(launcher: RunLauncher[Any]) -> str:
    return launcher.workspace.backend.open()


def shared_of(launcher: RunLauncher[Any]) -> list[Shared]:
    return list(launcher.shared(Run(id="r", command=("true",))))


def test_a_folder_that_others_may_write_to_is_refused(warm: SharingBench) -> None:
    launcher = warm.launcher()
    launcher.shared_place()
    (warm.row.home / "shared").chmod(0o777)

    with pytest.raises(LaunchFailedError, match="only this user can write to"):
        launcher.launch(warm.row.run("true"))
    (warm.row.home / "shared").chmod(0o700)


def test_a_disk_that_takes_no_more_is_told(warm: SharingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of its own, which may write no file of more than 64 KiB."""
    monkeypatch.setenv("RUN_LAUNCHER_HOME", str(warm.row.home))
    launched(warm, files={})  # the engine's own files are there
    template = warm.template(files={"f": "x" * 2**18})
    limited = ["sh", "-c", 'ulimit -f 128; trap "" XFSZ; exec "$@"', "sh"]
    words = warm.row.another_process("import sys; from launchers.cli import main; main()")
    done = subprocess.run(
        [*limited, *words, "launch", "-t", template, "--run-id", "full", "--", "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert warm.folders() == []


def test_a_launch_that_waits_for_a_maker_keeps_its_time_limit_and_hears_of_its_end(warm: SharingBench) -> None:
    launcher = warm.launcher()
    with warm.paused("launch", warm.template(), "first", at=r"os\.rename .*/content$"):
        began = time.monotonic()
        with pytest.raises(TimeLimitError):
            launcher.launch(warm.row.run("true", run_id="late"), timeout=timedelta(seconds=1))
        waited = time.monotonic() - began
        with ThreadPoolExecutor() as threads:
            launch = threads.submit(launcher.launch, warm.row.run("true", run_id="wished"))
            assert eventually(lambda: launcher.workspace.records.read("wished") is not None)
            launcher.workspace.records.wish_end(launcher.record("wished"), "a test")
            with pytest.raises(RunCancelledError):
                launch.result(30)

    assert 1 <= waited < 20
    assert launcher.record("late").phase is Phase.FAILED
    assert launcher.record("wished").phase is Phase.REMOVED


def test_the_claim_of_a_dead_maker_is_tidied_and_a_living_ones_is_left(warm: SharingBench) -> None:
    launcher, run = launched(warm)
    record = launcher.record(run.id)
    stack = shared_stack(record.shared[0].stack)
    claims = launcher.workspace.backend.claims
    with claims.hold(stack, "a test", timedelta(0)):
        held = warm.reconcile()
    stale = warm.row.home / "state" / "claims" / stack.shard / stack.stack
    stale.parent.mkdir(exist_ok=True)
    stale.write_text("{}")

    assert held == []
    assert list(claims.stale()) == [stack]
    assert warm.reconcile() == [("claim on process.files", "removed")]
    assert warm.folders() == ["process.files"]


# ---- durable ----


def test_a_durable_folder_outlives_its_runs_their_template_and_reconcile(bench: SharingBench) -> None:
    for fields in ({}, {"max_runtime": "1h"}):
        launcher, run = launched(bench, APPENDS, files={}, shared_folder=True, **fields)
        written(bench.content("folder") / "lines")
        assert eventually(lambda: run.id in (bench.content("folder") / "lines").read_text())  # noqa: B023 - at once
        launcher.terminate(run.id)
        done = [*bench.reconcile(), *bench.reconcile()]

        assert done == []
    assert len((bench.content("folder") / "lines").read_text().split()) == 2
    assert bench.folders() == ["process.folder"]
    assert retire(launcher.workspace, "process")[0].data is not None


def test_a_fresh_backend_adopts_what_is_there(bench: SharingBench) -> None:
    launcher, run = launched(bench, APPENDS, files={}, shared_folder=True)
    written(bench.content("folder") / "lines")
    launcher.terminate(run.id)
    inode = bench.content("folder").stat().st_ino
    (bench.row.home / "state").rename(bench.row.home.parent / "of another backend")

    launcher, again = launched(bench, APPENDS, files={}, shared_folder=True)

    assert eventually(lambda: again.id in (bench.content("folder") / "lines").read_text())
    assert bench.content("folder").stat().st_ino == inode
    assert (bench.content("folder") / "lines").read_text().split() == [run.id, again.id]
    launcher.terminate(again.id)
    retire(launcher.workspace, "process")


def test_a_failed_making_keeps_the_data_that_it_found(warm: SharingBench) -> None:
    launcher, run = launched(warm, APPENDS, files={}, shared_folder=True)
    written(warm.content("folder") / "lines")
    launcher.terminate(run.id)
    (warm.row.home / "state").rename(warm.row.home.parent / "of another backend")
    template = warm.template(files={}, shared_folder=True)
    Path(template).rename(warm.folder / "process.yaml")
    code, _ = warm.run("launch", str(warm.folder / "process.yaml"), "r", kill=r"2:os\.rename .*/state/shared/")

    assert code == -signal.SIGKILL
    assert ("shared process.folder", "removed") in warm.reconcile()
    assert (warm.content("folder") / "lines").read_text() == f"{run.id}\n"
    assert warm.records() == []


def test_a_durable_object_is_updated_in_place_when_its_inputs_change(
    warm: SharingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def shared_as(version: str) -> None:
        def shared(self: ProcessLauncher, run: Run) -> list[Shared]:  # noqa: ARG001 - the contract's
            def program(stack: StackName) -> None:
                made.append(version)
                if version == "bad":
                    raise LaunchFailedError(version)
                self._folder_program(None)(stack)

            return [Shared(SharedKind.DURABLE, "folder", {"version": version}, program)]

        monkeypatch.setattr(ProcessLauncher, "shared", shared)

    inodes = []
    for version in ("1", "1", "2", "2"):
        shared_as(version)
        launcher, _ = launched(warm, APPENDS)
        inodes.append(warm.content("folder").stat().st_ino)
    shared_as("bad")
    with pytest.raises(LaunchFailedError):
        launched(warm, APPENDS)
    monkeypatch.undo()

    assert made == ["1", "2", "bad"]
    assert len({*inodes, warm.content("folder").stat().st_ino}) == 1
    assert len(warm.records()) == 1
    monkeypatch.setattr(ProcessLauncher, "shared", lambda *_: [])
    terminate_all(launcher)
    retire(launcher.workspace, "process")


def test_retire_is_refused_while_a_run_uses_it_and_then_takes_all(bench: SharingBench) -> None:
    launcher, run = launched(bench, APPENDS, files={}, shared_folder=True)
    written(bench.content("folder") / "lines")
    (shown,) = durable_of(launcher.workspace, "process")

    with pytest.raises(UsageError, match=run.id):
        retire(launcher.workspace, "process")
    refused = (bench.content("folder") / "lines").read_text()
    launcher.terminate(run.id)
    (removed,) = retire(launcher.workspace, "process")

    assert (shown.users, refused) == ((run.id,), f"{run.id}\n")
    assert shown.data is not None
    assert (shown.data.files, shown.data.bytes) == (1, len(run.id) + 1)
    assert (removed.name, removed.users, removed.data) == ("folder", (), shown.data)
    assert (bench.folders(), bench.records(), bench.row.stacks()) == ([], [], [])
    assert durable_of(launcher.workspace, "process") == retire(launcher.workspace, "process") == []


def test_retire_takes_only_what_is_of_that_name(warm: SharingBench) -> None:
    launcher, run = launched(warm, APPENDS, shared_folder=True)
    written(warm.content("folder") / "lines")
    launcher.terminate(run.id)

    assert retire(launcher.workspace, "proces") == []
    assert warm.folders() == ["process.files", "process.folder"]
    retire(launcher.workspace, "process")
    assert warm.folders() == ["process.files"]


# ---- values ----


def test_the_records_of_earlier_releases_are_read(warm: SharingBench) -> None:
    launcher, run = launched(warm, "sleep 600", files={})
    (path,) = warm.row.home.glob("state/records/*/*.json")
    data = json.loads(path.read_text())
    del data["shared"]
    path.write_text(json.dumps(data))

    assert launcher.record(run.id).shared == ()
    assert launcher.terminate(run.id).left == 0


def test_a_template_without_new_fields_keeps_its_digest() -> None:
    bare = json.loads(ProcessTemplate().canonical())

    assert not {"files", "shared_folder"} & bare.keys()
    assert "files" in json.loads(ProcessTemplate(files={"f": ""}).canonical())


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a//b", "a/./b", "a/", "nul\0", "x" * 256])
def test_a_file_that_would_not_be_in_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="file"):
        ProcessTemplate(files={name: "text"})


def test_files_that_exclude_each_other_or_are_too_large_are_refused() -> None:
    with pytest.raises(ValueError, match="both a file and the folder"):
        ProcessTemplate(files={"a": "", "a/b": ""})
    with pytest.raises(ValueError, match="limit"):
        ProcessTemplate(files={"a": "é" * 2**19, "b": "x"})


def test_no_two_objects_have_the_same_stack() -> None:
    def stack(
        kind: SharedKind, name: str = "files", inputs: str = "", where: tuple[str, str, str] = ("t", "p", "b")
    ) -> str:
        return Shared(kind, name, {"of": inputs}, lambda _: None).stack("process", *where).full

    versioned, durable = SharedKind.VERSIONED, SharedKind.DURABLE
    long = "x" * 100
    different = [
        stack(versioned), stack(versioned, inputs="1"), stack(versioned, where=("t", "q", "b")),
        stack(versioned, where=("t", "p", "c")), stack(durable), stack(durable, where=("u", "p", "b")),
        stack(durable, where=("t", "q", "b")), stack(durable, where=(long, "p", "b")),
        stack(durable, where=(f"{long}y", "p", "b")), stack(durable, where=("process", "p", "b")),
    ]  # fmt: skip

    assert len(set(different)) == len(different)
    assert stack(versioned) == stack(versioned, where=("u", "p", "b"))
    assert stack(durable) == stack(durable, inputs="1", where=("t", "p", "c"))
    assert all(len(each.rpartition("/")[2]) <= 100 for each in different)


@pytest.mark.parametrize("stack", [stack_name("r", 0), shared_stack("t.folder-0"), StackName("reconcile", "leader")])
def test_a_claims_folder_leads_back_to_its_stack(stack: StackName) -> None:
    assert StackName.sorted_in(stack.shard, stack.stack) == stack


def test_makings_beyond_the_first_ones_are_spread() -> None:
    bucket, began = TokenBucket(burst=3, rate=20.0), time.monotonic()
    turns = [bucket.wait(1.0) for _ in range(6)]

    assert turns == [True] * 6
    assert 0.14 < time.monotonic() - began < 1.0
    assert not bucket.wait(0.01)
