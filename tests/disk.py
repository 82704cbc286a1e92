"""A run on disk, and the shell of a user who operates it there with a plain `pulumi`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from targets import DockerRow, ProcessRow

from launchers import Run, WorkerHandle
from launchers.launcher import RunLauncher
from stacks.engine import stack_name
from stacks.setup import tools_folder

TOOLS: Final = tools_folder()  # asked before a test has a home of its own, so that no test brings an engine again
SCRIPT: Final = Path(sys.executable).parent / "run-launcher"
_WORKERS: Final = {"process": "runworker:index:Process", "docker": "docker:index/container:Container"}
_ONCE: Final = 'echo once >>"$1"; '


class Disk:
    """A row's home, the user's shell in an ejected folder, and the marks that each execution leaves."""

    def __init__(self, root: Path, row: ProcessRow | DockerRow, launcher: RunLauncher[Any]) -> None:
        self.row = row
        self.launcher = launcher
        self.marks = row.shared / "marks"
        self.folder = root / "ejected"
        self.environment = {
            **os.environ,
            "RUN_LAUNCHER_TOOLS": str(TOOLS),
            "RUN_LAUNCHER_HOME": str(row.home),
            "PULUMI_HOME": str(root / "pulumi"),
            "PULUMI_CONFIG_PASSPHRASE": "of another job",
            "PULUMI_BACKEND_URL": f"file://{root}/elsewhere",
        }

    def launch(self, script: str = "sleep 600", run_id: str | None = None, **fields: Any) -> WorkerHandle:  # noqa: ANN401 - Run's own
        return self.launcher.launch(self.run(script, run_id, **fields)).handle

    def run(self, script: str, run_id: str | None = None, **fields: Any) -> Run:  # noqa: ANN401 - Run's own
        return self.row.run(_ONCE + script, str(self.marks), run_id=run_id, **fields)

    def ejected(self, script: str = "sleep 600", run_id: str | None = None, **fields: Any) -> WorkerHandle:  # noqa: ANN401
        handle = self.launch(script, run_id, **fields)
        self.launcher.eject(handle, self.folder)
        return handle

    def pulumi(self, words: str, code: int = 0) -> str:
        """What a plain `pulumi` says in the folder, after `. ./env`."""
        return self.shell(f"pulumi --non-interactive --color never {words}", code)

    def shell(self, script: str, code: int = 0) -> str:
        """What a shell says in the folder, after `. ./env`."""
        process = self.begin(script)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == code, f"{script}: {process.returncode}\n{said}"
        return said

    def begin(self, script: str) -> subprocess.Popen[str]:
        """A shell at work in the folder, after `. ./env`."""
        return subprocess.Popen(
            ["sh", "-ec", f". ./env\n{script}"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What `run-launcher` says."""
        return subprocess.run(
            [str(SCRIPT), *words], env=self.environment, capture_output=True, text=True, check=False, timeout=240
        )

    def executions(self) -> int:
        return len(self.marks.read_text().splitlines())

    def settings(self) -> Path:
        return next(iter(self.folder.glob("Pulumi.*.yaml")))

    def urn(self, handle: WorkerHandle) -> str:
        return stack_name(handle.run_id, handle.attempt).urn(_WORKERS[handle.target], "worker")

    def locks(self) -> list[Path]:
        return list(self.row.home.glob("state/.pulumi/locks/*/*/*/*.json"))
