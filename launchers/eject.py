"""Writes the folder in which a plain `pulumi` operates the very stack of a run.

Pulumi.yaml           the project of the stack, and its backend unless the URL holds a password
Pulumi.<stack>.yaml   what the run was launched with, and the salt of its secrets (0600)
__main__.py           calls the target's program on disk, which never starts anything again
env                   for a shell: PATH, where the target and the key are, and the stack that is meant
README.md             what may be done here
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from launchers.launcher import Ejects
from launchers.values import Ejected
from programs.args import HANDLE_OUTPUT
from programs.launched import launched_config
from stacks.errors import LaunchConflictError, RunNotFoundError, Started, UsageError
from stacks.plugins import executables, variables
from stacks.records import Phase, Record
from stacks.setup import Cli, ensure_cli, ensure_language_host, tools_folder

if TYPE_CHECKING:
    from launchers.launcher import RunLauncher

PROVIDER: Final = "pulumi-resource-runworker"
_UNSET: Final = (
    "PULUMI_BACKEND_URL",
    "PULUMI_CONFIG_PASSPHRASE",
    "PULUMI_DEBUG_PROVIDERS",
    "PULUMI_IGNORE_AMBIENT_PLUGINS",
)
"""Variables that would lead a `pulumi` to another backend, key or provider than those of the folder."""
_PROGRAM: Final = """\
from {module} import launched

launched()
"""
_ENV: Final = """\
# For a POSIX shell, in this folder:  . ./env
export PATH={path}:"$PATH"
unset {unset}
{target}{backend}export PULUMI_CONFIG_PASSPHRASE_FILE={key}
export PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION=true
export PULUMI_SKIP_UPDATE_CHECK=1
pulumi stack select {stack}
"""
_NEEDS_URL: Final = """\
: "${PULUMI_BACKEND_URL:?set it first: the URL of the backend, which holds a password and is written nowhere here}"
"""
_README: Final = """\
# Run {run_id}, attempt {attempt}

The stack `{stack}` is this run. In this folder:

    . ./env
    pulumi preview        # unchanged
    pulumi up             # changes nothing; starts nothing, even where the worker has ended or is gone
    pulumi stack output handle
    pulumi destroy        # ends the worker, with all that it started
    run-launcher terminate {run_id}    # removes what is left, and writes down how the run ended

- A run is executed once. A changed `run-launcher:args` is refused, and so is whatever would create the worker again or
  in another one's place (`--replace`, `pulumi state delete`, `up` after `destroy`). For something else launch another
  run; to execute the same again, launch the next attempt.
- `env` names the file of the key of this backend's secrets. The key is in none of these files, nor is any value of the
  run's environment. Whoever can read that file and the backend can operate every run there.
- One works at a time: run-launcher's commands on this run wait for a `pulumi` at work, and a `pulumi` says that the
  stack is locked while one of them is: repeat it.
