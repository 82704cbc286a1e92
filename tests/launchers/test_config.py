"""The configuration: which source wins, where each value comes from, and every wrong one refused with its origin."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import platformdirs
import pytest

from launchers import config as config_module
from launchers.config import Config, ConfigWithOrigins, load_config, load_config_with_origins
from stacks.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("empty_home")


def project(text: str, folder: Path | None = None) -> Path:
    path = (folder or Path.cwd()) / "run-launcher.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def user(text: str) -> Path:
    return project(text, platformdirs.user_config_path("run-launcher"))


def origin(loaded: ConfigWithOrigins, key: str) -> str:
    return {setting.key: setting.origin for setting in loaded.settings}[key]


def refusal(flags: dict[str, object] | None = None, env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_config(flags, env or {})
    return str(caught.value).splitlines()


def test_without_any_source_the_defaults_hold(empty_home: Path) -> None:
    config = load_config(env={})

    assert config == Config()
    assert config.home == platformdirs.user_data_path("run-launcher")
    assert empty_home in config.home.parents
    assert config.backend_url == f"file://{config.home}/state"
    assert config.templates.default == "process"
    assert config.templates.folders == ()
    assert config.engine.kind == "auto"
    assert config.engine.timeout == timedelta(minutes=5)
    assert config.launch.timeout == timedelta(seconds=60)
    assert config.records.keep == timedelta(days=90)


def test_each_source_wins_over_the_next() -> None:
    user("launch: {timeout: 1s}")
    assert load_config({}, {}).launch.timeout == timedelta(seconds=1)

    project("\nlaunch:\n  timeout: 2s\n")
    loaded = load_config_with_origins({}, {})
    assert loaded.config.launch.timeout == timedelta(seconds=2)
    assert origin(loaded, "launch.timeout") == "run-launcher.yaml:3"

    env = {"RUN_LAUNCHER_LAUNCH__TIMEOUT": "3s"}
    loaded = load_config_with_origins({}, env)
    assert loaded.config.launch.timeout == timedelta(seconds=3)
    assert origin(loaded, "launch.timeout") == "environment RUN_LAUNCHER_LAUNCH__TIMEOUT"

    loaded = load_config_with_origins({"launch.timeout": "4s"}, env)
    assert loaded.config.launch.timeout == timedelta(seconds=4)
    assert origin(loaded, "launch.timeout") == "flag --timeout"


def test_sources_are_merged_key_by_key() -> None:
    path = user("engine: {kind: cli, timeout: 1m}\nrecords: {keep: 1d}")
    project("engine: {timeout: 2m}")

    loaded = load_config_with_origins(env={"RUN_LAUNCHER_RECORDS__KEEP": "2d"})

    assert loaded.config.engine.kind == "cli"
    assert loaded.config.engine.timeout == timedelta(minutes=2)
    assert loaded.config.records.keep == timedelta(days=2)
    assert origin(loaded, "engine.kind") == f"{path}:1"
    assert origin(loaded, "launch.timeout") == "default"


def test_the_origins_name_every_value_once_in_the_order_of_the_model() -> None:
    loaded = load_config_with_origins({"engine.cli": "bin/pulumi"}, {"RUN_LAUNCHER_HOME": "/data"})

    assert [(setting.key, setting.value, setting.origin) for setting in loaded.settings] == [
        ("home", "/data", "environment RUN_LAUNCHER_HOME"),
        ("backend.url", "file:///data/state", "default"),
        ("backend.passphrase_file", None, "default"),
        ("templates.default", "process", "default"),
        ("templates.folders", [], "default"),
        ("engine.kind", "auto", "default"),
        ("engine.cli", f"{Path.cwd()}/bin/pulumi", "flag --engine-cli"),
        ("engine.timeout", "300s", "default"),
        ("launch.timeout", "60s", "default"),
        ("records.keep", "7776000s", "default"),
        ("reconcile.orphan_age", "600s", "default"),
        ("shared.keep", "604800s", "default"),
        ("shared.wait", "120s", "default"),
        ("routes", [], "default"),
        ("limits.when_full", "refuse", "default"),
    ]


def test_an_absent_flag_and_an_empty_variable_set_nothing() -> None:
    loaded = load_config_with_origins({"engine.kind": None}, {"RUN_LAUNCHER_ENGINE__KIND": "", "RUN_LAUNCHER_HOME": ""})

    assert loaded.config == Config()
    assert {setting.origin for setting in loaded.settings} == {"default"}


@pytest.mark.parametrize("text", ["", "# nothing set\n", "---\n", "{}"])
def test_an_empty_file_sets_nothing(text: str) -> None:
    project(text)

    assert load_config(env={}) == Config()


def test_paths_in_a_file_are_relative_to_that_file(empty_home: Path) -> None:
    path = user(
        "home: data\n"
        "backend: {url: file://./state, passphrase_file: ../key}\n"
        "templates: {folders: [mine, /abs, ~/own], default: mine/etl.yaml}\n"
        "engine: {cli: ~/bin/pulumi}\n"
    )

    config = load_config(env={})

    assert config.home == path.parent / "data"
    assert config.backend.url == f"file://{path.parent}/state"
    assert config.backend.passphrase_file == path.parent.parent / "key"
    assert config.templates.folders == (path.parent / "mine", Path("/abs"), empty_home / "own")
    assert config.templates.default == f"{path.parent}/mine/etl.yaml"
    assert config.engine.cli == empty_home / "bin/pulumi"


def test_paths_in_flags_and_variables_are_relative_to_the_working_folder(tmp_path: Path) -> None:
    user("home: elsewhere")
    env = {"RUN_LAUNCHER_HOME": "here", "RUN_LAUNCHER_TEMPLATES__FOLDERS": f"a{os.pathsep}/b"}

    config = load_config({"backend.url": "file://../s", "templates.default": "./t.yaml"}, env, tmp_path / "x")

    assert config.home == tmp_path / "x" / "here"
    assert config.templates.folders == (tmp_path / "x" / "a", Path("/b"))
    assert config.backend_url == f"file://{tmp_path}/s"
    assert config.templates.default == f"{tmp_path}/x/t.yaml"


def test_the_default_folders_are_those_beside_the_files_that_exist() -> None:
    here = Path.cwd() / "templates"
    here.mkdir()
    assert load_config(env={}).templates.folders == ()

    project("")
    assert load_config(env={}).templates.folders == (here,)

    users = user("").parent / "templates"
    assert load_config(env={}).templates.folders == (here,)
    users.mkdir()
    assert load_config(env={}).templates.folders == (here, users)

    project("templates: {folders: []}")
    assert load_config(env={}).templates.folders == ()


@pytest.mark.parametrize(
    ("url", "absolute"),
    [
        ("file:///srv/state", "file:///srv/state"),
        ("file:///srv/../state/", "file:///state"),
        ("file://.", "file://{cwd}"),
        ("file://./a b", "file://{cwd}/a b"),
        ("file://~", "file://{home}"),
        ("file://~/state", "file://{home}/state"),
    ],
)
def test_a_folder_url_is_made_absolute(url: str, absolute: str, empty_home: Path) -> None:
    config = load_config({"backend.url": url}, {})

    assert config.backend_url == absolute.format(cwd=Path.cwd(), home=empty_home)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gs://bucket", "the scheme gs:// is not supported yet; supported are file://"),
        ("azblob://x", "the scheme azblob:// is not supported yet"),
        ("postgresql://me:geheim@host/db", "the scheme postgresql:// is unknown; did you mean postgres://?"),
        ("postgres:me:geheim@host/db", "must begin with postgres://"),
        ("postgres://me:ge/heim@host/db", "postgres:// takes one host and one port"),
        ("postgres://me:geheim@one,two/db", "postgres:// takes one host"),
        ("postgres://me:geheim@host/db?table=a;b", "the parameter 'table' is a plain name"),
        ("postgres://me:geheim@host/db#x", "'#' cannot stand in it"),
        ("s3://", "must be s3://bucket/prefix"),
        ("s3://me:geheim@bucket", "must be s3://bucket/prefix"),
        ("s3://bucket?secret=geheim", "s3:// has no parameter 'secret' here; known: awssdk"),
        ("https://api.pulumi.com", "the scheme https:// is not supported yet"),
        ("flie:///srv", "the scheme flie:// is unknown; did you mean file://?"),
        ("ftp://me:geheim@host", "the scheme ftp:// is unknown"),
        ("/srv/state", "is no URL: write a folder as file:///folder"),
        ("state", "is no URL: write a folder as file:///folder"),
        ("~/state", "is no URL"),
        ("", "is no URL"),
        ("file:/srv", "must be file:///folder"),
        ("file://", "must be file:///folder"),
        ("file://state", "must be file:///folder"),
        ("file://me:geheim@host/srv", "must be file:///folder"),
        ("file://~bob/state", "must be file:///folder"),
        ("FILE:///srv", "must be file:///folder"),
        ("file:///srv?no_tmp_dir=true", "'?' cannot stand in it"),
        ("file:///srv#x", "'#' cannot stand in it"),
        ("file:///a%20b", "'%' cannot stand in it"),
    ],
)
def test_a_backend_that_cannot_be_used_is_refused_without_repeating_it(url: str, words: str) -> None:
    (line,) = refusal({"backend.url": url})

    assert line.startswith(("flag --backend: backend.url: ", "flag --backend: backend.url must"))
    assert words in line
    assert "geheim" not in line


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("engine: {kind: hot}", 1, "engine.kind must be 'auto', 'warm' or 'cli'"),
        ("engine:\n  knd: cli", 2, "unknown key 'engine.knd'; did you mean 'engine.kind'?"),
        ("egnine: {}", 1, "unknown key 'egnine'; did you mean 'engine'?"),
        ("timeout: 5s", 1, "unknown key 'timeout'; did you mean 'engine.timeout'?"),
        ("routes: [{template: t, tag: a}]", 1, "unknown key 'routes[0].tag'; did you mean 'routes[0].tags'?"),
        ("routes:\n- tags: {a: b}", 2, "routes[0].template is missing"),
        ("launch: {timeout: 1 minute}", 1, "launch.timeout: '1 minute' is no duration"),
        ("launch: {timeout: 0s}", 1, "launch.timeout: a time limit is longer than 0s"),
        ("records: {keep: -1}", 1, "records.keep: a duration is never negative"),
        ("home: 5", 1, "home must be a path"),
        ("home:", 1, "home: has no value"),
        ("templates: {folders: here}", 1, "templates.folders must be a list"),
        ("templates:\n  folders:\n  - a\n  - 5", 4, "templates.folders[1] must be a path"),
        ("templates: {default: ''}", 1, "templates.default must have at least 1 character"),
        ("backend: {url: gs://bucket}", 1, "backend.url: the scheme gs:// is not supported yet"),
        (
            "backend: {passphrase: geheim}",
            1,
            "unknown key 'backend.passphrase'; did you mean 'backend.passphrase_file'?",
        ),
        ("launch: {}\nlaunch: {}", 2, "duplicate key 'launch', first in line 1"),
        ("launch: {timeout: 1:30}", 1, "launch.timeout: 1:30 is no plain decimal number"),
        ("launch: [", 2, "is no YAML"),
        ("launch:\n\ttimeout: 1s", 2, "a tab indents this line"),
        ("- a", 1, "the file must hold a mapping"),
        ("a: 1\n---\nb: 1", 2, "a second document starts here"),
        ("home: !!python/name:os.system x", 1, "home: tags such as"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    project(text)

    (message,) = refusal()

    assert message.startswith(f"run-launcher.yaml:{line}: ")
    assert words in message
    assert "geheim" not in message


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RUN_LAUNCHER_ENGINE__KND", "cli", "unknown variable; did you mean 'RUN_LAUNCHER_ENGINE__KIND'?"),
        ("RUN_LAUNCHER_ENGINE_KIND", "cli", "unknown variable; did you mean 'RUN_LAUNCHER_ENGINE__KIND'?"),
        ("RUN_LAUNCHER_ENGINE", "cli", "unknown variable; did you mean "),
        ("RUN_LAUNCHER_engine__kind", "cli", "unknown variable; did you mean 'RUN_LAUNCHER_ENGINE__KIND'?"),
        ("RUN_LAUNCHER_HOEM", "geheim", "unknown variable; did you mean 'RUN_LAUNCHER_HOME'?"),
        ("RUN_LAUNCHER_", "", "unknown variable; known variables: "),
        ("RUN_LAUNCHER_XYZZY", "", "unknown variable; known variables: "),
        ("RUN_LAUNCHER_ENGINE__KIND", "geheim", "engine.kind must be 'auto', 'warm' or 'cli'"),
        ("RUN_LAUNCHER_ENGINE__TIMEOUT", "60", "engine.timeout: '60' is no duration: write it like 30s"),
        ("RUN_LAUNCHER_BACKEND__URL", "s3://me:geheim@x", "must be s3://bucket/prefix"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(name: str, value: str, words: str) -> None:
    (message,) = refusal(env={name: value})

    assert message.startswith(f"environment {name}: ")
    assert words in message
    assert "geheim" not in message


@pytest.mark.parametrize("name", ["TOOLS", "SCRATCH", "RUN_ID", "ATTEMPT", "FOLDER"])
def test_variables_that_are_no_settings_are_let_pass(name: str) -> None:
    assert load_config(env={f"RUN_LAUNCHER_{name}": "x"}) == Config()


def test_an_unknown_flag_is_refused() -> None:
    assert refusal({"engine.knd": "cli"}) == [
        "flag --engine-knd: unknown key 'engine.knd'; did you mean 'engine.kind'?"
    ]


def test_the_problems_of_every_source_come_at_once() -> None:
    path = user("engine: {kind: hot}\nlaunch: {timeout: x}")
    project("launch: [")

    lines = refusal({"engine.kind": "x"}, {"RUN_LAUNCHER_RECORDS__KEEP": "x", "RUN_LAUNCHER_NONE": ""})

    starts = [str(path), str(path), "run-launcher.yaml:2", "environment RUN_LAUNCHER_NONE"]
    starts += ["environment RUN_LAUNCHER_RECORDS__KEEP", "flag --engine"]
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


def test_a_file_that_cannot_be_read_is_refused_and_not_passed_over() -> None:
    Path("run-launcher.yaml").mkdir()
    assert refusal() == ["run-launcher.yaml: is a folder, not a file"]

    Path("run-launcher.yaml").rmdir()
    Path("run-launcher.yaml").symlink_to("nowhere")
    assert refusal() == ["run-launcher.yaml: cannot be read: No such file or directory"]


def test_a_file_with_the_other_ending_is_not_passed_over() -> None:
    Path("run-launcher.yml").touch()

    assert refusal() == ["run-launcher.yml: rename it run-launcher.yaml: this name is not read"]


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_file_that_is_named_stands_for_those_that_are_found(tmp_path: Path, by_variable: bool) -> None:  # noqa: FBT001
    user("launch: {timeout: 1s}")
    project("engine: {timeout: 2s}")
    named = project("records: {keep: 3d}", tmp_path / "elsewhere")
    (named.parent / "templates").mkdir()
    env = {"RUN_LAUNCHER_CONFIG_FILE": str(named)} if by_variable else {}
    config = load_config({}, env, file=None if by_variable else named)

    assert (config.launch, config.engine) == (Config().launch, Config().engine)
    assert config.records.keep == timedelta(days=3)
    assert config.templates.folders == (named.parent / "templates",)


def test_a_named_file_that_is_not_there_is_refused() -> None:
    assert refusal(env={"RUN_LAUNCHER_CONFIG_FILE": "nowhere.yaml"}) == [
        "nowhere.yaml: there is no such configuration file"
    ]


def test_the_pulumi_variables_of_the_users_day_job_are_never_read() -> None:
    env = {
        "PULUMI_BACKEND_URL": "s3://work",
        "PULUMI_HOME": "/work",
        "PULUMI_CONFIG_PASSPHRASE": "geheim",
        "PULUMI_ACCESS_TOKEN": "geheim",
    }

    assert load_config(env=env) == Config()


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_LAUNCHER_HOME", "/data")

    assert load_config().home == Path("/data")


def test_loading_the_configuration_makes_no_file(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))

    load_config(env={"RUN_LAUNCHER_HOME": str(tmp_path / "new")})

    assert sorted(tmp_path.rglob("*")) == before


def test_the_configuration_loads_no_engine_and_no_target() -> None:
    code = (
        "import sys, launchers.config; "
        "heavy = {'pulumi', 'grpc', 'rich', 'typer', 's3fs', 'psycopg'}; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & heavy))"
    )
    root = Path(config_module.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, check=True
    )

    assert done.stdout.strip() == b"[]"
