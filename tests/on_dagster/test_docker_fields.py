"""What DockerRunLauncher took has its place in a template, or a reason why not; the README says the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
from dagster_docker.utils import DOCKER_CONFIG_SCHEMA
from docker.models.containers import RUN_CREATE_KWARGS, RUN_HOST_CONFIG_KWARGS

from launchers.dagster.docker_fields import FIELDS, SETTINGS, WITHOUT, in_template
from programs.docker.template import DockerTemplate

README: Final = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SPLIT: Final = {"ports", "volumes", "networking_config", "stop_timeout"}
"""Arguments that docker-py takes apart itself, and the one that DockerRunLauncher keeps for `stop`."""
ELSEWHERE: Final = {"image", "environment"}
"""Arguments that DockerRunLauncher refuses: it has settings for them."""


def test_every_setting_of_docker_run_launcher_has_a_place() -> None:
    assert set(DOCKER_CONFIG_SCHEMA) == {*SETTINGS, "container_kwargs"}
    assert set(FIELDS) & set(WITHOUT) == set()
    assert {*RUN_CREATE_KWARGS, *RUN_HOST_CONFIG_KWARGS, *SPLIT} - {*FIELDS, *WITHOUT, *ELSEWHERE} == set()


@pytest.mark.parametrize("told", sorted({*FIELDS.values(), *SETTINGS.values()}))
def test_a_place_is_a_field_of_the_template(told: str) -> None:
    names = [re.split(r"[.:\s]", each)[0] for each in told.split(", ")]

    assert [name for name in names if name not in DockerTemplate.model_fields] == []


def test_the_readme_has_a_row_for_every_argument() -> None:
    table = README.split("| `container_kwargs` | in the template |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`.+`) \| (.+) \|$", table, re.MULTILINE)
    told = {name: instead for names, instead in rows for name in re.findall(r"`(\w+)`", names)}

    fields = {name: "the same" if name == field else f"`{field}`" for name, field in FIELDS.items()}
    assert told == {**fields, **{name: f"no field: {why}" for name, why in WITHOUT.items()}}


def test_what_is_not_known_is_told_so() -> None:
    settings = {"networks": ["etl"], "container_kwargs": {"mem_limit": "1g", "pids_limit": 9, "mem": 1}, "imago": "x"}

    assert dict(in_template(settings)) == {
        "networks": "networks",
        "container_kwargs.mem_limit": "resources.memory",
        "container_kwargs.pids_limit": "no field: pulumi-docker has no input for it",
        "container_kwargs.mem": "no field: it is not known",
        "imago": "no field: it is not known",
    }
