"""A run on disk: a plain `pulumi` in the ejected folder, with the kernel asked whether anything was started twice."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
import yaml
from disk import SCRIPT, TOOLS, Disk
from targets import ProcessRow, terminate_all

from launchers import WorkerHandle, WorkerState
from launchers.retiring import dispose, launcher_of
from stacks.engine import stack_name
from stacks.errors import RunNotFoundError, UsageError
from stacks.location import Location
from stacks.records import Phase

LIMIT: Final = timedelta(seconds=60)


@pytest.fixture
def disk(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:  # noqa: ARG001 - nothing of the user's
    """At the end every run is terminated, and nothing is left of it, in files or as the kernel sees it."""
    monkeypatch.setenv("RUN_LAUNCHER_TOOLS", str(TOOLS))
    with tempfile.TemporaryDirectory(prefix="rl-") as root:
        row = ProcessRow(Path(root))
        made = Disk(Path(root), row, row.launcher(grace="2s"))
        yield made
        terminate_all(made.launcher)
        left = made.row.leftovers()
        for process in psutil.process_iter():
            if root in " ".join(_words(process)):
                left.append(f"process {process.pid}: {_words(process)}")
                process.kill()
        assert left == []


def _words(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), process.environ().get("PULUMI_HOME", "")]
    except psutil.Error:
        return []


def lives(handle: WorkerHandle) -> bool:
    """As the kernel says it of exactly this process."""
    path = Path(f"/proc/{handle.coordinates['pid']}/stat")
    fields = path.read_text().rpartition(")")[2].split() if path.exists() else ["X"] * 20
    return fields[0] not in "ZX" and fields[19] == str(handle.coordinates["start_time"])


# ---- unchanged ----


def test_an_unchanged_live_run_stays_as_it_is(disk: Disk) -> None:
    handle = disk.ejected()
    said = [disk.pulumi(words) for words in ("preview", "up --yes", "refresh --yes", "up --yes --refresh")]

    assert ["2 unchanged" in text for text in said] == [True] * 4
    assert WorkerHandle.model_validate_json(disk.pulumi("stack output handle --json")) == handle
    assert disk.launcher.record(handle.run_id).handle == handle
    assert (lives(handle), disk.executions()) == (True, 1)


def test_an_ejected_run_needs_none_of_the_stacks_that_it_shares_with_others(disk: Disk) -> None:
    disk.launcher = disk.row.launcher(grace="2s", files={"f": "x" * 300_000}, shared_folder=True)
    handle = disk.ejected()
    workspace = disk.launcher.workspace
    for record in list(workspace.shared_records.all(lambda _: None)):
        with workspace.backend.claims.hold(record.stack, "a test", LIMIT) as claim:
            dispose(launcher_of(workspace, record), record, claim, data=True)
    said = [disk.pulumi(words) for words in ("preview", "up --yes")]
    ended = disk.pulumi("destroy --yes --skip-preview")

    assert ["2 unchanged" in text for text in said] == [True] * 2
    assert list(disk.row.home.glob("shared/*/")) == []
    assert "worker deleted" in ended
    assert (lives(handle), disk.executions()) == (False, 1)
    (disk.row.home / "shared" / "place").unlink()


def test_an_unchanged_ended_run_stays_as_it_is(disk: Disk) -> None:
    handle = disk.launch("exit 3")
    disk.launcher.wait(handle, timeout=LIMIT)
    disk.launcher.eject(handle.run_id, disk.folder)
    said = [disk.pulumi(words) for words in ("preview", "up --yes", "up --yes --refresh")]

    assert ["2 unchanged" in text for text in said] == [True] * 3
    assert disk.launcher.status(handle).exit_code == 3
    assert disk.executions() == 1


def test_the_next_attempt_is_ejected_as_a_stack_of_its_own(disk: Disk) -> None:
    first = disk.launch("exit 3", run_id="etl")
    disk.launcher.wait(first, timeout=LIMIT)
    second = disk.ejected(run_id="etl", attempt=1)

    assert "2 unchanged" in disk.pulumi("up --yes")
    assert disk.settings().name == "Pulumi.etl.1.yaml"
    assert json.loads(disk.pulumi("stack output handle --json")) == second.model_dump(mode="json")
    assert (lives(second), disk.executions()) == (True, 2)


def test_an_id_that_looks_like_an_attempt_leads_to_its_own_stack(disk: Disk) -> None:
    other = disk.launch(run_id="etl")
    handle = disk.ejected(run_id="etl.1")
    disk.pulumi("destroy --yes --skip-preview")

    assert disk.settings().name == "Pulumi.etl.1.0.yaml"
    assert (lives(other), lives(handle)) == (True, False)


def test_it_works_from_another_folder_and_environment(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the run was given at its launch is neither needed nor looked at again."""
    monkeypatch.setenv("ONLY_THEN", "x")
    launcher = disk.row.launcher(secrets={"TOKEN": {"env": "ONLY_THEN"}})
    handle = launcher.launch(disk.run("sleep 600", env={"OWN": "value"})).handle
    monkeypatch.delenv("ONLY_THEN")
    moved = tmp_path / "moved here"
    launcher.eject(handle, disk.folder)
    disk.folder.rename(moved)
    disk.folder = moved

    assert "2 unchanged" in disk.pulumi("up --yes")
    assert WorkerHandle.model_validate_json(disk.pulumi("stack output handle --json")) == handle
    assert (lives(handle), disk.executions()) == (True, 1)


