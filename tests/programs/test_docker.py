"""What the docker program works out without a daemon."""

from __future__ import annotations

from typing import Any

import pytest

from programs.args import Context, ProgramArgs, Run
from programs.docker.adopting import worker_state
from programs.docker.names import container_name
from programs.docker.program import container_inputs
from programs.docker.shared import shared_key
from programs.docker.states import status_of, time_of
from programs.docker.template import DockerTemplate, Volume
from stacks.handle import WorkerState

STARTED, ENDED = "2026-01-02T03:04:05.123456789Z", "2026-01-02T03:05:05Z"


def told(status: str, **facts: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever the daemon tells
    return {"State": {"Status": status, "ExitCode": 0, "StartedAt": STARTED, "FinishedAt": ENDED, **facts}}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"ExitCode": 137, "OOMKilled": True}, "OOMKilled"),
        ({"ExitCode": 1, "OOMKilled": True}, None),
        ({"ExitCode": 137}, "SIGKILL"),
        ({"ExitCode": 143}, "SIGTERM"),
        ({"ExitCode": 3}, None),
        ({"ExitCode": 255}, None),
    ],
)
def test_the_reason_of_an_end_is_the_workers_own(facts: dict[str, Any], reason: str | None) -> None:
    status = status_of(told("exited", **facts))

    assert (status.state, status.reason, status.exit_code) == (WorkerState.FAILED, reason, facts["ExitCode"])


def test_a_worker_that_ends_well_after_a_child_ran_out_of_memory_has_succeeded() -> None:
    status = status_of(told("exited", OOMKilled=True))

    assert (status.state, status.reason, status.message) == (WorkerState.SUCCEEDED, None, "")


def test_a_time_that_never_was_is_none_and_nanoseconds_are_cut() -> None:
    never, exact = time_of("0001-01-01T00:00:00Z"), time_of(STARTED)

    assert never is None
    assert exact is not None
    assert exact.isoformat() == "2026-01-02T03:04:05.123456+00:00"


def args(*command: str, **template: Any) -> ProgramArgs[DockerTemplate]:  # noqa: ANN401 - the template's own
    context = Context(backend="b", template="t", digest="d", fingerprint="f", place="p", folder="", archive="", cwd="")
    value = DockerTemplate.model_validate({"image": "i", **template})
    return ProgramArgs(template=value, run=Run(id="r", command=command), context=context)


@pytest.mark.parametrize(
    ("template", "requests"),
    [
        ({}, None),
        ({"resources": {"gpu": 0}}, None),
        ({"resources": {"gpu": 2}}, [{"driver": "nvidia", "capabilities": ["gpu"], "count": 2}]),
        (
            {"gpus": {"driver": "cdi", "device_ids": ["a", "b"], "capabilities": ["gpu", "compute"]}},
            [{"driver": "cdi", "capabilities": ["gpu", "compute"], "device_ids": ["a", "b"]}],
        ),
    ],
)
def test_gpus_are_asked_for_by_number_or_id(template: dict[str, Any], requests: list[dict[str, Any]] | None) -> None:
    assert container_inputs(args("true", **template)).get("device_requests") == requests


def test_a_command_with_an_empty_word_goes_behind_the_entrypoint() -> None:
    inputs = container_inputs(args("x", "", entrypoint=["/bin/sh"]))

    assert "command" not in inputs
    assert inputs["entrypoints"] == ["/bin/sh", "x", ""]


def test_what_enters_the_state_has_no_environment_and_the_providers_own_names() -> None:
    inputs, outputs = worker_state(
        args("true", env={"SECRET": "hush"}, tmpfs={"/a_b": "size=1m"}, stop_signal="SIGINT")
    )

    assert inputs["tmpfs"] == {"/a_b": "size=1m"}
    assert (inputs["stopSignal"], outputs["envs"]) == ("SIGINT", [])
    assert "hush" not in f"{inputs} {outputs}"


def test_no_two_attempts_of_any_runs_share_a_name() -> None:
    pairs = [("a", 0), ("a", 1), ("a.1", 0), ("a.1", 1), ("a.1.0", 0)]

    assert len({container_name(*each) for each in pairs}) == len(pairs)


def test_what_runs_share_is_known_by_its_name_or_mount_wherever_it_stands_in_the_list() -> None:
    named, mounted = Volume(mount="/m", name="data", create="shared"), Volume(mount="/m", create="shared")

    assert shared_key("volume", 0, named) == shared_key("volume", 3, named)
    assert shared_key("volume", 0, mounted) == shared_key("volume", 3, mounted)
    assert shared_key("volume", 0, named) != shared_key("volume", 0, mounted)
