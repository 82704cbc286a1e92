"""A template is read into its typed model, or refused with file, line and what was probably meant."""

from __future__ import annotations

import importlib
import json
import os
import time
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from launchers import templates, yaml_source
from launchers.templates import Available, Library, Loaded, parse_template
from programs.args import Resources
from programs.process.template import ProcessTemplate
from stacks.errors import ConfigurationError, Repair, TemplateError

pytestmark = pytest.mark.usefixtures("empty_home")


@pytest.fixture(params=["C", "Python"], autouse=True)
def scanner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both of PyYAML's scanners: which one there is depends on how it was installed."""
    if request.param == "Python":
        monkeypatch.setattr(yaml_source, "_LOADER", yaml.SafeLoader)
    return str(request.param)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(text: str | bytes) -> list[str]:
    with pytest.raises(TemplateError) as caught:
        parse_template(text, "t.yaml", "t")
    return str(caught.value).splitlines()


def test_the_built_in_template_is_the_model_with_its_defaults() -> None:
    loaded = Library([]).load("process")

    assert loaded.origin == "built in"
    template = loaded.template
    assert template == ProcessTemplate(description=template.description, overrides=template.overrides)


def test_the_commented_lines_of_the_built_in_template_are_valid_too() -> None:
    text = (Path(templates.__file__).parent / "process.yaml").read_text(encoding="utf-8")
    keys = tuple(f"{name}:" for name in ProcessTemplate.model_fields)
    lines = text.splitlines()
    commented = [line[2:] for line in lines if line.startswith(tuple(f"# {key}" for key in keys))]
    nested = [line[2:] for line in lines if line.startswith("#   ")]
    assert len(commented) == 11
    assert len(nested) == 12

    whole = "\n".join(
        line[2:] if line[2:] in commented or line[2:] in nested else line
        for line in lines
        if line.startswith("#") or line
    )
    template = parse_template(whole, "built in", "process").template

    assert isinstance(template, ProcessTemplate)
    assert template.limits.memory == 2 * 2**30
    assert template.keep == ProcessTemplate().keep
    assert set(template.secrets) == {"DB_PASSWORD", "API_TOKEN"}


def test_a_users_file_comes_before_the_built_in_and_the_first_folder_before_the_second(tmp_path: Path) -> None:
    write(tmp_path / "a" / "process.yaml", "target: process\nowner: first")
    write(tmp_path / "b" / "process.yaml", "target: process\nowner: second")

    loaded = Library([tmp_path / "none", tmp_path / "a", tmp_path / "b"]).load("process")

    assert loaded.template.owner == "first"
    assert loaded.origin == str(tmp_path / "a" / "process.yaml")


@pytest.mark.parametrize("name", ["./etl.yaml", "etl.yaml", "sub/../etl.yaml"])
def test_a_path_is_read_whatever_the_folders_hold(tmp_path: Path, name: str) -> None:
    write(Path("etl.yaml"), "target: process\nowner: here")
    Path("sub").mkdir()
    write(tmp_path / "folder" / "etl.yaml", "target: process\nowner: elsewhere")

    loaded = Library([tmp_path / "folder"]).load(name)

    assert loaded.name == "etl"
    assert loaded.template.owner == "here"


