"""What the docker program works out without a daemon."""

from __future__ import annotations

from typing import Any

import pytest

from programs.docker.states import status_of
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
