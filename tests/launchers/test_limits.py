"""Limits hold at any moment, whoever launches; what is counted is what the kernel shows, and nothing is given back."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from command_line import FOREVER, CommandLine, until
from interrupted import interrupted_launch
from targets import ProcessRow, terminate_all

from launchers import Run, load_launcher
from launchers.caps import LimitSettings
from launchers.factory import make_workspace
from launchers.launcher import RunLauncher
from launchers.reconcile import Reconciler
from launchers.settings import ReconcileSettings
from stacks.errors import ConfigurationError, LimitReachedError, PolicyError, Repair, Started
from stacks.handle import WorkerState
from stacks.records import Phase, Records

SOON: Final = timedelta(seconds=20)
ONE: Final = {"templates": {"process": {"concurrent_runs": 1}}}
_HOLDS: Final = """
import datetime, sys
from launchers.config import load_config
from launchers.factory import make_workspace
from launchers.limits import Room
from launchers import ProcessTemplate, load_launcher
from launchers.caps import LimitSettings
config = load_config().model_copy(update={"limits": LimitSettings.model_validate_json(sys.argv[1])})
launcher = load_launcher(ProcessTemplate(), config=config)
with Room(launcher, "r").taken(lambda: datetime.timedelta(seconds=5)):
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


def limited(row: ProcessRow, limits: Mapping[str, object], /, **template: object) -> RunLauncher[Any]:
    config = row.config().model_copy(update={"limits": LimitSettings.model_validate(limits)})
    return load_launcher(row.launcher(**template).template, config=config)


def launched(launcher: RunLauncher[Any], run: Run, **how: Any) -> bool:  # noqa: ANN401 - as launch takes them
    try:
        return launcher.launch(run, **how).created
    except LimitReachedError:
        return False


def refusal(launcher: RunLauncher[Any], run: Run) -> str:
    with pytest.raises(LimitReachedError) as caught:
        launcher.launch(run)
    return str(caught.value)


def claims(row: ProcessRow) -> list[str]:
    return [path.name for path in row.home.glob("state/claims/*/*")]