- This folder may be removed at any time; `run-launcher eject {run_id} DIR` writes it again while the run is there.
"""


def eject(launcher: RunLauncher[Any], record: Record, folder: Path) -> Ejected:
    """See RunLauncher.eject."""
    if not isinstance(launcher, Ejects):
        message = f"runs of the target {launcher.target} cannot be ejected: its program does not run from disk"
        raise UsageError(message)
    _refuse_absent(launcher, record)
    folder = folder.expanduser().absolute()
    _refuse_used(folder)
    hidden = launcher.workspace.backend.location.has_secret
    files = {
        **_project(launcher, record, launcher.program_on_disk, hidden=hidden),
        **_for_people(launcher, record, hidden=hidden),
    }
    _write(folder, files)
    return Ejected(record.run_id, record.attempt, folder, record.stack.full, tuple(files), backend_named=not hidden)


def _project(launcher: RunLauncher[Any], record: Record, module: str, *, hidden: bool) -> dict[str, str]:
    """What `pulumi` reads."""
    stack, backend = record.stack, launcher.workspace.backend
    args = launcher.args_again(record, backend.open())
    settings = {"config": launched_config(stack.project, stack.stack, args), "encryptionsalt": backend.salt()}
    project = {"name": stack.project, "description": f"Run {record.run_id}", "runtime": "python"}
    kept = {} if hidden else {"backend": {"url": backend.url}}
    return {
        "Pulumi.yaml": yaml.safe_dump({**project, **kept}, sort_keys=False),
        f"Pulumi.{stack.stack}.yaml": yaml.safe_dump(settings, width=math.inf),
        "__main__.py": _PROGRAM.format(module=module),
    }


def _for_people(launcher: RunLauncher[Any], record: Record, *, hidden: bool) -> dict[str, str]:
    """What a shell and a person read."""
    return {
        "env": _env(launcher, record.stack.full, hidden=hidden),
        "README.md": _README.format(run_id=record.run_id, attempt=record.attempt, stack=record.stack.full),
    }


def path_by_hand(cli: Cli) -> list[str]:
    """The folders that come first on PATH for a `pulumi` run by hand: our provider's, the language host's, its own."""
    provider = shutil.which(PROVIDER, path=os.pathsep.join([sysconfig.get_path("scripts"), *os.get_exec_path()]))
    folders = [*([Path(provider).parent] if provider else []), *cli.extra_path, cli.path.parent]
    return list(dict.fromkeys(map(str, folders)))


def _env(launcher: RunLauncher[Any], stack: str, *, hidden: bool) -> str:
    workspace, tools = launcher.workspace, tools_folder()
    cli = ensure_cli(tools, workspace.progress, configured=workspace.cli)
    folders = path_by_hand(ensure_language_host(cli, tools, workspace.progress))
    plugins, leading = executables(launcher.providers()), variables(launcher.providers())
    folders = list(dict.fromkeys([*(str(each.parent) for each in plugins.values()), *folders]))
    return _ENV.format(
        path=shlex.quote(os.pathsep.join(folders)),
        target="".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(leading.items())),
        unset=" ".join(name for name in _UNSET if not (hidden and name == "PULUMI_BACKEND_URL")),
        backend=_NEEDS_URL if hidden else "",
        key=shlex.quote(str(workspace.backend.key_file())),
        stack=shlex.quote(stack),
    )


def _refuse_absent(launcher: RunLauncher[Any], record: Record) -> None:
    """Raise unless the run was launched, and its stack holds what a launch makes."""
    run_id = record.run_id
    if record.removed is not None:
        message = f"run {run_id} was removed at {record.removed.at:%Y-%m-%d %H:%M:%S}: nothing of it is there to eject"
        raise RunNotFoundError(message)
    if record.phase is Phase.FAILED:
        message = f"run {run_id} could not be launched: nothing of it is there to eject"
        raise RunNotFoundError(message)
    if record.phase is Phase.WANTED or record.handle is None:
        message = (
            f"run {run_id} is not launched: its launch is at work, or was interrupted. Wait for it, launch the run "
            "again, or terminate it"
        )
        raise LaunchConflictError(message, started=Started.UNKNOWN)
    if HANDLE_OUTPUT not in (launcher.workspace.engine.outputs(record.stack) or {}):
        message = (
            f"run {run_id} was destroyed without run-launcher: nothing of it is there to eject "
            f"(`run-launcher terminate {run_id}` removes the rest)"
        )
        raise RunNotFoundError(message)


def _refuse_used(folder: Path) -> None:
    try:
        used = any(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        message = f"cannot write a folder at {folder}: {error.strerror}"
        raise UsageError(message) from error
    if used:
        message = f"the folder {folder} is not empty: name one that is, or one that is not there"
        raise UsageError(message)


def _write(folder: Path, files: dict[str, str]) -> None:
    """Write all files or none, readable by this user alone."""
    made = not folder.exists()
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        for name, text in files.items():
            path = folder / name
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink()
        if made and folder.exists():
            folder.rmdir()
        message = f"cannot write the folder {folder}: {error.strerror}"
        raise UsageError(message) from error
