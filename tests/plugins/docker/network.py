"""docker:index/network:Network over a real daemon."""

from __future__ import annotations

from typing import Final

from plugins.base import Asked, Difference
from plugins.bridge import Schema
from plugins.docker.daemon import Daemon, gone, raising, until_free
from plugins.values import Values, words

_NAMES: Final = words("attachable driver ingress internal ipamConfigs ipamDriver ipamOptions ipv6 labels name options")
NETWORK: Final = Schema(
    blank={**dict.fromkeys([*_NAMES, "id", "scope"]), "labels": []},
    meta={"schema_version": "1"},
    stables=tuple(_NAMES),
    defaults={"ipamDriver": "default"},
    computed=frozenset({"attachable", "driver", "ingress", "internal", "ipamConfigs", "ipv6", "options"}),
    elements={"ipamConfigs": {"auxAddress": {}, "gateway": "", "ipRange": "", "subnet": ""}},
    maps=frozenset({"auxAddress", "ipamOptions", "options"}),
    sets=frozenset({"ipamConfigs", "labels"}),
    outputs=frozenset({"scope"}),
    renamed={"ipamConfigs": "ipam_config"},
)


class Network:
    """Networks of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def check(self, news: Values, olds: Values, asked: Asked) -> tuple[Values, dict[str, str]]:
        return NETWORK.check(news, olds, asked), {}

    def diff(self, state: Values, news: Values, ignored: tuple[str, ...]) -> Difference:
        return NETWORK.diff(state, news, ignored)

    def plan(self, inputs: Values) -> Values:
        return NETWORK.plan(inputs)

    def create(self, inputs: Values) -> tuple[str, Values]:
        wanted, client = NETWORK.state(inputs), self._daemon.client
        with raising("Unable to create network", self._daemon.host):
            made = client.create_network(
                wanted["name"],
                driver=wanted["driver"],
                options=wanted["options"],
                ipam={
                    "Driver": wanted["ipamDriver"],
                    "Options": wanted["ipamOptions"] or {},
                    "Config": [_pool(each) for each in wanted["ipamConfigs"] or []],
                },
                check_duplicate=True,  # without it, an older daemon makes another one of the same name
                internal=bool(wanted["internal"]),
                labels={each["label"]: each["value"] for each in wanted["labels"]},
                enable_ipv6=bool(wanted["ipv6"]),
                attachable=wanted["attachable"],
                ingress=wanted["ingress"],
            )
            found = client.inspect_network(made["Id"])
        return str(made["Id"]), NETWORK.state(inputs, _facts(found))

    def read(self, identity: str, state: Values, inputs: Values) -> tuple[Values, Values] | None:
        client = self._daemon.client
        with raising("Unable to inspect network", self._daemon.host):
            found = gone(lambda: client.inspect_network(identity))
        return None if found is None else (NETWORK.state(state, _facts(found), was_read=True), inputs)

    def update(self, identity: str, state: Values, news: Values, *, preview: bool) -> Values:  # noqa: ARG002
        return NETWORK.change(state, news)

    def delete(self, identity: str, state: Values) -> None:  # noqa: ARG002
        client = self._daemon.client
        with raising("Unable to remove network", self._daemon.host):
            until_free(lambda: client.remove_network(identity), "has active endpoints")


def _pool(config: Values) -> Values:
    names = {"subnet": "Subnet", "ipRange": "IPRange", "gateway": "Gateway", "auxAddress": "AuxiliaryAddresses"}
    return {theirs: config[ours] for ours, theirs in names.items() if config.get(ours)}


def _facts(found: Values) -> Values:
    return {
        "id": found["Id"],
        "name": found["Name"],
        "attachable": found["Attachable"],
        "driver": found["Driver"],
        "ingress": found["Ingress"],
        "internal": found["Internal"],
        "ipamDriver": found["IPAM"]["Driver"],
        "ipamConfigs": [
            {
                "auxAddress": each.get("AuxiliaryAddresses") or {},
                "gateway": each.get("Gateway") or "",
                "ipRange": each.get("IPRange") or "",
                "subnet": each.get("Subnet") or "",
            }
            for each in found["IPAM"]["Config"]
        ],
        "ipv6": found["EnableIPv6"],
        "labels": [{"label": label, "value": value} for label, value in found["Labels"].items()],
        "options": found["Options"],
        "scope": found["Scope"],
    }
