"""How plugins behave that Pulumi's Terraform bridge makes of a Terraform provider, learnt from recorded calls.

`__defaults` in inputs and the delta to Terraform's own state are explained in pkg/tfbridge of
https://github.com/pulumi/pulumi-terraform-bridge; the order of sets in cty, https://github.com/zclconf/go-cty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from plugins.base import Asked, Difference
from plugins.values import UNKNOWN, Values

_DEFAULTS: Final = "__defaults"
_DELTA: Final = "__pulumi_raw_state_delta"
_META: Final = "__meta"


def one_error(message: str) -> str:
    """How the bridge words a provider's error."""
    return f"1 error occurred:\n\t* {message}\n\n"


@dataclass(frozen=True)
class Schema:
    """What the bridge knows of a resource's properties.

    blank      the outputs of which nothing is known; a default that Check does not fill in is among them
    defaults   what Check fills in; `nested` the same for the objects in a property
    computed   outputs that the provider chooses where the inputs do not say
    unread     what is kept as it was created: a state that lacks one of these is not as the program wants it
    chosen     what the provider chooses in the objects of a property where the inputs do not say
    elements   the objects in a property, with the values that stand for what was not said
    single     properties that hold one object, which is a list of one in Terraform; `maps` have free keys
    sets       properties without an order of their own, also within objects
    outputs    what no input says
    renamed    Terraform's names that are not just ours in snake case
    stables    properties that cannot change in place, in the published order
    """

    blank: Values
    meta: Mapping[str, Any]
    stables: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    nested: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    computed: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()
    chosen: Mapping[str, str] = field(default_factory=dict)
    elements: Mapping[str, Values] = field(default_factory=dict)
    single: frozenset[str] = frozenset()
    maps: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    delete_first: bool = False

    def check(self, news: Values, olds: Values, asked: Asked) -> Values:
        """The inputs with defaults, and a name of their own where they have none."""
        inputs = {name: self._mark(name, value) for name, value in news.items()}
        missing = {name: value for name, value in self.defaults.items() if inputs.get(name) is None}
        if inputs.get("name") is None:
            made = "name" in olds.get(_DEFAULTS, ())
            seed = asked.seed or asked.urn.encode()
            missing["name"] = olds["name"] if made else f"{asked.name}-{hashlib.sha256(seed).hexdigest()[:7]}"
        return {**inputs, **missing, _DEFAULTS: sorted(missing)}

    def _mark(self, name: str, value: Any) -> Any:  # noqa: ANN401 - any of JSON's types
        if isinstance(value, list):
            return [self._mark(name, each) for each in value]
        if not isinstance(value, dict) or name in self.maps:
            return value
        missing = {key: default for key, default in self.nested.get(name, {}).items() if value.get(key) is None}
        marked = {key: self._mark(key, each) for key, each in value.items()}
        return {**marked, **missing, _DEFAULTS: sorted(missing)}

    def state(self, *parts: Values, was_read: bool = False) -> Values:
        """The outputs: of several parts the later ones win. Where it was read, what nobody said is empty, not null."""
        state = {name: None if was_read and name in self.unread else value for name, value in self.blank.items()}
        for part in parts:
            state |= {name: self._whole(name, value) for name, value in part.items() if name not in {_DEFAULTS, _DELTA}}
        if was_read:
            state = {name: self._said(name, value) for name, value in state.items()}
        delta: Values = {name: made for name, value in state.items() if (made := self._part(name, value)) is not None}
        for name in (self.single & self.blank.keys()) - (frozenset() if was_read else self.computed):
            delta.setdefault(name, {"plu": {"i": {}}})
        whole: Values = {"ps": delta} if delta else {}
        whole |= {"renamed": dict(self.renamed)} if self.renamed else {}
        return {**state, _META: json.dumps(self.meta, separators=(",", ":")), _DELTA: {"obj": whole}}

    def _whole(self, name: str, value: Any) -> Any:  # noqa: ANN401
        """A value with all that belongs in it, as a set in its order."""
        if isinstance(value, list):
            values = [self._whole(name, each) for each in value]
            return ordered(values) if name in self.sets else values
        if not isinstance(value, dict) or name in self.maps:
            return value
        blank = {key: None if each in (False, 0) else each for key, each in self.elements.get(name, {}).items()}
        return blank | {key: self._whole(key, each) for key, each in value.items() if key != _DEFAULTS}

    def _said(self, name: str, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, list) and name in self.elements:
            blank = self.elements[name]
            return [{key: blank.get(key) if each is None else each for key, each in item.items()} for item in value]
        if value is None and name in (self.maps | self.sets) - self.unread:
            return {} if name in self.maps else []
        return value

    def plan(self, inputs: Values) -> Values:
        """The outputs of a resource that is yet to be created."""
        unsaid = [name for name in (*self.computed, *self.outputs) if inputs.get(name) is None]
        return {**self.state(inputs), **dict.fromkeys(unsaid, UNKNOWN), "id": UNKNOWN}

    def change(self, state: Values, news: Values) -> Values:
        """The outputs after an update in place: an input that is not there any more is blank, unless computed."""
        kept = {name: state.get(name) for name in (*self.computed, *self.outputs, "id")}
        return self.state(kept, news)

    def diff(self, state: Values, news: Values, ignored: tuple[str, ...]) -> Difference:
        """What would change. Null, and what is empty or zero, are the same to Terraform."""
        kinds = {}
        for name in sorted({*self.blank, *news} - self.outputs - {_DEFAULTS, _META, _DELTA, "id"} - {*ignored}):
            kind = self._kind(name, state.get(name), news.get(name))
            if kind is not None and "*" not in ignored:
                kinds[name] = f"{kind}_REPLACE" if name in self.stables else kind
        return Difference(kinds, self.stables, self.delete_first)

    def _kind(self, name: str, old: Any, new: Any) -> str | None:  # noqa: ANN401
        was, will_be = self._essence(name, self._compared(name, old, new)), self._essence(name, new)
        if will_be is None:
            if old is None and (name in self.unread or self.blank.get(name) in (False, 0)):
                return "ADD"  # of a value that Terraform would compute, or of a default
            return None if was is None or name in self.computed else "DELETE"
        if was is None:
            return "ADD"
        return None if was == will_be else "UPDATE"

    def _compared(self, name: str, old: Any, new: Any) -> Any:  # noqa: ANN401
        """A value without what was chosen because nobody had said it, and nobody says it now."""
        chosen = self.chosen.get(name)
        if chosen is None or not isinstance(old, list) or not isinstance(new, list) or len(old) != len(new):
            return old
        return [
            {key: each for key, each in was.items() if key != chosen or key in will_be}
            for was, will_be in zip(old, new, strict=True)
        ]

    def _essence(self, name: str, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict) and name not in self.maps:
            items = {key: self._essence(key, each) for key, each in value.items() if key != _DEFAULTS}
            return {key: each for key, each in items.items() if each is not None} or None
        if isinstance(value, list):
            values = [self._essence(name, each) if isinstance(each, dict) else each for each in value]
            return (ordered(values) if name in self.sets else values) or None
        return value or None

    def _part(self, name: str, value: Any) -> Values | None:  # noqa: ANN401
        """What the bridge needs to make Terraform's own value of an output; None where it is just that."""
        if isinstance(value, dict):
            whole = {"map": {}} if name in self.maps else self._object(value)
            return {"plu": {"i": whole}} if name in self.single else whole
        if not isinstance(value, list):
            return None
        elements = {str(at): self._object(each) for at, each in enumerate(value) if isinstance(each, dict)}
        return {"arr": {"el": elements} if elements else {}}

    def _object(self, value: Values) -> Values:
        parts = {key: delta for key, each in value.items() if (delta := self._part(key, each)) is not None}
        return {"obj": {"ps": parts} if parts else {}}


def ordered(values: list[Any]) -> list[Any]:
    """A set in cty's order: text by text, objects by their values in the order of their names; each once."""
    return sorted({_rank(each): each for each in values}.values(), key=_rank)


def _rank(value: Any) -> str:  # noqa: ANN401
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)
