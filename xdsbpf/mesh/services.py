"""Services as the mesh sees them: host, address, ports with their protocol.

One query per service, so that a change of one service recomputes that one. What is not supported
yet (headless, ExternalName, UDP...) is reported and left out; it is never half configured.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import ABSENT, Database, query
from xdsbpf.mesh.addresses import refusal, virtual_address
from xdsbpf.mesh.codes import inform, refuse, warn
from xdsbpf.mesh.inputs import SERVICES, SERVICES_BY_ADDRESS, SERVICES_BY_NAME, object_id, settings
from xdsbpf.model.kube import Service, ServicePort
from xdsbpf.model.names import service_host
from xdsbpf.model.scalars import lookup

EXPORT_TO: Final = "networking.istio.io/exportTo"


class Protocol(enum.StrEnum):
    """Application protocol of a port (istio-translation 3.2). AUTO is handled as TCP for now."""

    HTTP = "HTTP"
    HTTP2 = "HTTP2"
    GRPC = "GRPC"
    GRPC_WEB = "GRPC-Web"
    HTTP_PROXY = "HTTP_PROXY"
    TCP = "TCP"
    TLS = "TLS"
    HTTPS = "HTTPS"
    MONGO = "Mongo"
    REDIS = "Redis"
    MYSQL = "MySQL"
    AUTO = "auto"


HTTP_CLASS: Final = frozenset({Protocol.HTTP, Protocol.HTTP2, Protocol.GRPC, Protocol.GRPC_WEB, Protocol.HTTP_PROXY})
HTTP2_CLASS: Final = frozenset({Protocol.HTTP2, Protocol.GRPC, Protocol.GRPC_WEB})

_BY_NAME: Final = {
    "tcp": Protocol.TCP,
    "grpc": Protocol.GRPC,
    "grpc-web": Protocol.GRPC_WEB,
    "http": Protocol.HTTP,
    "http_proxy": Protocol.HTTP_PROXY,
    "http2": Protocol.HTTP2,
    "https": Protocol.HTTPS,
    "tls": Protocol.TLS,
    "mongo": Protocol.MONGO,
    "redis": Protocol.REDIS,
    "mysql": Protocol.MYSQL,
}
_APP_PROTOCOLS: Final = {
    "kubernetes.io/h2c": Protocol.HTTP2,
    "kubernetes.io/ws": Protocol.HTTP,
    "kubernetes.io/wss": Protocol.HTTPS,
}
_SERVER_FIRST_PORTS: Final = frozenset({25, 53, 3306, 27017})


class PortInfo(msgspec.Struct, frozen=True):
    """One TCP port of a service; `target_port` is a number or the name of a container port."""

    number: int
    name: str
    protocol: Protocol
    target_port: int | str

    @property
    def is_http(self) -> bool:
        """Whether requests can be told apart: routes and L7 policy apply."""
        return self.protocol in HTTP_CLASS

    @property
    def is_http2(self) -> bool:
        """Whether the servers speak HTTP/2 without negotiation."""
        return self.protocol in HTTP2_CLASS


class MeshService(msgspec.Struct, frozen=True):
    """A service that has a frontend: `address` is its virtual IPv4 address."""

    host: str
    namespace: str
    name: str
    object: ObjectId
    address: str
    ports: tuple[PortInfo, ...]

    def port(self, number: int) -> PortInfo | None:
        """The port with this number, or None."""
        for port in self.ports:
            if port.number == number:
                return port
        return None


def select_protocol(port: ServicePort) -> Protocol:
    """Protocol of a TCP service port from appProtocol or its name (istio-translation 3.2)."""
    special = _APP_PROTOCOLS.get(port.app_protocol.lower())
    if special is not None:
        return special
    name = (port.app_protocol or port.name).lower()
    if name.startswith("grpc-web"):
        return Protocol.GRPC_WEB
    known = _BY_NAME.get(name.partition("-")[0])
    if known is not None:
        return known
    return Protocol.TCP if port.port in _SERVER_FIRST_PORTS else Protocol.AUTO


def split_host(host: str, domain: str) -> tuple[str, str] | None:
    """(namespace, name) of `name.namespace.svc.<domain>`, or None for any other host."""
    ending = f".svc.{domain}"
    if not host.endswith(ending):
        return None
    name, dot, namespace = host.removesuffix(ending).partition(".")
    return (namespace, name) if dot and name and namespace and "." not in namespace else None


def host_namespace(db: Database, host: str) -> str:
    """Namespace of the service that `host` names; "" if it names none of Kubernetes' form."""
    found = split_host(host, settings(db).domain)
    return found[0] if found else ""


@query
def services(db: Database) -> tuple[MeshService, ...]:
    """All services that have a frontend, sorted by host. Cost of a change of one: a visit of each."""
    domain = settings(db).domain
    names = (service_host(name, namespace, domain) for namespace, name in db.bucket_keys(SERVICES_BY_NAME))
    return tuple(found for host in sorted(names) if (found := service(db, host)) is not None)


@query
def hosts(db: Database) -> tuple[str, ...]:
    """Hosts of all services that have a frontend, sorted."""
    return tuple(found.host for found in services(db))


