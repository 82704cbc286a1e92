"""Finds the Pulumi CLI, or brings it: the official download, else a build from pinned Go modules.

tools/cli.json                versions that were asked for
tools/lock                    held by whoever brings something
tools/installed-<version>/    the official release
tools/built-<version>/        built from Go modules
tools/language-<version>/     Python language host for a CLI that came without one
tools/part-*/                 being made; removed by the next holder of the lock
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from stacks.bring import LANGUAGE_FILES, VERSION, build_cli, build_language_host, download_cli
from stacks.commands import Elapsed, ToolError, silent
from stacks.errors import SetupError
from stacks.probe import SUPPORTED, Answer, ask
from stacks.tools import TOOLS_VARIABLE, changing, staged
from stacks.user_folders import user_folder

Origin = Literal["path", "installed", "built", "configured"]
Progress = Callable[[str], None]

_SOURCES: Final[tuple[tuple[Origin, Callable[[Path, Progress], None]], ...]] = (
    ("installed", download_cli),
    ("built", build_cli),
)
_WORDS: Final[dict[Origin, str]] = {"installed": "The official download", "built": "A build from Go modules"}


@dataclass(frozen=True)
class Cli:
    """A Pulumi CLI at a supported version.

    `extra_path` are the folders to put first on PATH when running it, for the Python language host and its scripts.
    """

    path: Path
    version: str
    origin: Origin
    extra_path: tuple[Path, ...] = ()


def tools_folder() -> Path:
    """Tell where tools are kept: $RUN_LAUNCHER_TOOLS, else a folder in the user's cache. Touches nothing.

    Raises SetupError for a user without a home folder who names none.
    """
    if named := os.environ.get(TOOLS_VARIABLE):
        return Path(named).expanduser().absolute()
    cache = user_folder("cache")
    if cache is None:
        message = f"this user has no home folder to keep the engine in: set HOME, or name a folder in {TOOLS_VARIABLE}"
        raise SetupError(message)
    return cache / "tools"


def find_cli(tools: Path, *, configured: Path | None = None) -> Cli | None:
    """Find a usable CLI: the configured one, else the first supported `pulumi` on PATH, else one in the tools folder.

    None where there is none; nothing is downloaded or built. Starts a process only for an executable that was never
    asked for its version. Raises SetupError when the configured one cannot be used: no other is taken in its stead.
    """
    return _look(tools.absolute(), configured, silent).cli


def ensure_cli(tools: Path, progress: Progress, *, configured: Path | None = None) -> Cli:
    """Find a usable CLI, or bring one into the tools folder.

    May be called by many processes at once: one brings it, the others wait. An interrupted call leaves nothing that a
    later one takes for good. Raises SetupError with the ways out where nothing works.
    """
    tools = tools.absolute()
    look = _look(tools, configured, progress)
    for skipped in look.skipped:
        if skipped.fresh or look.cli is None:
            progress(f"Not using {skipped.path}: it {skipped.problem}")
    if look.cli:
        return look.cli
    with changing(tools, progress):
        # Whoever held the lock before may have brought it.
        return _look(tools, configured, progress).cli or _bring(tools, look.skipped, progress)


def ensure_language_host(cli: Cli, tools: Path, progress: Progress) -> Cli:
    """Return the CLI with a Python language host, built into the tools folder where it came without one.

    Only programs on disk need it, so where it cannot be had, `progress` is told and the CLI comes back as it was.
    """
    tools = tools.absolute()
    if has_language_host(cli):
        return cli
    try:
        with changing(tools, progress):
            folder = _language_folder(tools)
            if not _complete(folder):
                with staged(folder.parent) as part:
                    build_language_host(part, progress)
    except (SetupError, ToolError) as error:
        progress(f"Programs on disk will not run, launches will: no Python language host could be built: {error}")
        return cli
    return _with_language_host(cli, tools)


@dataclass(frozen=True)
class _Look:
    cli: Cli | None
    skipped: tuple[Answer, ...] = ()


def _look(tools: Path, configured: Path | None, progress: Progress) -> _Look:
    if configured is not None:
        return _Look(_configured(tools, configured.expanduser().absolute(), progress))
    skipped: list[Answer] = []
    for path, origin in _candidates(tools).items():
        answer = ask(path, tools, progress)
        if not answer.problem:
            return _Look(_cli(answer, origin, tools), tuple(skipped))
        skipped.append(answer)
    return _Look(None, tuple(skipped))


def _configured(tools: Path, path: Path, progress: Progress) -> Cli:
    answer = ask(path, tools, progress)
    if answer.problem:
        message = (
            f"The Pulumi CLI named in the configuration, {path}, cannot be used: it {answer.problem}. "
            f"Name one from {SUPPORTED[0]} on, below {SUPPORTED[1]}, or none: then one is found or brought."
        )
        raise SetupError(message)
    return _cli(answer, "configured", tools)


def _candidates(tools: Path) -> dict[Path, Origin]:
    """Executables in the order in which they are tried."""
    found: dict[Path, Origin] = {}
    for folder in filter(None, os.get_exec_path()):
        if executable := shutil.which("pulumi", path=folder):
            found.setdefault(Path(executable).absolute(), "path")
    # An earlier version of ours may have brought another one, which is better than none.
    for version in (VERSION, "*"):
        for origin, _ in _SOURCES:
            for path in sorted(tools.glob(f"{origin}-{version}/bin/pulumi")):
                found.setdefault(path, origin)
    return found


def _cli(answer: Answer, origin: Origin, tools: Path) -> Cli:
    own = (answer.path.parent,) if origin in {"installed", "built"} else ()
    return _with_language_host(Cli(answer.path, answer.version, origin, own), tools)


def _language_folder(tools: Path) -> Path:
    return tools / f"language-{VERSION}" / "bin"


def _complete(folder: Path) -> bool:
    return all((folder / name).exists() for name in LANGUAGE_FILES)


def has_language_host(cli: Cli) -> bool:
    """Tell whether the CLI will find its Python host: beside itself (links followed, as it does) or on PATH."""
    folders = os.pathsep.join([str(cli.path.resolve().parent), *map(str, cli.extra_path), *os.get_exec_path()])
    return all(shutil.which(name, path=folders) for name in LANGUAGE_FILES)


def _with_language_host(cli: Cli, tools: Path) -> Cli:
    folder = _language_folder(tools)
    if _complete(folder) and not has_language_host(cli):
        return replace(cli, extra_path=(*cli.extra_path, folder))
    return cli


def _bring(tools: Path, skipped: tuple[Answer, ...], progress: Progress) -> Cli:
    reasons = [f"{answer.path} {answer.problem}" for answer in skipped]
    for origin, bring in _SOURCES:
        elapsed = Elapsed("", progress)
        folder = tools / f"{origin}-{VERSION}"
        try:
            with staged(folder) as part:
                bring(part, progress)
                _refuse_unusable(part, tools, progress)
        except ToolError as error:
            reasons.append(f"{_WORDS[origin]}: {error}")
            progress(f"{_WORDS[origin]} failed: {error}")
        else:
            progress(f"Pulumi CLI {VERSION} {origin} in {folder} after {elapsed.seconds:.0f} s")
            return _cli(ask(folder / "bin" / "pulumi", tools, progress), origin, tools)
    raise SetupError(_ways_out(reasons), details="\n".join(reasons))


def _refuse_unusable(part: Path, tools: Path, progress: Progress) -> None:
    answer = ask(part / "root" / "bin" / "pulumi", tools, progress)
    if answer.problem:
        message = f"what came of it {answer.problem}"
        raise ToolError(message)


def _ways_out(reasons: list[str]) -> str:
    lowest, below = SUPPORTED
    return "\n".join(
        [
            f"No usable Pulumi CLI (from {lowest} on, below {below}) was found, and none could be brought.",
            *(f"  {reason}" for reason in reasons),
            "Any one of these helps:",
            "  - install Pulumi, so that `pulumi` is on PATH (https://www.pulumi.com/docs/install)",
            "  - let this machine reach Pulumi's download, then run `run-launcher setup`",
            "  - install Go 1.25.11 or newer with access to a Go module proxy, then run `run-launcher setup`",
            "  - name the path of a `pulumi` in the configuration (`run-launcher config` shows where)",
        ]
    )
