"""What programs are told: every command's real output is of its declared shape, and the shapes are what they were.

`python tests/launchers/test_shapes.py` writes the snapshot anew, for a change that only adds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml
from command_line import FOREVER, CommandLine, user_in
from pydantic import BaseModel, JsonValue, TypeAdapter

from launchers.commands import shapes
from launchers.reconcile import Action

SNAPSHOT: Final = Path(__file__).with_name("shapes.json")
MODELS: Final[dict[str, type[BaseModel]]] = {
    "launch": shapes.LaunchedInfo,
    "preview": shapes.PreviewInfo,
    "run": shapes.RunInfo,
    "why": shapes.ExplainedInfo,
    "terminate": shapes.EndedInfo,
    "eject": shapes.EjectedInfo,
    "logs": shapes.LogLine,
    "doctor": shapes.Examination,
    "setup": shapes.EngineInfo,
    "setting": shapes.SettingInfo,
    "template list": shapes.TemplateLine,
    "template show": shapes.TemplateInfo,
    "template lint": shapes.FlawInfo,
    "template retire": shapes.SharedInfo,
    "error": shapes.Problem,
}


def generated() -> dict[str, Any]:
    """The JSON Schema of everything that a program is told, by what it is about."""
    told = {name: model.model_json_schema(mode="serialization") for name, model in MODELS.items()}
    told["config"] = TypeAdapter(dict[str, JsonValue]).json_schema()
    told["reconcile"] = TypeAdapter(Action).json_schema(mode="serialization")
    return json.loads(json.dumps(told))  # type: ignore[no-any-return]


def many(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a list of these."""
    definitions = schema.get("$defs", {})
    return {"type": "array", "items": {key: schema[key] for key in schema if key != "$defs"}, "$defs": definitions}


@pytest.fixture(scope="module")
def runs() -> Iterator[CommandLine]:
    """A user with a run in each state that this host can show."""
    with tempfile.TemporaryDirectory(prefix="rl-") as root, user_in(Path(root)) as user:
        clean = {name: value for name, value in user.environment.items() if not name.startswith(("XDG_", "PULUMI_"))}
        user.environment = {**clean, "HOME": root}
        for run_id, command in {
            "gone": ("true",),
            "ended": ("false",),
            "good": ("echo", "word"),
            "bad": ("sh", "-c", "kill -9 $$"),
            "live": FOREVER,
            "lost": FOREVER,
            "far": FOREVER,
        }.items():
            user("launch", "--run-id", run_id, "--tag", "é=1", "--", *command)
        user("wait", "gone", "ended", "good", "bad", code=10)
        user("terminate", "gone", "ended")
        user("launch", "--run-id", "refused", "--", "/etc", code=2)
        (far,) = user.home.glob("state/records/*/far.json")
        own = far.read_text()
        far.write_text(json.dumps({**json.loads(own), "place": "host:elsewhere"}))
        yield user
        far.write_text(own)


