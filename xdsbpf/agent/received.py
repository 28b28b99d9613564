"""Datapath resources as they were received: the last good value and version of each.

Decoded xDS responses in, `DesiredState` and per-resource errors out. Owned by the agent's main loop, fed by
the client. Pure: no streams, no clock.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Set
from typing import cast

from xdsbpf.agent.desired import (
    Backends,
    DatapathValue,
    DesiredState,
    Enrolled,
    Frontend,
    Identity,
    NodeConfig,
    Policy,
    ResourceRejected,
    decode,
)
from xdsbpf.agent.ops import Cause
from xdsbpf.model.names import BACKENDS, DATAPATH_TYPES, FRONTEND, IDENTITY, NODE_CONFIG, POLICY
from xdsbpf.xds.protocol import ReceivedResponse


class Received:
    """What the control plane says, by type and name.

    A resource that is rejected changes nothing: its previous value and version stay, so that after a
    reconnect the server sees what is really held and sends the other one again. `rejections` are those
    that are still in effect: (type URL, name) to reason. A frontend that comes as a bare name exists, but
    its content is withheld for now: it is no content and no removal (`DesiredState.kept`).
    """

    def __init__(self, node: str) -> None:
        """`node` is the only NodeConfig name that this agent takes."""
        self._node = node
        self._values: dict[str, dict[str, DatapathValue]] = {type_url: {} for type_url in DATAPATH_TYPES}
        self._versions: dict[str, dict[str, str]] = {type_url: {} for type_url in DATAPATH_TYPES}
        self.rejections: dict[Cause, str] = {}
        self._kept: set[str] = set()
        self._changed: set[Cause] = set()

    def is_news(self, response: ReceivedResponse) -> bool:
        """Whether it names a resource of which nothing is known; ask before `accept`."""
        values = self._values.get(response.type_url, {})
        return any(item.name not in values and item.name not in self._kept for item in response.resources)

    def accept(self, response: ReceivedResponse) -> dict[str, str]:
        """Take over one response. Returns: reason by name of each resource that was rejected."""
        if response.type_url not in self._values:
            return {"": f"type {response.type_url} was not asked for"}
        values, versions = self._values[response.type_url], self._versions[response.type_url]
        rejected: dict[str, str] = {}
        for resource in response.resources:
            if resource.body is None and not resource.version and response.type_url == FRONTEND:
                if resource.name not in values:
                    self._kept.add(resource.name)
                continue
            try:
                value = self._decode(resource.type_url, response.type_url, resource.name, resource.body)
            except ResourceRejected as err:
                rejected[err.name] = self.rejections[response.type_url, err.name] = str(err)
                continue
            self._forget(response.type_url, resource.name)
            values[resource.name] = value
            versions[resource.name] = resource.version
        for name in response.removed:
            values.pop(name, None)
            versions.pop(name, None)
            self._forget(response.type_url, name)
        return rejected

    def _forget(self, type_url: str, name: str) -> None:
        """A resource came or went: what was said of it before is no longer so."""
        self.rejections.pop((type_url, name), None)
        if type_url == FRONTEND:
            self._kept.discard(name)
        self._changed.add((type_url, name))

    def claims(self, type_url: str, failed: Container[Cause]) -> dict[str, str]:
        """The initial_resource_versions of a reconnect: name to version of what is in force.

        What is known by name only (withheld, rejected, or in `failed`: refused by the kernel) has the empty
        version, which no content has: the server sends it again, and says if it has gone meanwhile.
        """
        versions = self._versions[type_url]
        claims = {name: "" for kind, name in self.rejections if kind == type_url}
        if type_url == FRONTEND:
            claims.update(dict.fromkeys(self._kept, ""))
        return claims | {name: "" if (type_url, name) in failed else versions[name] for name in versions}

    def take_changed(self) -> Set[Cause]:
        """The resources that came or went since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def desired(self, enrolled: tuple[Enrolled, ...]) -> DesiredState:
        """The state to plan for, with this node's enrolled workloads: a view that follows what is received."""
        return DesiredState(
            frontends=cast(Mapping[str, Frontend], self._values[FRONTEND]),
            backends=cast(Mapping[str, Backends], self._values[BACKENDS]),
            identities=cast(Mapping[str, Identity], self._values[IDENTITY]),
            policies=cast(Mapping[str, Policy], self._values[POLICY]),
            node=self.node_config(),
            enrolled=enrolled,
            kept=self._kept,
        )

    def node_config(self) -> NodeConfig | None:
        """This node's configuration, None before it came."""
        return cast("NodeConfig | None", self._values[NODE_CONFIG].get(self._node))

    def _decode(self, type_url: str, expected: str, name: str, body: bytes | None) -> DatapathValue:
        if body is None:
            raise ResourceRejected(name, "the resource has no body")
        if type_url != expected:
            raise ResourceRejected(name, f"a {type_url} in a response of {expected}")
        if expected == NODE_CONFIG and name != self._node:
            raise ResourceRejected(name, f"this agent is of node {self._node}")
        return decode(type_url, name, body)
