"""docker:index/volume:Volume over a real daemon."""

from __future__ import annotations

from typing import Final

from plugins.base import Asked, Difference
from plugins.bridge import Schema
from plugins.docker.daemon import Daemon, gone, raising, until_free
from plugins.values import Values

VOLUME: Final = Schema(
    blank={**dict.fromkeys(("cluster", "driver", "driverOpts", "id", "mountpoint", "name")), "labels": []},
    meta={"schema_version": "1"},
    stables=("driver", "driverOpts", "labels", "name"),
    computed=frozenset({"driver"}),
    single=frozenset({"cluster"}),
    maps=frozenset({"driverOpts"}),
    sets=frozenset({"labels"}),
    outputs=frozenset({"mountpoint"}),
)


class Volume:
    """Volumes of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def check(self, news: Values, olds: Values, asked: Asked) -> tuple[Values, dict[str, str]]:
        return VOLUME.check(news, olds, asked), {}

    def diff(self, state: Values, news: Values, ignored: tuple[str, ...]) -> Difference:
        return VOLUME.diff(state, news, ignored)

    def plan(self, inputs: Values) -> Values:
        return VOLUME.plan(inputs)

    def create(self, inputs: Values) -> tuple[str, Values]:
        wanted, client = VOLUME.state(inputs), self._daemon.client
        labels = {each["label"]: each["value"] for each in wanted["labels"]}
        with raising("Unable to create volume", self._daemon.host):
            found = client.create_volume(wanted["name"], wanted["driver"], wanted["driverOpts"], labels)
        return str(found["Name"]), VOLUME.state(inputs, _facts(found))

    def read(self, identity: str, state: Values, inputs: Values) -> tuple[Values, Values] | None:
        client = self._daemon.client
        with raising("Unable to inspect volume", self._daemon.host):
            found = gone(lambda: client.inspect_volume(identity))
        return None if found is None else (VOLUME.state(state, _facts(found), was_read=True), inputs)

    def update(self, identity: str, state: Values, news: Values, *, preview: bool) -> Values:  # noqa: ARG002
        return VOLUME.change(state, news)

    def delete(self, identity: str, state: Values) -> None:  # noqa: ARG002
        client = self._daemon.client
        with raising("Unable to remove volume", self._daemon.host):
            until_free(lambda: client.remove_volume(identity, force=True), "volume is in use")


def _facts(found: Values) -> Values:
    return {
        "id": found["Name"],
        "name": found["Name"],
        "driver": found["Driver"],
        "labels": [{"label": label, "value": value} for label, value in (found["Labels"] or {}).items()],
        "mountpoint": found["Mountpoint"],
        **({"driverOpts": found["Options"]} if found["Options"] else {}),
    }
