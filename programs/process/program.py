"""Declares the worker of a run as a local process group."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import pulumi

from programs.args import ProgramArgs, export_handle, read_config
from programs.launched import read_launched
from programs.process.environment import build_environment, shared_folders
from programs.process.template import ProcessTemplate
from programs.provider.folder import Handover, RunFolder
from programs.provider.place import Place
from programs.provider.servicer import LAUNCHED, PROCESS
from programs.provider.worker import MARKER


def program(args: ProgramArgs[ProcessTemplate] | None = None) -> None:
    """Hand the run over in its folder, declare its worker, and export the handle.

    Without arguments they are read from the stack's configuration.
    """
    args = args or read_config(ProcessTemplate, str(Place.own()))
    if not pulumi.runtime.is_dry_run():
        hand_over(args, stack=f"{pulumi.get_project()}/{pulumi.get_stack()}")
    _declare(args, resource_inputs(args))


def launched() -> None:
    """Declare the worker of a run that was launched before, and export its handle; nothing is ever started.

    Without the worker in the state, or where it would be replaced, the provider refuses.
    """
    args = read_launched(ProcessTemplate)
    _declare(args, resource_inputs(args) | {LAUNCHED: True})


def _declare(args: ProgramArgs[ProcessTemplate], inputs: dict[str, Any]) -> None:
    worker = pulumi.CustomResource(
        PROCESS,
        "worker",
        inputs | {"pid": None, "startTime": None, "bootId": None, "pidNamespace": None},
        pulumi.ResourceOptions(ignore_changes=["*"]),
    )
    identity = {"folder": args.context.folder, "pid": worker.pid, "start_time": worker.startTime}  # type: ignore[attr-defined]
    export_handle(args, identity)


def resource_inputs(args: ProgramArgs[ProcessTemplate]) -> dict[str, Any]:
    """What the state holds of the worker: names of its environment, never a value."""
    return {
        "runId": args.run.id,
        "folder": args.context.folder,
        "archive": args.context.archive,
        "command": list(args.run.command),
        "cwd": working_folder(args),
        "environmentNames": sorted({*args.template.env, *args.run.env, *args.template.secrets}),
        "graceSeconds": args.template.grace.total_seconds(),
        "labels": args.labels(),
    }


def working_folder(args: ProgramArgs[ProcessTemplate]) -> str:
    """The template's folder, or the caller's."""
    return str(args.template.cwd or args.context.cwd)


def hand_over(args: ProgramArgs[ProcessTemplate], stack: str | None = None) -> None:
    """Lay down in the run's folder what the provider is to start, and the project/stack that alone may take it over."""
    token = secrets.token_hex(16)
    template, limits = args.template, args.template.limits
    folder = RunFolder(Path(args.context.folder))
    folder.make()
    if folder.worker() is not None:
        return  # it was started once; nothing may be handed over to it again
    environment = build_environment(args.template, args.run, os.environ) | shared_folders(args.context)
    folder.hand_over(
        Handover(
            command=args.run.command,
            environment={**environment, "RUN_LAUNCHER_RUN_ID": args.run.id, MARKER: token},
            cwd=working_folder(args),
            grace=template.grace,
            start_timeout=template.start_timeout,
            max_runtime=template.max_runtime,
            memory=limits.memory,
            cpu_time=limits.cpu_time,
            open_files=limits.open_files,
            meta={
                "run_id": args.run.id,
                "token": token,
                "stack": stack,
                "archive": args.context.archive,
                "labels": args.labels(),
                "handle": args.handle().model_dump(mode="json"),
                "command": list(args.run.command),
                "cwd": working_folder(args),
                "limits": limits.model_dump(mode="json", exclude_none=True),
                "max_runtime": None if template.max_runtime is None else template.max_runtime.total_seconds(),
                "start_timeout": template.start_timeout.total_seconds(),
            },
        )
    )
