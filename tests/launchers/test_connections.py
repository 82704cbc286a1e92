"""A template's connection leads to a place, and no run of one place is ever asked for in another; files prove it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import TOOLS, CommandLine
from shelf_template import ShelfConnection, ShelfTemplate

from launchers import Run, WorkerHandle, launcher_for, load_launcher
from launchers.config import load_config
from launchers.factory import make_workspace
from launchers.launcher import RunLauncher
from launchers.reconcile import Reconciler
from launchers.settings import Config
from stacks.errors import ConfigurationError, LimitReachedError, TemplateError, WrongPlaceError
from stacks.handle import WorkerState

TEMPLATE = ShelfTemplate(connection="prod")
TESTS = Path(__file__).parents[1]


class Shelves:
    """A user of the target `shelf`: its package is installed, and two shelves are there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("here", "there"):
            self.make(name)
        info = root / "site" / "acme_shelf-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-shelf\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[run_launcher.targets]\nshelf = shelf:TARGET\n")
        self.leads("prod", "here")

    @property
    def path(self) -> list[str]:
        return [str(self.root / "site"), str(TESTS)]

    def make(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir()
        (folder / "id").write_text(name)
        return folder

    def leads(self, connection: str, to: str, more: str = "") -> None:
        Path("run-launcher.yaml").write_text(
            "reconcile: {orphan_age: 0s}\n"
            f"connections:\n  {connection}: {{target: shelf, folder: {self.root / to}}}\n{more}"
        )

    def config(self) -> Config:
        return load_config()

    def launcher(self) -> RunLauncher[Any]:
        return load_launcher(TEMPLATE, config=self.config())

    def launch(self, run_id: str) -> WorkerHandle:
        return self.launcher().launch(Run(id=run_id, command=("true",))).handle

    def reconcile(self) -> list[tuple[str, str]]:
        told = list(Reconciler(make_workspace(self.config())).once())
        assert [each.error for each in told] == [""] * len(told)
        return [(each.subject, each.what) for each in told]

    def workers(self, name: str) -> list[str]:
        return sorted(path.name for path in (self.root / name).glob("*.worker"))

    def asked(self, name: str, run_id: str) -> list[str]:
        """What was asked there about a run."""
        log = self.root / name / "asked"
        return [line for line in log.read_text().splitlines() if run_id in line] if log.exists() else []


@pytest.fixture
def shelves(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelves:  # noqa: ARG001
    made = Shelves(tmp_path)
    monkeypatch.setenv("RUN_LAUNCHER_HOME", str(tmp_path / "kept"))
    monkeypatch.setenv("RUN_LAUNCHER_TOOLS", str(TOOLS))
    for folder in made.path:
        monkeypatch.syspath_prepend(folder)
    return made


def lost(shelves: Shelves, how: str) -> None:
    """Lead the connection elsewhere, or take it away."""
    if how == "re-pointed":
        shelves.leads("prod", "there")
    elif how == "missing":
        shelves.leads("other", "here")
    elif how == "none at all":
        Path("run-launcher.yaml").unlink()
    else:
        Path("run-launcher.yaml").write_text("connections: {prod: {target: nomad, folder: x}}\n")


LOST = ("re-pointed", "missing", "none at all", "of another target")


# ---- a template's connection ----


def test_a_launcher_gets_the_typed_connection_of_its_template(shelves: Shelves) -> None:
    launcher = shelves.launcher()

    assert launcher.connection == ShelfConnection(folder=shelves.root / "here")
    assert load_launcher(ShelfTemplate(), config=shelves.config()).connection is None
    assert load_launcher("process", config=shelves.config()).connection is None


def test_workers_live_where_the_connection_leads(shelves: Shelves) -> None:
    first = shelves.launch("first")
    shelves.leads("prod", "there")
    second = shelves.launch("second")

    assert (first.place, second.place) == ("shelf:here", "shelf:there")
    assert (shelves.workers("here"), shelves.workers("there")) == (["first.0.worker"], ["second.0.worker"])
    assert launcher_for(second, config=shelves.config()).terminate(second).left == 0
    assert shelves.workers("there") == []


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("target: shelf\nconnection: prdo", "templates/t.yaml:2: unknown connection 'prdo'; did you mean 'prod'?"),
        ("target: shelf\n\nconnection: box", "templates/t.yaml:3: unknown connection 'box'; connections: far, prod"),
        (
            "target: shelf\nconnection: far",
            r"templates/t.yaml:2: the connection 'far' \(run-launcher.yaml:4\) is one of",
        ),
        ("target: process\nconnection: prod", "templates/t.yaml:2: the process target has no connections"),
    ],
)
def test_a_connection_that_a_template_cannot_have_is_refused_with_file_and_line(
    shelves: Shelves, template: str, says: str
) -> None:
    shelves.leads("prod", "here", more="  far: {target: nomad}\n")
    Path("templates").mkdir()
    Path("templates/t.yaml").write_text(template)

    with pytest.raises(TemplateError, match=says.replace("?", r"\?")):
        load_launcher("t", config=shelves.config())


