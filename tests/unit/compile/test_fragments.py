"""What is joined from fragments is what protobuf makes of the same message, byte for byte."""

from __future__ import annotations

import pytest
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from tests.builders import Mesh, endpoint, endpoint_slice, host, service
from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2
from xdsbpf.compile.datapath.backends import backends
from xdsbpf.compile.envoy.endpoints import load_assignment
from xdsbpf.compile.fragments import nested
from xdsbpf.mesh.endpoints import Endpoint
from xdsbpf.model.kube import ServicePort
from xdsbpf.model.resource import Resource

PORTS = (1, 63, 127, 128, 8080, 65535)
ADDRESSES = ("1.2.3.4", "10.0.0.1", "63.63.63.63", "10.63.63.63", "255.255.255.254")


def assignment(name: str, endpoints: tuple[Endpoint, ...]) -> bytes:
    message = ClusterLoadAssignment(cluster_name=name)
    if endpoints:
        group = message.endpoints.add()
        group.locality.SetInParent()
        group.load_balancing_weight.value = len(endpoints)
        for one in endpoints:
            address = group.lb_endpoints.add().endpoint.address.socket_address
            address.address = one.address
            address.port_value = one.port
    return message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 30, 700])
def test_an_assignment_of_any_length_is_what_protobuf_encodes(count: int) -> None:
    every = [Endpoint(address, port) for address in ADDRESSES for port in PORTS]
    members = tuple(every[position % len(every)] for position in range(count))
    assert load_assignment("outbound|80||a", members) == assignment("outbound|80||a", members)


@pytest.mark.parametrize("port", PORTS)
def test_backends_are_what_protobuf_encodes(port: int) -> None:
    """63 is the placeholder's character, in an address, too."""
    mesh = Mesh(
        service("a", ServicePort(80, "http")),
        endpoint_slice("a", *map(endpoint, ADDRESSES), ports=(("http", port),)),
    )
    made = backends(mesh.db, f"{host('a')}:80")
    assert isinstance(made, Resource)
    message = datapath_pb2.Backends.FromString(made.body)
    assert message.SerializeToString(deterministic=True) == made.body
    assert sorted(".".join(map(str, one.address)) for one in message.backends) == sorted(ADDRESSES)
    assert {(one.port, one.weight) for one in message.backends} == {(port, 1)}
    assert message.service == f"{host('a')}:80"


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16383, 16384, 2_100_000])
def test_a_nested_message_has_the_length_that_protobuf_writes(length: int) -> None:
    body = b"x" * length
    message = datapath_pb2.Identity.FromString(nested(2 << 3 | 2, body))
    assert list(message.addresses) == [body]
    assert message.SerializeToString() == nested(2 << 3 | 2, body)
