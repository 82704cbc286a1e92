"""Which launcher a worker sees in its instance: the one that its job's executor asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from dagster import in_process_executor, job, multiprocess_executor, op
from dagster_docker import docker_executor
from dagster_site import Site

from launchers.dagster.worker import worker_instance

pytestmark = pytest.mark.parametrize("engine", ["warm"], indirect=True)
DOCKER: Final = {"module": "dagster_docker", "class": "DockerRunLauncher", "config": {"networks": ["etl"]}}
DEFAULT: Final = {"module": "dagster", "class": "DefaultRunLauncher"}


@op
def nothing() -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("executor", "previous", "seen"),
    [
        (docker_executor, DOCKER, "DockerRunLauncher"),
        (docker_executor, DEFAULT, "DefaultRunLauncher"),
        (docker_executor, None, "DefaultRunLauncher"),
        (docker_executor.configured({"image": "etl:1"}, name="fixed"), DOCKER, "DefaultRunLauncher"),
        (multiprocess_executor, DOCKER, "DefaultRunLauncher"),
        (in_process_executor, DOCKER, "DefaultRunLauncher"),
    ],
)
def test_a_worker_sees_the_launcher_that_its_executor_asks_for(
    make_site: Callable[..., Site],
    executor: Any,  # noqa: ANN401 - an executor definition
    previous: dict[str, Any] | None,
    seen: str,
) -> None:
    @job(executor_def=executor)
    def a_job() -> None:
        nothing()

    site = make_site({} if previous is None else {"previous": previous})
    with site.desk() as desk:
        run = desk.instance.create_run_for_job(a_job)
        binding = desk.launcher.binding
        data = worker_instance(binding, run, binding.launcher(run)).run_launcher_data
    site.config = {}

    assert data is not None
    assert data.class_name == seen
    assert seen != "DockerRunLauncher" or data.config_dict == {"networks": ["etl"]}