def test_values_are_typed() -> None:
    template = parse_template(
        "target: process\nmax_runtime: 1h30m\ngrace: 5\nlimits: {memory: 512Mi}\nsecrets: {A: {env: B}, C: {file: /d}}",
        "t.yaml",
        "t",
    ).template

    assert isinstance(template, ProcessTemplate)
    assert template.max_runtime == timedelta(minutes=90)
    assert template.grace == timedelta(seconds=5)
    assert template.limits.memory == 512 * 2**20


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("'no'", "no"),
        ('"1.10"', "1.10"),
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01 10:00:00", "2026-01-01 10:00:00"),
        ("1e3", "1e3"),
        ("=", "="),
        ("''", ""),
        ("a b", "a b"),
        ("é", "é"),
        ("|\n    two\n    lines", "two\nlines"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_text_stays_the_text_it_is(text: str, read: str) -> None:
    template = parse_template(f"target: process\nenv:\n  A: {text}\n", "t.yaml", "t").template

    assert isinstance(template, ProcessTemplate)
    assert template.env["A"].rstrip("\n") == read


def test_aliases_stand_for_what_they_name() -> None:
    template = parse_template(
        "target: &t process\nowner: *t\nkeep: {failed: &d 5s, succeeded: *d}", "t.yaml", "t"
    ).template

    assert template.owner == "process"
    assert template.keep.failed == template.keep.succeeded == timedelta(seconds=5)


@pytest.mark.parametrize(
    "text", ["\ufefftarget: process\n", "target: process\r\nowner: me\r\n", "---\ntarget: process\n...\n"]
)
def test_what_editors_add_does_no_harm(text: str) -> None:
    assert parse_template(text.encode(), "t.yaml", "t").template.target == "process"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("max_runtme: 1h", 2, "unknown key 'max_runtme'; did you mean 'max_runtime'?"),
        ("limits:\n  cpu_time: 1s\n  memroy: 1", 4, "unknown key 'limits.memroy'; did you mean 'limits.memory'?"),
        ("memory: 1", 2, "unknown key 'memory'; did you mean 'limits.memory'?"),
        ("keep: {zzz: 1}", 2, "unknown key 'keep.zzz'; known keys: failed, succeeded"),
        ("extends: base", 2, "text without a file extends nothing"),
        ("env: {}\nowner: me\nenv: {}", 4, "duplicate key 'env', first in line 2"),
        ("env:\n  A: x\n  A: y", 4, "duplicate key 'env.A', first in line 3"),
        ("max_runtime: soon", 2, "max_runtime: 'soon' is no duration: write it like 30s"),
        ("grace: -5", 2, "grace: a duration is never negative"),
        ("grace: [1]", 2, "grace must be a duration"),
        ("grace: 99999999999999999d", 2, "grace: the duration is too long"),
        ("limits: {memory: lots}", 2, "limits.memory: 'lots' is no amount of memory"),
        ("limits:\n  open_files: few", 3, "limits.open_files must be a whole number"),
        ("limits:\n  open_files: 3", 3, "limits.open_files must be greater than 3"),
        ("limits: 5", 2, "limits must be a mapping"),
        ("limits:", 2, "limits: has no value"),
        ("inherit_env: maybe", 2, "inherit_env must be true or false"),
        ("cwd: data", 2, "cwd: 'data' must be an absolute path"),
        ("cwd: 5", 2, "cwd must be a path"),
        ("env: [a]", 2, "env must be a mapping"),
        ("env:\n  A: x\n  B: no", 4, "env.B must be text: put no in quotes"),
        ("env: {B: 1}", 2, "env.B must be text: put 1 in quotes"),
        ("env: {C: 1.10}", 2, "env.C must be text: put 1.10 in quotes"),
        ("env: {D: ~}", 2, "env.D: has no value"),
        ("env: {E: 010}", 2, "env.E: 010 is no plain decimal number"),
        ("env: {E: 0x10}", 2, "env.E: 0x10 is no plain decimal number"),
        ("max_runtime: 1:30", 2, "max_runtime: 1:30 is no plain decimal number"),
        ("max_runtime: .nan", 2, "max_runtime: .nan is no plain decimal number"),
        ("max_runtime: -.inf", 2, "max_runtime: -.inf is no plain decimal number"),
        ("max_runtime: 1.0e+999", 2, "max_runtime: 1.0e+999 is no plain decimal number"),
        (f"max_runtime: {'9' * 5000}", 2, "is no plain decimal number"),
        ("env: {on: x}", 2, "key on must be text: put it in quotes"),
        ("1: x", 2, "key 1 must be text: put it in quotes"),
        ("? [a, b]\n: x", 2, "a key must be text"),
        ("<<: {owner: me}", 2, "merge keys (<<) are not supported"),
        ("owner: !!python/name:os.system x", 2, "owner: tags such as"),
        ("owner: !!str 5", 2, "owner: tags such as"),
        ("limits: !mine {memory: 5}", 2, "limits: tags such as !mine"),
        ("secrets:\n  A: {enve: B}", 3, "secrets.A must be a mapping: {env} or {file}"),
        ("secrets:\n  A: geheim", 3, "secrets.A must be a mapping: {env} or {file}"),
        ("secrets:\n  A:\n    env: 5", 4, "secrets.A.env must be text: put 5 in quotes"),
        ("secrets: {A: {env: 010}}", 2, "secrets.A.env: 010 is no plain decimal number"),
        ("owner: [", 3, "is no YAML"),
        ("owner: 'me", 3, "is no YAML"),
        ("env:\n\tA: x", 3, "a tab indents this line"),
        ("owner: a: b", 2, "is no YAML"),
        ("owner: *nobody", 2, "*nobody is used, but &nobody is not set above"),
        ("env: &a {A: *a}", 2, "*a stands inside its own &a"),
        ("---\ntarget: process", 2, "a second document starts here"),
        ("owner: a\x07b", 2, "character '\\x07' cannot stand"),
        ('owner: "\\UFFFFFFFF"', 2, "is no YAML"),
        ('owner: "\\ud800"', 2, ""),
        ('env: {A: "x\\0y"}', 2, "env.A: the text holds a NUL"),
        ('env: {"x\\0y": A}', 2, "the text holds a NUL"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, line: int, words: str) -> None:
    lines = refusal(f"target: process\n{text}\n")

    assert len(lines) == 1, lines
    assert lines[0].startswith(f"t.yaml:{line}: {words}") or words in lines[0].removeprefix(f"t.yaml:{line}: ")
    assert lines[0].startswith(f"t.yaml:{line}: ")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("", "t.yaml:1: the template is empty"),
        ("# only a comment\n", "t.yaml:1: the template is empty"),
        ("- target: process", "t.yaml:1: the file must hold a mapping"),
        ("process", "t.yaml:1: the file must hold a mapping"),
        ("!x {target: process}", "t.yaml:1: tags such as"),
        ("owner: me", "t.yaml:1: target is missing: the kind of compute, one of docker, process"),
        ("owner: me\ntarget:", "t.yaml:2: target: has no value"),
        ("target: [process]", "t.yaml:1: target must be text"),
        ("target: 010", "t.yaml:1: target: 010 is no plain decimal number"),
        ("owner: me\ntarget: proces", "t.yaml:2: unknown target 'proces'; did you mean 'process'?"),
        ("target: lambda", "t.yaml:1: unknown target 'lambda'; known targets: docker, process"),
        (b"target: process\n# caf\xe9\n", "t.yaml:2: is not UTF-8 text"),
        ("target: process".encode("utf-16"), "t.yaml:1: is not UTF-8 text"),
        (b"#" * 1_000_001, "t.yaml:1: the file is larger than 1 MB"),
    ],
)
def test_a_file_that_is_no_template_is_refused(text: str | bytes, first: str) -> None:
    lines = refusal(text)

    assert len(lines) == 1, lines
    assert lines[0].startswith(first)


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    lines = refusal("grace: x\ntarget: proces\nkeep:\n  failed: y\nowner: 010\nenv: {}\nenv: {}\n")

    assert [line.split(":")[1] for line in lines] == ["1", "2", "4", "5", "7"]


