"""Everything there is to say about the manifests: one query that asks every question once.

Findings are reported where a value is computed; this query makes sure that every object is looked
at, also one that nothing refers to. `db.diagnostics(findings)` is the list that `analyze` prints.
"""

from __future__ import annotations

from xdsbpf.diagnostics import ObjectId
from xdsbpf.incremental import ABSENT, Database, query
from xdsbpf.mesh.codes import did_you_mean, warn
from xdsbpf.mesh.destination_rules import destination_rule
from xdsbpf.mesh.endpoints import endpoints, subset_endpoints
from xdsbpf.mesh.identities import identities, known_nodes, proxy_address
from xdsbpf.mesh.inputs import (
    DESTINATION_RULES,
    DESTINATION_RULES_BY_NAME,
    POLICIES_BY_NAMESPACE,
    SERVICES_BY_NAME,
    VIRTUAL_SERVICES,
    VIRTUAL_SERVICES_BY_NAME,
    object_id,
    settings,
)
from xdsbpf.mesh.policy_groups import policy_groups
from xdsbpf.mesh.policy_rules import policy_rules
from xdsbpf.mesh.policy_tables import policy_table
from xdsbpf.mesh.routes import http_routes
from xdsbpf.mesh.services import hosts, service, service_ports
from xdsbpf.mesh.traffic_mode import traffic_mode
from xdsbpf.mesh.virtual_services import is_for_mesh
from xdsbpf.mesh.weights import weighted_endpoints
from xdsbpf.model.names import full_host, service_host


@query
def findings(db: Database) -> bool:
    """True; read for its diagnostics. Cost: every mesh query once, then what changed."""
    domain = settings(db).domain
    for namespace, name in db.bucket_keys(SERVICES_BY_NAME):
        service(db, service_host(name, namespace, domain))
    for host, port in service_ports(db):
        service_port_findings(db, host, port)
    for namespace, name in db.bucket_keys(VIRTUAL_SERVICES_BY_NAME):
        virtual_service_findings(db, object_id("VirtualService", namespace, name))
    for namespace, name in db.bucket_keys(DESTINATION_RULES_BY_NAME):
        destination_rule_findings(db, object_id("DestinationRule", namespace, name))
    for namespace in db.bucket_keys(POLICIES_BY_NAMESPACE):
        for policy in db.bucket(POLICIES_BY_NAMESPACE, namespace):
            policy_rules(db, policy.id)
    for group in policy_groups(db):
        policy_table(db, group)
    for node in known_nodes(db):
        proxy_address(db, node)
    identities(db)
    return True


@query
def service_port_findings(db: Database, host: str, port: int) -> bool:
    """Everything about one service port."""
    endpoints(db, host, port)
    http_routes(db, host, port)
    weighted_endpoints(db, host, port)
    traffic_mode(db, host, port)
    rule = destination_rule(db, host)
    for subset in rule.subsets if rule is not None else ():
        if endpoints(db, host, port) and not subset_endpoints(db, host, port, subset.name):
            text = f"no endpoint of {host}:{port} has the labels of subset {subset.name!r}"
            warn(db, "XB2025", subset.origin.object, f"{subset.origin.path}.labels", text)
    return True


@query
def virtual_service_findings(db: Database, id: ObjectId) -> bool:
    """Whether a VirtualService is for anything there is."""
    manifest = db.input(VIRTUAL_SERVICES, id)
    if manifest is ABSENT:
        return True
    if not is_for_mesh(manifest):
        gateways = ", ".join(manifest.spec.gateways)
        text = f"gateways are not supported yet ({gateways}): the routes are not applied"
        warn(db, "XB2034", id, "spec.gateways", text)
        return True
    if not manifest.spec.hosts:
        warn(db, "XB2035", id, "spec.hosts", "delegation is not supported yet: the routes are not applied")
    for position, host in enumerate(manifest.spec.hosts):
        _host_finding(db, id, f"spec.hosts[{position}]", host, "XB2036")
    return True


@query
def destination_rule_findings(db: Database, id: ObjectId) -> bool:
    """Whether a DestinationRule is for anything there is."""
    manifest = db.input(DESTINATION_RULES, id)
    if manifest is not ABSENT:
        _host_finding(db, id, "spec.host", manifest.spec.host, "XB2022")
    return True


def _host_finding(db: Database, id: ObjectId, path: str, written: str, code: str) -> None:
    host = full_host(written, id.namespace, settings(db).domain)
    if host.startswith("*"):
        if len(host) > 1 and host[1] != ".":
            warn(db, code, id, path, f"{written!r}: a wildcard stands for whole labels only; it covers nothing")
        elif not any(known.endswith(host[1:]) for known in hosts(db)):
            warn(db, code, id, path, f"{written!r} covers no service of the mesh")
    elif service(db, host) is None:
        hint = did_you_mean(host, hosts(db))
        warn(db, code, id, path, f"{host!r} is not a service of the mesh: it has no effect", hint)
