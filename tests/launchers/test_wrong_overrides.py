"""What a run may not change: each refusal names the field, the bound, file and line, and the owner; nothing is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from launchers.templates import Library
from launchers.templates.images import Image
from launchers.templates.overriding import changed, read_mapping, read_words
from launchers.templates.rules import Rules
from stacks.errors import PolicyError, UsageError

pytestmark = pytest.mark.usefixtures("empty_home", "rich")

TEMPLATE: Final = """\
target: rich
owner: platform
image: registry.example/etl:1
namespace: data
room: {cpu: 1, memory: 1Gi}
env: {MODE: batch, REGION: eu}
secrets: {DB_PASSWORD: {env: X}}
final: [namespace]
overrides:
  image: {glob: "registry.example/etl:*", deny_tags: [latest], registries: [registry.example]}
  room.cpu: {min: 500e-3, max: "4"}
  room.memory: {min: 256Mi, max: 16Gi}
  room.gpu: {enum: [0, 1]}
  grace: {max: 5m}
  env: {keys: [LOG_LEVEL, "ETL_*", "LD_*", DB_PASSWORD, MODE]}
  env.REGION: {enum: [eu, us]}
  labels: {keys: ["team.*"]}
  /labels/app.example~1name: {pattern: '[a-z]{1,8}'}
  volumes: {items: {glob: "/srv/*"}, max_items: 2}
  keep: {any: true}
