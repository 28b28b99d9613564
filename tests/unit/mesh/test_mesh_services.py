"""Services: protocols of ports, and what is left out visibly."""

from __future__ import annotations

import pytest

from tests.builders import Mesh, host, service
from xdsbpf.diagnostics import Severity
from xdsbpf.mesh.services import EXPORT_TO, Protocol, hosts, http_ports, select_protocol, service_ports
from xdsbpf.mesh.services import service as mesh_service
from xdsbpf.model.kube import ServicePort


@pytest.mark.parametrize(
    ("name", "app_protocol", "number", "expected"),
    [
        ("http", "", 80, Protocol.HTTP),
        ("http-web", "", 80, Protocol.HTTP),
        ("HTTP2-x", "", 80, Protocol.HTTP2),
        ("grpc", "", 80, Protocol.GRPC),
        ("grpc-web-ui", "", 80, Protocol.GRPC_WEB),
        ("grpc-webby", "", 80, Protocol.GRPC_WEB),
        ("https", "", 443, Protocol.HTTPS),
        ("tls-x", "", 443, Protocol.TLS),
        ("mongo-x", "", 1, Protocol.MONGO),
        ("redis", "", 1, Protocol.REDIS),
        ("mysql", "", 1, Protocol.MYSQL),
        ("tcp-echo", "", 1, Protocol.TCP),
        ("httpx", "", 80, Protocol.AUTO),
        ("", "", 80, Protocol.AUTO),
        ("", "", 3306, Protocol.TCP),
        ("http", "tcp", 80, Protocol.TCP),
        ("tcp", "kubernetes.io/h2c", 80, Protocol.HTTP2),
        ("tcp", "kubernetes.io/ws", 80, Protocol.HTTP),
        ("tcp", "kubernetes.io/wss", 80, Protocol.HTTPS),
    ],
)
def test_the_protocol_comes_from_app_protocol_or_the_name(
    name: str, app_protocol: str, number: int, expected: Protocol
) -> None:
    assert select_protocol(ServicePort(number, name, app_protocol=app_protocol)) is expected


def test_an_undeclared_protocol_is_tcp_and_the_finding_names_the_fix() -> None:
    mesh = Mesh(service("a", ServicePort(9000, "web")))
    assert http_ports(mesh.db) == ()
    assert service_ports(mesh.db) == ((host("a"), 9000),)
    (found,) = mesh.findings("XB2005")
    assert found.severity is Severity.INFO
    assert "appProtocol" in found.hint
    assert found.path == "spec.ports[0].name"


def test_the_target_port_defaults_to_the_port() -> None:
    mesh = Mesh(service("a", ServicePort(80, "http"), ServicePort(81, "http-b", target_port="web")))
    found = mesh_service(mesh.db, host("a"))
    assert found is not None
    assert [port.target_port for port in found.ports] == [80, "web"]


@pytest.mark.parametrize(
    ("manifest", "code"),
    [
        (service("a", type="ExternalName", external_name="example.com"), "XB2001"),
        (service("a", address="None"), "XB2001"),
        (service("a", address="127.0.0.1"), "XB2004"),
        (service("a", address="fd00::1"), "XB2004"),
    ],
)
def test_a_service_that_cannot_be_served_is_left_out_with_a_finding(manifest: object, code: str) -> None:
    mesh = Mesh(manifest, service("b"))  # type: ignore[arg-type]
    assert hosts(mesh.db) == (host("b"),)
    assert [found.code for found in mesh.findings(code)] == [code]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"type": "NodePort"}, "spec.type"),
        ({"type": "LoadBalancer"}, "spec.type"),
        ({"external_ips": ("1.2.3.4",)}, "spec.externalIPs"),
        ({"session_affinity": "ClientIP"}, "spec.sessionAffinity"),
        ({"internal_traffic_policy": "Local"}, "spec.internalTrafficPolicy"),
        ({"publish_not_ready_addresses": True}, "spec.publishNotReadyAddresses"),
        ({"annotations": {EXPORT_TO: "."}}, f"metadata.annotations[{EXPORT_TO}]"),
    ],
)
def test_a_field_without_effect_is_reported_and_the_service_still_works(spec: dict[str, object], path: str) -> None:
    mesh = Mesh(service("a", **spec))
    assert hosts(mesh.db) == (host("a"),)
    assert [found.path for found in mesh.findings("XB2003")] == [path]


def test_udp_and_sctp_ports_are_left_out_and_the_tcp_port_stays() -> None:
    mesh = Mesh(
        service(
            "dns",
            ServicePort(53, "dns", protocol="UDP"),
            ServicePort(53, "dns-tcp"),
            ServicePort(9, "s", protocol="SCTP"),
        )
    )
    assert service_ports(mesh.db) == ((host("dns"), 53),)
    assert [found.path for found in mesh.findings("XB2002")] == ["spec.ports[0].protocol", "spec.ports[2].protocol"]


def test_of_two_services_with_one_address_the_older_has_it() -> None:
    mesh = Mesh(service("b", address="10.0.0.1"), service("a", address="10.0.0.1"))
    assert hosts(mesh.db) == (host("a"),)
    (found,) = mesh.findings("XB2004")
    assert str(found.object) == "Service/default/b"
    assert "SHADOWED-BY Service/default/a" in found.message


def test_a_port_listed_twice_counts_once() -> None:
    mesh = Mesh(service("a", ServicePort(80, "http"), ServicePort(80, "tcp-b")))
    assert http_ports(mesh.db) == ((host("a"), 80),)
    assert len(mesh.findings("XB2007")) == 1


def test_a_removed_service_is_gone() -> None:
    manifest = service("a")
    mesh = Mesh(manifest)
    assert hosts(mesh.db) == (host("a"),)
    mesh.remove(manifest.id)
    assert hosts(mesh.db) == ()
