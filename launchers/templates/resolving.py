"""Makes one template of a file and of all that it extends, or says what is wrong with which line.

A child is laid over its base: mappings key by key, everything else replaces. What the base says of the future binds the
child: it keeps the target, leaves final fields alone, keeps its own values within the base's bounds, and may narrow
these bounds, but not widen them. A field that the base neither bounds nor makes final is the child's to decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import TypeAdapter

from launchers import registry
from launchers.near_miss import suggestion
from launchers.templates.bounding import broken_by, in_words, is_key, misfits, narrowed, widens
from launchers.templates.fields import (
    FieldType,
    Path,
    UnknownFieldError,
    field_at,
    leaves,
    meeting,
    merged,
    nearest,
    parse_path,
    path_text,
    value_at,
)
from launchers.templates.layers import EXTENDS, Layer
from launchers.templates.rules import NEVER, Rules
from launchers.validation import problems
from launchers.yaml_nodes import Location, Problem, shortened
from launchers.yaml_source import Source
from programs.args import LauncherTemplate
from programs.bounds import Bound
from stacks.errors import ConfigurationError, TemplateError

DEFAULT: Final = "default"
_BOUNDS: Final[TypeAdapter[dict[str, Bound]]] = TypeAdapter(dict[str, Bound])
_APART: Final = (EXTENDS, "final", "overrides")
"""Keys that are not laid over one another."""


class _AnyTarget(LauncherTemplate, frozen=True, extra="forbid"):
    """What can be checked of a template whose target is not known."""

    target: str = ""


@dataclass(frozen=True)
class Loaded:
    """A template with its name and where it comes from: "built in", the path of its file, or how it was chosen.

    `places` says where each value stands ("templates/etl.yaml:7"), `stale` why this is not what the file says now.
    """

    name: str
    template: LauncherTemplate
    origin: str
    places: Mapping[Location, str] = field(default_factory=dict, compare=False)
    stale: str = ""
    bases: tuple[str, ...] = ()
    """The files of the templates that it extends, the nearest first."""

    def origin_of(self, *location: str) -> str:
        """Where the value at a place comes from: file and line, or "default"."""
        return self.places.get(location, DEFAULT)

    def rules(self) -> Rules:
        """What a run may change of it."""
        places: Mapping[Any, str] = self.places
        return Rules(self.name, self.template, places, self.origin, stale=self.stale, bases=self.bases)


def resolve(layers: list[Layer]) -> Loaded:
    """The template of a file and of those that it extends, the base last; raises TemplateError for all that is wrong.

    Raises ConfigurationError where the target is not installed.
    """
    *children, base = layers
    model = _model(base)
    state = _first(base, model, alone=not children)
    for child in reversed(children):
        state = _laid_over(state, child, model)
    top = layers[0]
    found = [] if not children else problems(Source(state.data, top.source.marks), model)
    if found:
        raise top.wrong(*found)
    rules = {path_text(path): bound for path, bound in state.bounds.items()}
    governed = state.data | {"overrides": rules, "final": [path_text(path) for path in sorted(state.final)]}
    template = model.model_validate({key: value for key, value in governed.items() if value or key in state.data})
    _refuse_own_values(template, state, top)
    return Loaded(top.name, template, top.origin, state.places, bases=tuple(each.origin for each in layers[1:]))


@dataclass(frozen=True)
class _State:
    """What the layers up to here say, with the place of each value."""

    data: dict[str, Any]
    bounds: dict[Path, Bound]
    final: frozenset[Path]
    places: dict[Location, str]

    @property
    def owner(self) -> str:
        """Who answers for it, as the end of a sentence."""
        return f", owner {self.data['owner']}" if self.data.get("owner") else ""

    def place(self, *location: str) -> str:
        """Where a value, or the nearest one around it, stands."""
        while location and location not in self.places:
            location = location[:-1]
        return self.places.get(location, "")

    def bound_place(self, path: Path) -> str:
        """Where the bound on a field stands, and whose it is."""
        return f"{self.place('overrides', path_text(path))}{self.owner}"


def _first(base: Layer, model: type[LauncherTemplate], *, alone: bool) -> _State:
    _refuse(base, _problems(base, model, whole=alone))
    found: list[Problem] = []
    own = _Own(base, model, found)
    state = _State(_said(base), own.bounds(), own.final(), own.places())
    found += own.contradictions(state)
    _refuse(base, found)
    return state


def _laid_over(state: _State, child: Layer, model: type[LauncherTemplate]) -> _State:
    found = list(_other_target(state, child))
    _refuse(child, found)
    _refuse(child, _problems(child, model, whole=False))
    own = _Own(child, model, found)
    bounds, final = own.bounds(), own.final()
    _refuse(child, found)
    found += own.against(state, bounds)
    over = {
        path: narrowed(bound, state.bounds[path]) if path in state.bounds else bound for path, bound in bounds.items()
    }
    kept = {location: place for location, place in state.places.items() if location[:1] != ("overrides",)}
    kept |= {location: place for location, place in state.places.items() if _path_of(location) not in bounds}
    result = _State(
        merged(FieldType(model), state.data, _said(child)),
        state.bounds | over,
        state.final | final,
        kept | own.places(),
    )
    found += own.contradictions(result)
    _refuse(child, found)
    return result


class _Own:
    """What one layer says of bounds and final fields, judged; what is wrong is added to `found`."""

    def __init__(self, layer: Layer, model: type[LauncherTemplate], found: list[Problem]) -> None:
        self._layer = layer
        self._model = model
        self._found = found

    def bounds(self) -> dict[Path, Bound]:
        """Its bounds, by the field that they are on."""
        result: dict[Path, Bound] = {}
        for text, bound in _BOUNDS.validate_python(self._layer.data.get("overrides") or {}).items():
            path = self._path(text, "overrides", text)
            if path is None:
                continue
            if path in result:
                self._say(f"overrides: {text} names the same field as another entry", "overrides", text)
            elif path[0] in NEVER or path[0] in self._model.DURABLE:
                self._say(f"overrides: {text} is never a run's to change: take this line out", "overrides", text)
            else:
                self._judge(text, path, bound)
            result[path] = bound
        return result

    def final(self) -> frozenset[Path]:
        """Its final fields."""
        texts = self._layer.data.get("final") or []
        paths = (self._path(text, "final", index) for index, text in enumerate(texts))
        return frozenset(path for path in paths if path is not None)

    def places(self) -> dict[Location, str]:
        """Where its values stand; its bounds by the one spelling of their fields."""
        places = self._layer.places()
        for text in self._layer.data.get("overrides") or {}:
            try:
                spelt = path_text(parse_path(text))
            except ValueError:
                continue
            places["overrides", spelt] = places["overrides", text]
        return places

    def contradictions(self, state: _State) -> Iterator[Problem]:
        """Bounds on fields that are final, here or in a base."""
        for path in state.bounds:
            final = nearest(path, state.final)
            said_here = ("overrides", path_text(path)) in self.places()
            if final is not None and said_here:
                line = self._layer.line("overrides", self._written(path))
                yield Problem(
                    line, f"overrides: {path_text(path)} is final, so no bound can open it: take one of both out"
                )

    def against(self, state: _State, bounds: Mapping[Path, Bound]) -> Iterator[Problem]:
        """Values and bounds of this layer that its base does not allow."""
        said = _said(self._layer)
        for path, value in leaves(self._model, said):
            line = self._layer.line(*path)
            final = meeting(path, state.final)
            if final is not None and self._differs(path, value, state):
                place = state.place("final")
                yield Problem(line, f"{path_text(path)} is final in {place}{state.owner}: take this line out")
            elif final is None and path[0] not in NEVER:
                yield from self._beyond(path, value, state, line)
        for path, bound in bounds.items():
            yield from self._widening(path, bound, state)

    def _differs(self, path: Path, value: object, state: _State) -> bool:
        kind, there = field_at(self._model, path), value_at(state.data, path)
        return there is None or kind.read(value) != kind.read(there)

    def _beyond(self, path: Path, value: object, state: _State, line: int) -> Iterator[Problem]:
        rule = nearest(path, state.bounds)
        if rule is None:
            return
        kind, bound = field_at(self._model, path), state.bounds[rule]
        told = broken_by(bound, kind.read(value), kind) if rule == path else _odd_key(bound, path[len(rule)])
        if told is not None:
            shown = "" if value is None else f" {shortened(str(value))}"
            yield Problem(line, f"{path_text(path)}{shown} {told} ({state.bound_place(rule)}): a child only narrows")

    def _widening(self, path: Path, bound: Bound, state: _State) -> Iterator[Problem]:
        rule = nearest(path, state.bounds)
        if rule is None:
            return
        kind, base = field_at(self._model, path), state.bounds[rule]
        written = self._written(path)
        if rule == path:
            wider = widens(bound, base, kind)
            key, told = (wider.key, str(wider)) if wider else ("", None)
        else:
            key, told = "", _odd_key(base, path[len(rule)])
        if told is not None:
            line = self._layer.line("overrides", written, key)
            yield Problem(line, f"overrides: {written}: {told} ({state.bound_place(rule)}): a child only narrows")

    def _judge(self, text: str, path: Path, bound: Bound) -> None:
        for misfit in misfits(bound, field_at(self._model, path)):
            self._say(f"overrides: {text}: {misfit}", "overrides", text, misfit.key)

    def _path(self, text: str, *location: str | int) -> Path | None:
        try:
            path = parse_path(text)
            field_at(self._model, path)
        except (ValueError, UnknownFieldError) as error:
            self._say(f"{location[0]}: {error}", *location)
            return None
        return path

    def _written(self, path: Path) -> str:
        texts = self._layer.data.get("overrides") or {}
        return next((text for text in texts if parse_path(text) == path), path_text(path))

    def _say(self, text: str, *location: str | int) -> None:
        self._found.append(Problem(self._layer.line(*location), text))


def _problems(layer: Layer, model: type[LauncherTemplate], *, whole: bool) -> list[Problem]:
    """What is wrong with a layer's own values; one that is not the whole template may leave values to others."""
    found = problems(layer.source, model)
    if layer.data.get(EXTENDS, "") is None:
        found.append(Problem(layer.line(EXTENDS), "extends has no value: name a template, or leave the key out"))
    return found if whole else [each for each in found if not each.text.endswith(" is missing")]


