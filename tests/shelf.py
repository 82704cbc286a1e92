"""The target `shelf`, of a package of somebody else's: a worker is a file in the folder that a connection names.

The folder's file `id` is the place, and its file `asked` tells who was asked for, how often. TARGET is what an entry
point leads to.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Final

from shelf_template import ShelfConnection, ShelfTemplate

from launchers.launcher import RunLauncher
from launchers.registry import Target
from launchers.values import Found
from programs.args import ProgramArgs, export_handle
from stacks.errors import EngineError, Started
from stacks.handle import WorkerHandle, WorkerState, WorkerStatus
from stacks.records import Record

TARGET: Final = Target(
    "shelf:ShelfLauncher", "shelf_template:ShelfTemplate", connection="shelf_template:ShelfConnection"
)


class ShelfLauncher(RunLauncher[ShelfTemplate]):
    """Lays a file on the shelf for each worker; one ends when its file says so."""

    target: ClassVar[str] = "shelf"
    create_takes_over: ClassVar[bool] = True

    @property
    def shelf(self) -> Path:
        """The folder of the connection; without one, a folder of the home."""
        return self.connection.folder if isinstance(self.connection, ShelfConnection) else self.workspace.backend.home

    def program(self, args: ProgramArgs[ShelfTemplate]) -> None:
        """See RunLauncher."""
        import pulumi  # noqa: PLC0415

        name = f"{args.run.id}.{args.run.attempt}.worker"
        if not pulumi.runtime.is_dry_run():
            worker = {"handle": args.handle(file=name).model_dump(mode="json"), "state": "RUNNING"}
            (self.shelf / name).write_text(json.dumps(worker))
        export_handle(args, {"file": name})

    def place(self) -> str:
        """See RunLauncher."""
        try:
            return f"shelf:{(self.shelf / 'id').read_text()}"
        except FileNotFoundError as error:
            message = f"the shelf {self.shelf} does not answer"
            raise EngineError(message, started=Started.UNKNOWN) from error

    def find(self, runs: Collection[Record] | None) -> Iterator[Found]:
        """See RunLauncher."""
        self.place()  # raises where nobody answers
        for name in ["*"] if runs is None else [f"{each.run_id}.{each.attempt}" for each in runs]:
            self._note(f"find {name}")
            for path in sorted(self.shelf.glob(f"{name}.worker")):
                worker = json.loads(path.read_text())
                handle = WorkerHandle.model_validate(worker["handle"])
                yield Found(handle, WorkerStatus(state=WorkerState(worker["state"])), {})

    def remove(self, found: Found, grace: timedelta) -> None:  # noqa: ARG002 - a file goes at once
        """See RunLauncher."""
        self._note(f"remove {found.handle.run_id}")
        (self.shelf / str(found.handle.coordinates["file"])).unlink(missing_ok=True)

    def logs(self, record: Record, *, follow: bool = False) -> Iterator[bytes]:  # noqa: ARG002 - it is all there
        """See HasLogs."""
        self._note(f"logs {record.run_id}")
        yield b"a line\n"

    def facts(self, record: Record) -> Mapping[str, str]:
        """See RunLauncher."""
        self._note(f"facts {record.run_id}")
        return {"shelf": str(self.shelf)}

    def ended_of(self, record: Record) -> WorkerStatus | None:
        """See RunLauncher."""
        self._note(f"ended_of {record.run_id}")
        return None

    def _note(self, what: str) -> None:
        with (self.shelf / "asked").open("a") as file:
            file.write(f"{what}\n")
