"""Pulumi's own files of a stack, as its self-managed backends lay them out below `.pulumi/`.

Layout: https://www.pulumi.com/docs/iac/concepts/state-and-backends/ and pkg/backend/diy of Pulumi 3.259.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from stacks.engine import PROJECT_PREFIX, Adoption, StackName
from stacks.errors import DamagedFileError
from stacks.store import Store, read_json

_STACKS: Final = ".pulumi/stacks"
_ATTRIBUTES: Final = ".attrs"  # what a plain `pulumi` puts beside each file of a folder, where it is not told otherwise


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

    def forget_pending(self, stack: StackName) -> list[str]:
        """Drop operations that a killed engine left pending; returns their URNs."""
        self._mend(stack)
        deployment = self.deployment(stack) or {}
        pending = deployment.pop("pending_operations", None) or []
        if pending:
            self.write(stack, deployment)
        return [str(each["resource"]["urn"]) for each in pending]

    def _mend(self, stack: StackName) -> None:
        """Go back to Pulumi's own backup of a checkpoint that it cut short on a full disk: one step earlier.

        What that step made is found at the target. https://github.com/google/go-cloud/tree/master/blob/fileblob
        """
        try:
            self.checkpoint(stack)
        except DamagedFileError:
            if read_json(self._store, f"{_checkpoint(stack)}.bak", "checkpoint") is None:
                raise
            self._store.write(_checkpoint(stack), self._store.read(f"{_checkpoint(stack)}.bak") or b"")

    def begin_history(self, stack: StackName) -> None:
        """Let a stack have a history where a killed engine left none.

        A `destroy` outside a project asks the history for the configuration, which may be empty for it.
        """
        folder = f".pulumi/history/{stack.project}/{stack.stack}"
        if not any(".history.json" in name for name in self._store.names(folder)):
            entry = {"kind": "update", "startTime": 0, "message": "", "environment": {}, "config": {}}
            entry |= {"result": "failed", "endTime": 0}
            self._store.create(f"{folder}/{stack.stack}-0.history.json", json.dumps(entry).encode())

    def locks(self, stack: StackName) -> dict[str, dict[str, Any]]:
        """The locks on the stack, by path; one that vanishes meanwhile is left out."""
        folder = f".pulumi/locks/{stack.full}"
        found = {}
        for name in self._store.names(folder):
            if not name.endswith(".json"):
                continue  # what a killed `pulumi`, or one on a full disk, had begun to write
            content = self._store.read(f"{folder}/{name}")
            if content is not None:
                found[f"{folder}/{name}"] = json.loads(content) if content.strip() else {}
        return found

    def torn_locks(self, stack: StackName) -> dict[str, timedelta]:
        """What was begun in the folder of locks and is no lock yet, with its age; Pulumi takes it for one."""
        folder = f".pulumi/locks/{stack.full}"
        paths = [f"{folder}/{name}" for name in self._store.names(folder) if name.endswith(".tmp")]
        ages = {path: self._store.age(path) for path in paths}
        return {path: age for path, age in ages.items() if age is not None}

    def unlock(self, path: str) -> None:
        """Delete one lock."""
        for suffix in ("", _ATTRIBUTES):
            self._store.delete(f"{path}{suffix}")

    def remove(self, stack: StackName) -> None:
        """Delete the stack with its backups, history and locks; the checkpoint, which leads to all others, last."""
        path = f"{stack.project}/{stack.stack}"
        for folder in (f"history/{path}", f"backups/{path}", f"locks/{stack.full}", f"tags/{path}"):
            self._store.delete(f".pulumi/{folder}")
        torn = re.compile(rf"{re.escape(stack.stack)}\.json[a-z.]*\.[0-9a-f]+\.tmp")
        for name in self._store.names(f"{_STACKS}/{stack.project}"):
            if torn.fullmatch(name):  # an engine was killed while it wrote
                self._store.delete(f"{_STACKS}/{stack.project}/{name}")
        for suffix in (f".bak{_ATTRIBUTES}", ".bak", _ATTRIBUTES, ""):
            self._store.delete(f"{_STACKS}/{path}.json{suffix}")

    def stacks(self) -> Iterator[StackName]:
        """Every run stack."""
        for project in self._store.names(_STACKS):
            if project.startswith(PROJECT_PREFIX):
                for name in self._store.names(f"{_STACKS}/{project}"):
                    if name.endswith(".json"):
                        yield StackName(project, name.removesuffix(".json"))


def adopted(stack: StackName, adoption: Adoption, secrets: dict[str, Any]) -> dict[str, Any]:
    """The deployment of a stack that holds one adopted resource under its default provider.

    `secrets` is the state's `secrets_providers` entry.
    """
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    stack_urn = stack.urn("pulumi:pulumi:Stack", f"{stack.project}-{stack.stack}")
    package = adoption.type.partition(":")[0]
    version = adoption.provider_version
    provider_name = f"default_{version.replace('.', '_')}" if version else "default"
    provider_urn = stack.urn(f"pulumi:providers:{package}", provider_name)
    provider_id = f"{hash_id(stack.full, package)}"
    provider_inputs = {"version": version} if version else {}
    times = {"created": now, "modified": now}
    return {
        "manifest": {"time": now, "magic": "", "version": ""},
        "secrets_providers": secrets,
        "resources": [
            {"urn": stack_urn, "custom": False, "type": "pulumi:pulumi:Stack", **times},
            {
                "urn": provider_urn,
                "custom": True,
                "id": provider_id,
                "type": f"pulumi:providers:{package}",
                "inputs": provider_inputs,
                "outputs": provider_inputs,
                **times,
            },
            {
                "urn": stack.urn(adoption.type, adoption.name),
                "custom": True,
                "id": adoption.id,
                "type": adoption.type,
                "inputs": dict(adoption.inputs),
                "outputs": dict(adoption.outputs),
                "parent": stack_urn,
                "provider": f"{provider_urn}::{provider_id}",
                **times,
            },
        ],
    }


def hash_id(*words: str) -> str:
    """A UUID made of words, the same each time."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, " ".join(words)))


def _checkpoint(stack: StackName) -> str:
    return f"{_STACKS}/{stack.project}/{stack.stack}.json"
