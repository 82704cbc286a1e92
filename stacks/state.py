"""Pulumi's own files of a stack, as its self-managed backends lay them out below `.pulumi/`.

Layout: https://www.pulumi.com/docs/iac/concepts/state-and-backends/ and pkg/backend/diy of Pulumi 3.259.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from stacks.engine import PROJECT_PREFIX, Adoption, StackName
from stacks.errors import DamagedFileError, StackLockedError
from stacks.processes import user_name
from stacks.store import Store, read_json

_CLAIMED: Final = "runLauncherClaim"  # stands in a lock that was taken under the stack's claim
_HELD: Final[set[str]] = set()
"""The locks that operations in flight in this process hold."""
_STACKS: Final = ".pulumi/stacks"
_ATTRIBUTES: Final = ".attrs"  # what a plain `pulumi` puts beside each file of a folder, where it is not told otherwise
_BESIDE: Final = re.compile(rf"\.bak|(\.bak)?{re.escape(_ATTRIBUTES)}|[a-z.]*\.[0-9a-f]+\.tmp")
"""The rest of the names of what is beside a checkpoint: its backup, attributes, and what a kill left half-written."""


class StateFiles:
    """The checkpoints, locks and histories of one backend. Whoever changes something holds the stack's claim."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def checkpoint(self, stack: StackName) -> dict[str, Any] | None:
        """The checkpoint; None where there is no stack."""
        return read_json(self._store, _checkpoint(stack), "checkpoint")

    def deployment(self, stack: StackName) -> dict[str, Any] | None:
        """What the last operation left; None where there is no stack, empty before the first one."""
        data = self.checkpoint(stack)
        return None if data is None else dict(data["checkpoint"].get("latest") or {})

    def make(self, stack: StackName) -> None:
        """Make an empty stack where there is none; what `pulumi stack init` would cost a process for."""
        empty = {"version": 3, "checkpoint": {"stack": stack.full}}
        self._store.create(_checkpoint(stack), json.dumps(empty).encode())

    def write(self, stack: StackName, deployment: dict[str, Any]) -> None:
        """Replace what the last operation left."""
        data = {"version": 3, "checkpoint": {"stack": stack.full, "latest": deployment}}
        self._store.write(_checkpoint(stack), json.dumps(data).encode())

    def outputs(self, stack: StackName) -> dict[str, Any] | None:
        """The outputs of the stack; None where there is no stack."""
        deployment = self.deployment(stack)
        if deployment is None:
            return None
        for resource in deployment.get("resources") or []:
            if resource["type"] == "pulumi:pulumi:Stack":
                return dict(resource.get("outputs") or {})
        return {}

    def resources(self, stack: StackName) -> list[dict[str, Any]]:
        """The stack's own resources: neither the stack itself nor its providers."""
        deployment = self.deployment(stack) or {}
        return [each for each in deployment.get("resources") or [] if not each["type"].startswith("pulumi:")]

    def mended(self, stack: StackName) -> dict[str, Any] | None:
        """What the last operation left, after a step back where the checkpoint was cut short."""
        try:
            return self.deployment(stack)
        except DamagedFileError:
            self._step_back(stack)
            return self.deployment(stack)

    def forget_pending(self, stack: StackName) -> list[str]:
        """Drop operations that a killed engine left pending; returns their URNs."""
        deployment = self.mended(stack) or {}
        pending = deployment.pop("pending_operations", None) or []
        if pending:
            self.write(stack, deployment)
        return [str(each["resource"]["urn"]) for each in pending]

    def _step_back(self, stack: StackName) -> None:
        """Go back to Pulumi's own backup of a checkpoint that it cut short on a full disk: one step earlier.

        What that step made is found at the target. https://github.com/google/go-cloud/tree/master/blob/fileblob
        """
        if read_json(self._store, f"{_checkpoint(stack)}.bak", "checkpoint") is None:
            raise DamagedFileError(_checkpoint(stack))
        self._store.write(_checkpoint(stack), self._store.read(f"{_checkpoint(stack)}.bak") or b"")

    def begin_history(self, stack: StackName, *, fresh: bool = False) -> None:
        """Let a stack have a history where a killed engine left none.

        A `destroy` outside a project asks the history for the configuration, which may be empty for it. A stack that is
        made now has none for certain (`fresh`).
        """
        folder = f".pulumi/history/{stack.project}/{stack.stack}"
        if fresh or not any(".history.json" in name for name in self._store.names(folder)):
            entry = {"kind": "update", "startTime": 0, "message": "", "environment": {}, "config": {}}
            entry |= {"result": "failed", "endTime": 0}
            self._store.create(f"{folder}/{stack.stack}-0.history.json", json.dumps(entry).encode())

    def lock_files(self, stack: StackName) -> list[str]:
        """The paths of all that is in the stack's folder of locks."""
        folder = f".pulumi/locks/{stack.full}"
        return [f"{folder}/{name}" for name in self._store.names(folder)]

    def locks(self, paths: list[str]) -> dict[str, dict[str, Any]]:
        """The locks among such files; one that vanishes meanwhile is left out."""
        found = {}
        for path in paths:
            if not path.endswith(".json"):
                continue  # what a killed `pulumi`, or one on a full disk, had begun to write
            content = self._store.read(path)
            if content is not None:
                found[path] = json.loads(content) if content.strip() else {}
        return found

    def lock(self, stack: StackName) -> tuple[str, bool]:
        """Take a lock as Pulumi does, in this process's name and under the stack's claim.

        Returns its path, and whether there is a checkpoint that an operation has to go on from. Raises StackLockedError
        where another lock is there: then neither may go on.
        """
        folder = f".pulumi/locks/{stack.full}"
        path = f"{folder}/{uuid.uuid4()}.json"
        taken = {
            _CLAIMED: True,
            "pid": os.getpid(),
            "username": user_name(),
            "hostname": os.uname().nodename,
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }
        _HELD.add(path)
        self._store.write(path, json.dumps(taken).encode())
        found: list[str] = []
        there: list[bool] = []
        self._store.together(
            lambda: found.extend(self.lock_files(stack)),
            lambda: there.append(self._store.read(_checkpoint(stack)) is not None),
        )
        if any(each not in {path, f"{path}{_ATTRIBUTES}"} for each in found):
            self.release(path)
            message = "another Pulumi command works on this run; try again when it is done"
            raise StackLockedError(message)
        return path, there[0]

    def torn_locks(self, paths: list[str]) -> dict[str, timedelta]:
        """What among such files was begun and is no lock yet, with its age; Pulumi takes it for one."""
        ages = {path: self._store.age(path) for path in paths if path.endswith(".tmp")}
        return {path: age for path, age in ages.items() if age is not None}

    def ask_to_stop(self, lock: str, *, now: bool = False) -> None:
        """Ask the operation that holds this lock to stop; it looks about once a second."""
        self._store.write(_cancel(lock), b"now" if now else b"soon")

    def asked_to_stop(self, lock: str) -> str | None:
        """How the holder of this lock was asked to stop: "soon" or "now"; None if nobody asked."""
        asked = self._store.read(_cancel(lock))
        return None if asked is None else asked.decode()

    def ask_no_more(self, lock: str) -> None:
        """Take back what was asked of the holder of this lock."""
        self._store.delete(_cancel(lock))

    def unlock(self, path: str) -> None:
        """Delete one lock, whoever took it."""
        self._store.together(*(partial(self._store.delete, f"{path}{suffix}") for suffix in ("", _ATTRIBUTES)))

    def release(self, lock: str) -> None:
        """Delete a lock that was taken with `lock`, and what its holder was asked meanwhile."""
        _HELD.discard(lock)
        self._store.together(lambda: self._store.delete(lock), lambda: self.ask_no_more(lock))

    def is_over(self, path: str, lock: dict[str, Any]) -> bool | None:
        """Whether a lock that was taken under a claim is over, for whoever holds that claim now; None for others."""
        return path not in _HELD if lock.get(_CLAIMED) else None

    def remove(self, stack: StackName) -> None:
        """Delete the stack with its backups, history and locks; the checkpoint, which leads to all others, last."""
        path = f"{stack.project}/{stack.stack}"
        folders = (f"history/{path}", f"backups/{path}", f"locks/{stack.full}", f"tags/{path}")
        self._store.together(*(partial(self._store.clear, f".pulumi/{folder}") for folder in folders))
        name = f"{stack.stack}.json"
        names = self._store.names(f"{_STACKS}/{stack.project}")
        beside = [each for each in names if each.startswith(name) and _BESIDE.fullmatch(each, len(name))]
        paths = [f"{_STACKS}/{stack.project}/{each}" for each in beside]
        self._store.together(*(partial(self._store.delete, each) for each in paths))
        self._store.delete(_checkpoint(stack))

    def stacks(self) -> Iterator[StackName]:
        """Every run stack."""
        for project in self._store.names(_STACKS):
            if project.startswith(PROJECT_PREFIX):
                for name in self._store.names(f"{_STACKS}/{project}"):
                    if name.endswith(".json"):
                        yield StackName(project, name.removesuffix(".json"))


