"""What a template lets a run change, and who may choose it: the words of `overrides:` and `use:`, checked elsewhere."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

Scalar = bool | int | float | str


def _listed(value: object) -> object:
    """One text may stand for a list of one."""
    return [value] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
"""Some texts; one alone needs no list."""


class Bound(BaseModel, frozen=True, extra="forbid"):
    """What a value may be. All that is said holds at once; what says nothing is refused.

    any: every value. min, max: compared as the field's own kind (an amount of memory as bytes, a duration as time).
    enum: one of these. glob: one of these, as a whole (`*` stands for anything but "/", `**` for anything). pattern: a
    regular expression that the whole text matches (https://docs.rs/regex, linear in time). keys: which names of a
    mapping. items, max_items: each item of a list, and how many. registries, require_digest, deny_tags: the name of an
    image. also: the bounds of the templates that this one extends.
    """

    any: Literal[True] | None = None
    min: Scalar | None = None
    max: Scalar | None = None
    enum: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = None
    glob: Words | None = None
    pattern: str | None = None
    keys: Words | None = None
    items: Bound | None = None
    max_items: Annotated[int, Field(ge=0)] | None = None
    registries: Words | None = None
    require_digest: Literal[True] | None = None
    deny_tags: Words | None = None
    also: tuple[Bound, ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> Bound:
        said = self.said
        if not said:
            message = "says nothing: write what a run may choose, like {max: 4Gi}, or {any: true} to leave it open"
            raise ValueError(message)
        if self.any and said != {"any"}:
            message = f"any: true leaves the field open, so it cannot stand beside {', '.join(sorted(said - {'any'}))}"
            raise ValueError(message)
        return self

    @property
    def said(self) -> set[str]:
        """The names of what this bound itself says."""
        return {name for name in type(self).model_fields if name != "also" and getattr(self, name) is not None}


class Use(BaseModel, frozen=True, extra="forbid"):
    """Who may choose a template; all that is said holds at once, each of a list of globs suffices.

    code_locations: of Dagster, by name. users: of the operating system. tags: of the run, by glob of their values; they
    are free text, so they keep order rather than intruders out.
    """

    code_locations: Words | None = None
    users: Words | None = None
    tags: Annotated[dict[str, str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Use:
        if self.code_locations is None and self.users is None and self.tags is None:
            message = "says nothing: name code_locations, users or tags; an empty list lets nobody choose the template"
            raise ValueError(message)
        return self


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, dict | Use) else value


Uses = Annotated[tuple[Use, ...], BeforeValidator(_one_or_more)]
"""Rules of which one suffices; of none, nobody may."""
