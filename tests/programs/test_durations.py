"""Durations and amounts of memory: one value has one spelling, and a wrong one is refused rather than a crash."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from programs.process.template import ProcessTemplate


@pytest.mark.parametrize("text", ["250ms", "1s", "1h30m", "12d", "90d", "1000000s", "1234567s", "0s"])
def test_a_template_survives_its_canonical_json(text: str) -> None:
    template = ProcessTemplate.model_validate({"keep": {"failed": text}})

    assert ProcessTemplate.model_validate_json(template.canonical()) == template


@pytest.mark.parametrize("grace", ["-5s", -5, True, "99999999999999999999d", "9" * 400 + "s", "", "5", "1h 5m"])
def test_what_is_no_duration_is_refused(grace: object) -> None:
    with pytest.raises(ValidationError, match="duration"):
        ProcessTemplate.model_validate({"grace": grace})


@pytest.mark.parametrize("memory", ["-5M", True, "9" * 400, "1.5 Gi", "0"])
def test_what_is_no_amount_of_memory_is_refused(memory: object) -> None:
    with pytest.raises(ValidationError, match=r"memory"):
        ProcessTemplate.model_validate({"limits": {"memory": memory}})


def test_a_relative_folder_is_refused_at_its_own_key() -> None:
    with pytest.raises(ValidationError, match="must be an absolute path") as caught:
        ProcessTemplate.model_validate({"cwd": "data"})

    assert caught.value.errors()[0]["loc"] == ("cwd",)


@pytest.mark.parametrize("name", ["start_timeout", "max_runtime"])
def test_a_limit_of_no_length_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="smallest limit"):
        ProcessTemplate.model_validate({name: "0s"})
