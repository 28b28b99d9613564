"""Decoding datapath resources: what is taken, what is refused, and with which words."""

from __future__ import annotations

import pytest

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2 as pb
from xdsbpf.agent.desired import Backends, Balance, Frontend, Policy, ResourceRejected, decode, kernel_name
from xdsbpf.agent.received import Received
from xdsbpf.datapath.address import address16
from xdsbpf.model.names import BACKENDS, CLUSTER, FRONTEND, IDENTITY, NODE_CONFIG, POLICY
from xdsbpf.xds.protocol import ReceivedResource, ReceivedResponse

IP = bytes((10, 0, 0, 1))
VIP = bytes((240, 0, 0, 1))


def frontend(**changes: object) -> pb.Frontend:
    values: dict[str, object] = {
        "address": VIP,
        "port": 80,
        "protocol": pb.TCP,
        "service": "web.d:80",
        "balance": pb.Balance(backends="web.d:80"),
    }
    return pb.Frontend(**(values | changes))  # type: ignore[arg-type]


def entry(**changes: object) -> pb.PolicyEntry:
    values: dict[str, object] = {"any_source": pb.AnySource(), "protocol": pb.TCP, "verdict": pb.DENY, "rule": "r"}
    return pb.PolicyEntry(**(values | changes))  # type: ignore[arg-type]


def policy(*entries: pb.PolicyEntry) -> pb.Policy:
    return pb.Policy(name="d/p", destinations=[IP], entries=entries)


def test_a_frontend_is_decoded_with_the_address_of_the_abi() -> None:
    value = decode(FRONTEND, "240.0.0.1:80/tcp", frontend().SerializeToString())
    assert isinstance(value, Frontend)
    assert value.address == address16(VIP)


@pytest.mark.parametrize(
    ("name", "message", "words"),
    [
        ("240.0.0.1:80/tcp", frontend(address=b"\1\2\3"), "4 or 16 bytes"),
        ("240.0.0.1:80/tcp", frontend(port=0), "port is 0"),
        ("240.0.0.1:80/tcp", frontend(port=65536), "port is 65536"),
        ("240.0.0.1:80/tcp", frontend(protocol=pb.UDP), "only TCP"),
        ("240.0.0.1:80/tcp", frontend(service=""), "service is empty"),
        ("240.0.0.1:81/tcp", frontend(), "the content is that of 240.0.0.1:80/tcp"),
        ("0.0.0.0:80/tcp", frontend(address=bytes(4)), "no address of one host"),
        ("240.0.0.1:80/tcp", frontend(balance=pb.Balance()), "balance.backends is empty"),
    ],
)
def test_a_frontend_that_cannot_be_served_is_refused(name: str, message: pb.Frontend, words: str) -> None:
    with pytest.raises(ResourceRejected, match=words) as refused:
        decode(FRONTEND, name, message.SerializeToString())
    assert refused.value.name == name


def test_a_frontend_without_a_plane_is_refused() -> None:
    message = frontend()
    message.ClearField("balance")
    with pytest.raises(ResourceRejected, match="neither balance nor redirect"):
        decode(FRONTEND, "240.0.0.1:80/tcp", message.SerializeToString())


def test_a_guarded_balance_names_its_policy_and_the_port_that_it_is_checked_with() -> None:
    message = frontend(guarded_balance=pb.GuardedBalance(backends="web.d:80", policy="d/p", policy_port=80))
    value = decode(FRONTEND, "240.0.0.1:80/tcp", message.SerializeToString())
    assert isinstance(value, Frontend)
    assert value.plane == Balance("web.d:80", "d/p", 80)


@pytest.mark.parametrize("field", ["backends", "policy", "policy_port"])
def test_a_guarded_balance_that_lost_a_field_is_refused_and_not_opened(field: str) -> None:
    message = frontend(guarded_balance=pb.GuardedBalance(backends="web.d:80", policy="d/p", policy_port=80))
    message.guarded_balance.ClearField(field)
    with pytest.raises(ResourceRejected, match=f"guarded_balance.{field}"):
        decode(FRONTEND, "240.0.0.1:80/tcp", message.SerializeToString())


def test_a_redirect_with_a_policy_needs_the_port_that_it_is_checked_with() -> None:
    message = frontend(redirect=pb.Redirect(proxy_port=15001, policy="d/p"))
    with pytest.raises(ResourceRejected, match="policy_port is 0"):
        decode(FRONTEND, "240.0.0.1:80/tcp", message.SerializeToString())


def test_an_endpoint_listed_twice_counts_once_at_its_larger_weight() -> None:
    twice = [pb.Backend(address=IP, port=80, weight=weight) for weight in (2, 3)]
    value = decode(BACKENDS, "a:80", pb.Backends(service="a:80", backends=twice).SerializeToString())
    assert isinstance(value, Backends)
    assert [(backend.address, backend.weight) for backend in value.backends] == [(address16(IP), 3)]


def test_a_weight_of_zero_is_refused() -> None:
    message = pb.Backends(service="a:80", backends=[pb.Backend(address=IP, port=80)])
    with pytest.raises(ResourceRejected, match=r"backends\[0\].weight is 0"):
        decode(BACKENDS, "a:80", message.SerializeToString())