@pytest.mark.parametrize(
    ("shape", "words", "code"),
    [
        ("launch", ("launch", "--run-id", "good", "--tag", "é=1", "--", "echo", "word"), 0),
        ("preview", ("preview", "--run-id", "new", "--", "true"), 0),
        ("preview", ("preview", "--run-id", "good", "--", "false"), 4),
        ("[run", ("ps", "--all"), 0),
        ("[run", ("ps", "--state", "FAILED"), 0),
        ("[run", ("ps", "--tag", "nothing"), 0),
        ("run", ("status", "live"), 0),
        ("run", ("status", "gone"), 0),
        ("run", ("status", "bad"), 0),
        ("run", ("status", "far"), 0),
        ("[run", ("status", "live", "good"), 0),
        ("why", ("why", "bad"), 0),
        ("why", ("why", "ended"), 0),
        ("[why", ("why", "--tag", "é"), 0),
        ("run", ("wait", "good"), 0),
        ("[run", ("wait", "good", "bad"), 10),
        ("[run", ("wait", "live", "good", "--timeout", "0s"), 9),
        ("[run", ("terminate", "--tag", "é", "--dry-run"), 0),
        ("[terminate", ("terminate", "gone"), 0),
        ("[terminate", ("terminate", "lost"), 0),
        ("[reconcile", ("reconcile", "--dry-run"), 0),
        ("doctor", ("doctor",), 0),
        ("setup", ("setup",), 0),
        ("config", ("config",), 0),
        ("[setting", ("config", "--show-origin"), 0),
    ],
)
def test_what_a_command_tells_programs_is_of_the_declared_shape(
    runs: CommandLine, shape: str, words: tuple[str, ...], code: int
) -> None:
    command, *more = words
    told = json.loads(runs(command, "-o", "json", *more, code=code).stdout)
    again = yaml.safe_load(runs(command, "-o", "yaml", *more, code=code).stdout)
    schema = json.loads(SNAPSHOT.read_text())[shape.removeprefix("[")]
    for each in (told, again):
        jsonschema.validate(each, many(schema) if shape.startswith("[") else schema)

    assert keys(told) == keys(again)
    if words[:2] not in {("terminate", "lost"), ("doctor",)}:
        assert told == again


def keys(told: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """What is the same at each call, however often a run was ended."""
    if isinstance(told, list):
        return [keys(each) for each in told]
    return sorted(told) if isinstance(told, dict) else type(told)


def test_each_line_of_logs_and_each_error_is_of_the_declared_shape(runs: CommandLine) -> None:
    shape = json.loads(SNAPSHOT.read_text())
    lines = runs("logs", "good", "-o", "json").stdout.splitlines()
    for words, code in (
        (("status", "stranger"), 6),
        (("wait", "live", "--timeout", "0s"), 9),
        (("launch", "--run-id", "x", "--", "no-such-command"), 2),
        (("launch", "--run-id", "live", "--", "false"), 4),
        (("terminate", "far", "gone"), 4),
    ):
        asked = (words[0], "-o", "json", *words[1:])
        jsonschema.validate(json.loads(runs(*asked, code=code).stderr.splitlines()[-1]), shape["error"])

    assert len(lines) == 1
    jsonschema.validate(json.loads(lines[0]), shape["logs"])


def test_what_eject_tells_programs_is_of_the_declared_shape(runs: CommandLine, tmp_path: Path) -> None:
    told = runs.json("eject", "live", str(tmp_path / "json"))
    again = yaml.safe_load(runs("eject", "live", str(tmp_path / "yaml"), "-o", "yaml").stdout)
    for each in (told, again):
        jsonschema.validate(each, json.loads(SNAPSHOT.read_text())["eject"])

    assert runs("eject", "live", str(tmp_path / "name"), "-o", "name").stdout == "live\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ps", "--state", "RUNNING"), "live"),
        (("status", "bad", "good"), "bad\ngood"),
        (("why", "bad"), "bad"),
        (("wait", "good"), "good"),
        (("terminate", "gone"), "gone"),
        (("reconcile", "--dry-run"), ""),
    ],
)
def test_names_are_one_to_a_line(runs: CommandLine, words: tuple[str, ...], expected: str) -> None:
    runs("terminate", "lost")

    assert runs(*words, "-o", "name").stdout.strip() == expected


def test_names_of_what_is_no_run_are_what_it_lists(runs: CommandLine) -> None:
    assert "launch.timeout" in runs("config", "-o", "name").stdout.splitlines()
    assert "engine" in runs("doctor", "-o", "name").stdout.splitlines()
    assert Path(runs("setup", "-o", "name").stdout.strip()).name == "pulumi"


def test_no_key_has_vanished_and_no_type_has_changed() -> None:
    assert generated() == json.loads(SNAPSHOT.read_text())


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(generated(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
