"""The fields of a template's model: how they are named, what kind of value each takes, and how values compare."""

from __future__ import annotations

import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import cached_property, lru_cache
from pathlib import PurePath
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from launchers.near_miss import near_miss
from launchers.validation import places
from launchers.yaml_nodes import dotted

Path = tuple[str, ...]
"""The way to a field: the keys that lead there."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPED: Final = re.compile(r"~(?![01])")
_ORDERED: Final = (int, float, Decimal, timedelta)


class UnknownFieldError(Exception):
    """A model has no such field; the text says which one was probably meant."""


@dataclass(frozen=True)
class FieldType:
    """What a field takes: an annotation as pydantic reads it."""

    annotation: Any

    @cached_property
    def plain(self) -> Any:  # noqa: ANN401 - a type, as written
        """The type of a value that is there, without what is written around it."""
        return _bare(self.annotation)

    @property
    def model(self) -> type[BaseModel] | None:
        """The model of a field that has fields of its own."""
        return self.plain if isinstance(self.plain, type) and issubclass(self.plain, BaseModel) else None

    @property
    def value(self) -> FieldType | None:
        """What the values of a mapping are; None for anything else."""
        return FieldType(get_args(self.plain)[1]) if get_origin(self.plain) is dict else None

    @property
    def item(self) -> FieldType | None:
        """What the items of a list are; None for anything else."""
        return FieldType(get_args(self.plain)[0]) if get_origin(self.plain) in {list, tuple} else None

    @property
    def is_ordered(self) -> bool:
        """True of numbers, quantities and durations."""
        return self.plain in _ORDERED

    @property
    def is_text(self) -> bool:
        """True of text and paths."""
        return self.plain is str or (isinstance(self.plain, type) and issubclass(self.plain, PurePath))

    @property
    def is_optional(self) -> bool:
        """True if there may be no value."""
        return type(None) in get_args(self.annotation) or any(
            type(None) in get_args(each) for each in get_args(self.annotation)
        )

    @property
    def kind(self) -> str:
        """The kind of value, as messages name it."""
        if self.model or self.value:
            return "a mapping"
        kinds = {
            bool: "true or false",
            int: "a number",
            float: "a number",
            Decimal: "a number",
            timedelta: "a duration",
        }
        return "a list" if self.item else "text" if self.is_text else kinds.get(self.plain, "a value of its own kind")

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation)

    def read(self, value: object) -> Any:  # noqa: ANN401 - whatever the field takes
        """The value as the field has it; raises ValueError in pydantic's words."""
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(first["msg"].removeprefix("Value error, ")) from error

    def dump(self, value: object) -> Any:  # noqa: ANN401 - whatever JSON holds
        """A value that the field has, as plain data."""
        return self._adapter.dump_python(value, mode="json")

    def text(self, value: object) -> str:
        """A value that the field has, as a template would write it."""
        told = self.dump(value)
        return str(told).lower() if isinstance(told, bool) else str(told)


def parse_path(text: str) -> Path:
    """The way that "limits.memory" or the JSON Pointer "/labels/app~1name" names; raises ValueError.

    A pointer is RFC 6901's: "~1" stands for "/", and "~0" for "~".
    """
    if text.startswith("/"):
        if _ESCAPED.search(text):
            message = f'{text!r} is no JSON Pointer: write "~" as "~0" and "/" as "~1"'
            raise ValueError(message)
        return tuple(step.replace("~1", "/").replace("~0", "~") for step in text[1:].split("/"))
    steps = tuple(text.split("."))
    if not all(steps):
        message = f"{text!r} names no field: write limits.memory, or a JSON Pointer like /labels/app.name"
        raise ValueError(message)
    return steps


def path_text(path: Path) -> str:
    """The one spelling of a way: with dots, or a JSON Pointer where a key holds more than letters, digits, _ and -."""
    if all(_PLAIN.fullmatch(step) for step in path):
        return ".".join(path)
    return "/" + "/".join(step.replace("~", "~0").replace("/", "~1") for step in path)


@lru_cache(maxsize=1024)
def field_at(model: type[BaseModel], path: Path) -> FieldType:
    """What the field at the end of a way takes; raises UnknownFieldError."""
    field: FieldType = FieldType(model)
    for index, step in enumerate(path):
        inner = field.model
        if inner is not None:
            info = inner.model_fields.get(step)
            if info is None:
                raise UnknownFieldError(_unknown(model, path, index))
            metadata = tuple(info.metadata)
            field = FieldType(Annotated[(info.annotation, *metadata)] if metadata else info.annotation)
        elif field.value is not None:
            field = field.value
        else:
            message = f"{path_text(path[:index])} is {field.kind}, which has no field {step!r}"
            raise UnknownFieldError(message)
    return field


def leaves(model: type[BaseModel], data: Mapping[str, Any], around: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every value that data sets, with the way to it; a mapping is taken apart, an empty one sets nothing."""
    for name, value in data.items():
        path = (*around, str(name))
        field = field_at(model, path)
        if isinstance(value, Mapping) and (field.model is not None or field.value is not None):
            yield from leaves(model, value, path)
        else:
            yield path, value


def nearest(path: Path, among: Collection[Path]) -> Path | None:
    """The one of some fields that this one is, or that lies nearest around it."""
    return next((path[:end] for end in range(len(path), 0, -1) if path[:end] in among), None)


def meeting(path: Path, among: Iterable[Path]) -> Path | None:
    """One of some fields that this one is, lies in, or holds."""
    return next((each for each in among if each[: len(path)] == path or path[: len(each)] == each), None)


def value_at(data: object, path: Path) -> Any:  # noqa: ANN401 - whatever is there
    """The value at the end of a way through plain data; None where it ends before."""
    for step in path:
        if not isinstance(data, Mapping) or step not in data:
            return None
        data = data[step]
    return data


def merged(field: FieldType, base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a field laid over one another, mapping by mapping; any other value replaces what was there."""
    result = dict(base)
    for name, value in over.items():
        there, inner = result.get(name), _inner(field, name)
        both = inner is not None and isinstance(there, Mapping) and isinstance(value, Mapping)
        result[name] = merged(inner, there, value) if both else value  # type: ignore[arg-type] # both says so
    return result


def _inner(field: FieldType, name: str) -> FieldType | None:
    """What a key of a mapping takes, if that is a mapping with keys of its own."""
    found = field.value if field.model is None else field_at(field.model, (name,))
    return found if found is not None and (found.model is not None or found.value is not None) else None


def nested(path: Path, value: object) -> dict[str, Any]:
    """Data that holds one value, at the end of a way."""
    for step in reversed(path):
        value = {step: value}
    return value  # type: ignore[return-value] # a way has a step


def _bare(annotation: Any) -> Any:  # noqa: ANN401
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        members = [member for member in get_args(annotation) if member is not type(None)]
        return _bare(members[0]) if len(members) == 1 else annotation
    return annotation


def _unknown(model: type[BaseModel], path: Path, index: int) -> str:
    known = [dotted(place) for place in places(model)]
    text = f"there is no field {path_text(path[: index + 1])!r}"
    near = near_miss(".".join(path), known) or next(
        (each for each in known if each.split(".")[-1] == path[index]), None
    )
    if near:
        return f"{text}; did you mean {near!r}?"
    top = sorted({place.partition(".")[0] for place in known})
    return f"{text}; fields: {', '.join(top)}"
