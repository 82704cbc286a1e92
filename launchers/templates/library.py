"""The folders of templates: which file a name leads to, what was read of it, and what became of it since.

A file is read again when its size, its time or its inode has changed. So whoever holds a library sees every change; a
file that is broken by then leaves the last good version of its template in use, and says so.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from launchers.near_miss import near_miss, suggestion
from launchers.templates.layers import EXTENDS, Layer
from launchers.templates.resolving import Loaded, resolve
from launchers.yaml_nodes import Problem, SourceError
from launchers.yaml_source import read_bytes, report, shown
from stacks.errors import TemplateError

BUILT_IN: Final = "built in"
_FOLDER: Final = Path(__file__).parent
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_Signature = tuple[int, int, int] | None


class StaleTemplateWarning(UserWarning):
    """A template's file is broken, and its last good version is used."""


@dataclass(frozen=True, order=True)
class Available:
    """A template that a name leads to; it may yet turn out to be wrong when it is read."""

    name: str
    origin: str


@dataclass(frozen=True, eq=False)
class _Known:
    """What was made of some layers."""

    layers: tuple[Layer, ...]
    loaded: Loaded


class _NotFoundError(TemplateError):
    """No folder has a template of that name."""


class Library:
    """The templates of some folders, the first one first, and the built-in ones. Safe from many threads."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._layers: dict[Path, tuple[_Signature, Layer]] = {}
        self._known: dict[str, _Known] = {}
        self._guard = threading.Lock()

    def load(self, name_or_path: str) -> Loaded:
        """The template of that name, or the file at that path, as it is now.

        What holds a "/" or ends in .yaml or .yml is a path, relative to the working folder. The same object comes back
        as long as no file of it has changed. Raises TemplateError, which names file and line of every problem, and
        ConfigurationError where the target is not installed. Where the file was good before, that version comes back,
        with a StaleTemplateWarning; a file that is gone is missed at once.
        """
        with self._guard:
            known = self._known.get(name_or_path)
            try:
                layers = tuple(self._chain(name_or_path))
                if known is not None and known.layers == layers:
                    return known.loaded
                loaded = resolve(list(layers))
            except _NotFoundError:
                self._known.pop(name_or_path, None)
                raise
            except TemplateError as error:
                if known is None:
                    raise
                return self._kept(name_or_path, known, str(error))
            self._known[name_or_path] = _Known(layers, loaded)
            return loaded

    def names(self) -> list[Available]:
        """Every template that a name leads to, sorted by name, each with the origin that `load` would take."""
        found: dict[str, str] = {}
        for folder in self.folders:
            for path in _files(folder):
                found.setdefault(path.stem, shown(path))
        for path in _files(_FOLDER):
            found.setdefault(path.stem, BUILT_IN)
        return sorted(Available(name, origin) for name, origin in found.items())

    def _kept(self, name: str, known: _Known, problem: str) -> Loaded:
        told = f"template {name} is broken, so its last good version is used:\n{problem}"
        if known.loaded.stale != told:
            warnings.warn(told, StaleTemplateWarning, stacklevel=4)
            known = replace(known, loaded=replace(known.loaded, stale=told))
            self._known[name] = known
        return known.loaded

    # ---- which files ----

    def _chain(self, name_or_path: str) -> Iterator[Layer]:
        """The layers of a template, what it extends after it; raises TemplateError for a circle."""
        layer = self._at_path(name_or_path) if _is_path(name_or_path) else self._named(name_or_path, after=None)
        chain = [layer]
        yield layer
        while layer.extends is not None:
            layer = self._base(layer)
            if any(each.path == layer.path and each.origin == layer.origin for each in chain):
                names = " extends ".join(each.name for each in (*chain, layer))
                text = f"extends: {names}: a circle, which has no base"
                raise chain[-1].wrong(Problem(chain[-1].line(EXTENDS), text))
            chain.append(layer)
            yield layer

    def _base(self, layer: Layer) -> Layer:
        """The template that a layer extends: by name, or by a path that is relative to the layer's own file.

        A template that extends its own name extends the one of that name in the folders after its own.
        """
        base = layer.extends or ""
        line = layer.line(EXTENDS)
        try:
            if _is_path(base):
                folder = layer.path.parent if layer.path is not None else Path()
                return self._at_path(str(folder / base))
            return self._named(base, after=layer.path if base == layer.name else None)
        except _NotFoundError as error:
            raise layer.wrong(Problem(line, f"extends: {error}")) from error
        except TemplateError as error:
            message = f"{error}\n{report(layer.origin, [Problem(line, f'it extends {base}, which is wrong')])}"
            raise TemplateError(message) from error

    def _named(self, name: str, after: Path | None) -> Layer:
        found = list(self._candidates(name))
        if after is not None:
            places = [index for index, (path, _) in enumerate(found) if path == after]
            found = found[places[0] + 1 :] if places else found
        for path, origin in found:
            if path.exists() or path.is_symlink():
                return self._layer(path, name, origin)
        raise _NotFoundError(self._not_found(name))

    def _at_path(self, text: str) -> Layer:
        path = Path(text)
        return self._layer(path, path.stem, shown(path))

    def _layer(self, path: Path, name: str, origin: str) -> Layer:
        signature = _signature(path)
        known = self._layers.get(path)
        if known is not None and signature is not None and known[0] == signature and known[1].origin == origin:
            return known[1]
        try:
            content = read_bytes(path)
        except SourceError as error:
            near = "" if path.exists() else _nearest_file(path)
            raise TemplateError(report(origin, [error.problem]) + near) from error
        layer = Layer.of(content, origin, checked_name(name, origin), path)
        self._layers[path] = signature, layer
        return layer

    def _candidates(self, name: str) -> Iterator[tuple[Path, str]]:
        for folder in self.folders:
            path = folder / f"{name}.yaml"
            yield path, shown(path)
        yield _FOLDER / f"{name}.yaml", BUILT_IN

    def _not_found(self, name: str) -> str:
        known = [available.name for available in self.names()]
        text = f"no template {name!r}{suggestion(name, known, 'templates')}"
        for folder in self.folders:
            path = folder / f"{name}.yml"
            if path.exists():
                return f"no template {name!r}: rename {shown(path)} to {name}.yaml"
        looked = [f"{shown(folder)}{'' if folder.is_dir() else ' (no such folder)'}" for folder in self.folders]
        return f"{text} (looked in {', '.join([*looked, 'the built-in templates'])})"


def checked_name(name: str, origin: str) -> str:
    """The name, if a template may have it; raises TemplateError."""
    if not _NAME.fullmatch(name):
        message = f"{origin}: a template cannot be named {name!r}: up to 100 letters, digits, '.', '_' and '-'"
        raise TemplateError(message)
    return name


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def _signature(path: Path) -> _Signature:
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_mtime_ns, told.st_size, told.st_ino


def _files(folder: Path) -> list[Path]:
    """The templates of a folder; a folder that is missing or closed to us has none."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".yaml" and _NAME.fullmatch(path.stem))
    except OSError:
        return []


def _nearest_file(path: Path) -> str:
    near = near_miss(path.name, [other.name for other in _files(path.parent)])
    return f"; did you mean {shown(path.parent / near)}?" if near else ""