@contextmanager
def begun(row: ProcessRow, run: Run, moment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A launch that stops when it is wanted, or is killed when its worker is there."""
    by = signal.SIGSTOP if moment == "wanted" else signal.SIGKILL
    with subprocess.Popen(interrupted_launch(row, run, moment, by)) as launch:
        try:
            yield launch
        finally:
            launch.kill()


# ---- what is counted ----


def test_above_the_limit_a_launch_is_refused_and_leaves_nothing(row: ProcessRow) -> None:
    launcher = limited(row, {"templates": {"process": {"concurrent_runs": 2}}})
    runs = [row.run("sleep 600") for _ in range(3)]
    taken = [launched(launcher, run) for run in runs[:2]]
    with pytest.raises(LimitReachedError) as caught:
        launcher.launch(runs[2])

    error = caught.value
    assert taken == [True, True]
    assert (error.exit_code, error.retryable, error.started, error.repair) == (5, True, Started.NO, Repair.OPERATOR)
    assert re.fullmatch(
        r"template process has 2 of 2 runs in use \(limits\.templates\.process\.concurrent_runs, set by the caller\): "
        rf"run {runs[0].id} \(\d+s\), run {runs[1].id} \(\d+s\)",
        str(error),
    )
    assert launcher.workspace.records.read(runs[2].id) is None
    assert [each for each in row.stacks() if each.startswith(runs[2].id)] == []
    assert claims(row) == []


@pytest.mark.parametrize(
    ("limit", "takes", "room", "words"),
    [
        ({"gpu": 8}, {"resources": {"gpu": 4}}, 2, "8 of 8 gpu in use"),
        ({"cpu": "1"}, {"resources": {"cpu": "400m"}}, 2, "0.8 of 1 cpu in use"),
        ({"cpu": 1.5}, {"resources": {"cpu": 0.5}}, 3, "1.5 of 1.5 cpu in use"),
        ({"memory": "4Gi"}, {"resources": {"memory": "1536Mi"}}, 2, "3Gi of 4Gi memory in use"),
        ({"memory": "64Gi"}, {"limits": {"memory": "32Gi"}}, 2, "64Gi of 64Gi memory in use"),
        ({"memory": "8Gi"}, {"limits": {"memory": "32Gi"}, "resources": {"memory": "8Gi"}}, 1, "8Gi of 8Gi memory"),
        ({"gpu": 1, "concurrent_runs": 1}, {"resources": {"gpu": 0}}, 1, "1 of 1 runs in use"),
    ],
)
def test_a_worker_counts_for_what_its_template_says(
    row: ProcessRow, limit: dict[str, object], takes: dict[str, object], room: int, words: str
) -> None:
    launcher = limited(row, {"owners": {"ml team": limit}}, owner="ml team", **takes)
    answers = [launched(launcher, row.run("sleep 600")) for _ in range(room)]

    assert answers == [True] * room
    assert f"owner ml team has {words}" in refusal(launcher, row.run("sleep 600"))


def test_the_owner_of_a_run_is_that_of_the_template_it_was_launched_with(row: ProcessRow) -> None:
    limits = {"owners": {"ml": {"concurrent_runs": 1}, "bi": {"concurrent_runs": 1}}}
    ml, bi, nobody = (limited(row, limits, owner=owner) for owner in ("ml", "bi", ""))

    assert [launched(each, row.run("sleep 600")) for each in (ml, bi, nobody, nobody)] == [True] * 4
    assert [launched(each, row.run("sleep 600")) for each in (ml, bi)] == [False, False]


def test_what_has_ended_does_not_count_though_it_is_kept(row: ProcessRow) -> None:
    launcher = limited(row, ONE)
    ended, terminated, failed = row.run("exit 3"), row.run("sleep 600"), row.run("true")
    launcher.wait(launcher.launch(ended).handle)
    launcher.terminate(launcher.launch(terminated).handle)
    record = launcher.record(terminated.id)
    launcher.workspace.records.write(record.changed(run_id=failed.id, phase=Phase.FAILED, removed=None))

    assert launcher.status(ended.id).state is WorkerState.FAILED
    assert launched(launcher, row.run("sleep 600"))


def test_a_run_never_counts_against_itself(row: ProcessRow, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = limited(row, ONE)
    run = row.run("sleep 600")
    first = launcher.launch(run)
    monkeypatch.setattr(Records, "all", None)  # whoever counts now fails

    assert (launcher.launch(run).handle, launcher.launch(run).created) == (first.handle, False)
    assert launcher.foresee(run) is not None


def test_the_next_attempt_counts_once(row: ProcessRow) -> None:
    launcher = limited(row, ONE)
    run = row.run("exit 3")
    launcher.wait(launcher.launch(run).handle)

    assert launched(launcher, row.run("sleep 600", run_id=run.id, attempt=1))
    assert f"run {run.id} (" in refusal(launcher, row.run("true"))


def test_where_there_is_no_room_for_the_next_attempt_the_one_before_is_kept(row: ProcessRow) -> None:
    launcher = limited(row, ONE)
    run = row.run("exit 3")
    launcher.wait(launcher.launch(run).handle)
    launcher.launch(row.run("sleep 600"))
    again = run.model_copy(update={"attempt": 1})

    assert not launched(launcher, again)
    record = launcher.record(run.id)
    assert (record.attempt, record.removed) == (0, None)
    assert launcher.status(run.id).exit_code == 3


def test_a_worker_that_cannot_be_asked_counts_and_the_message_says_so(row: ProcessRow) -> None:
    launcher = limited(row, ONE)
    run = row.run("sleep 600")
    launcher.launch(run)
    record = launcher.record(run.id)
    launcher.workspace.records.write(record.changed(place="host:far"))
    message = refusal(launcher, row.run("true"))
    launcher.workspace.records.write(record)

    assert re.search(rf"run {run.id} \(\d+s, cannot be asked: this worker lives on host:far", message)


def test_a_run_of_a_target_that_is_not_installed_any_more_counts(row: ProcessRow) -> None:
    launcher = limited(row, {"templates": {"process": {"concurrent_runs": 1}}})
    run = row.run("sleep 600")
    launcher.launch(run)
    record = launcher.record(run.id)
    launcher.workspace.records.write(record.changed(target="nomad", digest="d"))
    message = refusal(launcher, row.run("true"))
    launcher.workspace.records.write(record)

    assert "cannot be asked: unknown target 'nomad'" in message


def test_a_launch_in_flight_counts_and_one_that_died_without_a_worker_does_not(row: ProcessRow) -> None:
    launcher, run = limited(row, ONE), row.run("sleep 600")
    with begun(row, run, "wanted") as launch:
        until(lambda: launcher.workspace.records.read(run.id))
        in_flight = refusal(launcher, row.run("true"))
        launch.kill()
        launch.wait()

    assert f"run {run.id} (" in in_flight
    assert launched(launcher, row.run("sleep 600"))


def test_the_worker_of_a_launch_that_died_counts(row: ProcessRow) -> None:
    launcher, run = limited(row, ONE), row.run("sleep 600")
    with begun(row, run, "worker") as launch:
        assert launch.wait(60) == -signal.SIGKILL

    assert f"run {run.id} (" in refusal(launcher, row.run("true"))
    assert launcher.launch(run).state is WorkerState.RUNNING  # it is full of this very run
    assert row.executions(run.id) == 1


def test_a_launch_that_ends_while_it_is_counted_is_looked_at_again(
    row: ProcessRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is read while it says `wanted`; when its claim is looked at, the launch is over."""
    launcher, run = limited(row, ONE), row.run("sleep 600")
    launcher.launch(run)
    record = launcher.record(run.id)
    early = record.changed(phase=Phase.WANTED, handle=None, coordinates={})
    monkeypatch.setattr(Records, "all", lambda *_: iter([early]))

    assert f"run {run.id} (" in refusal(launcher, row.run("true"))


def test_where_no_limit_holds_nothing_is_listed_and_nothing_claimed(
    row: ProcessRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = limited(row, {"templates": {"other": {"concurrent_runs": 0}}, "owners": {"other": {"gpu": 0}}})
    monkeypatch.setattr(Records, "all", None)

    assert launched(launcher, row.run("sleep 600"))
    assert not (row.home / "state/claims/limits").exists()


# ---- what no waiting helps ----


@pytest.mark.parametrize("what", ["cpu", "memory", "gpu"])
def test_a_limit_on_what_the_template_does_not_say_is_refused_with_advice(row: ProcessRow, what: str) -> None:
    launcher = limited(row, {"templates": {"process": {what: 1}}})
    run = row.run("true")

    for act in (launcher.launch, launcher.foresee):
        with pytest.raises(ConfigurationError, match=rf"process does not say how much .* `resources: {{{what}: "):
            act(run)
    assert launcher.workspace.records.ids() == []


def test_a_run_that_never_fits_is_refused_at_once_though_it_would_wait(row: ProcessRow) -> None:
    launcher = limited(row, {"owners": {"ml": {"gpu": 8}}, "when_full": "wait"}, owner="ml", resources={"gpu": 9})

    with pytest.raises(PolicyError, match="this run takes 9 gpu, and owner ml may never have more than 8"):
        launcher.launch(row.run("true"), timeout=timedelta(minutes=4))


# ---- races ----


def test_many_threads_at_once_never_go_above_the_limit(row: ProcessRow) -> None:
    limits = {"templates": {"process": {"concurrent_runs": 5}}, "owners": {"ml": {"concurrent_runs": 6}}}
    launcher = limited(row, limits, owner="ml")
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda run: launched(launcher, run), [row.run("sleep 600") for _ in range(20)]))

    assert sum(answers) == 5
    assert sum(row.executions(run_id) for run_id in launcher.workspace.records.ids()) == 5