def test_a_very_long_list_of_problems_is_cut_and_says_so() -> None:
    lines = refusal("target: process\n" + "".join(f"x{number}: 1\n" for number in range(1000)))

    assert len(lines) == 51
    assert lines[-1] == "t.yaml: and 950 problems more"


LAUGHS = "\n".join(
    ["target: process", "a: &a [x, x, x, x, x, x, x, x, x, x]"]
    + [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: " + "[" * 100_000,
        "a: " + "{a: " * 100_000,
        "a:\n  " + "- " * 100_000,
        "a: " + "[x," * 200_000 + "]",
        "\n".join(f"k{number}: x" for number in range(60_000)),
        "? " * 100_000,
        "&a " * 100_000,
        "target: process\n" + "k" * 100_000 + ": 1",
        "target: process\nowner: [" + "'" * 500_000,
    ],
    ids=["laughs", "lists", "mappings", "items", "wide", "keys", "questions", "anchors", "key", "quotes"],
)
def test_a_bomb_is_refused_in_bounded_time_and_words(text: str) -> None:
    start = time.process_time()
    lines = refusal(text)

    assert time.process_time() - start < 5
    assert sum(map(len, lines)) < 2000


@pytest.mark.parametrize("name", ["", "..", "a b", "-x", ".x", "x\ny", "é", "x" * 101])
def test_a_name_that_could_not_be_a_label_is_refused(name: str) -> None:
    with pytest.raises(TemplateError, match=r"no template|cannot be named"):
        Library([]).load(name)
    with pytest.raises(TemplateError, match="cannot be named"):
        parse_template("target: process", "t.yaml", name)


def test_a_missing_template_names_the_nearest_one_and_where_it_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "a" / "nightly.yaml", "target: process")

    with pytest.raises(TemplateError) as caught:
        Library([tmp_path / "a", tmp_path / "b"]).load("nigthly")

    assert "no template 'nigthly'; did you mean 'nightly'?" in str(caught.value)
    assert f"{tmp_path / 'b'} (no such folder)" in str(caught.value)
    assert caught.value.repair is Repair.TEMPLATE_OWNER


def test_a_template_with_the_other_ending_says_to_rename_it() -> None:
    write(Path("templates/etl.yml"), "target: process")

    with pytest.raises(TemplateError, match=r"rename templates/etl\.yml to etl\.yaml"):
        Library([Path("templates")]).load("etl")


def test_a_missing_path_names_the_nearest_file_beside_it() -> None:
    write(Path("templates/etl.yaml"), "target: process")

    with pytest.raises(TemplateError) as caught:
        Library([]).load("templates/elt.yaml")

    assert str(caught.value) == (
        "templates/elt.yaml: cannot be read: No such file or directory; did you mean templates/etl.yaml?"
    )