def _odd_key(bound: Bound, name: str) -> str | None:
    """How a key of a mapping is none that a bound on the mapping names."""
    return None if is_key(bound, name) else f"is none that the base lets a run set ({in_words(bound)})"


def _path_of(location: Location) -> Path:
    """The field that a place of `overrides` is about."""
    try:
        return parse_path(str(location[1])) if len(location) > 1 and location[0] == "overrides" else ()
    except ValueError:
        return ()


def _said(layer: Layer) -> dict[str, Any]:
    return {key: value for key, value in layer.data.items() if key not in _APART}


def _refuse(layer: Layer, found: list[Problem]) -> None:
    if found:
        raise layer.wrong(*found)


def _refuse_own_values(template: LauncherTemplate, state: _State, top: Layer) -> None:
    """Refuse a template whose own values its own bounds do not allow; one that sets none is let pass."""
    data = template.model_dump(mode="json")
    for path, bound in state.bounds.items():
        kind, value = field_at(type(template), path), value_at(data, path)
        if value is None or isinstance(value, Mapping):
            continue
        told = broken_by(bound, kind.read(value), kind)
        if told is not None:
            place = state.place(*path) or f"{top.origin}:{top.line(*path)}"
            message = f"{place}: {path_text(path)} {value!r} {told} ({state.bound_place(path)}): correct one of both"
            raise TemplateError(message)


