"""template: which launcher templates there are, what they say, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml

from launchers.commands.output import Shape, cell, table, write
from launchers.commands.shapes import FlawInfo, SettingInfo, SharedInfo, TemplateInfo, TemplateLine
from launchers.factory import load_launcher
from launchers.retiring import durable_of
from launchers.retiring import retire as remove_durable
from launchers.templates import DEFAULT
from launchers.templates.fields import value_at
from launchers.templates.linting import lint as flaws_of
from launchers.validation import places
from launchers.yaml_nodes import dotted
from stacks.errors import ConfigurationError, TemplateError

if TYPE_CHECKING:
    from launchers.commands.session import Session
    from launchers.launcher import RunLauncher
    from launchers.templates import Available, Library

_SHORT = 12  # characters that are shown of a digest
_WRONG = 2


def listed(session: Session, output: Shape) -> None:
    """See the command."""
    library = session.workspace().templates
    lines = [_line(library, each) for each in library.names()]

    def text() -> Iterator[str]:
        rows = [
            (each.name, each.target, each.owner, each.digest[:_SHORT], each.origin, each.problem or each.description)
            for each in lines
        ]
        yield from table(("NAME", "TARGET", "OWNER", "DIGEST", "FILE", "DESCRIPTION"), rows)

    write(output, lines, text, (each.name for each in lines))


def _line(library: Library, available: Available) -> TemplateLine:
    told = {"target": "", "owner": "", "description": "", "digest": "", "problem": ""}
    try:
        template = library.load(available.name).template
    except (TemplateError, ConfigurationError) as error:
        told["problem"] = str(error).splitlines()[0]
    else:
        told |= {name: getattr(template, name) for name in ("target", "owner", "description")}
        told["digest"] = template.digest()
    return TemplateLine(name=available.name, origin=available.origin, **told)


def show(session: Session, name: str, output: Shape, *, resolved: bool, origin: bool) -> None:
    """See the command."""
    workspace = session.workspace()
    launcher = load_launcher(name, config=session.config(), workspace=workspace)
    info = _info(launcher)

    def text() -> Iterator[str]:
        if origin:
            yield from table(
                ("KEY", "VALUE", "ORIGIN"), [(each.key, cell(each.value), each.origin) for each in info.values]
            )
        else:
            yield f"# {launcher.name}@{info.digest[:_SHORT]}: {info.origin}"
            yield from (f"# extends {each}" for each in info.bases)
            yield yaml.safe_dump(_said(launcher, whole=resolved), sort_keys=False, allow_unicode=True).rstrip()

    write(output, info, text, [name])


def _info(launcher: RunLauncher[Any]) -> TemplateInfo:
    rules, template = launcher.rules, launcher.template
    assert rules is not None  # noqa: S101 - for the type checker: a launcher by name has them
    data = template.model_dump(mode="json", exclude=set(template.GOVERNANCE))
    paths = [tuple(map(str, place)) for place in places(type(template), leaves=True)]
    values = [
        SettingInfo(key=dotted(path), value=value_at(data, path), origin=rules.places.get(path, DEFAULT))
        for path in paths
        if path[0] not in template.GOVERNANCE
    ]
    governed = template.model_dump(mode="json", include=set(template.GOVERNANCE), exclude_defaults=True)
    values += [
        SettingInfo(key=f"overrides.{name}", value=bound, origin=rules.places.get(("overrides", name), rules.origin))
        for name, bound in governed.pop("overrides", {}).items()
    ]
    values += [
        SettingInfo(key=name, value=value, origin=rules.places.get((name,), rules.origin))
        for name, value in governed.items()
    ]
    return TemplateInfo(
        name=launcher.name,
        origin=rules.origin,
        bases=rules.bases,
        digest=template.digest(),
        target=template.target,
        owner=template.owner,
        values=tuple(values),
    )


def _said(launcher: RunLauncher[Any], *, whole: bool) -> dict[str, Any]:
    """The template as YAML would have it: with every value, or with those that some file sets."""
    template = launcher.template
    rules: dict[str, Any] = template.model_dump(mode="json", include=set(template.GOVERNANCE), exclude_defaults=True)
    said: dict[str, Any] = {"target": template.target}
    said |= template.model_dump(mode="json", exclude=set(template.GOVERNANCE), exclude_unset=not whole)
    return said | rules


def lint(session: Session, names: list[str], output: Shape) -> int:
    """See the command."""
    config = session.config()
    found = flaws_of(session.workspace(config).templates, names, None if names else config)
    infos = [FlawInfo(origin=each.origin, line=each.line, text=each.text, error=each.is_error) for each in found]
    wrong = sum(each.is_error for each in found)
    write(output, infos, lambda: [*map(str, found), f"{wrong} wrong"] if found else ["nothing is wrong"])
    return _WRONG if wrong else 0


def retire(session: Session, template: str, output: Shape, *, delete: bool) -> None:
    """See the command."""
    workspace = session.workspace()
    found = remove_durable(workspace, template) if delete else durable_of(workspace, template)
    infos = [
        SharedInfo(
            stack=each.stack,
            name=each.name,
            users=tuple(each.users),
            files=None if each.data is None else each.data.files,
            bytes=None if each.data is None else each.data.bytes,
            removed=delete,
        )
        for each in found
    ]

    def text() -> Iterator[str]:
        if not infos:
            yield f"runs of template {template} share nothing for good here"
            return
        rows = [(each.name, _amount(each), ", ".join(each.users) or "-", each.stack) for each in infos]
        yield from table(("SHARED", "HOLDS", "USED BY", "STACK"), rows)
        yield "removed" if delete else f"to remove it: run-launcher template retire {template} --delete-shared"

    write(output, infos, text, (each.stack for each in infos))


def _amount(info: SharedInfo) -> str:
    return "-" if info.files is None else f"{info.files} files, {info.bytes} bytes"
