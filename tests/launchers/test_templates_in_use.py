"""Templates as those meet them who launch: bounds, versions, routes, changed files, and commands about templates."""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from command_line import TOOLS, CommandLine

from launchers import LauncherTemplate, Run, load_launcher
from launchers.config import load_config
from launchers.factory import make_workspace
from launchers.templates import StaleTemplateWarning
from programs.args import KeepOverrides, ResourcesOverrides
from programs.bounds import Bound
from programs.process.template import LimitsOverrides, ProcessOverrides, ProcessTemplate
from stacks.errors import PolicyError, TemplateError
from stacks.records import Phase

SMALL = """\
target: process
owner: data-platform
limits: {open_files: 100}
grace: 1s
overrides:
  limits.open_files: {max: 200}
  env: {keys: [DAY]}
"""
ROUTES = """\
routes:
- {tags: {size: small}, template: small}
"""


class Site:
    """A command line whose configuration and templates are in one folder."""

    def __init__(self, cli: CommandLine, folder: Path) -> None:
        self.cli = cli
        self.folder = folder
        (folder / "templates").mkdir(parents=True)
        self.write("small", SMALL)
        (folder / "run-launcher.yaml").write_text(ROUTES, encoding="utf-8")

    def write(self, name: str, text: str) -> Path:
        path = self.folder / "templates" / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    def __call__(self, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.cli("--config-file", str(self.folder / "run-launcher.yaml"), *words, code=code, **environment)

    def json(self, *words: str, code: int = 0) -> Any:  # noqa: ANN401 - whatever JSON holds
        end = words.index("--") if "--" in words else len(words)
        return json.loads(self(*words[:end], "-o", "json", *words[end:], code=code).stdout)

    def open_files(self, *words: str, code: int = 0) -> str:
        """What the kernel tells the worker of a launch of its limit."""
        return self(
            "launch", *words, "--rm", "--follow", "--", "sh", "-c", 'echo "$(ulimit -n) $DAY"', code=code
        ).stdout


@pytest.fixture
def site(cli: CommandLine, tmp_path: Path) -> Site:
    return Site(cli, tmp_path / "site")


def test_a_run_changes_what_its_template_lets_it_and_the_worker_sees_it(site: Site) -> None:
    assert site.open_files("-t", "small").strip() == "100"
    assert site.open_files("-t", "small", "--set", "limits.open_files=200", "-e", "DAY=monday").strip() == "200 monday"
    assert site.open_files("-t", "small", "--set", "env.DAY=friday").strip() == "100 friday"


@pytest.mark.parametrize(
    ("words", "field", "line"),
    [
        (("--set", "limits.open_files=201"), "limits.open_files '201' is above max 200", 6),
        (("-e", "NIGHT=1"), "env.NIGHT is locked", 7),
        (("-e", "LD_PRELOAD=x"), "env.LD_PRELOAD is never a run's to set", 0),
        (("--set", "grace=9h"), "grace is locked", 0),
    ],
)
def test_a_refused_launch_exits_with_5_and_leaves_nothing(
    site: Site, words: tuple[str, ...], field: str, line: int
) -> None:
    refused = site("launch", "-t", "small", *words, "--", "true", code=5)
    told = json.loads(site("launch", "-t", "small", *words, "-o", "json", "--", "true", code=5).stderr)
    foreseen = site("preview", "-t", "small", *words, "--", "true", code=5)

    where = f"templates/small.yaml{f':{line}' if line else ''}, owner data-platform)"
    assert field in refused.stderr
    assert where in refused.stderr
    assert refused.stderr == foreseen.stderr
    assert (told["error"], told["exit_code"], told["started"], told["repair"]) == (
        "PolicyError", 5, "no", "template owner"
    )  # fmt: skip
    assert not site.cli.home.exists()


def test_another_override_is_another_launch_of_the_same_id(site: Site) -> None:
    words = ("launch", "-t", "small", "--run-id", "r", "--set")
    first = site.json(*words, "limits.open_files=150", "--", "true")
    again = site.json(*words, "limits.open_files=150", "--", "true")
    other = site(*words, "limits.open_files=151", "--", "true", code=4)

    assert (first["created"], again["created"]) == (True, False)
    assert "differs: its template" in other.stderr


def test_a_version_can_be_launched_after_its_file_has_changed_and_was_removed(site: Site) -> None:
    launched = site.json("launch", "-t", "small", "--run-id", "old", "--", "true")
    path = site.write("small", SMALL.replace("100", "50"))
    old = f"small@{launched['digest'][:10]}"
    assert site.open_files("-t", "small").strip() == "50"
    assert site.open_files("-t", old).strip() == "100"
    path.unlink()

    assert site.open_files("-t", old).strip() == "100"
    assert site.open_files("-t", f"small@{launched['digest']}", "--set", "limits.open_files=199").strip() == "199"
    assert (
        "limits.open_files '999' is above max 200"
        in site("launch", "-t", old, "--set", "limits.open_files=999", "--", "true", code=5).stderr
    )
    unknown = site("launch", "-t", "small@0123456789", "--", "true", code=2).stderr
    assert "no version of template small" in unknown
    assert launched["digest"][:12] in unknown
    assert (
        "no version of template process"
        in site("launch", "-t", f"process@{launched['digest']}", "--", "true", code=2).stderr
    )
    assert site.json("template", "show", old)["digest"] == launched["digest"]


def test_who_may_not_choose_a_template_now_may_not_choose_an_older_version_of_it(site: Site) -> None:
    digest = site.json("launch", "-t", "small", "--run-id", "old", "--", "true")["digest"]
    site.write("small", f"{SMALL}use: {{users: nobody-here}}\n")

    assert "template small is not for" in site("launch", "-t", "small", "--", "true", code=5).stderr
    assert "template small is not for" in site("launch", "-t", f"small@{digest}", "--", "true", code=5).stderr


def test_who_may_not_choose_a_template_may_not_attempt_a_run_of_it_again(site: Site) -> None:
    site.write("etl", f"{SMALL}use: {{tags: {{team: data}}}}\n")
    words = ("launch", "-t", "etl", "--run-id", "r")
    site(*words, "--tag", "team=data", "--", "true")
    site("wait", "r")

    assert "template etl is not for" in site(*words, "--attempt", "1", "--tag", "team=ml", "--", "true", code=5).stderr
    site(*words, "--attempt", "1", "--tag", "team=data", "--", "true")


def test_a_file_of_variables_that_can_be_read_once_is_read_once(site: Site, tmp_path: Path) -> None:
    site("launch", "-t", "small", "--run-id", "first", "-e", "DAY=monday", "--", "sh", "-c", "echo $DAY")
    pipe = tmp_path / "variables"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        written = threads.submit(pipe.write_text, "DAY=friday\n")
        again = site("launch", "--like", "first", "--env-file", str(pipe), "--follow")
        written.result()

    assert again.stdout == "friday\n"


def test_a_run_is_launched_like_another_one(site: Site, tmp_path: Path) -> None:
    options = ("-t", "small", "--run-id", "first", "--set", "limits.open_files=150", "--tag", "a=b", "-e", "DAY=monday")
    first = site.json("launch", *options, "--", "sh", "-c", 'echo "$(ulimit -n) $DAY"; pwd')
    site.write("small", SMALL.replace("100", "50"))
    missing = site("launch", "--like", "first", code=2).stderr
    again = site("launch", "--like", "first", "--run-id", "again", "-e", "DAY", "--follow", DAY="friday")
    record = site.json("status", "again")

    assert "give them with -e DAY" in missing
    assert again.stdout.splitlines() == ["150 friday", first["cwd"]]
    assert (record["digest"], record["tags"], record["command"]) == (first["digest"], {"a": "b"}, first["command"])
    assert "leave --template away" in site("launch", "--like", "first", "-t", "small", code=2).stderr
    assert "no run" in site("launch", "--like", "nobody", code=6).stderr
    other = site("launch", "--like", "first", "-e", "DAY=x", "--follow", "--", "echo", "other")
    assert other.stdout == "other\n"
    assert tmp_path.is_dir()


def test_a_route_chooses_by_tags_and_preview_says_why(site: Site) -> None:
    told = site.json("preview", "--tag", "size=small", "--", "true")
    values = {each["key"]: (each["value"], each["origin"]) for each in told["values"]}
    other = {each["key"]: each["value"] for each in site.json("preview", "--tag", "size=large", "--", "true")["values"]}

    assert values["template"][0] == "small"
    assert values["template"][1].startswith("route ")
    assert values["template"][1].endswith("run-launcher.yaml:2")
    assert other["template"] == "process"
    changed = site.json("preview", "-t", "small", "--set", "limits.open_files=9", "--", "true")["values"]
    assert {"key": "template.limits.open_files", "value": 9, "origin": "flag --set"} in changed


# ---- from Python ----


@pytest.fixture
def launcher(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.setenv("RUN_LAUNCHER_TOOLS", str(TOOLS))
    config = load_config({"home": str(site.cli.home)}, env={}, file=site.folder / "run-launcher.yaml")
    workspace = make_workspace(config)
    return lambda name: load_launcher(name, config=config, workspace=workspace)


def test_the_type_of_a_targets_overrides_has_its_fields() -> None:
    fixed = {"target", "owner", "description", "secrets", "connection"} | LauncherTemplate.GOVERNANCE
    fixed |= ProcessTemplate.DURABLE

    assert set(ProcessOverrides.__annotations__) == set(ProcessTemplate.model_fields) - fixed
    assert set(LimitsOverrides.__annotations__) == set(type(ProcessTemplate().limits).model_fields)
    assert set(ResourcesOverrides.__annotations__) == set(type(ProcessTemplate().resources).model_fields)
    assert set(KeepOverrides.__annotations__) == set(type(ProcessTemplate().keep).model_fields)


def test_overrides_from_python_are_typed_and_held_to_the_same_bounds(launcher: Callable[[str], Any]) -> None:
    small = launcher("small")
    wanted: ProcessOverrides = {"limits": {"open_files": 150}, "env": {"DAY": "monday"}}
    handle = small.launch(Run(id="r", command=("sh", "-c", "ulimit -n; echo $DAY")), overrides=wanted).handle
    small.wait(handle)

    assert small.why(handle).last_lines == ("150", "monday")
    assert small.template.limits.open_files == 100
    with pytest.raises(PolicyError, match="above max 200"):
        small.launch(Run(id="s", command=("true",)), overrides={"limits": {"open_files": 201}})
    assert small.workspace.records.read("s") is None
    small.terminate(handle)


def test_a_running_launcher_launches_what_the_file_says_now_and_goes_on_where_it_is_broken(
    site: Site, launcher: Callable[[str], Any]
) -> None:
    small = launcher("small")

    def limit(run_id: str) -> str:
        handle = small.launch(Run(id=run_id, command=("sh", "-c", "ulimit -n"))).handle
        small.wait(handle)
        (line,) = small.why(handle).last_lines
        small.terminate(handle)
        return str(line)

    assert limit("one") == "100"
    path = site.write("small", SMALL.replace("100", "50"))
    assert limit("two") == "50"
    site.write("small", "target: process\nlimits: [\n")
    with pytest.warns(StaleTemplateWarning, match=r"small\.yaml:3: is no YAML"):
        assert limit("three") == "50"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert limit("four") == "50"
    broken = site("doctor", code=1).stdout
    path.unlink()

    assert "BROKEN" in broken
    assert "templates/small.yaml:3: is no YAML" in broken
    with pytest.raises(TemplateError, match="no template 'small'"):
        limit("five")
    assert small.workspace.records.read("one").phase is Phase.REMOVED


def test_a_template_that_the_caller_makes_is_the_callers_to_bound(site: Site) -> None:
    config = load_config({"home": str(site.cli.home)}, env={})
    free = load_launcher(ProcessTemplate(), config=config)
    bound = load_launcher(ProcessTemplate(overrides={"env": Bound(keys=("A",))}), config=config)

    free.admit(Run(id="r", command=("true",), env={"B": "1"}))
    bound.admit(Run(id="r", command=("true",), env={"A": "1"}))
    with pytest.raises(PolicyError, match=r"env.B is locked.*the caller's own template"):
        bound.admit(Run(id="r", command=("true",), env={"B": "1"}))
    with pytest.raises(PolicyError, match="grace is locked"):
        free.overridden({"grace": "1s"})
    with pytest.raises(TemplateError, match="only the file of a template extends"):
        load_launcher(ProcessTemplate(extends="base"), config=config)


# ---- the commands about templates ----


def test_the_list_shows_each_template_and_what_is_wrong_with_it(site: Site) -> None:
    site.write("child", "extends: small\ndescription: A child\n")
    site.write("broken", "target: process\ngracee: 1s\n")
    told = {each["name"]: each for each in site.json("template", "list")}
    shown = site("template", "list").stdout

    assert list(told) == ["broken", "child", "docker", "process", "small"]
    assert told["child"]["owner"] == "data-platform"
    assert told["child"]["digest"] == site.json("template", "show", "child")["digest"]
    assert "did you mean 'grace'?" in told["broken"]["problem"]
    assert told["process"]["origin"] == "built in"
    assert "A child" in shown
    assert site("template", "list", "-o", "name").stdout.split() == list(told)


def test_show_tells_what_a_template_says_what_holds_and_where_each_value_comes_from(site: Site) -> None:
    site.write("child", "extends: small\ngrace: 2s\n")
    said = site("template", "show", "child").stdout
    whole = site("template", "show", "child", "--resolved").stdout
    origins = site("template", "show", "child", "--resolved", "--origin").stdout

    assert "grace: 2s" in said
    assert "inherit_env" not in said
    assert "small.yaml" in said
    assert "inherit_env: true" in whole
    rows = {line.split()[0]: line for line in origins.splitlines()}
    assert rows["grace"].endswith("templates/child.yaml:2")
    assert rows["limits.open_files"].endswith("templates/small.yaml:3")
    assert rows["overrides.limits.open_files"].endswith("templates/small.yaml:6")
    assert rows["max_runtime"].endswith("default")


def test_lint_names_file_line_and_advice_and_the_routes_that_lead_nowhere(site: Site) -> None:
    assert site("template", "lint", "small").stdout == "nothing is wrong\n"
    site.write("broken", "target: process\ngracee: 1s\n")
    (site.folder / "run-launcher.yaml").write_text("routes: [{template: smal}]\n", encoding="utf-8")
    told = site("template", "lint", code=2).stdout
    found = site.json("template", "lint", code=2)

    assert "templates/broken.yaml:2: unknown key 'gracee'; did you mean 'grace'?" in told
    assert "run-launcher.yaml:1: the route leads nowhere: no template 'smal'; did you mean 'small'?" in told
    assert "2 wrong" in told
    assert [(Path(each["origin"]).name, each["line"]) for each in found if each["error"]] == [
        ("run-launcher.yaml", 1), ("broken.yaml", 2),
    ]  # fmt: skip