def test_more_weighted_endpoints_than_slots_are_refused_and_equal_ones_are_not() -> None:
    many = [pb.Backend(address=bytes((10, 0, i >> 8, i & 255)), port=80, weight=1) for i in range(1, 1026)]
    value = decode(BACKENDS, "a:80", pb.Backends(service="a:80", backends=many).SerializeToString())
    assert isinstance(value, Backends)
    assert len(value.backends) == 1025
    many[0].weight = 2
    with pytest.raises(ResourceRejected, match="1025 endpoints of unequal weight"):
        decode(BACKENDS, "a:80", pb.Backends(service="a:80", backends=many).SerializeToString())


def test_a_lost_source_is_not_any_source() -> None:
    lost = entry()
    lost.ClearField("any_source")
    with pytest.raises(ResourceRejected, match=r"entries\[0\] has no source"):
        decode(POLICY, "d/p", policy(lost).SerializeToString())


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (entry(verdict=0), "neither ALLOW nor DENY"),
        (entry(verdict=7), "neither ALLOW nor DENY"),
        (entry(port=0), "port is 0"),
        (entry(protocol=pb.UDP), "only TCP"),
        (entry(identity="a\0b"), "zero byte"),
    ],
)
def test_a_policy_entry_that_cannot_be_enforced_exactly_is_refused(bad: pb.PolicyEntry, words: str) -> None:
    with pytest.raises(ResourceRejected, match=words):
        decode(POLICY, "d/p", policy(bad).SerializeToString())


def test_an_absent_port_is_any_port_and_a_cell_is_decided_once() -> None:
    value = decode(POLICY, "d/p", policy(entry(), entry(port=80)).SerializeToString())
    assert isinstance(value, Policy)
    assert [found.port for found in value.entries] == [0, 80]
    with pytest.raises(ResourceRejected, match="a second time"):
        decode(POLICY, "d/p", policy(entry(), entry(verdict=pb.ALLOW)).SerializeToString())


def test_bytes_that_are_no_message_and_types_that_are_not_ours_are_refused() -> None:
    with pytest.raises(ResourceRejected, match="body is no Policy"):
        decode(POLICY, "d/p", b"\xff\xff")
    with pytest.raises(ResourceRejected, match="no datapath resource"):
        decode(CLUSTER, "c", b"")
    with pytest.raises(ResourceRejected, match="names itself 'd/p'"):
        decode(POLICY, "d/q", policy().SerializeToString())


def test_a_long_name_is_shortened_and_stays_unique() -> None:
    first, second = "d/" + "x" * 300, "d/" + "x" * 299 + "y"
    assert len(kernel_name(first).encode()) < 256
    assert kernel_name(first) != kernel_name(second)
    assert kernel_name("ü" * 200) == kernel_name("ü" * 200)
    assert len(kernel_name("ü" * 200).encode()) < 256
    assert kernel_name("x" * 255) == "x" * 255


def response(type_url: str, *resources: tuple[str, str, bytes], removed: tuple[str, ...] = ()) -> ReceivedResponse:
    received = tuple(ReceivedResource(name, version, type_url, body) for name, version, body in resources)
    return ReceivedResponse(type_url, "1", received, removed)


def test_a_bad_version_of_a_resource_leaves_the_good_one_and_its_version() -> None:
    received = Received("n")
    good = policy(entry()).SerializeToString()
    assert received.accept(response(POLICY, ("d/p", "1", good))) == {}
    errors = received.accept(response(POLICY, ("d/p", "2", b"\xff"), ("d/q", "1", b"\xff")))
    assert set(errors) == {"d/p", "d/q"}
    assert received.claims(POLICY, ()) == {"d/p": "1", "d/q": ""}
    assert set(received.desired(()).policies) == {"d/p"}
    assert set(received.rejections) == {(POLICY, "d/p"), (POLICY, "d/q")}

    assert received.accept(response(POLICY, ("d/p", "3", good), removed=("d/q",))) == {}
    assert received.rejections == {}
    assert received.claims(POLICY, ()) == {"d/p": "3"}
    assert received.claims(POLICY, {(POLICY, "d/p")}) == {"d/p": ""}, "what the kernel refused is sent again"


def test_only_this_nodes_configuration_is_taken() -> None:
    received = Received("n")
    other = pb.NodeConfig(node="m").SerializeToString()
    assert "agent is of node n" in received.accept(response(NODE_CONFIG, ("m", "1", other)))["m"]
    assert received.node_config() is None
    received.accept(response(NODE_CONFIG, ("n", "1", pb.NodeConfig(node="n").SerializeToString())))
    assert received.node_config() is not None
    received.accept(response(NODE_CONFIG, removed=("n",)))
    assert received.node_config() is None


def test_a_type_in_a_response_of_another_type_is_refused() -> None:
    received = Received("n")
    smuggled = ReceivedResource("d/p", "1", IDENTITY, policy().SerializeToString())
    assert "d/p" in received.accept(ReceivedResponse(POLICY, "1", (smuggled,), ()))