# ---- changed ----

EDITS: Final[dict[str, Callable[[dict[str, Any]], object]]] = {
    "command": lambda args: args["run"].update(command=["sleep", "700"]),
    "run id": lambda args: args["run"].update(id="another"),
    "attempt": lambda args: args["run"].update(attempt=1),
    "tags": lambda args: args["run"].update(tags={"team": "x"}),
    "grace": lambda args: args["template"].update(grace="1s"),
    "cwd of the template": lambda args: args["template"].update(cwd="/"),
    "cwd of the caller": lambda args: args["context"].update(cwd="/"),
    "digest": lambda args: args["context"].update(digest="0" * 64),
    "labels": lambda args: args["context"].update(template="another"),
    "folder": lambda args: args["context"].update(folder="/tmp/another"),  # noqa: S108 - never made
    "no context": lambda args: args.pop("context"),
}


def test_an_edit_is_refused_and_changes_nothing(disk: Disk) -> None:
    handle = disk.ejected()
    settings = disk.settings().read_text()
    for edit in EDITS.values():
        changed = yaml.safe_load(settings)
        args = json.loads(changed["config"]["run-launcher:args"])
        edit(args)
        changed["config"]["run-launcher:args"] = json.dumps(args)
        disk.settings().write_text(yaml.safe_dump(changed))
        said = disk.pulumi("up --yes --skip-preview", code=1)

        assert "launch another run" in said
        assert (lives(handle), disk.executions()) == (True, 1)
    disk.settings().write_text(settings)

    assert "2 unchanged" in disk.pulumi("up --yes --skip-preview")


def test_without_its_seal_the_configuration_is_refused(disk: Disk) -> None:
    handle = disk.ejected()
    disk.pulumi("config rm run-launcher:launched")
    disk.pulumi("up --yes --skip-preview", code=1)

    assert (lives(handle), disk.executions()) == (True, 1)


def test_a_replacement_is_refused(disk: Disk) -> None:
    handle = disk.ejected()
    urn = shlex.quote(disk.urn(handle))
    ways = [f"up --yes --skip-preview --replace {urn}", f"up --yes --target-replace {urn}", f"preview --replace {urn}"]
    said = [disk.pulumi(way, code=1) for way in ways]
    disk.pulumi(f"state taint {urn} --yes")
    said.append(disk.pulumi("up --yes --skip-preview", code=1))
    disk.pulumi(f"state untaint {urn} --yes")

    assert ["neither started again nor replaced" in text for text in said] == [True] * 4
    assert "2 unchanged" in disk.pulumi("up --yes --skip-preview")
    assert (lives(handle), disk.executions()) == (True, 1)


