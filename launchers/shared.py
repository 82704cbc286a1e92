"""What runs of a template share: declared by a target, made and removed by launchers.sharing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from stacks.engine import STACK_LIMIT, StackName, shared_stack
from stacks.records import canonical
from stacks.shared_records import SharedKind

_ODD: Final = re.compile(r"[^A-Za-z0-9._-]")
_DURABLE: Final = 12  # hex digits of the hash that ends a name; the lengths differ, so that no two kinds share a name
_VERSIONED: Final = 16


@dataclass(frozen=True)
class Shared:
    """An object that several runs use.

    `name` is its key in `Context.shared`, without a dot. `inputs` is all that it is made of: other inputs make another
    versioned object, and update a durable one in place. `program` declares it inside `up`, given its stack, and exports
    what runs must know of it, as values. It is called again for an object that is there, and takes that over.
    """

    kind: SharedKind
    name: str
    inputs: Mapping[str, JsonValue]
    program: Callable[[StackName], None]

    @property
    def digest(self) -> str:
        """SHA-256 of the inputs."""
        return _hash(dict(self.inputs))

    def stack(self, target: str, template: str, place: str, backend: str) -> StackName:
        """The stack of the object: a durable one's by template and place, a versioned one's by inputs and place.

        A versioned object belongs to one backend, since that alone knows who uses it.
        """
        if self.kind is SharedKind.DURABLE:
            return shared_stack(f"{_fitting(template)}.{self.name}-{_hash(place)[:_DURABLE]}")
        made_of = [self.kind, self.name, self.digest, place, backend]
        return shared_stack(f"{target}.{self.name}-{_hash(made_of)[:_VERSIONED]}")


def _fitting(template: str) -> str:
    """A template's name as a part of a stack's; one that is cut or cleaned gets a hash of the whole."""
    clean = _ODD.sub("-", template)
    if clean == template and len(template) <= STACK_LIMIT // 2:
        return template
    return f"{clean[: STACK_LIMIT // 3]}-{hashlib.sha256(template.encode()).hexdigest()[:_DURABLE]}"


def _hash(value: object) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
