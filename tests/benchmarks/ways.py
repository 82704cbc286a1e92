"""The ways to give a run its worker and to end it, each as its user would go it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Final, Protocol

from launchers import ProcessTemplate, Run, load_launcher
from launchers.settings import Config, EngineSettings
from stacks.setup import has_language_host

from .place import BIN, WORKER, Place

ROOT: Final = Path(__file__).parents[2]
SHIPPED: Final = "Automation API as shipped"
TERRAFORM: Final = "terraform apply / destroy"
_MAIN: Final = """
variable "run" {}
resource "terraform_data" "worker" {
  input = var.run
}
"""


class Way(Protocol):
    """One way. `absent` says why it cannot be gone here."""

    key: str
    name: str
    absent: str | None

    def launch(self, run_id: str) -> None:
        """Start the worker; returns when the tool does."""

    def terminate(self, run_id: str) -> None:
        """End the worker, and remove what it was made with."""


class PythonApi:
    """Our launcher with the warm engine, in this process."""

    key, name, engine = "api", "run-launcher, Python", "warm"
    absent: str | None = None

    def __init__(self, place: Place) -> None:
        self.launcher = launcher(place.home(self.key), self.engine)

    def launch(self, run_id: str) -> None:
        self.launcher.launch(Run(id=run_id, command=WORKER))

    def terminate(self, run_id: str) -> None:
        self.launcher.terminate(run_id)


class PythonApiCli(PythonApi):
    """The same with the CLI engine."""

    key, name, engine = "api-cli", "run-launcher, Python, CLI engine", "cli"


class CommandLine:
    """Our command line."""

    key, name = "cli", "run-launcher, command line"
    absent: str | None = None

    def __init__(self, place: Place) -> None:
        self._place, self._home = place, place.home("cli")

    def launch(self, run_id: str) -> None:
        self._run("launch", "--run-id", run_id, "--", *WORKER)

    def terminate(self, run_id: str) -> None:
        self._run("terminate", run_id)

    def _run(self, *words: str) -> None:
        self._place.run([str(BIN / "run-launcher"), *words], self._home, RUN_LAUNCHER_HOME=str(self._home))


class PulumiByHand:
    """`pulumi stack init`, a stack config, `pulumi up`; `pulumi destroy --remove`: the same program on disk."""

    key, name = "pulumi", "pulumi up / destroy by hand"

    def __init__(self, place: Place) -> None:
        self._place, self._home = place, place.home("pulumi")
        self.absent = None if has_language_host(place.cli) else "no Python language host"
        self._project = self._home / "project"
        shutil.copytree(ROOT / "programs" / "process", self._project, ignore=shutil.ignore_patterns("__pycache__"))
        (self._home / "state").mkdir()
        self._environment = {
            "RUN_LAUNCHER_HOME": str(self._home),
            "PULUMI_BACKEND_URL": f"file://{self._home}/state",
            "PULUMI_CONFIG_PASSPHRASE": "benchmark",
            "PULUMI_HOME": str(self._home / "pulumi"),
        }

    def launch(self, run_id: str) -> None:
        self._run("stack", "init", run_id)
        args = {"template": {"target": "process"}, "run": {"id": run_id, "command": WORKER}}
        with (self._project / f"Pulumi.{run_id}.yaml").open("a", encoding="utf-8") as file:
            file.write(f"config:\n  run-launcher:args: '{json.dumps(args)}'\n")
        self._run("up", "--yes", "--skip-preview", "-s", run_id)

    def terminate(self, run_id: str) -> None:
        self._run("destroy", "--yes", "--skip-preview", "--remove", "-s", run_id)

    def _run(self, *words: str) -> None:
        command = [str(self._place.cli.path), "--non-interactive", *words]
        self._place.run(command, self._project, **self._environment)


class AutomationApi:
    """create_or_select_stack, up; destroy, remove_stack: our program and attached provider, nothing tuned."""

    key, name = "automation", SHIPPED
    absent: str | None = None

    def __init__(self, place: Place) -> None:
        home = place.home("automation")
        (home / "state").mkdir()
        self._launcher = launcher(home)
        self._stacks: dict[str, Any] = {}
        self._environment = {
            "PULUMI_BACKEND_URL": f"file://{home}/state",
            "PULUMI_CONFIG_PASSPHRASE": "benchmark",
            "PULUMI_HOME": str(home / "pulumi"),
        }

    def launch(self, run_id: str) -> None:
        from pulumi.automation import LocalWorkspaceOptions, create_or_select_stack  # noqa: PLC0415, TID251 - compared

        from programs.process.program import program  # noqa: PLC0415 - a launch by hand pays it at its first round too
        from programs.provider.attach import serve  # noqa: PLC0415

        args = self._launcher.args(Run(id=run_id, command=WORKER), "benchmark")
        with serve() as server:
            server.admit(os.getpid())  # and what it starts
            self._environment["PULUMI_DEBUG_PROVIDERS"] = f"runworker:{server.port}"
            options = LocalWorkspaceOptions(env_vars=self._environment)
            stack = create_or_select_stack(run_id, "benchmark", lambda: program(args), opts=options)
            stack.up()
        self._stacks[run_id] = stack

    def terminate(self, run_id: str) -> None:
        from programs.provider.attach import serve  # noqa: PLC0415

        stack = self._stacks.pop(run_id)
        with serve() as server:
            server.admit(os.getpid())
            stack.workspace.env_vars["PULUMI_DEBUG_PROVIDERS"] = f"runworker:{server.port}"
            stack.destroy()
        stack.workspace.remove_stack(run_id)


class Terraform:
    """`terraform apply` and `destroy` of a `terraform_data`, which is no worker at all; `init` once, not counted."""

    key, name = "terraform", TERRAFORM

    def __init__(self, place: Place) -> None:
        self._place, self._home = place, place.home("terraform")
        self.absent = None if shutil.which("terraform") else "no terraform on PATH"
        if self.absent is None:
            (self._home / "main.tf").write_text(_MAIN, encoding="utf-8")
            self._place.run(["terraform", "init", "-input=false"], self._home)

    def launch(self, run_id: str) -> None:
        self._run("apply", run_id)

    def terminate(self, run_id: str) -> None:
        self._run("destroy", run_id)

    def _run(self, verb: str, run_id: str) -> None:
        words = ["-auto-approve", "-input=false", f"-var=run={run_id}", f"-state={run_id}.tfstate"]
        self._place.run(["terraform", verb, *words], self._home)


WAYS: Final = (PythonApi, PythonApiCli, CommandLine, PulumiByHand, AutomationApi, Terraform)


def launcher(home: Path, engine: str = "auto") -> Any:  # noqa: ANN401 - a launcher of whatever template
    """A launcher of local processes that keeps everything below a home."""
    settings = EngineSettings.model_validate({"kind": engine})
    return load_launcher(ProcessTemplate(), config=Config(home=home, engine=settings))
