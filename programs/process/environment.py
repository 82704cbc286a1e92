"""Builds the environment of a process worker; its values pass through no state, log or argument list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from programs.args import Context, Run
from programs.process.template import ProcessTemplate
from programs.references import resolve

SCRUBBED: Final = "PULUMI_"
"""The prefix of variables that a worker never inherits: they steer an engine, and may hold its key."""
SHARED: Final = {"files": "RUN_LAUNCHER_FILES", "folder": "RUN_LAUNCHER_SHARED_FOLDER"}
"""Where a worker finds the folders that it shares with others; those of a launcher that is itself a worker are not."""


def shared_folders(context: Context) -> dict[str, str]:
    """The variables that lead to what the run shares."""
    outputs = {name: context.shared.get(name) for name in SHARED}
    return {SHARED[name]: str(each["path"]) for name, each in outputs.items() if isinstance(each, dict)}


def is_inherited(name: str) -> bool:
    """True of a variable of the caller that a worker may get."""
    return not name.startswith(SCRUBBED) and name not in SHARED.values()


def build_environment(template: ProcessTemplate, run: Run, inherited: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment where the template says so, then the template's, the run's, and the secrets.

    Raises UsageError for a secret that is not there.
    """
    base = {name: value for name, value in inherited.items() if is_inherited(name)}
    return {
        **(base if template.inherit_env else {}),
        **template.env,
        **run.env,
        **{name: resolve(name, source, inherited) for name, source in template.secrets.items()},
    }
