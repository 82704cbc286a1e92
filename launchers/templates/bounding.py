"""What a bound means: whether it fits its field, whether a value keeps it, and whether one bound narrows another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import StringConstraints, TypeAdapter, ValidationError

from launchers.templates.fields import FieldType
from launchers.templates.globs import any_matches, covers, matches
from launchers.templates.images import Image
from programs.bounds import Bound

DENIED: Final = (
    "LD_*", "DYLD_*", "GCONV_PATH", "GLIBC_TUNABLES", "PULUMI_*", "RUN_LAUNCHER_*", "BASH_ENV", "BASH_FUNC_*", "ENV",
    "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PERL5OPT", "RUBYOPT", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS",
    "_JAVA_OPTIONS",
)  # fmt: skip
"""Variables that steer a loader, an interpreter or us, not a job: never a run's to set, whatever a bound says."""
_TEXTS: Final = ("glob", "pattern", "registries", "require_digest", "deny_tags")
_FITS: Final[dict[str, Callable[[FieldType], bool]]] = {
    **dict.fromkeys(("min", "max"), lambda field: field.is_ordered),
    **dict.fromkeys(_TEXTS, lambda field: field.is_text),
    "keys": lambda field: field.value is not None,
    **dict.fromkeys(("items", "max_items"), lambda field: field.item is not None),
    "enum": lambda field: field.model is None and field.value is None and field.item is None,
    "any": lambda _: True,
}
_FOR: Final = {
    "min": "numbers, amounts and durations", "max": "numbers, amounts and durations", "keys": "mappings, like env",
    "items": "lists", "max_items": "lists", "enum": "single values", **dict.fromkeys(_TEXTS, "text"),
}  # fmt: skip


class Misfit(Exception):  # noqa: N818 - it is no error of a caller's: it is told with the line of the template
    """A bound makes no sense on its field; `key` is the word of it that does not."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


# ---- whether a bound fits its field ----


def misfits(bound: Bound, field: FieldType) -> Iterator[Misfit]:
    """Every reason why a bound makes no sense on a field."""
    for key in sorted(bound.said):
        if not _FITS[key](field):
            yield Misfit(key, f"{key} is for {_FOR[key]}, and this field is {field.kind}")
    if bound.items is not None and field.item is not None:
        yield from (Misfit("items", f"items: {each}") for each in misfits(bound.items, field.item))
    if bound.pattern is not None:
        yield from _bad_pattern(bound.pattern)
    for key in ("glob", "keys", "deny_tags"):
        yield from (Misfit(key, f"{glob!r} is no glob: {why}") for glob, why in _bad_globs(getattr(bound, key) or ()))
    if field.is_ordered or field.is_text:
        yield from _bad_values(bound, field)


def _bad_values(bound: Bound, field: FieldType) -> Iterator[Misfit]:
    read: dict[str, Any] = {}
    for key, value in [("min", bound.min), ("max", bound.max), *(("enum", each) for each in bound.enum or ())]:
        if value is None or not _FITS[key](field):
            continue
        try:
            read[key] = field.read(value)
        except ValueError as error:
            yield Misfit(key, f"{key} {value!r} is no value of this field: {error}")
    if "min" in read and "max" in read and read["min"] > read["max"]:
        yield Misfit("max", f"max {bound.max} is below min {bound.min}, so nothing is allowed")


def _bad_globs(globs: Iterable[str]) -> Iterator[tuple[str, str]]:
    for glob in globs:
        try:
            matches(glob, "")
        except re.error as error:
            yield glob, str(error)


def _bad_pattern(pattern: str) -> Iterator[Misfit]:
    try:
        for each in (pattern, _whole(pattern)):
            _expression(each)
    except Exception as error:  # noqa: BLE001 - pydantic-core raises what its regex does
        reason = str(error).strip().splitlines()[-1].removeprefix("error: ").strip()
        yield Misfit("pattern", f"{pattern!r} is no regular expression: {reason}")


# ---- whether a value keeps a bound ----


def broken_by(bound: Bound, value: Any, field: FieldType) -> str | None:  # noqa: ANN401 - whatever the field holds
    """How a field's value breaks a bound, in words that follow field and value; None if it keeps it."""
    for each in (bound, *bound.also):
        told = _broken(each, value, field)
        if told is not None:
            return told
    return None


