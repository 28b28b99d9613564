"""Datapath resources as they were received: the last good value and version of each.

Decoded xDS responses in, `DesiredState` and per-resource errors out. Owned by the agent's main loop, fed by
the client. Pure: no streams, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

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
from xdsbpf.model.names import BACKENDS, DATAPATH_TYPES, FRONTEND, IDENTITY, NODE_CONFIG, POLICY
from xdsbpf.xds.protocol import ReceivedResponse

T = TypeVar("T", bound=DatapathValue)


class Received:
    """What the control plane says, by type and name.

    A resource that is rejected changes nothing: its previous value and version stay, so that after a
    reconnect the server sees what is really held and sends the other one again. `rejections` are those
    that are still in effect: (type URL, name) to reason.
    """

    def __init__(self, node: str) -> None:
        """`node` is the only NodeConfig name that this agent takes."""
        self._node = node
        self._values: dict[str, dict[str, DatapathValue]] = {type_url: {} for type_url in DATAPATH_TYPES}
        self._versions: dict[str, dict[str, str]] = {type_url: {} for type_url in DATAPATH_TYPES}
        self.rejections: dict[tuple[str, str], str] = {}

    def accept(self, response: ReceivedResponse) -> dict[str, str]:
        """Take over one response. Returns: reason by name of each resource that was rejected."""
        if response.type_url not in self._values:
            return {"": f"type {response.type_url} was not asked for"}
        values, versions = self._values[response.type_url], self._versions[response.type_url]
        rejected: dict[str, str] = {}
        for resource in response.resources:
            try:
                value = self._decode(resource.type_url, response.type_url, resource.name, resource.body)
            except ResourceRejected as err:
                rejected[err.name] = self.rejections[response.type_url, err.name] = str(err)
                continue
            self.rejections.pop((response.type_url, resource.name), None)
            values[resource.name] = value
            versions[resource.name] = resource.version
        for name in response.removed:
            values.pop(name, None)
            versions.pop(name, None)
            self.rejections.pop((response.type_url, name), None)
        return rejected

    def versions(self, type_url: str) -> Mapping[str, str]:
        """Version by name of what is held: the initial_resource_versions of a reconnect."""
        return self._versions[type_url]

    def desired(self, enrolled: tuple[Enrolled, ...]) -> DesiredState:
        """The state to plan for, with this node's enrolled workloads. Cost: O(resources)."""
        return DesiredState(
            frontends=self._of(FRONTEND, Frontend),
            backends=self._of(BACKENDS, Backends),
            identities=self._of(IDENTITY, Identity),
            policies=self._of(POLICY, Policy),
            node=self.node_config(),
            enrolled=enrolled,
        )

    def node_config(self) -> NodeConfig | None:
        """This node's configuration, None before it came."""
        return self._of(NODE_CONFIG, NodeConfig).get(self._node)

    def _decode(self, type_url: str, expected: str, name: str, body: bytes | None) -> DatapathValue:
        if body is None:
            raise ResourceRejected(name, "the resource has no body")
        if type_url != expected:
            raise ResourceRejected(name, f"a {type_url} in a response of {expected}")
        if expected == NODE_CONFIG and name != self._node:
            raise ResourceRejected(name, f"this agent is of node {self._node}")
        return decode(type_url, name, body)

    def _of(self, type_url: str, kind: type[T]) -> dict[str, T]:
        return {name: value for name, value in self._values[type_url].items() if isinstance(value, kind)}