def test_a_replacement_that_would_end_the_worker_first_is_refused(disk: Disk) -> None:
    """Pulumi deletes before it creates where names are told to be verbatim: no refusal of a create would be in time."""
    handle = disk.ejected()
    disk.pulumi("config set --path pulumi:autonaming.mode verbatim")
    said = disk.pulumi(f"up --yes --skip-preview --replace {shlex.quote(disk.urn(handle))}", code=1)

    assert "neither started again nor replaced" in said
    assert (lives(handle), disk.executions()) == (True, 1)


# ---- gone ----


def test_a_worker_that_was_removed_by_hand_is_not_started_again(disk: Disk) -> None:
    handle = disk.ejected("exit 0")
    disk.launcher.wait(handle, timeout=LIMIT)
    shutil.rmtree(str(handle.coordinates["folder"]))
    unchanged = disk.pulumi("up --yes")
    refreshed = disk.pulumi("refresh --yes")
    refused = [disk.pulumi(words, code=1) for words in ("preview", "up --yes --skip-preview", "up --yes --refresh")]

    assert "2 unchanged" in unchanged
    assert "1 deleted" in refreshed
    assert ["neither started again nor replaced" in text for text in refused] == [True] * 3
    assert disk.executions() == 1
    assert not Path(str(handle.coordinates["folder"])).exists()


def test_a_live_worker_that_the_state_forgot_is_left_alone(disk: Disk) -> None:
    handle = disk.ejected()
    disk.pulumi(f"state delete {shlex.quote(disk.urn(handle))} --yes")
    disk.pulumi("up --yes --skip-preview", code=1)
    living = lives(handle)
    ended = disk.launcher.terminate(handle)

    assert (living, lives(handle), disk.executions()) == (True, False, 1)
    assert (ended.objects, ended.left) == (1, 0)


def test_a_stack_that_was_made_again_starts_nothing(disk: Disk) -> None:
    handle = disk.ejected()
    stack = stack_name(handle.run_id, 0).full
    steps = (f"stack rm {stack} --yes --force --preserve-config", f"stack init {stack}", "up --yes --skip-preview")
    said = disk.shell("\n".join(f"pulumi --non-interactive {step}" for step in steps), code=1)

    assert "neither started again nor replaced" in said
    assert (lives(handle), disk.executions()) == (True, 1)


def test_another_stack_with_the_same_configuration_starts_nothing(disk: Disk) -> None:
    handle = disk.ejected()
    settings = disk.settings()
    disk.pulumi("stack init copy")
    shutil.copy(settings, disk.folder / "Pulumi.copy.yaml")
    said = disk.pulumi("up --yes --skip-preview -s copy", code=1)
    disk.pulumi("stack rm copy --yes --force")
    for path in sorted(disk.row.home.glob("state/.pulumi/**/copy*"), reverse=True):  # Pulumi keeps backups
        (path.rmdir if path.is_dir() else path.unlink)()

    assert "not the one that its run was launched with" in said
    assert (lives(handle), disk.executions()) == (True, 1)


def test_the_program_for_debugging_refuses_a_run_that_was_launched(disk: Disk) -> None:
    handle = disk.ejected()
    (disk.folder / "__main__.py").write_text("from programs.process.program import program\n\nprogram()\n")
    said = disk.pulumi("up --yes --skip-preview", code=1)

    assert "arguments of a run that was launched" in said
    assert (lives(handle), disk.executions()) == (True, 1)