"""
DIGEST: Final = "a" * 64


@dataclass(frozen=True)
class Wrong:
    """What is set, the line of the template that is named, and words of what is said."""

    words: tuple[str, ...]
    line: int
    says: str
    kind: type[Exception] = PolicyError


def refused(word: str, line: int, says: str) -> Wrong:
    return Wrong((word,), line, says)


def no_value(word: str, says: str) -> Wrong:
    return Wrong((word,), 0, says, UsageError)


WRONG: Final = {
    "above max": refused("room.memory=64Gi", 12, "room.memory '64Gi' is above max 16Gi"),
    "above max in another unit": refused("room.memory=17179869185", 12, "is above max 16Gi"),
    "below min": refused("room.memory=1Mi", 12, "is below min 256Mi"),
    "a number as a number, not as text": refused("room.cpu=10", 11, "room.cpu '10' is above max 4"),
    "a duration in another unit": refused("grace=301s", 14, "grace '301s' is above max 5m"),
    "null where a max is": refused("room.memory=null", 12, "may not be left empty"),
    "null where an enum is": refused("room.gpu=null", 13, "may not be left empty"),
    "none of an enum": refused("room.gpu=2", 13, "room.gpu '2' is none of 0 or 1"),
    "an image of an evil host": refused("image=evil.io/registry.example/etl:1", 10, "is not, as a whole, registry"),
    "an image of a longer host": refused("image=registry.example.evil.io/etl:1", 10, "is not, as a whole"),
    "an image of another path": refused("image=registry.example/etl2:1", 10, "is not, as a whole"),
    "an image with a path in its tag": refused("image=registry.example/etl:a/b", 10, "is not, as a whole"),
    "an image with a line after it": refused("image=registry.example/etl:1\nx", 10, "is not, as a whole"),
    "an image with a space": refused("image=registry.example/etl:1 x", 10, "is not an image from"),
    "a denied tag": refused("image=registry.example/etl:latest", 10, "has a denied tag"),
    "another case": refused("image=Registry.Example/ETL:1", 10, "is not, as a whole"),
    "no such variable": refused("env.PATH=/evil", 15, "env.PATH is locked: of env a run may only set keys: LOG_LEVEL"),
    "a variable in another case": refused("env.log_level=x", 15, "env.log_level is locked"),
    "a variable of the loader": refused("env.LD_PRELOAD=/evil.so", 0, "env.LD_PRELOAD is never a run's to set"),
    "a variable of ours": refused("env.RUN_LAUNCHER_RUN_ID=x", 0, "is never a run's to set"),
    "a variable of Pulumi's": refused("env.PULUMI_CONFIG_PASSPHRASE=x", 0, "is never a run's to set"),
    "a secret": refused("env.DB_PASSWORD=x", 7, "env.DB_PASSWORD is locked: it is a secret of the template"),
    "a variable of the template": refused("env.MODE=fast", 6, "env.MODE is locked: it is set by the template"),
    "a variable with a bound of its own": refused("env.REGION=cn", 16, "env.REGION 'cn' is none of eu or us"),
    "in one mapping": refused("env={LOG_LEVEL: a, PATH: b}", 15, "env.PATH is locked"),
    "a label without a bound": refused("labels.owner=me", 17, "labels.owner is locked"),
    "a label by a pointer": refused("/labels/app.example~1name=UPPER", 18, "does not match, as a whole, the pattern"),
    "a label that only begins well": refused("/labels/app.example~1name=abc-9", 18, "does not match, as a whole"),
    "an item of a list": refused("volumes=[/srv/a, /etc]", 19, "at 1, '/etc', is not, as a whole, /srv/*"),
    "an item that climbs out": refused("volumes=[/srv/..]", 19, "is not, as a whole, /srv/*"),
    "too many items": refused("volumes=[/srv/a, /srv/b, /srv/c]", 19, "has 3 items, more than max_items 2"),
    "null for a list": refused("volumes=null", 19, "may not be left empty"),
    "what is final": refused("namespace=mine", 8, "namespace is locked: namespace is final"),
    "what no bound opens": refused("privileged=true", 0, "privileged is locked: template t lets a run change"),
    "the limit of the whole run": refused("max_runtime=100d", 0, "max_runtime is locked"),
    "the target": refused("target=process", 0, "target is never a run's to change"),
    "the owner": refused("owner=me", 0, "owner is never a run's to change"),
    "the bounds": refused("overrides={privileged: {any: true}}", 0, "is never a run's to change"),
    "one bound": refused("overrides.privileged={any: true}", 0, "is never a run's to change"),
    "what is final itself": refused("final=[]", 0, "final is never a run's to change"),
    "who may choose": refused("use={users: me}", 0, "is never a run's to change"),
    "where secrets are": refused("secrets.DB_PASSWORD.env=HOME", 0, "is never a run's to change"),
    "the second of two": Wrong(("grace=1s", "room.memory=64Gi"), 12, "is above max 16Gi"),
    "no such field": no_value("room.memry=1Gi", "there is no field 'room.memry'; did you mean 'room.memory'?"),
    "no field at all": no_value("=1", "write FIELD=VALUE"),
    "no value at all": no_value("room.memory", "write FIELD=VALUE"),
    "no amount": no_value("room.memory=lots", "'lots' is no amount of memory"),
    "no duration": no_value("grace=soon", "'soon' is no duration"),
    "not above zero": Wrong(("room.cpu=-1",), 0, "", UsageError),
    "no list": no_value("volumes={a: b}", "volumes"),
    "no YAML": no_value("volumes=[a", "write it as YAML"),
    "an empty mapping": no_value("env={}", "an empty mapping changes nothing"),
    "twice": Wrong(("grace=1s", "/grace=2s"), 0, "grace is set twice", UsageError),
    "null where there must be a value": no_value("keep.failed=null", "keep.failed: has no value"),
}


@pytest.fixture
def rules() -> Rules:
    Path("templates").mkdir()
    Path("templates/t.yaml").write_text(TEMPLATE, encoding="utf-8")
    return Library([Path("templates").absolute()]).load("t").rules()


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_override_is_refused_with_its_bound_line_and_owner(rules: Rules, name: str) -> None:
    wrong = WRONG[name]

    with pytest.raises(wrong.kind) as caught:
        changed(rules, read_words(rules, wrong.words))

    said = str(caught.value)
    assert wrong.says in said
    if wrong.kind is PolicyError:
        where = f"templates/t.yaml{f':{wrong.line}' if wrong.line else ''}"
        assert said.endswith(f"({where}, owner platform)")
        error = caught.value
        assert isinstance(error, PolicyError)
        assert (error.where, error.owner, error.exit_code) == (where, "platform", 5)
        assert error.field in said


def test_there_are_forty_and_more() -> None:
    assert len(WRONG) >= 40


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("room.memory=16Gi", ("room", "memory"), 16 * 2**30),
        ("room.memory=17179869184", ("room", "memory"), 16 * 2**30),
        ("room.cpu=4", ("room", "cpu"), "4"),
        ("grace=5m", ("grace",), "300s"),
        ("image=registry.example/etl:2.0", ("image",), "registry.example/etl:2.0"),
        (f"image=registry.example/etl:2@sha256:{DIGEST}", ("image",), f"registry.example/etl:2@sha256:{DIGEST}"),
        ("env.LOG_LEVEL=null", ("env", "LOG_LEVEL"), "null"),
        ("env.ETL_DAY= a=b ", ("env", "ETL_DAY"), " a=b "),
        ("env.REGION=us", ("env", "REGION"), "us"),
        ("labels={team.x: y}", ("labels", "team.x"), "y"),
        ("/labels/app.example~1name=etl", ("labels", "app.example/name"), "etl"),
        ("volumes=[]", ("volumes",), []),
        ("volumes=[/srv/b]", ("volumes",), ["/srv/b"]),
        ("keep={failed: 1s}", ("keep", "failed"), "1s"),
        ("room={gpu: 1}", ("room", "gpu"), 1),
    ],
)
def test_what_a_bound_allows_is_changed_and_nothing_else(
    rules: Rules, word: str, path: tuple[str, ...], value: object
) -> None:
    before = rules.template.model_dump(mode="json")
    after = changed(rules, read_words(rules, [word])).model_dump(mode="json")

    there = after
    for step in path:
        there = there[step]
    assert there == value
    assert {key for key in before if before[key] != after[key]} <= {path[0]}


def test_python_says_the_same_with_nested_values(rules: Rules) -> None:
    wanted = {"room": {"memory": "2Gi"}, "env": {"LOG_LEVEL": "debug"}, "volumes": ["/srv/b"]}
    after = changed(rules, read_mapping(rules, wanted)).model_dump(mode="json")

    assert after["room"] == {"cpu": "1", "memory": 2 * 2**30, "gpu": 0}
    assert after["env"] == {"MODE": "batch", "REGION": "eu", "LOG_LEVEL": "debug"}
    with pytest.raises(PolicyError, match="above max"):
        changed(rules, read_mapping(rules, {"room": {"memory": "64Gi"}}))
    with pytest.raises(UsageError, match="did you mean"):
        changed(rules, read_mapping(rules, {"rom": {}}))


def test_variables_of_a_run_are_held_to_the_same_bounds_and_their_values_are_not_told(rules: Rules) -> None:
    rules.refuse_env({"LOG_LEVEL": "debug", "ETL_DAY": "1", "REGION": "us"})
    for name, value in {"PATH": "s3cret", "LD_PRELOAD": "s3cret", "DB_PASSWORD": "s3cret", "REGION": "s3cret"}.items():
        with pytest.raises(PolicyError) as caught:
            rules.refuse_env({name: value})

        assert f"env.{name}" in str(caught.value)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "registry", "inside"),
    [
        ("registry.example/etl:1", "registry.example", True),
        ("registry.example:5000/etl:1", "registry.example", False),
        ("registry.example.evil.io/etl:1", "registry.example", False),
        ("evil.io/registry.example/etl:1", "registry.example", False),
        ("registry.example/team/etl", "registry.example/team", True),
        ("registry.example/teams/etl", "registry.example/team", False),
        ("REGISTRY.example/etl", "registry.example", True),
        ("etl", "docker.io", True),
        ("etl", "registry.example", False),
    ],
)
def test_an_image_is_from_a_registry_by_its_whole_host_and_whole_parts_of_its_path(
    image: str,
    registry: str,
    inside: bool,  # noqa: FBT001
) -> None:
    assert Image.parse(image).is_from([registry]) is inside
