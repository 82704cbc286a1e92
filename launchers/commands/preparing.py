"""setup and config: what run-launcher needs, and what it is told."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from launchers.commands.output import Shape, pairs, table, write
from launchers.commands.session import say
from launchers.commands.shapes import EngineInfo, SettingInfo
from launchers.eject import path_by_hand
from stacks.engines import bring_warm, choose_engine
from stacks.setup import Cli, ensure_cli, ensure_language_host, has_language_host, tools_folder
from stacks.warm_setup import ensure_warm

if TYPE_CHECKING:
    from launchers.commands.session import Session

WHY = {
    "path": "the first supported one on PATH",
    "configured": "named in the configuration",
    "installed": "Pulumi's release, brought by set-up",
    "built": "built from Go modules by set-up",
}


def setup(session: Session, output: Shape, *, path: bool) -> None:
    """See the command."""
    engine = session.config().engine
    tools = tools_folder()
    cli = ensure_language_host(ensure_cli(tools, say, configured=engine.cli), tools, say)
    warm = ensure_warm(tools, say) if engine.kind == "warm" else bring_warm(tools, say)
    choice = choose_engine(engine.kind, tools, engine.cli)
    folders = path_by_hand(cli)
    info = EngineInfo(
        path=str(cli.path),
        version=cli.version,
        origin=cli.origin,
        tools=str(tools),
        language_host=has_language_host(cli),
        folders=tuple(folders),
        kind=choice.kind,
        why=choice.why,
        warm=str(warm or ""),
    )

    def text() -> list[str]:
        host = "there" if info.language_host else "missing: programs on disk will not run, launches do"
        if path:
            return [os.pathsep.join(folders)]
        return pairs(
            [
                ("engine", f"{choice.kind} ({choice.why})"),
                ("warm engine", info.warm or "missing: launches take the command line"),
                ("command line", cli_words(cli)),
                ("tools", str(tools)),
                ("language host", host),
            ]
        )

    write(output, info, text, [info.path])


def cli_words(cli: Cli) -> str:
    """What people are told of the engine's command line, and why it is this one."""
    return f"Pulumi CLI {cli.version}, {cli.path} ({WHY[cli.origin]})"


def config(session: Session, output: Shape, *, show_origin: bool) -> None:
    """See the command."""
    settings = session.config_with_origins().settings
    rows = [(each.key, _shown(each.value), each.origin) for each in settings]
    names = [each.key for each in settings]
    if show_origin:
        infos = [SettingInfo(key=each.key, value=each.value, origin=each.origin) for each in settings]
        write(output, infos, lambda: table(("SETTING", "VALUE", "ORIGIN"), rows), names)
    else:
        data = {each.key: each.value for each in settings}
        write(output, data, lambda: table(("SETTING", "VALUE"), [row[:2] for row in rows]), names)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
