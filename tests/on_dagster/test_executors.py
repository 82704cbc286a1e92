"""Which launcher a worker sees in its instance: the one that its job's executor asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from dagster import in_process_executor, job, multiprocess_executor, op
from dagster_docker import DockerRunLauncher, docker_executor
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


def test_steps_on_docker_get_what_the_template_gives_the_worker(make_site: Callable[..., Site], tmp_path: Path) -> None:
    @job(executor_def=docker_executor)
    def a_job() -> None:
        nothing()

    (tmp_path / "env").write_text("OF_FILE=1\n")
    site = make_site({"template": "etl"})
    site.template(
        "etl",
        target="docker",
        image="etl:1",
        networks=["etl", {"create": "run"}],
        volumes=[{"mount": "/data", "host": "/srv", "read_only": True}, {"mount": "/scratch", "create": "run"}],
        env={"PLAIN": "1"},
        env_files=[str(tmp_path / "env")],
        secrets={"SECRET": {"env": "SECRET"}},
    )
    with site.desk() as desk:
        binding, run = desk.launcher.binding, desk.instance.create_run_for_job(a_job)
        data = worker_instance(binding, run, binding.launcher(run)).run_launcher_data
    site.config = {}

    assert data is not None
    assert (data.module_name, data.class_name) == ("dagster_docker", "DockerRunLauncher")
    assert data.config_dict == {
        "image": "etl:1",
        "networks": ["etl"],
        "env_vars": ["OF_FILE", "PLAIN", "SECRET"],
        "container_kwargs": {"volumes": ["/srv:/data:ro"]},
    }
    assert isinstance(data.rehydrate(as_type=DockerRunLauncher), DockerRunLauncher)  # it takes such a config