def test_without_any_connection_the_message_says_so(shelves: Shelves) -> None:
    with pytest.raises(TemplateError, match="unknown connection 'prod'; the configuration names none"):
        load_launcher(TEMPLATE, config=Config(home=shelves.root / "kept"))


# ---- a run of one place is never asked for in another ----


@pytest.mark.parametrize("how", LOST)
def test_a_worker_whose_connection_leads_elsewhere_is_unknown_and_never_asked_for(shelves: Shelves, how: str) -> None:
    handle = shelves.launch("r")
    before = shelves.asked("here", "r")
    lost(shelves, how)
    statuses = [launcher_for(run, config=shelves.config()).status(run) for run in (handle, "r")]
    launcher = launcher_for("r", config=shelves.config())
    why = launcher.why("r")

    assert [each.state for each in (*statuses, why.status)] == [WorkerState.UNKNOWN] * 3
    assert "this worker lives on shelf:here: ask there" in statuses[0].message
    assert "the connection 'prod' led there when it was launched" in statuses[0].message
    assert (why.last_lines, why.facts) == ((), {})
    assert (shelves.asked("there", "r"), shelves.asked("here", "r")) == ([], before)


@pytest.mark.parametrize("how", LOST)
def test_a_wish_to_end_it_is_carried_out_once_the_connection_leads_there_again(shelves: Shelves, how: str) -> None:
    handle = shelves.launch("r")
    before = shelves.asked("here", "r")
    lost(shelves, how)
    for run in (handle, "r"):
        with pytest.raises(WrongPlaceError, match="lives on shelf:here; the wish to end it is recorded"):
            launcher_for(run, config=shelves.config()).terminate(run)
    left_alone = [subject for subject, _ in shelves.reconcile()]
    asked = (shelves.asked("there", "r"), shelves.asked("here", "r"))
    kept = shelves.workers("here")
    shelves.leads("prod", "here")

    assert (left_alone, asked, kept) == ([], ([], before), ["r.0.worker"])
    assert shelves.reconcile() == [("r", "terminated")]
    assert shelves.workers("here") == []


@pytest.mark.parametrize("how", LOST)
def test_launching_it_again_or_its_next_attempt_starts_nothing_elsewhere(shelves: Shelves, how: str) -> None:
    handle = shelves.launch("r")
    lost(shelves, how)
    if how == "re-pointed":
        again = shelves.launcher().launch(Run(id="r", command=("true",)))

        assert (again.created, again.handle) == (False, handle)
    else:
        with pytest.raises(TemplateError):
            shelves.launcher()
    assert (shelves.workers("there"), shelves.asked("there", "r")) == ([], [])


def test_two_runs_of_one_template_are_each_asked_for_in_their_own_place(shelves: Shelves) -> None:
    shelves.launch("old")
    shelves.leads("prod", "there")
    shelves.launch("new")
    states = launcher_for("old", config=shelves.config()).statuses(["old", "new"])

    assert [each.state for each in states] == [WorkerState.UNKNOWN, WorkerState.RUNNING]
    assert shelves.asked("there", "old") == []


def test_a_run_whose_connection_is_gone_for_good_can_be_given_up(shelves: Shelves) -> None:
    shelves.launch("r")
    before = shelves.asked("here", "r")
    lost(shelves, "missing")
    told = launcher_for("r", config=shelves.config()).abandon("r")

    assert told.status.reason == "abandoned"
    assert shelves.asked("here", "r") == before


def test_a_run_whose_connection_leads_elsewhere_counts_against_a_limit(shelves: Shelves) -> None:
    shelves.launch("r")
    shelves.leads("prod", "there", more="limits: {templates: {shelf: {concurrent_runs: 1}}}\n")

    with pytest.raises(LimitReachedError, match=r"run r \(\d+s, cannot be asked: this worker lives on shelf:here"):
        shelves.launch("s")
    assert shelves.asked("there", "r") == []


def test_what_no_run_owns_is_found_on_every_connection_and_removed_there(shelves: Shelves) -> None:
    shelves.launch("r")
    shelves.launch("kept")
    shelves.leads("prod", "here", more=f"  other: {{target: shelf, folder: {shelves.root / 'there'}}}\n")
    other = ShelfTemplate(connection="other")
    load_launcher(other, config=shelves.config()).launch(Run(id="s", command=("true",)))
    for run_id in ("r", "s"):
        next((shelves.root / "kept").glob(f"state/records/*/{run_id}.json")).unlink()

    assert {subject for subject, _ in shelves.reconcile()} == {"r", "s", "stack r", "stack s"}
    assert (shelves.workers("here"), shelves.workers("there")) == (["kept.0.worker"], [])


