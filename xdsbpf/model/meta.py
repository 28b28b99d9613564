"""Object metadata and the base of every manifest kind."""

from __future__ import annotations

import msgspec

from xdsbpf.diagnostics import ObjectId
from xdsbpf.model.scalars import Labels, Shared, SharedLabels, Timestamp


class ObjectMeta(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The part of Kubernetes' metadata that is read; the rest is ignored."""

    name: str
    namespace: Shared = ""
    labels: SharedLabels = ()
    annotations: Labels = ()
    creation_timestamp: Timestamp | None = None
    uid: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every kind. `GROUP` and `KIND` are set by the subclass; `STRICT` refuses unknown fields."""

    metadata: ObjectMeta

    @property
    def id(self) -> ObjectId:
        """Kind, namespace and name of this object."""
        kind, metadata = type(self).__name__, self.metadata
        return ObjectId(kind, metadata.namespace, metadata.name, GROUPS.get(kind, ""))

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def name(self) -> str:
        return self.metadata.name


GROUPS = {
    "Deployment": "apps",
    "EndpointSlice": "discovery.k8s.io",
    "VirtualService": "networking.istio.io",
    "DestinationRule": "networking.istio.io",
    "AuthorizationPolicy": "security.istio.io",
    "EnvoyResource": "envoy",
}
"""API group of each kind that has one; core kinds are not listed."""


def age_order(manifest: Manifest) -> str:
    """Sort key: creation time (objects without one last), namespace, name; never arrival.

    One text, as texts are compared at a fraction of the cost of tuples: no character is less than the separator.
    """
    meta = manifest.metadata
    created = "~" if meta.creation_timestamp is None else meta.creation_timestamp
    return f"{created}\0{meta.namespace}\0{meta.name}"
