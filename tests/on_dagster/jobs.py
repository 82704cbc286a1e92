"""The jobs that tests launch, as a code location; what they do to the world is written below SITE_FOLDER."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dagster import Definitions, OpExecutionContext, in_process_executor, job, multiprocess_executor, op

FOLDER: Final = Path(os.environ.get("SITE_FOLDER", "."))
EXECUTORS: Final = {"in_process": in_process_executor, "multiprocess": multiprocess_executor}

if "RUN_LAUNCHER_RUN_ID" in os.environ and (FOLDER / "slow-start").exists():
    while (FOLDER / "slow-start").exists():
        time.sleep(0.05)


def note(context: OpExecutionContext, what: str) -> None:
    """A line for each execution, so that a second one is seen."""
    with (FOLDER / f"{context.run_id}.{what}").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")


@op
def good(context: OpExecutionContext) -> None:
    note(context, "ran")
    sys.stdout.write("a good line\n")


@op
def fails(context: OpExecutionContext) -> None:
    note(context, "ran")
    message = "this op fails on purpose"
    raise ValueError(message)


@op
def exits(context: OpExecutionContext) -> None:
    note(context, "ran")
    os._exit(7)


@op
def killed(context: OpExecutionContext) -> None:
    note(context, "ran")
    os.kill(os.getpid(), signal.SIGKILL)


@op
def hungry(context: OpExecutionContext) -> None:
    note(context, "ran")
    context.log.info(str(len(b"x" * (1 << 32))))  # each page is written to


@op
def holds(context: OpExecutionContext) -> None:
    """Go on until the test says so; a process of its own goes with it, in a session of its own."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    note(context, "ran")
    while not (FOLDER / f"{context.run_id}.go").exists():
        time.sleep(0.02)
    child.kill()
    child.wait()


@op
def stubborn(context: OpExecutionContext) -> None:
    """Hear no signal but the last."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    note(context, "ran")
    while True:
        time.sleep(1)


@op
def tells(context: OpExecutionContext) -> None:
    """Write down how the worker sees its instance."""
    instance = context.instance
    lines = [
        type(instance.run_launcher).__name__,
        str(instance.run_monitoring_enabled),
        str(instance.run_monitoring_max_resume_run_attempts),
        str("launchers" in sys.modules),
        str(sorted(name for name in os.environ if name.startswith("PULUMI_"))),
        Path("/proc/self/cmdline").read_text(encoding="utf-8"),
    ]
    (FOLDER / f"{context.run_id}.told").write_text("\n".join(lines), encoding="utf-8")


def made(name: str, body: Callable[..., Any], executor: str) -> Any:  # noqa: ANN401 - a job
    @job(name=f"{name}_{executor}", executor_def=EXECUTORS[executor])
    def made_job() -> None:
        body()

    return made_job


@job(executor_def=in_process_executor)
def two() -> None:
    """One op that goes well, and one that does not: to select from."""
    good()
    fails()


OPS: Final = {
    "good": good,
    "fails": fails,
    "exits": exits,
    "killed": killed,
    "hungry": hungry,
    "holds": holds,
    "stubborn": stubborn,
    "tells": tells,
}
JOBS: Final = [two, *(made(name, body, executor) for name, body in OPS.items() for executor in EXECUTORS)]
defs = Definitions(jobs=JOBS)
