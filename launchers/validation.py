"""pydantic's refusals in our words: the key, the line, what is wrong, and what was probably meant."""

from __future__ import annotations

import re
import types
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from launchers.near_miss import near_miss, suggestion
from launchers.yaml_nodes import Problem, dotted, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

    from launchers.yaml_nodes import Location
    from launchers.yaml_source import Source

# The types of errors whose own text names Python; https://docs.pydantic.dev/latest/errors/validation_errors/
_TEXTS: Final = {
    "model_type": "must be a mapping, lines of the form `key: value`",
    "dict_type": "must be a mapping, lines of the form `key: value`",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "path_type": "must be a path",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "time_delta_type": "must be a duration, like 30s, 15m, 1h30m or 2d",
    "time_delta_parsing": "must be a duration, like 30s, 15m, 1h30m or 2d",
}


@dataclass(frozen=True)
class _Refusal:
    """One error of pydantic's at a place of the data; `member` is the form of a union that it belongs to."""

    location: Location
    error: ErrorDetails
    member: str | None = None


def problems(source: Source, model: type[BaseModel], *, unknown_keys: bool = True) -> list[Problem]:
    """Every problem of the source as a value of the model, with its line; an empty list where there is none.

    Without `unknown_keys`, keys that the model does not know are let pass.
    """
    try:
        model.model_validate(source.data)
    except ValidationError as error:
        refusals = [_placed(detail, source.data) for detail in error.errors(include_url=False)]
    else:
        refusals = []
    seen = [refusal for refusal in refusals if not _known(refusal.location, source)]
    wanted = [refusal for refusal in seen if unknown_keys or refusal.error["type"] != "extra_forbidden"]
    plain = [_problem(refusal, source, model) for refusal in wanted if refusal.member is None]
    return [*source.problems, *plain, *_of_unions(wanted, source, model)]


def places(model: type[BaseModel], around: Location = (), *, leaves: bool = False) -> Iterator[Location]:
    """The place of every key that the model and the models in it have, or of those that hold no further model."""
    for name, info in model.model_fields.items():
        inner = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        if not (inner and leaves):
            yield (*around, name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from places(info.annotation, (*around, name), leaves=leaves)


def _known(location: Location, source: Source) -> bool:
    return any(location[: len(place)] == place for place in source.refused)


def _placed(detail: ErrorDetails, data: object) -> _Refusal:
    """Separate the steps into the data from the names of union members that pydantic puts between them."""
    location: Location = ()
    member = None
    last = len(detail["loc"]) - 1
    for index, step in enumerate(detail["loc"]):
        here = isinstance(data, dict) and step in data
        if here or (isinstance(data, list) and isinstance(step, int)):
            data = data[step]  # type: ignore[index]
            location = (*location, step)
        elif detail["type"] == "missing" and index == last:
            location = (*location, step)
        elif step != "[key]" and not isinstance(step, int):  # a number: of a list that one value stands for
            member = str(step)
    return _Refusal(location, detail, member)


def _of_unions(refusals: list[_Refusal], source: Source, model: type[BaseModel]) -> Iterator[Problem]:
    """For a value that fits no member of a union: the errors of the nearest member, or the list of the members."""
    values: dict[Location, dict[str, list[_Refusal]]] = defaultdict(lambda: defaultdict(list))
    for refusal in refusals:
        if refusal.member is not None:
            steps = refusal.error["loc"]
            values[tuple(steps[: steps.index(refusal.member)])][refusal.member].append(refusal)
    for location, members in values.items():
        if any(place[: len(location)] == location for place in source.refused):
            continue
        nearest, *others = sorted(members.values(), key=len)
        forms = [f"{{{', '.join(form.model_fields)}}}" for form in _models(model, location)]
        if all(len(other) > len(nearest) for other in others):
            yield from (_problem(refusal, source, model) for refusal in nearest)
        elif forms:
            yield Problem(source.mark(location).key_line, f"{dotted(location)} must be a mapping: {' or '.join(forms)}")
        else:
            texts = [_text(member[0], source) for member in members.values()]
            yield Problem(source.mark(location).key_line, f"{dotted(location)} {', or '.join(texts)}")


def _problem(refusal: _Refusal, source: Source, model: type[BaseModel]) -> Problem:
    location, kind = refusal.location, refusal.error["type"]
    mark = source.mark(location)
    if kind == "extra_forbidden":
        return Problem(mark.key_line, _unknown_key(location, model))
    if kind == "missing":
        return Problem(mark.key_line, f"{dotted(location)} is missing")
    name = dotted(location)
    text = _text(refusal, source)
    line = mark.line if mark.text is not None else mark.key_line
    return Problem(line, f"{name}{'' if text.startswith('must') else ':'} {text}" if name else text)


def _text(refusal: _Refusal, source: Source) -> str:
    error, written = refusal.error, source.mark(refusal.location).text
    if error["input"] is None and error["type"].endswith("_type"):
        return "has no value: give it one, or leave the key out"
    if error["type"] == "string_type" and written is not None:
        return f"must be text: put {shortened(written)} in quotes"
    own = re.sub(r"^\w+ should", "must", error["msg"].removeprefix("Value error, "))
    return _TEXTS.get(error["type"], own)


def _unknown_key(location: Location, model: type[BaseModel]) -> str:
    *around, key = location
    forms = _models(model, tuple(around)) or _models(model, (*around, 0))  # one may stand for a list of one
    siblings = {name for form in forms for name in form.model_fields}
    text = f"unknown key {dotted(location)!r}"
    near = near_miss(str(key), siblings)
    if near is not None:
        return f"{text}; did you mean {dotted((*around, near))!r}?"
    elsewhere = [dotted(place) for place in places(model) if place[-1] == key]
    if elsewhere:
        return f"{text}; did you mean {elsewhere[0]!r}?"
    return text + suggestion(str(key), siblings, "known keys")


def _models(annotation: Any, location: Location) -> list[type[BaseModel]]:  # noqa: ANN401 - a type, as written
    """The models that a value at this place may have; none for a plain value."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0], location)
    if origin in {Union, types.UnionType}:
        return [model for member in get_args(annotation) for model in _models(member, location)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not location:
            return [annotation]
        info = annotation.model_fields.get(str(location[0]))
        return _models(info.annotation, location[1:]) if info else []
    if origin not in {dict, list, tuple} or not location:
        return []
    of_one = origin is not dict and not isinstance(location[0], int)  # one may stand for a list of one
    return _models(get_args(annotation)[origin is dict], location if of_one else location[1:])
