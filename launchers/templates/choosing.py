"""Which template a run gets: its own choice, else the first route that fits, else the default; and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launchers.settings import Config


@dataclass(frozen=True)
class Chosen:
    """A template's name, path, or name@digest, and what chose it: a flag, a tag, a line of run-launcher.yaml."""

    template: str
    why: str


def choose(
    config: Config,
    tags: Mapping[str, str],
    own: Chosen | None = None,
    code_location: str | None = None,
    default: Chosen | None = None,
) -> Chosen:
    """The template of a run with these tags; whether it may have it, its `use` says when it is launched.

    `default` comes before the configuration's.
    """
    if own is not None:
        return own
    for index, route in enumerate(config.routes):
        if route.fits(tags, code_location):
            return Chosen(route.template, f"route {config.origin_of('routes', index)}")
    return default or Chosen(config.templates.default, "templates.default")