@pytest.mark.parametrize("backend", ["file", "postgres"])
def test_what_a_killed_counter_held_keeps_nobody_out(
    request: pytest.FixtureRequest, tmp_path: Path, backend: str
) -> None:
    place = None if backend == "file" else request.getfixturevalue("postgres_place")
    row = ProcessRow(tmp_path, place)
    launcher = limited(row, ONE)
    launcher.launch(first := row.run("true"))
    held = row.another_process(_HOLDS, json.dumps(ONE))
    launcher.wait(first.id)
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
    config = row.config().model_copy(update={"reconcile": ReconcileSettings(orphan_age=timedelta(0))})
    told = [(each.subject, each.what) for each in Reconciler(make_workspace(config)).once()]
    again = launcher.launch(second := row.run("sleep 600"), timeout=SOON)
    for run in (first, second):
        launcher.terminate(run.id)

    assert again.created
    assert [what for subject, what in told if subject.startswith("claim on template-")] == ["removed"]
    assert row.leftovers() == []
    row.close()


# ---- waiting ----


@pytest.mark.parametrize("by_configuration", [False, True])
def test_a_launch_may_wait_for_room_and_holds_nothing_meanwhile(row: ProcessRow, by_configuration: bool) -> None:  # noqa: FBT001
    launcher = limited(row, {**ONE, "when_full": "wait" if by_configuration else "refuse"})
    launcher.launch(first := row.run("sleep 600"))
    how: dict[str, Any] = {} if by_configuration else {"wait_for_capacity": True}
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(launcher.launch, row.run("sleep 600"), timeout=timedelta(seconds=40), **how)
        held = []
        for _ in range(40):
            held.append(claims(row))
            time.sleep(0.02)
        is_waiting = not waiting.done()
        launcher.terminate(first.id)

        assert waiting.result(60).created
    assert is_waiting
    assert held.count([]) > 20


def test_a_launch_that_waited_in_vain_says_the_same(row: ProcessRow) -> None:
    launcher = limited(row, ONE)
    launcher.launch(row.run("sleep 600"))
    begun = time.monotonic()
    with pytest.raises(LimitReachedError, match=r"has 1 of 1 runs in use"):
        launcher.launch(row.run("true"), timeout=timedelta(seconds=2), wait_for_capacity=True)

    assert 1.9 < time.monotonic() - begun < 10