@query
def service(db: Database, host: str) -> MeshService | None:
    """The service of a host; None if there is none, or none that is supported (reported then)."""
    found = split_host(host, settings(db).domain)
    if found is None:
        return None
    id = object_id("Service", *found)
    manifest = db.input(SERVICES, id)
    if manifest is ABSENT:
        return None
    db.cite(Origin(id, "spec"))
    if not _is_supported_kind(db, id, manifest):
        return None
    address = _address(db, id, manifest)
    if not address:
        return None
    _report_unsupported_fields(db, id, manifest)
    return MeshService(host, *found, id, address, _ports(db, id, manifest))


def _is_supported_kind(db: Database, id: ObjectId, manifest: Service) -> bool:
    if manifest.spec.type == "ExternalName":
        warn(db, "XB2001", id, "spec.type", "ExternalName is not supported yet: the service has no frontend")
        return False
    if manifest.spec.cluster_ip == "None":
        warn(
            db,
            "XB2001",
            id,
            "spec.clusterIP",
            "headless services are not supported yet: clients reach the pods directly",
        )
        return False
    return True


def _address(db: Database, id: ObjectId, manifest: Service) -> str:
    """The service's IPv4 address, or "" with a finding."""
    spec = manifest.spec
    address = spec.cluster_ip or (spec.cluster_ips or ("",))[0]
    if not address:
        return virtual_address(db, manifest.namespace, manifest.name)
    reason = refusal(address)
    if reason:
        refuse(db, "XB2004", id, "spec.clusterIP", f"{address} {reason}: the service has no frontend")
        return ""
    owner = db.bucket(SERVICES_BY_ADDRESS, address)[0]
    if owner.id != id:
        refuse(
            db,
            "XB2004",
            id,
            "spec.clusterIP",
            f"SHADOWED-BY {owner.id}: it is older and has the same address {address}",
            "give each service its own clusterIP",
        )
        return ""
    return address


def _report_unsupported_fields(db: Database, id: ObjectId, manifest: Service) -> None:
    spec = manifest.spec
    for is_set, path, text in (
        (spec.type == "NodePort", "spec.type", "node ports are not opened; the clusterIP works"),
        (
            spec.type == "LoadBalancer",
            "spec.type",
            "load balancer addresses are not served; the clusterIP works",
        ),
        (bool(spec.external_ips), "spec.externalIPs", "external addresses are not served"),
        (
            spec.session_affinity == "ClientIP",
            "spec.sessionAffinity",
            "connections are not kept on one endpoint",
        ),
        (
            spec.internal_traffic_policy == "Local",
            "spec.internalTrafficPolicy",
            "endpoints on other nodes are used as well",
        ),
        (
            spec.publish_not_ready_addresses,
            "spec.publishNotReadyAddresses",
            "endpoints are used as the conditions in their EndpointSlice say",
        ),
        (len(spec.cluster_ips) > 1, "spec.clusterIPs", "only the first address is served"),
        (
            lookup(manifest.metadata.annotations, EXPORT_TO) not in (None, "*"),
            f"metadata.annotations[{EXPORT_TO}]",
            "clients of every namespace see the service",
        ),
    ):
        if is_set:
            warn(db, "XB2003", id, path, f"not supported yet: {text}")


def _ports(db: Database, id: ObjectId, manifest: Service) -> tuple[PortInfo, ...]:
    ports: list[PortInfo] = []
    for position, port in enumerate(manifest.spec.ports):
        path = f"spec.ports[{position}]"
        if port.protocol != "TCP":
            text = f"{port.protocol} is not supported yet: port {port.port} has no frontend"
            warn(db, "XB2002", id, f"{path}.protocol", text)
            continue
        if any(other.number == port.port for other in ports):
            refuse(db, "XB2007", id, path, f"TCP port {port.port} is listed twice: the first one counts")
            continue
        protocol = select_protocol(port)
        if protocol is Protocol.AUTO:
            inform(
                db,
                "XB2005",
                id,
                f"{path}.name",
                f"the protocol of port {port.port} is not declared: it is TCP, HTTP routes do not apply",
                "name the port http-..., http2-..., grpc-... or tcp-..., or set appProtocol",
            )
        ports.append(PortInfo(port.port, port.name, protocol, port.target_port or port.port))
    return tuple(ports)


@query
def service_ports(db: Database) -> tuple[tuple[str, int], ...]:
    """(host, port) of every port that has a frontend, sorted."""
    return tuple((found.host, number) for found in services(db) for number in sorted(p.number for p in found.ports))


@query
def http_ports(db: Database) -> tuple[tuple[str, int], ...]:
    """(host, port) of every port of the HTTP class, whichever plane carries it, sorted."""
    return tuple(
        (found.host, number) for found in services(db) for number in sorted(p.number for p in found.ports if p.is_http)
    )


@query
def tcp_ports(db: Database) -> tuple[tuple[str, int], ...]:
    """(host, port) of every other port that has a frontend, sorted."""
    return tuple(
        (found.host, port) for found in services(db) for port in sorted(p.number for p in found.ports if not p.is_http)
    )