def test_a_place_that_does_not_answer_keeps_nobody_from_reconciling_the_rest(shelves: Shelves) -> None:
    shelves.launch("r")
    next((shelves.root / "kept").glob("state/records/*/r.json")).unlink()
    shelves.leads("prod", "here", more=f"  away: {{target: shelf, folder: {shelves.root / 'away'}}}\n")

    assert shelves.reconcile() == [("r", "removed"), ("stack r", "removed")]


# ---- the configuration ----


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "{target: shelf, foldr: /x}",
            "run-launcher.yaml:2: connections.prod: unknown key 'foldr'; did you mean 'folder'?",
        ),
        ("{target: shelf}", "run-launcher.yaml:2: connections.prod: folder is missing"),
        ("{target: shelf, folder: 5}", "run-launcher.yaml:2: connections.prod: folder must be a path"),
        ("{folder: /x}", "run-launcher.yaml:2: connections.prod.target is missing"),
        ("{target: process}", "run-launcher.yaml:2: connections.prod: the process target has no connections"),
        (
            "\n    target: shelf\n    folder: /x\n    lable: y",
            "run-launcher.yaml:5: connections.prod: unknown key 'lable'",
        ),
        ("5", "run-launcher.yaml:2: connections.prod must be a mapping"),
    ],
)
def test_a_wrong_connection_is_refused_with_its_line(shelves: Shelves, text: str, says: str) -> None:
    Path("run-launcher.yaml").write_text(f"connections:\n  prod: {text}\n")

    with pytest.raises(ConfigurationError) as caught:
        shelves.config()
    assert says in str(caught.value)


def test_a_path_in_a_connection_is_relative_to_its_file(shelves: Shelves) -> None:
    Path("run-launcher.yaml").write_text("connections:\n  prod: {target: shelf, folder: near/by}\n")

    assert shelves.launcher().connection == ShelfConnection(folder=Path.cwd() / "near/by")


def test_of_two_files_with_one_connection_the_nearer_one_has_all_of_it(shelves: Shelves, empty_home: Path) -> None:
    user = empty_home / ".config/run-launcher/run-launcher.yaml"
    user.parent.mkdir(parents=True)
    user.write_text("connections:\n  prod: {target: shelf, folder: /x, label: far}\n  own: {target: shelf, folder: /y}")
    connections = make_workspace(shelves.config()).connections.each

    assert {each.name: each.values for each in connections} == {
        "prod": {"folder": str(shelves.root / "here")},
        "own": {"folder": "/y"},
    }
    assert {each.name: each.origin for each in connections} == {"prod": "run-launcher.yaml:3", "own": f"{user}:3"}


def test_a_connection_of_a_target_that_is_not_installed_is_an_error_only_when_it_is_used(shelves: Shelves) -> None:
    shelves.leads("prod", "here", more="  far: {target: nomad, address: x}\n")

    assert load_launcher("process", config=shelves.config()).target == "process"
    with pytest.raises(ConfigurationError, match=r"run-launcher.yaml:4: connection 'far': unknown target 'nomad'"):
        make_workspace(shelves.config()).connections.each[1].read()


def test_reading_a_configuration_with_connections_loads_no_sdk(shelves: Shelves) -> None:
    code = (
        "import sys; from launchers.config import load_config; load_config(); "
        "print(sorted({n.partition('.')[0] for n in sys.modules} & {'pulumi', 'grpc', 'shelf_template'}))"
    )
    environment = {"PYTHONPATH": ":".join(shelves.path), "HOME": str(shelves.root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "['shelf_template']"


def test_on_the_command_line_logs_of_a_run_elsewhere_say_where_to_ask(shelves: Shelves, cli: CommandLine) -> None:
    cli.environment["PYTHONPATH"] = ":".join(shelves.path)
    Path("templates").mkdir()
    Path("templates/t.yaml").write_text("target: shelf\nconnection: prod\n")
    cli("launch", "-t", "t", "--run-id", "r", "--", "true")
    shown = cli("logs", "r").stdout
    shelves.leads("prod", "there")
    elsewhere = cli("logs", "r", code=4)
    asked = shelves.asked("there", "r")
    shelves.leads("prod", "here")

    assert shown == "a line\n"
    assert "this worker lives on shelf:here: ask there" in elsewhere.stderr
    assert asked == []


def test_doctor_lists_connections_with_where_they_lead(shelves: Shelves, cli: CommandLine) -> None:
    cli.environment["PYTHONPATH"] = ":".join(shelves.path)
    more = f"  away: {{target: shelf, folder: {shelves.root / 'away'}}}\n  far: {{target: nomad}}\n"
    shelves.leads("prod", "here", more=more)
    told = json.loads(cli("doctor", "-o", "json", code=1).stdout)

    found = {each["name"]: (each["level"], each["value"]) for each in told["findings"] if "connection" in each["name"]}
    assert found["connection prod"] == ("ok", "target shelf, run-launcher.yaml:3, leads to shelf:here")
    assert found["connection away"] == ("broken", f"the shelf {shelves.root / 'away'} does not answer")
    assert found["connection far"][0] == "note"
    assert "unknown target 'nomad'" in found["connection far"][1]
