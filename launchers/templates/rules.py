"""What a template lets a run change: its bounds and its final fields, each with the line that says so."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from launchers.near_miss import near_miss
from launchers.templates.bounding import DENIED, broken_by, in_words, is_key
from launchers.templates.fields import (
    FieldType,
    Path,
    UnknownFieldError,
    field_at,
    meeting,
    nearest,
    parse_path,
    path_text,
    value_at,
)
from launchers.templates.globs import any_matches, matches
from programs.args import LauncherTemplate
from programs.bounds import Bound, Use
from stacks.errors import PolicyError, UsageError

NEVER: Final = frozenset(
    {"target", "connection", "owner", "description", "extends", "final", "overrides", "use", "secrets"}
)
"""Fields that say what a template is: no bound opens them."""
ENV: Final = "env"


@dataclass(frozen=True)
class Rules:
    """The rules of one template. `places` says where each of its values stands: "templates/etl.yaml:7".

    `given` are variables that whoever launches for others hands to a worker, so that they are no run's choice;
    `code_location` is where Dagster has the run's code from; `now` are the rules of the same name today, where these
    are of an older version: who may not choose that one may not choose this one either.
    """

    name: str
    template: LauncherTemplate
    places: Mapping[Path, str] = field(default_factory=dict, compare=False)
    origin: str = ""
    given: frozenset[str] = frozenset()
    code_location: str | None = None
    now: Rules | None = None
    stale: str = ""
    """Why the template is not what its file says now."""
    bases: tuple[str, ...] = ()
    """The files of the templates that it extends."""

    @cached_property
    def bounds(self) -> dict[Path, Bound]:
        """The bounds by the field that they are on."""
        return {parse_path(text): bound for text, bound in self.template.overrides.items()}

    @cached_property
    def final(self) -> frozenset[Path]:
        """The fields that nothing may change."""
        return frozenset(map(parse_path, self.template.final))

    # ---- refusing ----

    def refuse(self, path: Path, value: object, shown: str) -> None:
        """Raise PolicyError, which names field, bound, line and owner, for a value that a run may not set.

        Raises UsageError for a field that there is not. `shown` is the value as whoever gave it wrote it.
        """
        kind, around = self.kind_of(path), self.open(path)
        bound = self.bounds[around]
        if around == path or value is None:
            broken = broken_by(bound, value, kind)
            if broken is not None:
                told = f"{path_text(path)} {shown!r}" if shown else path_text(path)
                raise self._refusal(path, f"{told} {broken}", around)

    def refuse_env(self, env: Mapping[str, str]) -> None:
        """Raise PolicyError for variables of a run that the template does not let it set; their values are not told."""
        if ENV in type(self.template).model_fields:
            for name in sorted(set(env) - self.given):
                self.refuse((ENV, name), env[name], shown="")

    def refuse_use(self, tags: Mapping[str, str]) -> None:
        """Raise PolicyError where no rule of `use` lets this user, code location and tags choose the template."""
        uses = self.template.use
        if uses is not None and not any(self._may(each, tags) for each in uses):
            who = " or ".join(_who(each) for each in uses) or "nobody; it is there to be extended"
            here = "" if self.code_location is None else f" for the code location {self.code_location!r}"
            text = f"template {self.name} is not for {account()}{here}: it may be chosen by {who}"
            raise self._refusal(("use",), text, place=self.places.get(("use",), self.origin))
        if self.now is not None:
            self.now.from_location(self.code_location).refuse_use(tags)

    def from_location(self, code_location: str | None, given: frozenset[str] = frozenset()) -> Rules:
        """The rules for the runs of a code location, whose workers get these variables."""
        return replace(self, code_location=code_location, given=given)

    def _may(self, use: Use, tags: Mapping[str, str]) -> bool:
        located = use.code_locations is None or any_matches(use.code_locations, self.code_location or "")
        known = use.users is None or any_matches(use.users, account())
        return located and known and all(matches(glob, tags.get(name, "")) for name, glob in (use.tags or {}).items())

    def kind_of(self, path: Path) -> FieldType:
        """What a field takes; raises UsageError that names the nearest one."""
        try:
            return field_at(type(self.template), path)
        except UnknownFieldError as error:
            message = f"{error} (template {self.name}, {self.origin})"
            raise UsageError(message) from error

    def open(self, path: Path) -> Path:
        """The field whose bound holds for this one: itself, or one around it; raises PolicyError if it is locked."""
        text = path_text(path)
        if path[0] in NEVER:
            raise self._refusal(path, f"{text} is never a run's to change")
        final = meeting(path, self.final)
        if final is not None:
            why = f"{text} is locked: {path_text(final)} is final"
            raise self._refusal(path, why, place=self.places.get(("final",), self.origin))
        if path[0] in self.template.DURABLE:
            raise self._refusal(path, f"{text} is never a run's to change: all runs of the template share it")
        if path[0] == ENV:
            self._refuse_variable(path)
        around = nearest(path, self.bounds)
        if around is None:
            raise self._refusal(path, f"{text} is locked: {self._what_is_open(text)}")
        if around != path and not is_key(self.bounds[around], path[len(around)]):
            bound = self.bounds[around]
            keys = f"may only set {in_words(bound)}" if bound.keys else in_words(bound)
            raise self._refusal(path, f"{text} is locked: of {path_text(around)} a run {keys}", around)
        return around

    def _refuse_variable(self, path: Path) -> None:
        """Variables that no run may set: those that steer loaders, secrets, and those that the template sets."""
        name = path[-1]
        if len(path) != len((ENV, "name")):
            return
        if any_matches(DENIED, name):
            why = f"env.{name} is never a run's to set: it steers a loader, an interpreter or run-launcher"
            raise self._refusal(path, f"{why}; the template's owner may set it there")
        for layer in ("secrets", ENV):
            fixed = name in (getattr(self.template, layer, None) or {})
            if fixed and not (layer == ENV and path in self.bounds):
                place = self.places.get((layer, name), self.origin)
                what = "a secret of the template" if layer == "secrets" else "set by the template"
                raise self._refusal(path, f"env.{name} is locked: it is {what}", place=place)

    def _what_is_open(self, text: str) -> str:
        known = sorted(path_text(path) for path in self.bounds)
        if not known:
            return f"template {self.name} lets a run change nothing; its owner may write `overrides: {{{text}: …}}`"
        near = near_miss(text, known)
        meant = f"; did you mean {near!r}?" if near else ""
        return f"template {self.name} lets a run change {', '.join(known)}{meant}"

    def _refusal(self, path: Path, text: str, bounded: Path | None = None, place: str = "") -> PolicyError:
        where = place or self.origin
        if bounded is not None:
            where = self.places.get(("overrides", path_text(bounded)), self.origin)
        bound = "" if bounded is None else in_words(self.bounds[bounded])
        owner = self.template.owner
        message = f"{text} ({where}, {f'owner {owner}' if owner else 'it names no owner'})"
        return PolicyError(message, field=path_text(path), bound=bound, where=where, owner=owner)


def account() -> str:
    """This user's name as the system has it, whatever the environment says; the number of one who has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _who(use: Use) -> str:
    parts = [f"code locations {', '.join(use.code_locations)}"] if use.code_locations else []
    parts += [f"users {', '.join(use.users)}"] if use.users else []
    tags = ", ".join(f"{name}={glob}" for name, glob in (use.tags or {}).items())
    parts += [f"runs with the tags {tags}"] if tags else []
    return " with ".join(parts)


def changed_paths(model: type[LauncherTemplate], before: object, after: object, around: Path = ()) -> Iterator[Path]:
    """The ways to all values in which two dumps of a model differ."""
    kind = field_at(model, around)
    inner = isinstance(before, Mapping) and isinstance(after, Mapping)
    if inner and (kind.model is not None or kind.value is not None):
        for name in sorted({*before, *after}):  # type: ignore[misc] # inner says that both are mappings
            yield from changed_paths(model, value_at(before, (name,)), value_at(after, (name,)), (*around, name))
    elif before != after:
        yield around
