"""How templates come together: inheritance, digests, changed files, routes, who may choose; and no way around it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich_target import RichTemplate

from launchers.config import load_config
from launchers.templates import Library, Loaded, StaleTemplateWarning, parse_template
from launchers.templates.choosing import Chosen, choose
from launchers.templates.overriding import Change, changed
from launchers.templates.rules import account
from programs.args import LauncherTemplate
from stacks.errors import PolicyError, TemplateError, UsageError

pytestmark = pytest.mark.usefixtures("empty_home", "rich")

BASE: Final = """\
target: rich
owner: platform
image: registry.example/base:1
env: {A: base, B: base}
volumes: [/srv/a, /srv/b]
room: {cpu: 2, gpu: 1}
final: [namespace]
overrides:
  room.cpu: {max: 8}
"""


def write(name: str, text: str, folder: str = "templates") -> Path:
    path = Path(folder, f"{name}.yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def library(*folders: str) -> Library:
    return Library([Path(each).absolute() for each in folders or ("templates",)])


def rich_of(loaded: Loaded) -> RichTemplate:
    assert isinstance(loaded.template, RichTemplate)
    return loaded.template


# ---- inheritance ----


def test_a_child_is_laid_over_its_base_mapping_by_mapping_and_lists_are_replaced() -> None:
    write("base", BASE)
    write("child", "extends: base\nenv: {B: child, C: child}\nvolumes: [/srv/c]\nroom: {cpu: 4}\n")
    loaded = library().load("child")
    template = rich_of(loaded)

    assert template.env == {"A": "base", "B": "child", "C": "child"}
    assert template.volumes == ("/srv/c",)
    assert (template.room.cpu, template.room.gpu) == (Decimal(4), 1)
    assert (template.owner, template.image) == ("platform", "registry.example/base:1")
    assert template.final == ("namespace",)
    assert set(template.overrides) == {"room.cpu"}
    assert loaded.origin_of("env", "A") == "templates/base.yaml:4"
    assert loaded.origin_of("env", "B") == "templates/child.yaml:2"
    assert loaded.origin_of("overrides", "room.cpu") == "templates/base.yaml:9"
    assert loaded.origin_of("room", "memory") == "default"
    assert loaded.bases == ("templates/base.yaml",)


def test_a_base_need_not_be_whole_and_a_grandchild_keeps_all_bounds() -> None:
    write("one", "target: rich\noverrides: {room.cpu: {max: 8}, image: {glob: 'registry.example/*:*'}}\n")
    write("two", "extends: one\nimage: registry.example/a:1\noverrides: {room.cpu: {max: 4}}\n")
    write("three", "extends: two\noverrides: {room.cpu: {min: 1}, image: {glob: 'registry.example/a:*'}}\n")
    rules = library().load("three").rules()

    for path, value in [(("room", "cpu"), 5), (("room", "cpu"), "0.5"), (("image",), "registry.example/b:1")]:
        with pytest.raises(PolicyError):
            changed(rules, [Change(path, value, str(value))])
    with pytest.raises(TemplateError, match=r"templates/one\.yaml:1: image is missing"):
        library().load("one")


def test_a_template_may_extend_the_one_of_its_own_name_in_a_later_folder() -> None:
    write("process", "extends: process\ngrace: 5s\n", "mine")
    write("process", "extends: process\nowner: site\n", "site")
    loaded = library("mine", "site").load("process")

    assert loaded.bases == ("site/process.yaml", "built in")
    assert loaded.template.owner == "site"
    assert loaded.template.grace.total_seconds() == 5


def test_a_base_may_be_named_by_a_path_from_its_childs_file() -> None:
    write("base", BASE, "platform")
    write("child", "extends: ../platform/base.yaml\n", "team")

    assert rich_of(library("team").load("child")).image == "registry.example/base:1"


def test_the_digest_is_of_what_is_meant_and_not_of_how_it_is_written() -> None:
    write("base", BASE)
    write("child", "extends: base\n")
    write("other", BASE.replace("{cpu: 2, gpu: 1}", "\n  gpu: 1\n  cpu: 2\n"))
    write("different", BASE.replace("max: 8", "max: 9"))
    digests = {name: library().load(name).template.digest() for name in ("base", "child", "other", "different")}

    assert digests["base"] == digests["child"] == digests["other"] != digests["different"]


def test_a_resolved_template_reads_back_from_its_canonical_json() -> None:
    write("base", BASE)
    write("child", "extends: base\nuse: {users: [a, b]}\noverrides: {room.cpu: {min: 1}}\n")
    template = library().load("child").template

    again = RichTemplate.model_validate_json(template.canonical())
    assert again == template
    assert again.digest() == template.digest()


# ---- changed files ----


def test_a_changed_file_is_noticed_a_broken_one_keeps_the_last_good_version_and_a_removed_one_is_missed() -> None:
    base, child = write("base", BASE), write("child", "extends: base\n")
    shelf = library()
    first = shelf.load("child")
    assert shelf.load("child") is first

    base.write_text(BASE.replace("base:1", "base:2"), encoding="utf-8")
    second = shelf.load("child")
    assert rich_of(second).image.endswith(":2")

    base.write_text("target: rich\nimage: [\n", encoding="utf-8")
    with pytest.warns(StaleTemplateWarning, match=r"templates/base\.yaml:3: is no YAML"):
        stale = shelf.load("child")
    assert stale.template == second.template
    assert "last good version" in stale.stale
    assert shelf.load("child") is stale  # and it is said once

    base.write_text(BASE.replace("base:1", "base:3"), encoding="utf-8")
    assert (rich_of(shelf.load("child")).image[-2:], shelf.load("child").stale) == (":3", "")
    child.unlink()
    with pytest.raises(TemplateError, match="no template 'child'"):
        shelf.load("child")


def test_a_file_of_the_same_size_and_time_is_noticed_when_it_replaces_another() -> None:
    path = write("base", BASE)
    shelf = library()
    shelf.load("base")
    told = path.stat()
    other = path.with_suffix(".new")
    other.write_text(BASE.replace("base:1", "base:2"), encoding="utf-8")
    os.utime(other, ns=(told.st_atime_ns, told.st_mtime_ns))
    other.replace(path)

    assert rich_of(shelf.load("base")).image.endswith(":2")


def test_five_hundred_templates_are_loaded_as_one_is(record_property: Callable[[str, object], None]) -> None:
    for number in range(10):
        write(f"base{number}", BASE)
    for number in range(490):
        lines = f"extends: base{number % 10}\ndescription: number {number}\nroom: {{cpu: 3}}\nenv: {{N: '{number}'}}\n"
        write(f"t{number}", f"{lines}overrides: {{room.cpu: {{max: 4}}}}\n")
    begun = time.monotonic()
    shelf = library()
    names = [each.name for each in shelf.names() if each.origin != "built in"]
    digests = {shelf.load(name).template.digest() for name in names}
    record_property("seconds", time.monotonic() - begun)

    assert len(names) == 500
    assert len(digests) == 491


# ---- routes, and who may choose ----


ROUTES: Final = """\
templates: {default: small}
routes:
- {tags: {team: ml, size: "l*"}, template: gpu}
- {tags: {team: ml}, template: ml}
- {code_locations: "etl-*", template: etl}
- {template: any}
"""


@pytest.mark.parametrize(
    ("tags", "location", "own", "template", "why"),
    [
        ({"team": "ml", "size": "large"}, None, None, "gpu", "route run-launcher.yaml:3"),
        ({"team": "ml", "size": "small"}, None, None, "ml", "route run-launcher.yaml:4"),
        ({"team": "ml"}, "etl-nightly", None, "ml", "route run-launcher.yaml:4"),
        ({}, "etl-nightly", None, "etl", "route run-launcher.yaml:5"),
        ({"team": "mlx"}, "setl-x", None, "any", "route run-launcher.yaml:6"),
        ({"team": "ml"}, None, Chosen("mine", "flag --template"), "mine", "flag --template"),
    ],
)
def test_a_runs_own_choice_comes_first_then_the_first_route_that_fits(
    tags: dict[str, str], location: str | None, own: Chosen | None, template: str, why: str
) -> None:
    Path("run-launcher.yaml").write_text(ROUTES, encoding="utf-8")

    assert choose(load_config(), tags, own, location) == Chosen(template, why)


def test_without_a_route_the_default_holds() -> None:
    Path("run-launcher.yaml").write_text(ROUTES.replace("- {template: any}\n", ""), encoding="utf-8")

    assert choose(load_config(), {}).template == "small"
    assert choose(load_config(), {}, default=Chosen("etl", "dagster.yaml")).template == "etl"


@pytest.mark.parametrize(
    ("use", "location", "tags", "may"),
    [
        ("{code_locations: 'ml-*'}", "ml-train", {}, True),
        ("{code_locations: 'ml-*'}", "not-ml-train", {}, False),
        ("{code_locations: 'ml-*'}", None, {}, False),
        ("{tags: {team: ml}}", None, {"team": "ml"}, True),
        ("{tags: {team: ml}}", None, {"team": "mlx"}, False),
        ("{tags: {team: '*'}}", None, {}, True),
        ("{users: ME}", None, {}, True),
        ("{users: somebody-else}", None, {}, False),
        ("{users: ME, tags: {team: ml}}", None, {}, False),
        ("[{users: somebody-else}, {tags: {team: ml}}]", None, {"team": "ml"}, True),
        ("[]", "ml-train", {"team": "ml"}, False),
    ],
)
def test_use_says_who_may_choose_a_template(use: str, location: str | None, tags: dict[str, str], may: bool) -> None:  # noqa: FBT001
    write("gpu", f"target: rich\nowner: ml\nimage: a/b:1\nuse: {use.replace('ME', account())}\n")
    loaded = library().load("gpu")
    rules = loaded.rules().from_location(location)

    if may:
        rules.refuse_use(tags)
    else:
        with pytest.raises(PolicyError, match=r"template gpu is not for .*\(templates/gpu.yaml:4, owner ml\)"):
            rules.refuse_use(tags)


def test_whose_user_it_is_the_system_says_and_not_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = account()
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")

    assert account() == before != "somebody-else"


# ---- no sequence of allowed steps leaves the bounds ----

LIMITS: Final = {"room.cpu": (1, 8), "room.gpu": (0, 4)}
REGIONS: Final = ("eu", "us", "cn")
NAMES: Final = ("LOG_LEVEL", "ETL_DAY", "ETL_X", "PATH", "LD_PRELOAD", "MODE")
IMAGES: Final = (
    "registry.example/etl:1", "registry.example/etl:2", "registry.example/ml:1", "evil.io/registry.example/etl:1",
    "registry.example/etl:latest", "registry.example/a/b:1",
)  # fmt: skip
ROOT: Final[dict[str, Any]] = {
    "target": "rich",
    "image": "registry.example/etl:1",
    "room": {"cpu": 2, "gpu": 1},
    "env": {"MODE": "batch"},
    "final": ["namespace"],
    "overrides": {
        "room.cpu": {"min": 1, "max": 8},
        "room.gpu": {"max": 4},
        "image": {"glob": "registry.example/*:*", "deny_tags": ["latest"]},
        "env": {"keys": ["LOG_LEVEL", "ETL_*"]},
        "env.REGION": {"enum": ["eu", "us"]},
        "volumes": {"items": {"glob": "/srv/*"}, "max_items": 2},
    },
}

numbers = st.integers(-2, 12)
globs = st.sampled_from(
    ["registry.example/*:*", "registry.example/etl:*", "**", "*", "registry.example/**", "registry.example/etl:?"]
)
keys = st.lists(st.sampled_from(["LOG_LEVEL", "ETL_*", "ETL_X", "*", "PATH", "MODE"]), min_size=1, max_size=2)
volumes = st.lists(st.sampled_from(["/srv/a", "/srv/b", "/etc", "/srv/..", "/srv/a/b"]), max_size=3)
values = st.fixed_dictionaries(
    {},
    optional={
        "room": st.fixed_dictionaries({}, optional={"cpu": numbers, "gpu": numbers, "memory": st.none()}),
        "image": st.sampled_from(IMAGES),
        "namespace": st.just("mine"),
        "env": st.dictionaries(st.sampled_from([*NAMES, "REGION"]), st.sampled_from(REGIONS), max_size=2),
        "volumes": volumes,
    },
)
bounds = st.fixed_dictionaries(
    {},
    optional={
        "room.cpu": st.one_of(
            st.builds(lambda least, most: {"min": least, "max": most}, numbers, numbers),
            st.builds(lambda most: {"max": most}, numbers),
            st.builds(lambda each: {"enum": each}, st.lists(numbers, min_size=1, max_size=3)),
            st.just({"any": True}),
        ),
        "room": st.just({"any": True}),
        "room.gpu": st.builds(lambda most: {"max": most}, numbers),
        "image": st.one_of(st.builds(lambda glob: {"glob": glob}, globs), st.just({"any": True})),
        "env": st.one_of(st.builds(lambda each: {"keys": each}, keys), st.just({"any": True})),
        "env.PATH": st.just({"any": True}),
        "env.REGION": st.builds(lambda each: {"enum": each}, st.lists(st.sampled_from(REGIONS), min_size=1)),
        "namespace": st.just({"any": True}),
        "volumes": st.builds(lambda each: {"items": {"glob": each}}, st.sampled_from(["/srv/*", "/**", "/srv/a"])),
    },
)
children = st.lists(
    st.builds(lambda said, open_to: {**said, **({"overrides": open_to} if open_to else {})}, values, bounds), max_size=3
)
overrides = st.lists(values, max_size=4)


def outside(template: RichTemplate) -> Iterator[str]:
    """What is outside the bounds of the root, told without any of our code for bounds."""
    if not 1 <= template.room.cpu <= 8:
        yield f"cpu {template.room.cpu}"
    if template.room.gpu > 4:
        yield f"gpu {template.room.gpu}"
    host, _, rest = template.image.partition("/")
    if host != "registry.example" or "/" in rest or ":" not in rest or rest.endswith(":latest"):
        yield f"image {template.image}"
    if template.namespace != "default":
        yield f"namespace {template.namespace}"
    for name, value in template.env.items():
        known = name in {"LOG_LEVEL", "MODE"} or name.startswith("ETL_")
        if not known and not (name == "REGION" and value in {"eu", "us"}):
            yield f"env {name}={value}"
    if len(template.volumes) > 2 or any(each not in {"/srv/a", "/srv/b"} for each in template.volumes):
        yield f"volumes {template.volumes}"


@settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(children=children, overrides=overrides)
def test_no_sequence_of_allowed_overrides_or_children_leaves_the_bounds(
    tmp_path: Path, children: list[dict[str, Any]], overrides: list[dict[str, Any]]
) -> None:
    write("t0", yaml.safe_dump(ROOT))
    template: LauncherTemplate = library().load("t0").template
    loaded = library().load("t0")
    depth = 0
    for child in children:
        write(f"t{depth + 1}", yaml.safe_dump({"extends": f"t{depth}", **child}))
        try:
            loaded = library().load(f"t{depth + 1}")
        except TemplateError:
            continue
        depth += 1
        template = loaded.template
        assert list(outside(rich_of(loaded))) == []
    rules = loaded.rules()
    for wanted in overrides:
        for each in _leaves(wanted):
            try:
                template = changed(rules, [each])
            except (PolicyError, UsageError):
                continue
            rules = parse_template(template.canonical(), "again", "t").rules()  # as NAME@DIGEST reads it
            assert isinstance(template, RichTemplate)
            assert list(outside(template)) == []
            assert template.namespace == rich_of(loaded).namespace
    assert tmp_path.is_dir()


def _leaves(data: dict[str, Any], around: tuple[str, ...] = ()) -> Iterator[Change]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*around, name))
        else:
            yield Change((*around, name), value, str(value))
