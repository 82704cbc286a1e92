"""What earlier releases wrote is read, watched and ended by this one.

Each folder of tests/fixtures is a set of state and handles as a release left it (fixtures/make.py says how). A test
gets it as a real home: the workers that lived then are started anew from what was handed over to them then.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from targets import KEPT

from launchers import Run, RunLauncher, WorkerHandle, WorkerState, launcher_for, load_launcher
from launchers.settings import Config
from programs.provider.worker import SHIM
from stacks.errors import KeyMismatchError, LaunchConflictError, TimeLimitError
from stacks.setup import tools_folder

FIXTURES: Final = Path(__file__).parent / "fixtures"
SETS: Final = sorted(each.name for each in FIXTURES.iterdir() if (each / "home").is_dir())
TOOLS: Final = tools_folder()  # asked before a test has a home of its own, so that no test brings an engine again
LIMIT: Final = timedelta(seconds=60)
STATES: Final = {
    "live": ("RUNNING", None),
    "wished": ("RUNNING", None),
    "again": ("RUNNING", None),
    "wanted": ("NOT_FOUND", None),
    "started": ("RUNNING", None),
    "succeeded": ("SUCCEEDED", 0),
    "failed": ("FAILED", 3),
    "terminated": ("FAILED", 143),
    "refused": ("FAILED", None),
}
"""How each run of a set is: state and exit code."""
PRINTED: Final = {"live": "up", "again": "up", "started": "up", "succeeded": "done", "failed": "no", "terminated": "up"}
_PLACEHOLDER: Final = re.compile(r"@(\w+(?:\.\w+)?)(?::([\w.-]+))?(?::([Z+0-9ms:]+))?@")


class OldHome:
    """A set of an earlier release, put up on this machine."""

    def __init__(self, name: str, root: Path) -> None:
        self.source = FIXTURES / name
        self.root = root
        self.home = root / "home"
        self.workers: dict[str, dict[str, dict[str, int]]] = {}
        self.handles: dict[str, WorkerHandle] = {}
        self._now = datetime.now(UTC)

    def put_up(self) -> None:
        """Start the workers, and lay the files down."""
        (self.root / "cwd").mkdir()
        (self.root / "cwd" / "second").touch()
        for path in sorted(self.source.glob("handovers/*")):
            self._start(path)
        for path in sorted(path for path in self.source.rglob("*") if path.is_file()):
            self._lay_down(path)
        self.handles = {
            path.stem: WorkerHandle.from_json(path.read_text()) for path in sorted(self.root.glob("handles/*.json"))
        }

    def launcher(self) -> RunLauncher[Any]:
        return load_launcher(str(self.root / "template.yaml"), config=Config(home=self.home))

    def run(self, run_id: str, attempt: int = 0) -> Run:
        """The run as it was launched then."""
        record = json.loads(next(self.home.glob(f"state/records/*/{run_id}.json")).read_text())
        return Run(
            id=run_id, command=record["command"], env={"GREETING": "hello"}, tags=record["tags"], attempt=attempt
        )

    def living(self) -> list[str]:
        """The workers that the kernel shows."""
        there = {name: each["worker"]["pid"] for name, each in self.workers.items()}
        return sorted(name for name, pid in there.items() if _runs(pid))

    def left(self) -> list[str]:
        """What should not be there once every run was terminated."""
        files = [str(path.relative_to(self.home)) for path in self.home.rglob("*") if not path.is_dir()]
        return [*(name for name in files if not name.startswith(KEPT)), *self.living()]

    def kill(self) -> None:
        """End what a failed test left."""
        for process in psutil.process_iter():
            command = _command(process)
            if any(word.startswith(str(self.home)) for word in command):
                process.send_signal(signal.SIGQUIT)

    def _start(self, path: Path) -> None:
        """Start a worker from the bytes that were handed over to it, with the present shim."""
        worker_file = next(self.source.glob(f"home/runs/*/{path.name}*/worker.json")).relative_to(self.source)
        folder = self.root / worker_file.parent
        folder.mkdir(mode=0o700, parents=True)
        (folder / "handover").touch(mode=0o600)
        (folder / "handover").write_bytes(self._filled(path.read_bytes().decode()).encode())
        done = subprocess.run([str(SHIM), str(folder)], capture_output=True, text=True, check=False, env={})
        assert done.stdout == "started\n", done
        identity = json.loads((folder / "worker.json").read_text())
        self.workers[folder.name] = {role: identity[role] for role in ("shim", "worker")}
        (folder / "worker.json").unlink()

    def _lay_down(self, path: Path) -> None:
        name = path.relative_to(self.source)
        target = self.root / self._filled(str(name))
        lives = name.parts[:2] == ("home", "runs") and target.parent.name in self.workers
        if name.parts[0] == "handovers" or (lives and name.name != "worker.json"):
            return
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.touch(mode=0o600)
        target.write_text(self._filled(path.read_text()))

    def _filled(self, text: str) -> str:
        return _PLACEHOLDER.sub(self._value, text)

    def _value(self, match: re.Match[str]) -> str:
        what, which, form = match.groups()
        if what == "ago":
            moment = self._now - timedelta(seconds=float(which))
            return str(int(moment.timestamp() * 1000)) if form == "ms" else f"{moment:%Y-%m-%dT%H:%M:%S.%f}{form}"
        if what == "scratch":
            return self._scratch(which)
        role, _, part = what.partition(".")
        if part:
            process = self.workers.get(which, {}).get(role) or self._dead
            values = {"pid": process["pid"], "start": process["start_time"], "stat": process.get("stat")}
            return str(values[part])
        return str(self._machine[what])

    def _scratch(self, stack: str) -> str:
        """Where 0.1.0 had the folder of an operation; below the home, as far as the path is short."""
        shard = hashlib.sha256(stack.encode()).hexdigest()[:2]
        return hashlib.sha256(f"file://{self.home}/state organization/runs-{shard}/{stack}".encode()).hexdigest()[:16]

    @cached_property
    def _machine(self) -> dict[str, object]:
        node = os.uname().nodename
        host = "-"
        if (machine := Path("/etc/machine-id")).exists() and machine.read_text().strip():
            host = hashlib.sha256(f"{machine.read_text().strip()} {node}".encode()).hexdigest()[:16]
        return {
            "ROOT": self.root,
            "HOST": host,
            "BOOT": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "NAMESPACE": Path("/proc/self/ns/pid").stat().st_ino,
            "UID": os.geteuid(),
            "NODE": node,
            "USER": "somebody",
        }

    @cached_property
    def _dead(self) -> dict[str, Any]:
        """A process that was, and is no more."""
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            stat = Path(f"/proc/{process.pid}/stat").read_text().strip()
        return {"pid": process.pid, "start_time": stat.rpartition(")")[2].split()[19], "stat": stat}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def told(run: WorkerHandle | str, launcher: RunLauncher[Any]) -> tuple[str, int | None]:
    status = launcher.status(run)
    return str(status.state), status.exit_code


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a worker's identity is put together as Linux has it")


@pytest.fixture(params=SETS)
def old(request: pytest.FixtureRequest) -> Iterator[OldHome]:
    with tempfile.TemporaryDirectory(prefix="rl-old-") as folder:
        home = OldHome(request.param, Path(folder))
        try:
            home.put_up()
            yield home
        finally:
            home.kill()


@pytest.mark.parametrize("name", SETS)
def test_a_set_names_no_machine(name: str) -> None:
    text = b"\n".join(path.read_bytes() for path in (FIXTURES / name).rglob("*") if path.is_file()).decode()

    assert set(re.findall(r"(?<![\w@./<>-])/\w[\w/]*", text)) <= {"/bin", "/usr/bin", "/no/interpreter"}
    places = {words.rstrip("\\") for words in re.findall(r"host:([@\w/.\\-]+)", text)}
    assert places <= {"@HOST@/@BOOT@/@NAMESPACE@", "@HOST@/@BOOT@/@NAMESPACE@/@UID@@@NODE@"}
    assert os.uname().nodename not in re.findall(r'"host(?:name)?": ?"([^"]*)"', text)


def test_how_every_run_is_by_its_id_and_by_its_handle(old: OldHome) -> None:
    launcher = old.launcher()

    assert {run_id: told(run_id, launcher) for run_id in STATES} == STATES
    assert {run_id: told(handle, launcher) for run_id, handle in old.handles.items()} == {
        run_id: STATES[run_id] for run_id in old.handles
    }
    assert [str(each.state) for each in launcher.statuses(STATES)] == [state for state, _ in STATES.values()]
    assert {run_id: told(handle, launcher_for(handle, config=Config(home=old.home))) for run_id, handle in
            old.handles.items()} == {run_id: STATES[run_id] for run_id in old.handles}  # fmt: skip
    assert "interrupted" in launcher.status("wanted").message
    assert launcher.status("terminated").reason == "terminated"
    assert launcher.status("refused").reason == "launch failed"


def test_why_logs_and_waiting(old: OldHome) -> None:
    launcher = old.launcher()
    printed = {run_id: "".join(launcher.why(run_id).last_lines) for run_id in PRINTED}

    assert printed == PRINTED
    assert launcher.why("live").command == ("sh", "-c", "echo up; exec sleep 600")
    assert launcher.why("live").facts["environment of the run"] == "GREETING"
    assert launcher.wait("succeeded").state is WorkerState.SUCCEEDED
    assert launcher.wait(old.handles["failed"]).exit_code == 3
    with pytest.raises(TimeLimitError):
        launcher.wait(old.handles["live"], timeout=timedelta(milliseconds=10))


def test_the_command_line_lists_and_ends_all_of_them(old: OldHome) -> None:
    script = str(Path(sys.executable).parent / "run-launcher")
    environment = {**os.environ, "RUN_LAUNCHER_HOME": str(old.home), "RUN_LAUNCHER_TOOLS": str(TOOLS)}

    def call(*words: str) -> Any:  # noqa: ANN401 - whatever JSON holds
        done = subprocess.run(
            [script, *words, "-o", "json"],
            env=environment,
            cwd=old.root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    listed = {each["run_id"]: (each["state"], each["exit_code"]) for each in call("ps", "--all")}
    ended = call("terminate", *STATES)

    assert listed == STATES
    assert [each["left"] for each in ended] == [0] * len(STATES)
    assert old.left() == []


def test_each_of_them_is_ended_by_its_handle_or_its_id(old: OldHome) -> None:
    launcher = old.launcher()
    alive = old.living()
    ended = {run_id: launcher.terminate(old.handles.get(run_id, run_id)) for run_id in STATES}

    assert alive == ["again.1", "live", "started", "wished"]
    assert {run_id: each.left for run_id, each in ended.items()} == dict.fromkeys(STATES, 0)
    assert {run_id: each.objects for run_id, each in ended.items() if each.objects} == dict.fromkeys(
        ("live", "wished", "again", "started", "succeeded", "failed"), 1
    )
    assert str(ended["live"].status.reason) == "terminated"
    assert old.left() == []
    assert launcher.why("live").last_lines == ("up",)


def test_a_handle_alone_ends_its_worker_where_the_records_are_lost(old: OldHome) -> None:
    launcher = old.launcher()
    for path in old.home.glob("state/records/*/live.json"):
        path.unlink()

    assert told(old.handles["live"], launcher) == STATES["live"]
    assert launcher.terminate(old.handles["live"]).left == 0
    assert "live" not in old.living()


def test_a_run_that_was_launched_then_is_not_launched_again(old: OldHome) -> None:
    launcher = old.launcher()
    again = {run_id: launcher.launch(old.run(run_id)) for run_id in ("live", "succeeded", "failed")}

    assert {run_id: (each.created, each.handle) for run_id, each in again.items()} == {
        run_id: (False, old.handles[run_id]) for run_id in again
    }
    for run_id in ("terminated", "wished"):
        with pytest.raises(LaunchConflictError, match="was terminated"):
            launcher.launch(old.run(run_id))
    assert launcher.launch(old.run("again", attempt=1)).handle == old.handles["again"]


def test_a_launch_that_died_then_is_finished_with_one_worker(old: OldHome) -> None:
    launcher = old.launcher()
    started, wanted = launcher.launch(old.run("started")), launcher.launch(old.run("wanted"))
    try:
        assert started.handle.coordinates["pid"] == old.workers["started"]["worker"]["pid"]
        assert told(started.handle, launcher) == told(wanted.handle, launcher) == ("RUNNING", None)
    finally:
        launcher.terminate("wanted")


def test_a_worker_that_lost_its_launcher_then_is_adopted(old: OldHome) -> None:
    launcher = old.launcher()

    assert launcher.adopt("started").handle.coordinates["pid"] == old.workers["started"]["worker"]["pid"]
    assert launcher.terminate("started").objects == 1


def test_the_next_attempt_follows_one_of_then(old: OldHome) -> None:
    launcher = old.launcher()
    second = launcher.launch(old.run("failed", attempt=1))

    assert (second.created, launcher.wait("failed", timeout=LIMIT).exit_code) == (True, 3)
    assert told(old.handles["failed"], launcher) == ("FAILED", 3)
    assert launcher.terminate("failed").left == 0


def test_another_key_than_that_of_then_is_refused_before_any_work(old: OldHome) -> None:
    (key,) = old.home.glob("keys/*")
    key.write_text("another")

    with pytest.raises(KeyMismatchError, match="not the one"):
        old.launcher().launch(Run(id="new", command=("true",)))


def test_fields_that_a_later_release_adds_are_ignored(old: OldHome) -> None:
    patterns = ("state/records/*/*", "state/wishes/*/*", "state/claims/*/*", "state/leases/*", "state/*.json",
                "runs/*/*/worker.json", "runs/*/*/exit.json", "logs/*/*.exit.json")  # fmt: skip
    for path in [path for pattern in patterns for path in old.home.glob(pattern) if not path.name.endswith("~cli")]:
        path.write_text(json.dumps(_later(json.loads(path.read_text()))))
    handles = {
        run_id: WorkerHandle.from_json(json.dumps(_later(json.loads(handle.to_json()))))
        for run_id, handle in old.handles.items()
    }
    launcher = old.launcher()
    seen = {run_id: told(handles.get(run_id, run_id), launcher) for run_id in STATES}
    launcher.launch(old.run("started"))
    left = {run_id: launcher.terminate(handles.get(run_id, run_id)).left for run_id in STATES}

    assert seen == STATES
    assert left == dict.fromkeys(STATES, 0)
    assert old.left() == []


def _later(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """The value with a field more in each object that has fields of ours."""
    if isinstance(value, list):
        return [_later(each) for each in value]
    if not isinstance(value, dict):
        return value
    free = {"coordinates", "fingerprints", "tags", "labels", "limits", "meta"}
    inner = {key: each if key in free else _later(each) for key, each in value.items()}
    return {**inner, "added_later": {"by": ["a later release"]}}
