"""Jobs of a code location that was made for DockerRunLauncher: steps in containers, and an image of its own."""

import os
from pathlib import Path
from typing import Final

from dagster import Definitions, OpExecutionContext, in_process_executor, job, op
from dagster_docker import docker_executor

FOLDER: Final = Path(os.environ.get("SITE_FOLDER", "."))


@op
def tells(context: OpExecutionContext) -> None:
    """Write down where it runs: the container's id, and what the code location said of its environment."""
    container = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().rpartition("/")[2]
    words = [container, *(os.environ.get(name, "-") for name in ("OF_LOCATION", "OF_LAUNCHER", "DAGSTER_RUN_JOB_NAME"))]
    with (FOLDER / f"{context.run_id}.ran").open("a", encoding="utf-8") as file:
        file.write(f"{' '.join(words)}\n")


@job(executor_def=in_process_executor)
def whole() -> None:
    """One container."""
    tells()


@job(executor_def=docker_executor)
def steps() -> None:
    """A container for each step."""
    tells.alias("first")()
    tells.alias("second")()


JOBS: Final = [whole, steps]
defs = Definitions(jobs=JOBS)