def adopted(
    stack: StackName, adoptions: Sequence[Adoption], outputs: Mapping[str, Any], secrets: dict[str, Any]
) -> dict[str, Any]:
    """The deployment of a stack that holds adopted resources of one package under its default provider.

    `outputs` are the stack's, `secrets` is the state's `secrets_providers` entry.
    """
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    times = {"created": now, "modified": now}
    stack_urn = stack.urn("pulumi:pulumi:Stack", f"{stack.project}-{stack.stack}")
    package = adoptions[0].type.partition(":")[0]
    version = adoptions[0].provider_version
    provider_name = f"default_{version.replace('.', '_')}" if version else "default"
    provider_urn = stack.urn(f"pulumi:providers:{package}", provider_name)
    provider_id = f"{hash_id(stack.full, package)}"
    provider_inputs = {"version": version} if version else {}
    urns = {each.name: stack.urn(each.type, each.name) for each in adoptions}
    resources = [
        {
            "urn": urns[each.name],
            "custom": True,
            "id": each.id,
            "type": each.type,
            "inputs": dict(each.inputs),
            "outputs": dict(each.outputs),
            "parent": stack_urn,
            "provider": f"{provider_urn}::{provider_id}",
            "dependencies": [urns[name] for name in each.depends_on],
            "additionalSecretOutputs": list(each.secret_outputs),
            **times,
        }
        for each in adoptions
    ]
    return {
        "manifest": {"time": now, "magic": "", "version": ""},
        "secrets_providers": secrets,
        "resources": [
            {"urn": stack_urn, "custom": False, "type": "pulumi:pulumi:Stack", "outputs": dict(outputs), **times},
            {
                "urn": provider_urn,
                "custom": True,
                "id": provider_id,
                "type": f"pulumi:providers:{package}",
                "inputs": provider_inputs,
                "outputs": provider_inputs,
                **times,
            },
            *resources,
        ],
    }


def hash_id(*words: str) -> str:
    """A UUID made of words, the same each time."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, " ".join(words)))


def _cancel(lock: str) -> str:
    return f"cancels/{lock.rpartition('/')[2]}"


def _checkpoint(stack: StackName) -> str:
    return f"{_STACKS}/{stack.project}/{stack.stack}.json"