def _broken(bound: Bound, value: Any, field: FieldType) -> str | None:  # noqa: ANN401
    if bound.any:
        return None
    if value is None:
        return f"may not be left empty: {in_words(bound)}"
    if isinstance(value, Mapping):
        odd = next((name for name in value if not is_key(bound, str(name))), None)
        return None if odd is None else f"has the key {odd!r}, and may only have {_or(bound.keys or ())}"
    if isinstance(value, list | tuple):
        return _broken_list(bound, value, field)
    broken = (
        key for key, keeps in _KEEPS.items() if getattr(bound, key) is not None and not keeps(bound, value, field)
    )
    return next((_SAYS[key](bound) for key in broken), None)


def _broken_list(bound: Bound, value: list[Any] | tuple[Any, ...], field: FieldType) -> str | None:
    if bound.max_items is not None and len(value) > bound.max_items:
        return f"has {len(value)} items, more than max_items {bound.max_items}"
    if bound.items is None or field.item is None:
        return None
    for index, item in enumerate(value):
        told = broken_by(bound.items, item, field.item)
        if told is not None:
            return f"at {index}, {field.item.text(item)!r}, {told}"
    return None


def is_key(bound: Bound, name: str) -> bool:
    """True if a bound on a mapping lets a run set this key; a bound without keys lets none."""
    mine = bool(bound.any) or any_matches(bound.keys or (), name)
    return mine and all(is_key(each, name) for each in bound.also)


def _image(value: object) -> Image | None:
    try:
        return Image.parse(str(value))
    except ValueError:
        return None


def _comes_from(bound: Bound, value: object, _: FieldType) -> bool:
    image = _image(value)
    return image is not None and image.is_from(bound.registries or ())


def _has_digest(_: Bound, value: object, __: FieldType) -> bool:
    image = _image(value)
    return image is not None and image.digest is not None


def _has_allowed_tag(bound: Bound, value: object, _: FieldType) -> bool:
    image = _image(value)
    return image is not None and not image.has_tag_of(bound.deny_tags or ())


_KEEPS: Final[dict[str, Callable[[Bound, Any, FieldType], bool]]] = {
    "min": lambda bound, value, field: bool(value >= field.read(bound.min)),
    "max": lambda bound, value, field: bool(value <= field.read(bound.max)),
    "enum": lambda bound, value, field: value in [field.read(each) for each in bound.enum or ()],
    "glob": lambda bound, value, _: _is_plain(value) and any_matches(bound.glob or (), str(value)),
    "pattern": lambda bound, value, _: _full_match(bound.pattern or "", str(value)),
    "registries": _comes_from,
    "require_digest": _has_digest,
    "deny_tags": _has_allowed_tag,
}
_SAYS: Final[dict[str, Callable[[Bound], str]]] = {
    "any": lambda _: "may be anything",
    "min": lambda bound: f"is below min {bound.min}",
    "max": lambda bound: f"is above max {bound.max}",
    "enum": lambda bound: f"is none of {_or(map(str, bound.enum or ()))}",
    "glob": lambda bound: f"is not, as a whole, {_or(bound.glob or ())}",
    "pattern": lambda bound: f"does not match, as a whole, the pattern {bound.pattern}",
    "registries": lambda bound: f"is not an image from {_or(bound.registries or ())}",
    "require_digest": lambda _: "does not say the image's digest (name@sha256:…)",
    "deny_tags": lambda bound: f"has a denied tag ({_or(bound.deny_tags or ())}; no tag means latest)",
    "keys": lambda bound: f"may only have {_or(bound.keys or ())}",
    "items": lambda bound: f"items: {in_words(bound.items)}" if bound.items else "",
    "max_items": lambda bound: f"has more than {bound.max_items} items",
}


