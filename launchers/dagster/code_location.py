"""What a run's code location asks of its worker, where that is no process of this host: an image, and variables.

They are a run's wishes like any other, within what the template allows. What else the container context says for the
launcher that was there before is a template's to say, and the run's events tell where.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dagster import DagsterRun

from launchers.dagster.docker_fields import in_template
from launchers.launcher import RunLauncher
from stacks.errors import PolicyError, UsageError

SECTIONS: Final[Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Iterator[tuple[str, str]]]]]] = {
    "docker": ("docker", in_template),
}
"""Of each target: the key of the container context that its built-in launcher reads, and what its settings are in a
template."""
IMAGE: Final = "image"
ENV: Final = "env_vars"


@dataclass(frozen=True)
class Wishes:
    """Image and variables, and settings that are not used: what each is in a template, by its name."""

    image: str | None = None
    env: dict[str, str] = field(default_factory=dict, repr=False)
    unused: Mapping[str, str] = field(default_factory=dict)


def wishes_of(run: DagsterRun, launcher: RunLauncher[Any]) -> Wishes:
    """What the run's code location asks of a worker of this launcher; raises UsageError for what cannot be read."""
    if launcher.runs_here or run.job_code_origin is None:
        return Wishes()
    origin = run.job_code_origin.repository_origin
    context: Mapping[str, Any] = origin.container_context or {}
    variables, unused = _variables(context.get(ENV), ENV), {}
    if launcher.target in SECTIONS:
        key, told = SECTIONS[launcher.target]
        section = context.get(key) or {}
        if not isinstance(section, Mapping):
            message = f"the code location's container context: {key} must be a mapping"
            raise UsageError(message)
        variables |= _variables(section.get(ENV), f"{key}.{ENV}")
        unused = {f"{key}.{name}": field for name, field in told(section) if name != ENV}
    return Wishes(origin.container_image or None, variables, unused)


def with_image(launcher: RunLauncher[Any], image: str | None) -> tuple[RunLauncher[Any], bool]:
    """The launcher with the code location's image, and True; or as it is, where its template keeps an image of its own.

    Raises PolicyError for an image that is not one of those that the template lets a run choose.
    """
    own = getattr(launcher.template, IMAGE, None)
    if image is None or own is None or image == own:
        return launcher, True
    try:
        if launcher.rules is not None:
            launcher.rules.open((IMAGE,))
    except PolicyError:
        return launcher, False
    return launcher.overridden({IMAGE: image}), True


def not_used(launcher: RunLauncher[Any], wishes: Wishes, *, image_is_used: bool) -> str | None:
    """What a run's events tell of wishes that nothing came of; None where there are none."""
    lines = [f"{name}: {instead}" for name, instead in wishes.unused.items()]
    if not image_is_used:
        own = getattr(launcher.template, IMAGE)
        lines.insert(0, f"image {wishes.image}: the template keeps {own}; overrides: {{image: …}} would open it")
    if not lines:
        return None
    title = f"Not used of what the code location asks for; it belongs into the launcher template {launcher.name}:"
    return "\n".join([title, *(f"- {line}" for line in lines)])


def _variables(words: object, name: str) -> dict[str, str]:
    """Variables as Dagster writes them: KEY=VALUE, or KEY alone for the value that this process has."""
    if words is None:
        return {}
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        message = f"the code location's container context: {name} must be a list of KEY=VALUE or KEY"
        raise UsageError(message)
    found = {}
    for word in words:
        key, is_given, value = word.partition("=")
        if not is_given and key not in os.environ:
            message = (
                f"the code location's container context: {name} asks for the value of {key}, which the environment of "
                "this launcher does not have: set it where daemon and webserver run, or write KEY=VALUE"
            )
            raise UsageError(message)
        found[key] = value if is_given else os.environ[key]
    return found