def test_destroy_ends_the_worker_and_no_up_starts_it_again(disk: Disk) -> None:
    handle = disk.ejected()
    destroyed = disk.pulumi("destroy --yes")
    alive = lives(handle)
    status = disk.launcher.status(handle)
    disk.pulumi("up --yes --skip-preview", code=1)
    ended = disk.launcher.terminate(handle)

    assert "2 deleted" in destroyed
    assert (alive, disk.executions()) == (False, 1)
    assert (status.state, status.reason) == (WorkerState.FAILED, "terminated")
    assert (ended.status.state, ended.left) == (WorkerState.FAILED, 0)
    assert disk.row.stacks() == []


def test_the_folder_of_a_run_that_is_over_starts_nothing(disk: Disk) -> None:
    handle = disk.ejected()
    disk.launcher.terminate(handle)
    before = disk.row.leftovers()
    said = disk.pulumi("up --yes --skip-preview", code=6)

    assert "no stack named" in said
    assert (disk.row.leftovers(), disk.executions()) == (before, 1)


# ---- what cannot be ejected ----


def terminated(disk: Disk) -> str:
    handle = disk.launch()
    disk.launcher.terminate(handle)
    return handle.run_id


def failed(disk: Disk) -> str:
    handle = disk.launch("exit 0")
    records = disk.launcher.workspace.records
    records.write(disk.launcher.record(handle).changed(phase=Phase.FAILED, handle=None))
    return handle.run_id


def half_made(disk: Disk) -> str:
    handle = disk.launch("exit 0")
    records = disk.launcher.workspace.records
    records.write(disk.launcher.record(handle).changed(phase=Phase.WANTED, handle=None))
    return handle.run_id


def destroyed(disk: Disk) -> str:
    handle = disk.launch("exit 0")
    disk.launcher.wait(handle, timeout=LIMIT)
    disk.launcher.eject(handle, disk.folder)
    disk.pulumi("destroy --yes --skip-preview")
    return handle.run_id


def unknown(disk: Disk) -> str:
    disk.launch("exit 0")
    return "nobody"


@pytest.mark.parametrize(
    ("make", "code", "word"),
    [
        (terminated, 6, "was removed at"),
        (failed, 6, "could not be launched"),
        (half_made, 4, "launch the run again, or terminate it"),
        (destroyed, 6, "was destroyed without run-launcher"),
        (unknown, 6, "no run 'nobody' is known here"),
    ],
)
def test_a_run_that_is_not_there_is_not_ejected(disk: Disk, make: Callable[[Disk], str], code: int, word: str) -> None:
    run_id = make(disk)
    folder = disk.folder.with_name("none")
    done = disk.command("eject", run_id, str(folder))

    assert (done.returncode, done.stdout) == (code, "")
    assert word in done.stderr
    assert not folder.exists()


def test_a_folder_that_is_in_use_is_not_written_to(disk: Disk) -> None:
    handle = disk.launch("exit 0")
    used = disk.folder.with_name("used")
    used.mkdir()
    (used / "mine").write_text("mine")
    done = disk.command("eject", handle.run_id, str(used))
    on_a_file = disk.command("eject", handle.run_id, str(used / "mine"))

    assert (done.returncode, on_a_file.returncode) == (2, 2)
    assert "is not empty" in done.stderr
    assert [path.name for path in used.iterdir()] == ["mine"]


# ---- secrets ----