def in_words(bound: Bound) -> str:
    """A bound as a template writes it."""
    told = bound.model_dump(mode="json", exclude_defaults=True, exclude={"also"})
    parts = [
        f"{name}: {_or(value) if isinstance(value, list) and not _nested(value) else value}"
        for name, value in told.items()
    ]
    return ", ".join(parts)


def _nested(value: list[Any]) -> bool:
    return any(isinstance(each, dict) for each in value)


def _or(words: Iterable[object]) -> str:
    return " or ".join(map(str, words))


def _is_plain(value: object) -> bool:
    """A path that climbs out of the folder that a glob names is none that it names."""
    return ".." not in str(value).split("/")


def _whole(pattern: str) -> str:
    return rf"\A(?:{pattern})\z"


def _full_match(pattern: str, text: str) -> bool:
    try:
        _expression(_whole(pattern)).validate_python(text)
    except ValidationError:
        return False
    return True


@lru_cache(maxsize=1024)
def _expression(pattern: str) -> TypeAdapter[str]:
    """A regular expression of pydantic's: in a time that is linear in the text, whatever the pattern."""
    return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])


# ---- whether one bound narrows another ----


def widens(child: Bound, base: Bound, field: FieldType) -> Misfit | None:
    """Why a child's bound allows what its base's does not, as far as that shows; what does not show, `also` keeps."""
    if base.any:
        return None
    if child.any:
        return Misfit("any", f"any: true is wider than {in_words(base)}")
    for value in child.enum or ():
        told = broken_by(base, field.read(value), field)
        if told is not None:
            return Misfit("enum", f"enum {value} {told}")
    for key, wider in _WIDER.items():
        mine, theirs = getattr(child, key), getattr(base, key)
        if mine is not None and theirs is not None and wider(mine, theirs, field):
            return Misfit(key, f"{key} {_shown(mine)} is wider than {key} {_shown(theirs)}")
    if child.items is not None and base.items is not None and field.item is not None:
        return widens(child.items, base.items, field.item)
    return next(filter(None, (widens(child, each, field) for each in base.also)), None)


def _uncovered(mine: tuple[str, ...], theirs: tuple[str, ...], _: FieldType) -> bool:
    return not all(any(covers(wide, narrow) for wide in theirs) for narrow in mine)


def _outside(mine: tuple[str, ...], theirs: tuple[str, ...], _: FieldType) -> bool:
    return not all(any(f"{each}/".startswith(f"{wide.rstrip('/')}/") for wide in theirs) for each in mine)


_WIDER: Final[dict[str, Callable[[Any, Any, FieldType], bool]]] = {
    "min": lambda mine, theirs, field: bool(field.read(mine) < field.read(theirs)),
    "max": lambda mine, theirs, field: bool(field.read(mine) > field.read(theirs)),
    "glob": _uncovered,
    "keys": _uncovered,
    "registries": _outside,
    "max_items": lambda mine, theirs, _: bool(mine > theirs),
    "deny_tags": lambda mine, theirs, _: not set(theirs) <= set(mine),
}


def _shown(value: object) -> str:
    return _or(value) if isinstance(value, tuple) else str(value)


def narrowed(child: Bound, base: Bound) -> Bound:
    """The child's bound, under which the base's holds as well."""
    above = tuple(each.model_copy(update={"also": ()}) for each in (base, *base.also) if not each.any)
    mine = (each for each in above if each != child)
    return child.model_copy(update={"also": tuple(dict.fromkeys((*child.also, *mine)))})


def loose_dots(pattern: str) -> bool:
    """True if a dot of a pattern stands between letters or digits, as in a host name that was not escaped."""
    outside = re.sub(r"\[[^\]]*\]", "[]", pattern)
    return re.search(r"(?<!\\)[A-Za-z0-9]\.(?=[A-Za-z0-9])", outside) is not None
