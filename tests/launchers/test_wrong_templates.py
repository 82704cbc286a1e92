"""What a platform team gets wrong in its templates: each names file and line, what is wrong, and what to write."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from launchers.templates import Library
from launchers.templates.linting import lint
from stacks.errors import TemplateError

pytestmark = pytest.mark.usefixtures("empty_home", "rich")

BASE: Final = """\
target: rich
owner: platform
image: registry.example/base:1
namespace: data
room: {cpu: 1, memory: 1Gi}
volumes: [/srv/a]
final: [namespace, privileged]
overrides:
  image: {glob: "registry.example/*:*"}
  room.cpu: {max: "4"}
  room.memory: {min: 256Mi, max: 16Gi}
  grace: {enum: [10s, 30s]}
  env: {keys: [LOG_LEVEL, "ETL_*"]}
  volumes: {items: {glob: "/srv/*"}, max_items: 2}
  /labels/app.example~1name: {any: true}
"""


@dataclass(frozen=True)
class Wrong:
    """The text of templates/t.yaml, the file and line that is named, and words of what is said."""

    text: str
    line: int
    says: str
    file: str = "t.yaml"
    others: dict[str, str] = field(default_factory=dict)


def alone(lines: str, line: int, says: str) -> Wrong:
    return Wrong(f"target: rich\nimage: a/b:1\n{lines}\n", line, says)


def child(lines: str, line: int, says: str) -> Wrong:
    return Wrong(f"extends: base\n{lines}\n", line, says)


WRONG: Final = {
    # bounds that make no sense
    "a bound that says nothing": alone("overrides:\n  grace: {}", 4, "says nothing: write what a run may choose"),
    "a bound that is a word": alone("overrides:\n  grace: open", 4, "overrides.grace must be"),
    "any beside another": alone("overrides: {grace: {any: true, max: 1m}}", 3, "any: true leaves the field open"),
    "any that is false": alone("overrides: {grace: {any: false}}", 3, "overrides.grace.any must be True"),
    "a misspelt bound": alone("overrides:\n  grace: {maxx: 1m}", 4, "did you mean 'overrides.grace.max'?"),
    "a bound on no field": alone("overrides:\n  room.memry: {max: 1Gi}", 4, "did you mean 'room.memory'?"),
    "a bound on a field elsewhere": alone("overrides: {memory: {max: 1Gi}}", 3, "did you mean 'room.memory'?"),
    "a bound below a value": alone("overrides: {grace.x: {any: true}}", 3, "grace is a duration, which has no field"),
    "max on text": alone("overrides:\n  image: {max: 4}", 4, "max is for numbers, amounts and durations"),
    "glob on a number": alone("overrides:\n  room.gpu: {glob: '*'}", 4, "glob is for text"),
    "keys on a list": alone("overrides: {volumes: {keys: [a]}}", 3, "keys is for mappings, like env"),
    "items on text": alone("overrides: {image: {items: {glob: a}}}", 3, "items is for lists"),
    "items that do not fit": alone("overrides: {volumes: {items: {max: 1}}}", 3, "items: max is for numbers"),
    "enum on a mapping": alone("overrides: {env: {enum: [a]}}", 3, "enum is for single values"),
    "a max that is no amount": alone("overrides:\n  room.memory: {max: lots}", 4, "'lots' is no amount of memory"),
    "an enum that is no duration": alone("overrides: {grace: {enum: [soon]}}", 3, "'soon' is no duration"),
    "min above max": alone("overrides: {room.cpu: {min: 4, max: 2}}", 3, "max 2 is below min 4, so nothing is allowed"),
    "a pattern that is none": alone("overrides: {image: {pattern: 'a('}}", 3, "is no regular expression"),
    "a pattern that leaves its anchors": alone("overrides: {image: {pattern: 'a)|(b'}}", 3, "no regular expression"),
    "a glob that is none": alone("overrides: {image: {glob: '[b-a]'}}", 3, "is no glob: bad character range"),
    "one field twice": alone("overrides:\n  room.gpu: {max: 1}\n  /room/gpu: {max: 2}", 5, "same field as another"),
    "a pointer that is none": alone("overrides: {'/labels/a~b': {any: true}}", 3, 'write "~" as "~0"'),
    "a path with a hole": alone("overrides: {room..cpu: {max: 1}}", 3, "names no field: write limits.memory, or"),
    "a bound on the owner": alone("overrides: {owner: {any: true}}", 3, "owner is never a run's to change"),
    "a bound on secrets": alone("overrides: {secrets: {any: true}}", 3, "secrets is never a run's to change"),
    "a bound on what is final": alone("final: [room]\noverrides: {room.cpu: {max: 4}}", 4, "room.cpu is final, so no"),
    "its own value above its bound": alone("room: {gpu: 4}\noverrides: {room.gpu: {max: 2}}", 3, "is above max 2"),
    "an image from elsewhere": alone("overrides: {image: {registries: registry.example}}", 2, "not an image from"),
    "final of no field": alone("final: [namspace]", 3, "did you mean 'namespace'?"),
    "use of nobody in particular": alone("use: {}", 3, "says nothing: name code_locations, users or tags"),
    "a misspelt use": alone("use: {user: me}", 3, "did you mean"),
    # inheritance
    "no such base": Wrong("extends: bse\n", 1, "extends: no template 'bse'; did you mean 'base'?"),
    "a base without a file": Wrong("extends: ./no.yaml\n", 1, "it extends ./no.yaml, which is wrong"),
    "no name": Wrong("extends:\ntarget: rich\nimage: a/b:1\n", 1, "extends has no value"),
    "itself": Wrong("extends: t\ntarget: rich\n", 1, "no template 't'"),
    "a circle": Wrong("extends: u\n", 1, "t extends u extends t: a circle", "u.yaml", {"u.yaml": "extends: t\n"}),
    "a base that is wrong": Wrong("extends: u\n", 2, "unknown key 'x'", "u.yaml", {"u.yaml": "target: rich\nx: 1\n"}),
    "another target": child("target: process", 2, "target 'process' is not that of what it extends, rich"),
    "what is final": child("namespace: mine", 2, "namespace is final in templates/base.yaml:7, owner platform"),
    "what is final, by its default": child("privileged: true", 2, "privileged is final in templates/base.yaml:7"),
    "a value above the base's bound": child(
        "room:\n  memory: 64Gi", 3, "64Gi is above max 16Gi (templates/base.yaml:11"
    ),
    "a value below the base's bound": child("room: {memory: 1Mi}", 2, "room.memory 1Mi is below min 256Mi"),
    "a bound taken out by null": child("room: {memory: null}", 2, "room.memory may not be left empty"),
    "an image from elsewhere in a child": child(
        "image: evil.io/registry.example/etl:1", 2, "is not, as a whole, registry.example/*:*"
    ),
    "a variable that no run may set": child(
        "env: {PATH: /bin}", 2, "env.PATH /bin is none that the base lets a run set"
    ),
    "more volumes": child("volumes: [/srv/a, /srv/b, /srv/c]", 2, "has 3 items, more than max_items 2"),
    "another volume": child("volumes: [/srv/a, /etc]", 2, "at 1, '/etc', is not, as a whole, /srv/*"),
    "a raised max": child(
        "overrides:\n  room.memory: {max: 64Gi}", 3, "max 64Gi is wider than max 16Gi (templates/base"
    ),
    "a lowered min": child("overrides: {room.memory: {min: 1Mi}}", 2, "min 1Mi is wider than min 256Mi"),
    "a bound that is opened": child("overrides: {room.cpu: {any: true}}", 2, "any: true is wider than max: 4"),
    "one more choice": child("overrides: {grace: {enum: [10s, 5m]}}", 2, "enum 5m is none of 10s or 30s"),
    "more keys": child('overrides: {env: {keys: ["*"]}}', 2, "keys * is wider than keys LOG_LEVEL or ETL_*"),
    "a key beside the keys": child("overrides: {env.PATH: {any: true}}", 2, "is none that the base lets a run set"),
    "a wider glob": child('overrides: {image: {glob: "**"}}', 2, "glob ** is wider than glob registry.example/*:*"),
    "more items": child("overrides: {volumes: {items: {glob: /srv/b}, max_items: 5}}", 2, "max_items 5 is wider than"),
    "wider items": child('overrides: {volumes: {items: {glob: "/**"}}}', 2, "glob /** is wider than glob /srv/*"),
    "a bound on what its base made final": child("overrides: {namespace: {any: true}}", 2, "namespace is final"),
    "nothing of its own but wrong": child("gracee: 1s", 2, "unknown key 'gracee'; did you mean 'grace'?"),
}


def library(wrong: Wrong) -> Library:
    folder = Path("templates")
    folder.mkdir()
    for name, text in {"base.yaml": BASE, "t.yaml": wrong.text, **wrong.others}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return Library([folder.absolute()])


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_template_is_refused_with_file_line_and_advice(name: str) -> None:
    wrong = WRONG[name]

    with pytest.raises(TemplateError) as caught:
        library(wrong).load("t")

    said = str(caught.value).splitlines()
    assert any(line.startswith(f"templates/{wrong.file}:{wrong.line}: ") and wrong.says in line for line in said), said


def test_there_are_forty_and_more() -> None:
    assert len(WRONG) >= 40


def test_the_base_itself_is_right() -> None:
    assert lint(library(Wrong(BASE, 0, "")), ["base", "t"]) == []


def test_what_lint_alone_tells(tmp_path: Path) -> None:
    text = "target: rich\nimage: registry.example/etl:1\noverrides:\n"
    text += "  image: {pattern: 'registry.example/etl:[0-9.]+'}\n  room.memory: {max: 1Gi}\n"

    found = lint(library(Wrong(text, 0, "")), ["t"])

    assert [(Path(each.origin).name, each.line, each.is_error) for each in found] == [
        ("t.yaml", 0, False),
        ("t.yaml", 4, True),
        ("t.yaml", 5, False),
    ]
    assert r"write \., or use glob" in str(found[1])
    assert tmp_path.is_dir()
