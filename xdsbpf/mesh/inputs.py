"""The inputs of the mesh: one table per manifest kind, the buckets over them, the mesh-wide settings.

`put_object` and `remove_object` are the only place that maps a kind to its table; `serve` and the
command line call them for what the sources yield. Kinds without a table are ignored here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from xdsbpf.diagnostics import ObjectId
from xdsbpf.incremental import ABSENT, Absent, Database, Index, Table, query
from xdsbpf.model.authorization_policy import AuthorizationPolicy
from xdsbpf.model.destination_rule import DestinationRule
from xdsbpf.model.envoy_resource import EnvoyResource
from xdsbpf.model.kube import EndpointSlice, Namespace, Node, Pod, Service
from xdsbpf.model.meta import GROUPS, Manifest, age_order
from xdsbpf.model.scalars import lookup
from xdsbpf.model.virtual_service import VirtualService

if TYPE_CHECKING:
    from xdsbpf.incremental.changes import Change


class MeshSettings(msgspec.Struct, frozen=True):
    """Settings of the whole mesh.

    `service_cidr` is the range of addresses for services without one (reserved class E space: it
    never leaves a host). `strict` turns off what Istio allows and we advise against. With
    `registry_only` sidecars refuse destinations that are no service of the mesh (outboundTrafficPolicy).
    """

    trust_domain: str = "cluster.local"
    domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    service_cidr: str = "240.240.0.0/16"
    strict: bool = False
    registry_only: bool = False


SETTINGS = Table[str, MeshSettings]("settings")
SERVICES = Table[ObjectId, Service]("services", order=age_order)
ENDPOINT_SLICES = Table[ObjectId, EndpointSlice]("endpoint_slices", order=age_order)
PODS = Table[ObjectId, Pod]("pods", order=age_order)
NODES = Table[ObjectId, Node]("nodes", order=age_order)
NAMESPACES = Table[ObjectId, Namespace]("namespaces", order=age_order)
VIRTUAL_SERVICES = Table[ObjectId, VirtualService]("virtual_services", order=age_order)
DESTINATION_RULES = Table[ObjectId, DestinationRule]("destination_rules", order=age_order)
AUTHORIZATION_POLICIES = Table[ObjectId, AuthorizationPolicy]("authorization_policies", order=age_order)
ENVOY_RESOURCES = Table[ObjectId, EnvoyResource]("envoy_resources", order=age_order)

PATCHED_TYPES = Table[str, str]("patched_types")
"""type URL -> the plug-in that patches resources of that type; fixed for the life of a process."""

MESH: Final = "mesh"
"""The one key of SETTINGS."""

SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
"""Label of an EndpointSlice that names its service."""


def host_key(host: str, namespace: str) -> tuple[str, str]:
    """Bucket key of a host as written in an object of `namespace`.

    ("suffix", ".example.com") for `*.example.com`, ("suffix", "") for `*`; ("host", "reviews.default") for any host
    with these first two labels, and for the short name `reviews`: its full form depends on a setting. So who reads
    that bucket compares with `full_host`. One bucket per host, as each costs a cell.
    """
    host = host.lower()
    if host.startswith("*"):
        return ("suffix", host[1:])
    return exact_key(host if "." in host else f"{host}.{namespace}")


def exact_key(host: str) -> tuple[str, str]:
    """Bucket key of the objects that name a full host itself."""
    first, _, rest = host.partition(".")
    return ("host", f"{first}.{rest.partition('.')[0]}")


def parent_suffix(host: str) -> str:
    """What the wildcards that cover a host have in common: `.default.svc.cluster.local`."""
    return host[host.index(".") :] if "." in host else ""


def suffix_keys(suffix: str) -> tuple[tuple[str, str], ...]:
    """Bucket keys of the wildcards that cover `*<suffix>`, the most specific first.

    Wildcards are looked up at label boundaries: one bucket per suffix label. Hosts of one namespace share a suffix:
    a query of it spares each of them the reads of all its buckets.
    """
    keys: list[tuple[str, str]] = []
    while suffix:
        keys.append(("suffix", suffix))
        dot = suffix.find(".", 1)
        suffix = suffix[dot:] if dot > 0 else ""
    return (*keys, ("suffix", ""))


def _slice_service(slice_: EndpointSlice) -> tuple[tuple[str, str], ...]:
    name = lookup(slice_.metadata.labels, SERVICE_NAME_LABEL)
    return ((slice_.metadata.namespace, name),) if name else ()


def _needs_address(service: Service) -> tuple[tuple[str, str], ...]:
    spec = service.spec
    needs = spec.type != "ExternalName" and not spec.cluster_ip and not spec.cluster_ips
    return ((service.namespace, service.name),) if needs else ()


def _cluster_addresses(service: Service) -> tuple[str, ...]:
    address = service.spec.cluster_ip or (service.spec.cluster_ips or ("",))[0]
    return (address,) if address and address != "None" and service.spec.type != "ExternalName" else ()


def has_own_address(pod: Pod) -> bool:
    """Whether the pod's addresses are its own: not the host's, and not given up by a finished pod."""
    return not pod.spec.host_network and pod.status.phase not in ("Succeeded", "Failed")


def _own_addresses(pod: Pod) -> tuple[str, ...]:
    return pod.addresses if has_own_address(pod) else ()


SERVICES_BY_NAME = Index("services_by_name", SERVICES, keys=lambda v: ((v.namespace, v.name),))
SERVICES_WITHOUT_ADDRESS = Index("services_without_address", SERVICES, keys=_needs_address)
SERVICES_BY_ADDRESS = Index("services_by_address", SERVICES, keys=_cluster_addresses)
SLICES_BY_SERVICE = Index("slices_by_service", ENDPOINT_SLICES, keys=_slice_service)
PODS_BY_KIND = Index("pods_by_kind", PODS, keys=lambda v: ((v.metadata.namespace, v.metadata.labels),))
PODS_BY_NODE = Index("pods_by_node", PODS, keys=lambda v: (v.spec.node_name,) if v.spec.node_name else ())
PODS_BY_ACCOUNT = Index("pods_by_account", PODS, keys=lambda v: ((v.metadata.namespace, v.service_account),))
PODS_BY_ADDRESS = Index("pods_by_address", PODS, keys=_own_addresses)
"""Read it for addresses that are asked for by name or are shared: a read of every pod's bucket is a cell per pod."""
NODES_BY_NAME = Index("nodes_by_name", NODES, keys=lambda v: (v.name,))
VIRTUAL_SERVICES_BY_HOST = Index(
    "virtual_services_by_host",
    VIRTUAL_SERVICES,
    keys=lambda v: tuple(dict.fromkeys(host_key(host, v.namespace) for host in v.spec.hosts)),
)
VIRTUAL_SERVICES_BY_NAME = Index("virtual_services_by_name", VIRTUAL_SERVICES, keys=lambda v: ((v.namespace, v.name),))
DESTINATION_RULES_BY_HOST = Index(
    "destination_rules_by_host", DESTINATION_RULES, keys=lambda v: (host_key(v.spec.host, v.namespace),)
)
DESTINATION_RULES_BY_NAME = Index(
    "destination_rules_by_name", DESTINATION_RULES, keys=lambda v: ((v.namespace, v.name),)
)
POLICIES_BY_NAMESPACE = Index("policies_by_namespace", AUTHORIZATION_POLICIES, keys=lambda v: (v.namespace,))