def test_what_cannot_be_read_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "process.yaml").mkdir()
    with pytest.raises(TemplateError, match=r"process\.yaml: is a folder, not a file"):
        Library([tmp_path]).load("process")

    (tmp_path / "link.yaml").symlink_to("nowhere")
    with pytest.raises(TemplateError, match=r"link\.yaml: cannot be read"):
        Library([tmp_path]).load("link")

    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(TemplateError, match=r"pipe\.yaml: is not a regular file"):
        Library([tmp_path]).load("pipe")

    with pytest.raises(TemplateError, match="is a folder, not a file"):
        Library([]).load(f"{tmp_path}/")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_closed_to_us_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "etl.yaml", "target: process").chmod(0)

    with pytest.raises(TemplateError, match=r"etl\.yaml: cannot be read: Permission denied"):
        Library([tmp_path]).load("etl")


def test_names_lists_what_each_name_leads_to(tmp_path: Path) -> None:
    write(tmp_path / "a" / "etl.yaml", "not even valid: [")
    write(tmp_path / "b" / "etl.yaml", "")
    write(tmp_path / "b" / "process.yaml", "")
    write(tmp_path / "b" / "notes.txt", "")
    write(tmp_path / "b" / ".hidden.yaml", "")

    assert Library([tmp_path / "none", tmp_path / "a", tmp_path / "b"]).names() == [
        Available("docker", "built in"),
        Available("etl", str(tmp_path / "a" / "etl.yaml")),
        Available("process", str(tmp_path / "b" / "process.yaml")),
    ]
    assert Library([]).names() == [Available("docker", "built in"), Available("process", "built in")]


def test_messages_name_files_under_the_working_folder_by_their_relative_path() -> None:
    path = write(Path("templates/etl.yaml"), "target: process\nmax_runtme: 1h").absolute()

    with pytest.raises(TemplateError, match=r"^templates/etl\.yaml:2: "):
        Library([path.parent]).load("etl")


def test_a_target_that_is_not_installed_is_named_with_file_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("launchers.registry")
    monkeypatch.setattr(registry, "TARGETS", {"moon": registry.Target("x:Y", "no_such_sdk:Model", extra="moon")})

    with pytest.raises(ConfigurationError) as caught:
        parse_template("owner: me\ntarget: moon", "t.yaml", "t")

    assert str(caught.value).startswith("t.yaml:2: target 'moon' cannot be loaded")
    assert 'pip install "run-launcher[moon]"' in str(caught.value)


def test_the_same_text_gives_the_same_digest_from_any_file() -> None:
    one = parse_template("target: process\nenv: {A: x, B: y}", "a.yaml", "a")
    other = parse_template("# other spelling\nenv:\n  B: 'y'\n  A: x\ntarget: process", "b.yaml", "b")

    assert isinstance(one, Loaded)
    assert one.template.digest() == other.template.digest()


@pytest.mark.parametrize(
    ("written", "spelt"),
    [("500m", "0.5"), ("0.50", "0.5"), (0.5, "0.5"), ("2", "2"), (2, "2"), ("2000m", "2"), (1.5, "1.5"), ("1.0", "1")],
)
def test_one_number_of_cpus_has_one_spelling(written: object, spelt: str) -> None:
    text = f"target: process\nresources: {{cpu: {json.dumps(written)}}}"
    template = parse_template(text, "t.yaml", "t").template

    assert json.loads(template.canonical())["resources"]["cpu"] == spelt
    assert ProcessTemplate.model_validate_json(template.canonical()) == template


@pytest.mark.parametrize("written", ["0", "-1", "0.0001", "1e3", "half", "true", "2Gi", "2000000"])
def test_what_is_no_number_of_cpus_is_refused_with_its_line(written: str) -> None:
    with pytest.raises(TemplateError, match=r"t\.yaml:2: resources\.cpu"):
        parse_template(f"target: process\nresources: {{cpu: {written}}}", "t.yaml", "t")


def test_a_worker_counts_for_what_it_says_or_for_the_memory_it_is_limited_to() -> None:
    said = ProcessTemplate.model_validate({"resources": {"memory": "1Gi", "gpu": 0}, "limits": {"memory": "4Gi"}})
    limited = ProcessTemplate.model_validate({"resources": {"cpu": "2"}, "limits": {"memory": "4Gi"}})

    assert said.counts() == Resources(memory=2**30, gpu=0)
    assert limited.counts() == Resources(cpu=Decimal(2), memory=2**32)
    assert ProcessTemplate().counts() == Resources()


def test_a_template_without_them_has_the_digest_that_it_had_before_there_were_resources_and_connections() -> None:
    assert ProcessTemplate().digest() == "73aa50ae4bcba392395bbae90bc656538a302b0e49db46e6e8fa9d82ada0325a"
    assert ProcessTemplate(connection="x").digest() != ProcessTemplate().digest()
