"""doctor: what run-launcher works with on this machine, and what is broken."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import launchers
from launchers.commands.output import Shape, one_line, write
from launchers.commands.preparing import cli_words
from launchers.commands.shapes import Examination, FindingInfo
from launchers.factory import launchers_of, load_launcher, make_workspace
from launchers.findings import Finding, Level, asked
from launchers.templates import Library
from launchers.templates.linting import lint
from stacks.engines import choose_engine
from stacks.errors import ConfigurationError
from stacks.probe import SUPPORTED, ask
from stacks.setup import Cli, find_cli, has_language_host, tools_folder

if TYPE_CHECKING:
    from launchers.commands.session import Session
    from launchers.connections import NamedConnection
    from launchers.launcher import RunLauncher
    from launchers.settings import Config
    from stacks.backend import Backend

_PACKAGES: Final = ("launchers", "programs", "stacks")
_LOW_DISK: Final = 100 * 2**20  # bytes below which the next launches may fail


def doctor(session: Session, output: Shape) -> int:
    """See the command."""
    return tell(list(_findings(session)), output)


def tell(findings: list[Finding], output: Shape) -> int:
    """Write a report; returns the exit code, 1 if something is broken."""
    broken = [finding for finding in findings if finding.level is Level.BROKEN]
    infos = tuple(FindingInfo(name=each.name, value=each.value, level=each.level.value) for each in findings)

    def text() -> Iterator[str]:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = "" if finding.level is Level.OK else f"{finding.level}: ".upper()
            first, *more = finding.value.splitlines() or [""]
            yield f"{finding.name.ljust(width)}   {mark}{one_line(first)}"
            yield from (f"{' ' * width}   {one_line(line)}" for line in more)
        yield ""
        yield f"{len(broken)} broken" if broken else "nothing is broken"

    write(output, Examination(ok=not broken, findings=infos), text, (finding.name for finding in findings))
    return 1 if broken else 0


def _findings(session: Session) -> Iterator[Finding]:
    yield Finding(
        "run-launcher", f"{version('run-launcher')}, Python {platform.python_version()}, {platform.platform()}"
    )
    loaded: list[Config] = []

    def configuration() -> str:
        told = session.config_with_origins()
        loaded.append(told.config)
        origins = sorted({each.origin for each in told.settings if each.origin != "default"})
        return ", ".join(origins) or "defaults"

    yield asked("configuration", configuration)
    for config in loaded:
        yield from _engine(config)
        yield from keeping(config)
        yield asked("template", partial(_template, config))
        yield from _templates(config)
        yield asked("place", partial(_place, config))
        yield from connections(config)
    yield from _surroundings()


def _engine(config: Config) -> Iterator[Finding]:
    tools = tools_folder()
    found: list[Cli] = []

    def engine() -> str:
        cli = find_cli(tools, configured=config.engine.cli)
        found.extend([cli] if cli else [])
        return cli_words(cli) if cli else ""

    yield asked("engine", lambda: _chosen(config, tools))
    finding = asked("command line", engine)
    missing = "not there yet: what needs it brings it, or `run-launcher setup`"
    yield finding if finding.value else Finding("command line", missing, Level.NOTE)
    yield Finding("supported command lines", f"Pulumi CLI from {SUPPORTED[0]} on, below {SUPPORTED[1]}")
    on_path = shutil.which("pulumi")
    if on_path and not any(cli.path == Path(on_path).absolute() for cli in found):
        problem = ask(Path(on_path).absolute(), tools).problem or "was not asked for: another one comes first"
        yield Finding("not used", f"{on_path}: it {problem}", Level.NOTE)
    yield Finding("tools", str(tools))
    for cli in found:
        there = has_language_host(cli)
        missing = "missing: programs on disk will not run, launches do (`run-launcher setup` builds it)"
        yield Finding("language host", "there", Level.OK) if there else Finding("language host", missing, Level.NOTE)


def _chosen(config: Config, tools: Path) -> str:
    choice = choose_engine(config.engine.kind, tools, config.engine.cli)
    where = "not there yet: the first launch brings it" if choice.program is None else str(choice.program)
    return f"{choice.kind}, {where} ({choice.why})"


def keeping(config: Config) -> Iterator[Finding]:
    """What is found of home, backend, key and disk."""
    yield asked("home", lambda: _home(config.home))
    backends: list[Backend] = []

    def backend() -> str:
        backends.append(make_workspace(config).backend)
        identity = backends[0].identity()
        return (
            f"{config.backend_shown} (id {identity})" if identity else f"{config.backend_shown} (nothing launched yet)"
        )

    yield asked("backend", backend)
    for each in backends:
        if each.identity() is not None:
            yield asked("key", partial(_key, each))
    yield _disk(config.home)


def _home(home: Path) -> str:
    there = next(path for path in (home, *home.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        message = f"{home}: {there} cannot be written to; name another folder in RUN_LAUNCHER_HOME"
        raise OSError(message)
    return str(home)


def _key(backend: Backend) -> str:
    backend.open()  # proves the key; the backend is there, so nothing is made
    return f"{backend.key_file()} (it fits)"


def _disk(home: Path) -> Finding:
    there = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(there).free
    return Finding("free disk", f"{free / 2**30:.1f} GiB", Level.OK if free >= _LOW_DISK else Level.BROKEN)


def _template(config: Config) -> str:
    launcher = load_launcher(config=config, workspace=make_workspace(config))
    return f"{launcher.name} (target {launcher.target})"


def _templates(config: Config) -> Iterator[Finding]:
    """Templates and routes that are wrong: a running launcher goes on with their last good versions."""
    found = lint(Library(config.templates.folders), config=config)
    wrong = [str(each) for each in found if each.is_error]
    if wrong:
        yield Finding("templates", "\n".join(wrong), Level.BROKEN)


def _place(config: Config) -> str:
    return load_launcher(config=config, workspace=make_workspace(config)).place()


def connections(config: Config) -> Iterator[Finding]:
    """Each connection, with where it leads; one of a target that is not installed is in nobody's way."""
    workspace = make_workspace(config)
    for each in workspace.connections.each:
        name = f"connection {each.name}"
        try:
            each.read()
            there = [one for one in launchers_of(each.target, workspace) if one.template.connection == each.name]
        except ConfigurationError as error:
            yield Finding(name, str(error), Level.NOTE)
        else:
            yield asked(name, partial(_led, each, there))


def _led(named: NamedConnection, there: list[RunLauncher[Any]]) -> str:
    """Where a connection leads; a target whose templates need more than its name is not asked."""
    leads = f", leads to {there[0].place()}" if there else ""
    return f"target {named.target}, {named.origin}{leads}"


def _surroundings() -> Iterator[Finding]:
    ignored = sorted(name for name in os.environ if name.startswith("PULUMI_"))
    if ignored:
        yield Finding("ignored variables", ", ".join(ignored), Level.NOTE)
    yield from hidden_packages(Path.cwd())


def hidden_packages(folder: Path) -> Iterator[Finding]:
    """What hides a package of ours from a Python that is started in a folder."""
    for name in _PACKAGES:
        for path in (folder / name / "__init__.py", folder / f"{name}.py"):
            if path.exists() and not path.parent.samefile(_own(name)):
                hiding = path.parent if path.name == "__init__.py" else path
                text = f"{hiding} hides run-launcher's package {name!r} from Python started here: rename it"
                yield Finding("hidden package", text, Level.BROKEN)


def _own(name: str) -> Path:
    return Path(launchers.__file__).parents[1] / name
