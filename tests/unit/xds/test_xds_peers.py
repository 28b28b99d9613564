"""Who may claim what: a table of claims, each refusal beside one that is allowed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from xdsbpf.errors import ConfigError, ProtocolError
from xdsbpf.xds.peers import AllowRule, PeerRules, parse_allow_rule, parse_identity, parse_identity_pattern
from xdsbpf.xds.transport import Peer

NODE = "spiffe://cluster.local/node/node1"
WORKLOAD = "spiffe://cluster.local/ns/default/sa/reviews"
EDGE = "spiffe://cluster.local/ns/edge/sa/gateway"
ACCOUNTS = {("default", "reviews-1"): "reviews", ("default", "ratings-1"): "ratings"}
RULES = PeerRules(
    allow=(
        AllowRule("spiffe://cluster.local/ns/edge/sa/*", "edge-*"),
        AllowRule("spiffe://cluster.local/ns/any/sa/any", "*"),
        AllowRule("spiffe://cluster.local/spire/agent/*", "node~*~node7~*"),
    ),
    admins=("spiffe://cluster.local/ns/ops/sa/*",),
    account_of=lambda namespace, pod: ACCOUNTS.get((namespace, pod)),
)


def peer(*names: str) -> Peer:
    return Peer("ipv4:10.0.0.1:4711", names, is_encrypted=True)


def refusal(identity: str, node_id: str, is_grpc: bool = False, rules: PeerRules = RULES, **metadata: object) -> str:
    """Why the claim is refused; "" if it is not."""
    try:
        rules.check_claim(peer(identity), node_id, metadata, is_grpc=is_grpc)
    except ProtocolError as error:
        found = error
    else:
        return ""
    assert found.status == "PERMISSION_DENIED"
    assert identity in str(found)
    assert repr(node_id) in str(found)
    return str(found)


@pytest.mark.parametrize(
    ("identity", "allowed", "refused"),
    [
        (NODE, "node~10.0.0.1~node1~cluster.local", "node~10.0.0.1~node2~cluster.local"),
        (NODE, "agent~fd00::1~node1~cluster.local", "agent~fd00::1~node2~cluster.local"),
        (NODE, "node~10.0.0.1~node1~cluster.local", "node~10.0.0.1~node1~edge-1"),
        (NODE, "node~10.0.0.1~node1~cluster.local", "node~edge-1~node1~cluster.local"),
        (NODE, "node~10.0.0.1~node1~cluster.local", "node~fd00::1%edge-1~node1~cluster.local"),
        (NODE, "node~10.0.0.1~node1~cluster.local", "node1"),
        (
            NODE,
            "node~10.0.0.1~node1~cluster.local",
            "sidecar~10.0.0.1~reviews-1.default~default.svc.cluster.local",
        ),
        (
            WORKLOAD,
            "sidecar~10.0.0.1~reviews-1.default~default.svc.cluster.local",
            "sidecar~10.0.0.1~ratings-1.default~default.svc.cluster.local",
        ),
        (
            WORKLOAD,
            "router~10.0.0.1~unknown.default~default.svc.cluster.local",
            "router~10.0.0.1~unknown.other~other.svc.cluster.local",
        ),
        (
            WORKLOAD,
            "sidecar~10.0.0.1~unknown.default~default.svc.cluster.local",
            "sidecar~10.0.0.1~unknown.default~other.svc.cluster.local",
        ),
        (
            WORKLOAD,
            "sidecar~10.0.0.1~unknown.default~default.svc.cluster.local",
            "sidecar~10.0.0.1~default~default.svc.cluster.local",
        ),
        (
            WORKLOAD,
            "sidecar~10.0.0.1~unknown.default~default.svc.cluster.local",
            "waypoint~10.0.0.1~unknown.default~default.svc.cluster.local",
        ),
        (WORKLOAD, "sidecar~10.0.0.1~a.default~default.svc.cluster.local", "node~10.0.0.1~node1~cluster.local"),
        (WORKLOAD, "sidecar~10.0.0.1~a.default~default.svc.cluster.local", "agent~10.0.0.1~node1~cluster.local"),
        (WORKLOAD, "sidecar~10.0.0.1~a.default~default.svc.cluster.local", "edge-1"),
        (EDGE, "edge-1", "inner-1"),
        (EDGE, "edge-1", "node~10.0.0.1~edge-1~cluster.local"),
        ("spiffe://cluster.local/ns/any/sa/any", "what-ever", "agent~10.0.0.1~node1~cluster.local"),
        (
            "spiffe://cluster.local/spire/agent/x",
            "node~10.0.0.7~node7~cluster.local",
            "agent~10.0.0.7~node7~cluster.local",
        ),
    ],
)
def test_a_certificate_entitles_to_its_own_node_ids_and_to_no_other(identity: str, allowed: str, refused: str) -> None:
    assert refusal(identity, allowed) == ""
    assert "it may claim " in refusal(identity, refused)


def test_an_identity_that_no_rule_knows_may_claim_nothing() -> None:
    for path in ("job/backup", "node/node1/more", "ns/default", "ns/edge/sa/gateway/more"):
        assert refusal(f"spiffe://cluster.local/{path}", "edge-1").endswith("it may claim nothing"), path
    assert refusal(EDGE, "edge-1") == ""


def nameless(*rules: tuple[str, str]) -> str:
    """The node id of a client that says none, and has the identity of the first rule."""
    allow = tuple(AllowRule(f"spiffe://cluster.local/{path}", node_id) for path, node_id in rules)
    return PeerRules(allow=allow).authorize(peer(f"spiffe://cluster.local/{rules[0][0]}"), "", {})


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ([("job/x", "edge-1")], "edge-1"),
        ([("job/x", "edge-1"), ("job/*", "edge-1")], "edge-1"),
        ([("job/x", "node~10.0.0.7~node7~cluster.local")], "node~10.0.0.7~node7~cluster.local"),
    ],
)
def test_a_client_that_says_no_node_id_has_the_only_one_that_it_may_claim(
    rules: list[tuple[str, str]], found: str
) -> None:
    """Rule 2."""
    assert nameless(*rules) == found


@pytest.mark.parametrize(
    ("rules", "choices"),
    [
        ([("job/x", "edge-1"), ("job/*", "edge-2")], "edge-1 or edge-2"),
        ([("job/x", "edge-?")], "edge-?"),
        ([("job/x", "*")], "*"),
        ([("node/x", "edge-1")], "agent~<ip>~x~cluster.local or node~<ip>~x~cluster.local or edge-1"),
        ([("ns/a/sa/b", "edge-1")], "to be a gRPC client with the metadata NAMESPACE a or edge-1"),
    ],
)
def test_where_the_rules_leave_a_choice_a_client_must_say_its_node_id(
    rules: list[tuple[str, str]], choices: str
) -> None:
    """Rule 2. It is told what there is to choose from."""
    with pytest.raises(ProtocolError) as error:
        nameless(*rules)
    assert error.value.status == "INVALID_ARGUMENT"
    assert str(error.value).endswith(choices)


def test_a_local_client_must_say_its_node_id() -> None:
    with pytest.raises(ProtocolError, match=r"no node\.id"):
        RULES.authorize(Peer("unix:"), "", {})
    assert RULES.authorize(Peer("unix:"), "edge-1", {}) == "edge-1"


def test_an_identity_that_may_be_nothing_is_no_client() -> None:
    with pytest.raises(ProtocolError, match="may claim no node id") as error:
        RULES.identify_client(peer("spiffe://cluster.local/job/backup"))
    assert error.value.status == "PERMISSION_DENIED"
    for identity in (NODE, WORKLOAD, "spiffe://cluster.local/spire/agent/x"):
        assert str(RULES.identify_client(peer(identity))) == identity


@pytest.mark.parametrize(
    ("is_grpc", "metadata", "is_allowed"),
    [
        (True, {"NAMESPACE": "default"}, True),
        (True, {"NAMESPACE": "other"}, False),
        (True, {}, False),
        (True, {"NAMESPACE": "default", "SERVICE_ACCOUNT": "ratings"}, False),
        (False, {"NAMESPACE": "default"}, False),
    ],
)
def test_a_workload_may_be_a_grpc_client_of_its_own_namespace(
    is_grpc: bool, metadata: Mapping[str, object], is_allowed: bool
) -> None:
    assert (refusal(WORKLOAD, "client-1", is_grpc, **metadata) == "") is is_allowed


@pytest.mark.parametrize(
    ("metadata", "is_allowed"),
    [
        ({"NAMESPACE": "default", "SERVICE_ACCOUNT": "reviews"}, True),
        ({"NAMESPACE": "other"}, False),
        ({"SERVICE_ACCOUNT": "ratings"}, False),
        ({"NAMESPACE": 5.0}, False),
    ],
)
def test_metadata_may_not_say_something_else_than_the_certificate(
    metadata: Mapping[str, object], is_allowed: bool
) -> None:
    node_id = "sidecar~10.0.0.1~a.default~default.svc.cluster.local"
    assert (refusal(WORKLOAD, node_id, **metadata) == "") is is_allowed


@pytest.mark.parametrize(
    "names",
    [
        (),
        (NODE, WORKLOAD),
        (NODE, "https://example.com"),
        ("https://cluster.local/node/node1",),
        ("spiffe://other.domain/node/node1",),
        ("spiffe://cluster.local",),
        ("spiffe://cluster.local/",),
        ("spiffe://cluster.local/node/node1/",),
        ("spiffe://cluster.local/node/../node1",),
        ("spiffe://cluster.local/node//node1",),
        ("spiffe://cluster.local/node/node1\0",),
        ("spiffe://cluster.local/node/node1?x",),
        ("spiffe://cluster.local:80/node/node1",),
        ("spiffe://Cluster.local/node/node1",),
        ("SPIFFE://cluster.local/node/node1",),
        ("spiffe://cluster.local/node/nodé",),
        ("spiffe://cluster.local/" + "x" * 3000,),
    ],
)
def test_a_certificate_without_one_name_of_this_mesh_is_nobody(names: tuple[str, ...]) -> None:
    with pytest.raises(ProtocolError) as error:
        RULES.identify(peer(*names))
    assert error.value.status == "UNAUTHENTICATED"
    assert str(RULES.identify(peer(NODE))) == NODE


def test_a_local_peer_may_claim_anything() -> None:
    RULES.check_claim(Peer("unix:"), "agent~10.0.0.1~node1~cluster.local", {})
    RULES.check_admin(Peer("unix:"))


def test_only_administrators_see_what_others_are_served() -> None:
    RULES.check_admin(peer("spiffe://cluster.local/ns/ops/sa/alice"))
    for identity in (NODE, EDGE, "spiffe://cluster.local/ns/ops/sa/alice/more", "spiffe://cluster.local/ns/ops2/sa/a"):
        with pytest.raises(ProtocolError) as error:
            RULES.check_admin(peer(identity))
        assert error.value.status == "PERMISSION_DENIED"


def test_without_the_pod_the_namespace_decides() -> None:
    """The control of the refusal by service account: the same claim where the pod is not known."""
    node_id = "sidecar~10.0.0.1~ratings-1.default~default.svc.cluster.local"
    assert "runs as service account 'ratings'" in refusal(WORKLOAD, node_id)
    assert refusal(WORKLOAD, node_id, rules=PeerRules()) == ""


def test_the_checks_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the check of a node's name broken, the table's first refusal is allowed."""
    monkeypatch.setattr(PeerRules, "_not_that_node", lambda *_: "")
    assert refusal(NODE, "node~10.0.0.1~node2~cluster.local") == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://cluster.local/ns/a",
        "spiffe://cluster.local/ns/a=",
        "ns/a=edge",
        "spiffe://*/ns/a=edge",
        "spiffe://cluster.local=edge",
        "spiffe://cluster.local/ns/a b=edge",
        "spiffe://cluster.local/ns/a=" + "x" * 300,
    ],
)
def test_a_rule_that_is_not_one_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_allow_rule(text)


def test_a_rule_is_read_as_it_is_written() -> None:
    rule = parse_allow_rule("spiffe://cluster.local/ns/*/sa/gw=edge-*=x")
    assert rule == AllowRule("spiffe://cluster.local/ns/*/sa/gw", "edge-*=x")
    assert rule.fits(parse_identity("spiffe://cluster.local/ns/a/sa/gw"))
    assert not rule.fits(parse_identity("spiffe://cluster.local/ns/a/b/sa/gw"))
    assert parse_identity_pattern("spiffe://cluster.local/ns/*/sa/?") == "spiffe://cluster.local/ns/*/sa/?"
