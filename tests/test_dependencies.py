"""The stated ranges of dependencies are the ones that are tested."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEST_ENVIRONMENTS = ("constraints.txt", "constraints-lowest.txt")


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / "tests" / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


@pytest.mark.smoke
def test_the_lowest_versions_tested_are_the_lower_bounds() -> None:
    lowest = pins("constraints-lowest.txt")
    bounds = {}
    extras = PROJECT["optional-dependencies"]
    for line in (*PROJECT["dependencies"], *extras["docker"], *extras["dagster"], *extras["metrics"]):
        requirement = Requirement(line)
        (bound,) = [spec.version for spec in requirement.specifier if spec.operator == ">="]
        bounds[canonicalize_name(requirement.name)] = Version(bound)

    assert {name: lowest.get(name) for name in bounds} == bounds


@pytest.mark.parametrize("name", TEST_ENVIRONMENTS)
def test_the_pinned_versions_are_within_the_stated_ranges(name: str) -> None:
    pinned = pins(name)
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["test"], *extras["docker"], *extras["dagster"], *extras["metrics"]]
    wanted = [Requirement(line) for line in lines]
    outside = [
        str(requirement)
        for requirement in wanted
        if (pin := pinned.get(canonicalize_name(requirement.name))) and pin not in requirement.specifier
    ]

    assert outside == []


@pytest.mark.parametrize("name", TEST_ENVIRONMENTS)
def test_the_pins_name_no_place_to_load_from(name: str) -> None:
    text = (ROOT / "tests" / name).read_text()

    assert "://" not in text
    assert " @ " not in text