def test_no_file_of_the_folder_holds_a_secret(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "t0ken-v4lue")
    launcher = disk.row.launcher(secrets={"TOKEN": {"env": "MY_TOKEN"}})
    handle = launcher.launch(disk.run("sleep 600", env={"PASSWORD": "p4ssword-v4lue"})).handle
    disk.folder.mkdir(mode=0o755)
    done = disk.command("eject", handle.run_id, str(disk.folder), "-o", "json")
    files = {path.name: path for path in disk.folder.iterdir()}
    text = "".join(path.read_text() for path in files.values())
    key = launcher.workspace.backend.key_file()

    assert sorted(json.loads(done.stdout)["files"]) == sorted(files)
    assert ("t0ken-v4lue" in text, "p4ssword-v4lue" in text, key.read_text() in text) == (False, False, False)
    assert str(key) in files["env"].read_text()
    assert stat.S_IMODE(disk.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("file:///srv/state", False),
        ("s3://bucket/folder?region=eu-west-1&endpoint=http://localhost:9000&s3ForcePathStyle=true", False),
        ("postgres://me@db.example/runs", False),
        ("postgres://me:secret@db.example/runs", True),
        ("postgres://db.example/runs?user=me&password=secret", True),
        ("azblob://container?sas_token=abc", True),
    ],
)
def test_a_url_that_holds_a_password_is_known(url: str, hidden: bool) -> None:  # noqa: FBT001 - the expectation
    assert Location(url).has_secret is hidden


def test_a_url_with_a_password_is_left_to_the_environment(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """No backend with passwords is at hand: that of this test only counts as one."""
    monkeypatch.setattr(Location, "has_secret", property(lambda _: True))
    url = disk.launcher.workspace.backend.url
    handle = disk.launch()
    ejected = disk.launcher.eject(handle, disk.folder)
    del disk.environment["PULUMI_BACKEND_URL"]
    with disk.begin("true") as shell:
        missing = shell.communicate(timeout=240)[0]
    disk.environment["PULUMI_BACKEND_URL"] = url

    assert not ejected.backend_named
    assert url not in "".join(path.read_text() for path in disk.folder.iterdir())
    assert shell.returncode != 0
    assert "PULUMI_BACKEND_URL: set it first" in missing
    assert "2 unchanged" in disk.pulumi("preview")


# ---- two at work ----


def test_a_lock_of_a_plain_pulumi_at_work_is_not_broken(disk: Disk) -> None:
    handle = disk.ejected('trap "" TERM; while :; do sleep 0.1; done')
    with disk.begin("exec pulumi --non-interactive destroy --yes --skip-preview") as plain:
        while not disk.locks():
            assert plain.poll() is None
        meanwhile = disk.command("terminate", handle.run_id)
        said = plain.communicate(timeout=240)[0]

    assert plain.returncode == 0, said
    assert meanwhile.returncode in {0, 4}, meanwhile.stderr  # it waits, or it says so
    assert "2 deleted" in said
    assert disk.launcher.terminate(handle).left == 0
    assert not lives(handle)


def test_a_plain_pulumi_says_that_run_launcher_is_at_work(disk: Disk) -> None:
    handle = disk.ejected()
    shim = psutil.Process(os.getsid(int(str(handle.coordinates["pid"]))))
    shim.suspend()  # it does not end its worker, so the destroy has to wait, and can be stopped with its lock
    command = [str(SCRIPT), "terminate", handle.run_id]
    with subprocess.Popen(command, env=disk.environment, stdout=subprocess.PIPE, text=True) as ours:
        while not disk.locks():
            assert ours.poll() is None
        engines = {"pulumi", "run-launcher-engine"}
        (engine,) = (each for each in psutil.Process(ours.pid).children() if each.name() in engines)
        engine.suspend()
        said = disk.pulumi("up --yes --skip-preview", code=1)
        engine.resume()
        ours.communicate(timeout=240)

    assert ours.returncode == 0
    assert "currently locked" in said
    assert disk.executions() == 1


# ---- from Python ----


def test_it_is_written_from_python_by_handle_or_id(disk: Disk) -> None:
    handle = disk.launch("exit 0")
    ejected = disk.launcher.eject(handle, disk.folder)
    with pytest.raises(UsageError, match="not empty"):
        disk.launcher.eject(handle.run_id, disk.folder)
    with pytest.raises(RunNotFoundError):
        disk.launcher.eject("nobody", disk.folder)

    assert (ejected.folder, ejected.run_id, ejected.backend_named) == (disk.folder, handle.run_id, True)
    assert sorted(ejected.files) == sorted(path.name for path in disk.folder.iterdir())
