"""Changes a template as a run asks for, within what its owner allows; the result is judged once more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launchers.templates.fields import (
    FieldType,
    Path,
    UnknownFieldError,
    leaves,
    merged,
    nested,
    parse_path,
    path_text,
    value_at,
)
from launchers.templates.rules import Rules, changed_paths
from launchers.validation import problems
from launchers.yaml_nodes import SourceError, shortened
from launchers.yaml_source import Source, parse
from programs.args import LauncherTemplate
from stacks.errors import UsageError

if TYPE_CHECKING:
    from pydantic import JsonValue


@dataclass(frozen=True)
class Change:
    """One field that a run wants otherwise: its value as plain data, and as whoever asked wrote it."""

    path: Path
    value: Any
    shown: str


def read_words(rules: Rules, words: Iterable[str]) -> list[Change]:
    """The changes that "field=value" words ask for; raises UsageError for what cannot be one.

    A field is written with dots or as a JSON Pointer. Single values are taken as they are, `null` empties a field, and
    lists and mappings are YAML, as `[a, b]` and `{A: b}`.
    """
    changes: list[Change] = []
    for word in words:
        name, given, text = word.partition("=")
        if not given or not name:
            message = f"--set {shortened(word)}: write FIELD=VALUE"
            raise UsageError(message)
        try:
            path = parse_path(name)
        except ValueError as error:
            message = f"--set {shortened(word)}: {error}"
            raise UsageError(message) from error
        changes += _taken_apart(rules, path, _read(rules.kind_of(path), text, name))
    return _once(changes)


def read_mapping(rules: Rules, data: Mapping[str, Any]) -> list[Change]:
    """The changes that nested data asks for, as Python gives it; raises UsageError for a field that there is not."""
    try:
        found = list(leaves(type(rules.template), data))
    except UnknownFieldError as error:
        message = f"overrides: {error} (template {rules.name}, {rules.origin})"
        raise UsageError(message) from error
    return [Change(path, value, shortened(str(value))) for path, value in found]


def changed(rules: Rules, changes: Iterable[Change]) -> LauncherTemplate:
    """The template with these changes. Raises PolicyError for one that is not allowed, UsageError for no value."""
    template = rules.template
    before = template.model_dump(mode="json")
    after = before
    for change in changes:
        rules.open(change.path)  # before the value is read: of a locked field it does not matter what it is
        value = _typed(rules, change)
        rules.refuse(change.path, value, change.shown)
        plain = None if value is None else rules.kind_of(change.path).dump(value)
        after = merged(FieldType(type(template)), after, nested(change.path, plain))
    result = _validated(rules, after)
    _judge(rules, before, result)
    return result


def _judge(rules: Rules, before: Mapping[str, Any], result: LauncherTemplate) -> None:
    """Hold what came out against the rules: whatever led to a value, it is one that a run may choose."""
    after = result.model_dump(mode="json")
    for path in changed_paths(type(result), before, after):
        kind, value = rules.kind_of(path), value_at(after, path)
        rules.refuse(path, None if value is None else kind.read(value), shortened(str(value)))


def _validated(rules: Rules, data: dict[str, Any]) -> LauncherTemplate:
    model = type(rules.template)
    found = problems(Source(data), model)
    if found:
        message = f"template {rules.name} cannot be changed like that: {'; '.join(each.text for each in found)}"
        raise UsageError(message)
    return model.model_validate(data)


def _typed(rules: Rules, change: Change) -> Any:  # noqa: ANN401 - whatever the field takes
    kind = rules.kind_of(change.path)
    if change.value is None:
        return None
    try:
        return kind.read(change.value)
    except ValueError as error:
        message = f"{path_text(change.path)} {change.shown!r}: {error} (template {rules.name}, {rules.origin})"
        raise UsageError(message) from error


def _read(kind: FieldType, text: str, name: str) -> JsonValue:
    if text == "null" and (kind.is_optional or not kind.is_text):
        return None
    if not (kind.model or kind.value or kind.item):
        return text
    try:
        source = parse(f"value: {text}\n")
    except SourceError as error:
        message = f"--set {name}: {shortened(repr(text))} {error}: write it as YAML, like [a, b] or {{A: b}}"
        raise UsageError(message) from error
    if source.problems or set(source.data) != {"value"}:
        why = source.problems[0].text if source.problems else "is more than one value"
        message = f"--set {name}: {shortened(repr(text))} {why}"
        raise UsageError(message)
    return source.data["value"]  # type: ignore[return-value] # what YAML holds


def _taken_apart(rules: Rules, path: Path, value: JsonValue) -> Iterator[Change]:
    """One change for each value that is no mapping."""
    kind = rules.kind_of(path)
    if isinstance(value, dict) and (kind.model or kind.value):
        if not value:
            message = f"{path_text(path)}: an empty mapping changes nothing; a run cannot take keys away"
            raise UsageError(message)
        for name, inner in value.items():
            yield from _taken_apart(rules, (*path, name), inner)
    else:
        yield Change(path, value, "null" if value is None else shortened(str(value)))


def _once(changes: list[Change]) -> list[Change]:
    """The changes, if none is asked for twice; raises UsageError."""
    seen: set[Path] = set()
    for change in changes:
        if change.path in seen:
            message = f"{path_text(change.path)} is set twice: name it once"
            raise UsageError(message)
        seen.add(change.path)
    return changes