# ---- on the command line ----


@pytest.fixture
def limits(cli: CommandLine) -> CommandLine:
    Path("templates").mkdir()
    Path("templates/etl.yaml").write_text("target: process\nowner: data\nresources: {gpu: 4}\n")
    Path("run-launcher.yaml").write_text("limits:\n  owners:\n    data:\n      concurrent_runs: 9\n      gpu: 8\n")
    return cli


def full(cli: CommandLine) -> None:
    for name in ("a", "b"):
        cli("launch", "-t", "etl", "--run-id", name, "--", *FOREVER)


def test_a_refusal_names_file_and_line_and_exits_with_5(limits: CommandLine) -> None:
    full(limits)
    done = limits("launch", "-t", "etl", "--run-id", "c", "-o", "json", "--", *FOREVER, code=5)
    preview = limits("preview", "-t", "etl", "--run-id", "c", "-o", "json", "--", *FOREVER, code=5)

    message = (
        r"owner data has 8 of 8 gpu in use \(limits\.owners\.data\.gpu, run-launcher\.yaml:5\): "
        r"run a \(4, \d+s\), run b \(4, \d+s\); this run takes 4"
    )
    error = json.loads(done.stderr.splitlines()[-1])
    assert (error["error"], error["started"], error["retryable"]) == ("LimitReachedError", "no", True)
    assert re.fullmatch(message, error["message"])
    answer = json.loads(preview.stdout)
    assert (answer["answer"], answer["changes"]) == ("refused", [])
    assert re.fullmatch(message, answer["message"])
    assert {run["run_id"] for run in limits.json("ps", "--all")} == {"a", "b"}


def test_a_launch_waits_as_long_as_its_time_limit(limits: CommandLine) -> None:
    full(limits)
    words = ("launch", "-t", "etl", "--run-id", "c", "--wait-for-capacity")
    in_vain = limits(*words, "--timeout", "1s", "--", *FOREVER, code=5)
    with limits.begin(*words, "--timeout", "30s", "--", *FOREVER) as waiting:
        time.sleep(2)
        is_waiting = waiting.poll() is None
        limits("terminate", "a")
        waiting.communicate(timeout=60)

    assert "has 8 of 8 gpu in use" in in_vain.stderr
    assert (is_waiting, waiting.returncode) == (True, 0)


def test_a_waiting_launch_that_is_interrupted_leaves_nothing(limits: CommandLine) -> None:
    full(limits)
    words = ("launch", "-t", "etl", "--run-id", "c", "--wait-for-capacity", "--timeout", "60s", "--", *FOREVER)
    with limits.begin(*words) as waiting:
        time.sleep(2)
        os.kill(waiting.pid, signal.SIGINT)
        waiting.communicate(timeout=60)

    assert waiting.returncode == 130
    assert limits.locks() == []
    assert {run["run_id"] for run in limits.json("ps", "--all")} == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("limits: {owners: {data: {gpus: 8}}}", "run-launcher.yaml:1: unknown key 'limits.owners.data.gpus'; did you"),
        (
            "limits:\n  templates:\n    etl: {cpu: lots}",
            "run-launcher.yaml:3: limits.templates.etl.cpu: 'lots' is no n",
        ),
        ("limits:\n  templates:\n    etl: {}", "run-launcher.yaml:3: limits.templates.etl must limit something"),
        ("limits:\n  when_full: queue", "run-launcher.yaml:2: limits.when_full"),
        ("limits: {owners: {data: {concurrent_runs: -1}}}", "run-launcher.yaml:1: limits.owners.data.concurrent_runs"),
        ("limits: 5", "run-launcher.yaml:1: limits must be a mapping"),
    ],
)
def test_wrong_limits_are_refused_with_their_line(cli: CommandLine, text: str, says: str) -> None:
    Path("run-launcher.yaml").write_text(text)

    assert says in cli("config", code=2).stderr


def test_limits_of_two_files_are_merged_by_name_each_with_its_origin(cli: CommandLine, empty_home: Path) -> None:
    user = empty_home / ".config/run-launcher/run-launcher.yaml"
    user.parent.mkdir(parents=True)
    user.write_text("limits:\n  owners: {ml: {gpu: 8}, bi: {gpu: 1}}\n")
    Path("run-launcher.yaml").write_text("limits: {owners: {ml: {gpu: 4}}}\n")

    told = {each["key"]: (each["value"], each["origin"]) for each in cli.json("config", "--show-origin")}
    assert told["limits.owners.ml.gpu"] == (4, "run-launcher.yaml:1")
    assert told["limits.owners.bi.gpu"] == (1, f"{user}:2")