_TABLES_BY_KIND: Final[dict[str, Table[ObjectId, Any]]] = {
    "Service": SERVICES,
    "EndpointSlice": ENDPOINT_SLICES,
    "Pod": PODS,
    "Node": NODES,
    "Namespace": NAMESPACES,
    "VirtualService": VIRTUAL_SERVICES,
    "DestinationRule": DESTINATION_RULES,
    "AuthorizationPolicy": AUTHORIZATION_POLICIES,
    "EnvoyResource": ENVOY_RESOURCES,
}
_TABLES: Final = {(kind, GROUPS.get(kind, "")): table for kind, table in _TABLES_BY_KIND.items()}


def put_object(change: Change, id: ObjectId, manifest: Manifest) -> bool:
    """Put a manifest into the table of its kind; False for a kind without a table (ServiceAccount...)."""
    table = table_of(id)
    if table is None:
        return False
    change.put(table, id, manifest)
    return True


def remove_object(change: Change, id: ObjectId) -> bool:
    """Remove an object from the table of its kind; False for a kind without a table."""
    table = table_of(id)
    if table is None:
        return False
    change.remove(table, id)
    return True


def table_of(id: ObjectId) -> Table[ObjectId, Any] | None:
    """The table of its kind; None for a kind without one."""
    return _TABLES.get((id.kind, id.group))


def get_object(db: Database, id: ObjectId) -> Manifest | Absent | None:
    """What the table of its kind holds of an object; None for a kind without a table."""
    table = table_of(id)
    return None if table is None else db.input(table, id)


def object_id(kind: str, namespace: str, name: str) -> ObjectId:
    """The id of an object of a kind that has a table."""
    return ObjectId(kind, namespace, name, GROUPS.get(kind, ""))


@query
def settings(db: Database) -> MeshSettings:
    """The mesh-wide settings; the defaults where none were put."""
    value = db.input(SETTINGS, MESH)
    return MeshSettings() if value is ABSENT else value
