"""Finds launcher templates and reads them into their typed model, or says what is wrong with every line of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from launchers import registry
from launchers.near_miss import near_miss, suggestion
from launchers.validation import problems
from launchers.yaml_nodes import Problem, SourceError, shortened
from launchers.yaml_source import parse, read_bytes, report, shown
from programs.args import LauncherTemplate
from stacks.errors import ConfigurationError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from launchers.yaml_nodes import Location
    from launchers.yaml_source import Source

BUILT_IN: Final = "built in"
DEFAULT: Final = "default"
_FOLDER: Final = Path(__file__).parent
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _AnyTarget(LauncherTemplate, frozen=True, extra="forbid"):
    """What can be checked of a template whose target is not known."""

    target: str = ""


@dataclass(frozen=True)
class Loaded:
    """A template with its name and where it comes from: "built in", or the path of its file."""

    name: str
    template: LauncherTemplate
    origin: str
    lines: Mapping[Location, int] = field(default_factory=dict, compare=False)

    def origin_of(self, *location: str) -> str:
        """Where the value at a place comes from: file and line, or "default"."""
        line = self.lines.get(location)
        return DEFAULT if line is None else f"{self.origin}:{line}"


@dataclass(frozen=True, order=True)
class Available:
    """A template that a name leads to; it may yet turn out to be wrong when it is read."""

    name: str
    origin: str


def load_template(name_or_path: str, folders: Sequence[Path]) -> Loaded:
    """The template of that name in the first folder that has one, else the built-in one; or the file at that path.

    What holds a "/" or ends in .yaml or .yml is a path, relative to the working folder. Raises TemplateError, which
    names file and line of every problem, and ConfigurationError where the template's target is not installed.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        return _load(path, path.stem, shown(path))
    for path, origin in _candidates(name_or_path, folders):
        if path.exists() or path.is_symlink():
            return _load(path, name_or_path, origin)
    raise TemplateError(_not_found(name_or_path, folders))


def parse_template(text: str | bytes, origin: str, name: str) -> Loaded:
    """Read a template's text; `origin` is what messages call it. Raises what load_template raises."""
    if not _NAME.fullmatch(name):
        message = f"{origin}: a template cannot be named {name!r}: up to 100 letters, digits, '.', '_' and '-'"
        raise TemplateError(message)
    try:
        source = parse(text)
    except SourceError as error:
        raise TemplateError(report(origin, [error.problem])) from error
    if source.empty:
        raise TemplateError(report(origin, [Problem(1, "the template is empty; it needs at least a target")]))
    model, found = _model(source, origin)
    found += problems(source, model or _AnyTarget, unknown_keys=model is not None)
    if found or model is None:
        raise TemplateError(report(origin, found))
    lines = {location: mark.key_line for location, mark in source.marks.items()}
    return Loaded(name, model.model_validate(source.data), origin, lines)


def template_names(folders: Sequence[Path]) -> list[Available]:
    """Every template that a name leads to, sorted by name, each with the origin that load_template would take."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in _files(folder):
            found.setdefault(path.stem, shown(path))
    for path in _files(_FOLDER):
        found.setdefault(path.stem, BUILT_IN)
    return sorted(Available(name, origin) for name, origin in found.items())


def _load(path: Path, name: str, origin: str) -> Loaded:
    try:
        content = read_bytes(path)
    except SourceError as error:
        near = "" if path.exists() else _nearest_file(path)
        raise TemplateError(report(origin, [error.problem]) + near) from error
    return parse_template(content, origin, name)


def _model(source: Source, origin: str) -> tuple[type[LauncherTemplate] | None, list[Problem]]:
    """The model that the key `target` chooses, or what is wrong with that key."""
    target, line = source.data.get("target", ""), source.mark(("target",)).key_line
    if not isinstance(target, str):
        return None, []
    if not target:
        return None, [Problem(line, f"target is missing: the kind of compute, one of {', '.join(_targets())}")]
    if target not in registry.TARGETS and target not in _targets():
        text = f"unknown target {shortened(repr(target))}{suggestion(target, _targets(), 'known targets')}"
        return None, [Problem(line, text)]
    try:
        return registry.template_model(target), []
    except ConfigurationError as error:
        message = f"{origin}:{line}: {error}"
        raise ConfigurationError(message) from error


def _targets() -> list[str]:
    return registry.target_names()


def _candidates(name: str, folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for folder in folders:
        path = folder / f"{name}.yaml"
        yield path, shown(path)
    yield _FOLDER / f"{name}.yaml", BUILT_IN


def _files(folder: Path) -> list[Path]:
    """The templates of a folder; a folder that is missing or closed to us has none."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".yaml" and _NAME.fullmatch(path.stem))
    except OSError:
        return []


def _not_found(name: str, folders: Sequence[Path]) -> str:
    known = [available.name for available in template_names(folders)]
    text = f"no template {name!r}{suggestion(name, known, 'templates')}"
    for folder in folders:
        path = folder / f"{name}.yml"
        if path.exists():
            return f"no template {name!r}: rename {shown(path)} to {name}.yaml"
    looked = [f"{shown(folder)}{'' if folder.is_dir() else ' (no such folder)'}" for folder in folders]
    return f"{text} (looked in {', '.join([*looked, 'the built-in templates'])})"


def _nearest_file(path: Path) -> str:
    near = near_miss(path.name, [other.name for other in _files(path.parent)])
    return f"; did you mean {shown(path.parent / near)}?" if near else ""