def _other_target(state: _State, child: Layer) -> Iterator[Problem]:
    target, there = child.data.get("target"), state.data["target"]
    if target is not None and target != there:
        place = state.place("target")
        text = f"target {shortened(repr(target))} is not that of what it extends, {there} ({place}): a child keeps it"
        yield Problem(child.line("target"), text)


def _model(base: Layer) -> type[LauncherTemplate]:
    """The model that the key `target` chooses; raises TemplateError for what is wrong with that key."""
    target, line = base.data.get("target", ""), base.line("target")
    if not isinstance(target, str):
        raise base.wrong(*problems(base.source, _AnyTarget, unknown_keys=False))
    if not target:
        text = f"target is missing: the kind of compute, one of {', '.join(registry.target_names())}"
        raise base.wrong(*problems(base.source, _AnyTarget, unknown_keys=False), Problem(line, text))
    if target not in registry.TARGETS and target not in registry.target_names():
        known = registry.target_names()
        text = f"unknown target {shortened(repr(target))}{suggestion(target, known, 'known targets')}"
        raise base.wrong(*problems(base.source, _AnyTarget, unknown_keys=False), Problem(line, text))
    try:
        return registry.template_model(target)
    except ConfigurationError as error:
        message = f"{base.origin}:{line}: {error}"
        raise ConfigurationError(message) from error
