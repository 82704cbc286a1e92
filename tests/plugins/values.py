"""Values as they travel between an engine and a plugin."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import struct_pb2

Values = dict[str, Any]

UNKNOWN: Final = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""What stands in a preview for a value that is known only afterwards: plugin.UnknownStringValue of Pulumi's SDK."""


def words(text: str) -> list[str]:
    """The words of a text: for lists of names that are too long to be quoted one by one."""
    return text.split()


def plain(message: struct_pb2.Struct) -> Values:
    """A message as Python's own values; a number without a fraction is an int."""
    return {name: _plain(value) for name, value in message.fields.items()}


def _plain(value: struct_pb2.Value) -> Any:  # noqa: ANN401 - any of JSON's types
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind == "struct_value":
        return plain(value.struct_value)
    if kind == "list_value":
        return [_plain(each) for each in value.list_value.values]
    return None if kind in {None, "null_value"} else getattr(value, kind)


def struct(values: Values) -> struct_pb2.Struct:
    """A message that holds these values."""
    message = struct_pb2.Struct()
    message.update(values)
    return message
