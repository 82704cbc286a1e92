"""What is particular to the target `process`."""

from __future__ import annotations

from pathlib import Path

import pytest
from targets import ProcessRow

from launchers.testing.contract import eventually
from programs.provider import worker
from programs.provider.folder import Identity
from stacks.handle import WorkerState


def test_a_worker_that_ends_while_it_is_looked_at_is_never_called_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as soon as its shim was seen alive."""
    row, gate = ProcessRow(tmp_path), tmp_path / "gate"
    launcher = row.launcher()
    handle = launcher.launch(row.run(f"until [ -e {gate} ]; do sleep 0.01; done")).handle
    alive = worker.alive

    def alive_until_seen(identity: Identity) -> bool:
        seen = alive(identity)
        gate.touch()
        assert eventually(lambda: not alive(identity))
        return seen

    monkeypatch.setattr(worker, "alive", alive_until_seen)
    first = launcher.status(handle)
    monkeypatch.undo()

    assert first.state in {WorkerState.RUNNING, WorkerState.SUCCEEDED}
    assert launcher.wait(handle).state is WorkerState.SUCCEEDED
    launcher.terminate(handle)
    assert row.leftovers() == []
