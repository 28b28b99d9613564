"""Which scopes a client sees, and that all generators together make what a view promises."""

from __future__ import annotations

import pytest

from tests.builders import Mesh, bookinfo
from xdsbpf.compile.outputs import generators
from xdsbpf.compile.views import ClientView, client_scopes, known_nodes, view_scopes
from xdsbpf.errors import ProtocolError
from xdsbpf.mesh.clients import Client
from xdsbpf.model.names import NodeId


def test_a_nodes_envoy_and_its_agent_see_the_shared_scope_and_their_own() -> None:
    assert view_scopes(NodeId("node", "10.0.0.1", "n1", "x")) == ("mesh", "node-envoy", "node-envoy/n1")
    assert view_scopes(NodeId("agent", "10.0.0.1", "n1", "x")) == ("datapath", "datapath/n1")


@pytest.mark.parametrize(
    ("type_", "status"), [("waypoint", "UNIMPLEMENTED"), ("router", "UNIMPLEMENTED"), ("x", "INVALID_ARGUMENT")]
)
def test_other_kinds_of_clients_are_told_why_not(type_: str, status: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        view_scopes(NodeId(type_, "10.0.0.1", "n1", "x"))
    assert caught.value.status == status
    assert "node~" in caught.value.hint


def test_an_agent_sees_the_raw_listeners_for_its_node_by_name_or_id_and_those_for_everybody() -> None:
    globs = ((), ("*~n1~*",), ("edge-?",), ("n1", "x"), ("node~*",))
    own = ("datapath", "datapath/n1")
    assert view_scopes(NodeId("agent", "10.0.0.1", "n1", "x"), globs) == (
        *("datapath-raw", "datapath-raw/*~n1~*", "datapath-raw/n1,x"),
        *own,
    )
    assert view_scopes(NodeId("agent", "10.0.0.1", "n1", "x"), (("n2",),)) == own


def test_the_generators_of_known_nodes_cover_the_scopes_that_views_open() -> None:
    mesh = Mesh(*bookinfo())
    nodes = known_nodes(mesh.db)
    scopes = {generator.scope for generator in generators(nodes)}
    for name in nodes:
        for type_ in ("node", "agent"):
            assert set(view_scopes(NodeId(type_, "", name, ""))) <= scopes


def test_a_scope_and_type_has_one_generator() -> None:
    keys = [(generator.scope, generator.type_url) for generator in generators(("a", "b"))]
    assert len(keys) == len(set(keys))


def test_any_other_envoy_sees_the_mesh_by_name_and_the_raw_resources_addressed_to_it() -> None:
    globs = ((), ("*",), ("core-*",), ("edge-?", "x"))
    assert client_scopes("edge-1", globs) == ("mesh", "raw", "raw/*", "raw/edge-?,x")
    assert client_scopes("a~b", ()) == ("mesh", "raw")


def test_raw_resources_add_to_a_mesh_clients_own_and_win_over_any_other_clients() -> None:
    own = ClientView("grpc", Client("default"))
    globs = (("edge-?",), ("sidecar~*",), ())
    named = ("raw/sidecar~*", "raw-grpc/sidecar~*")
    assert client_scopes("sidecar~1~a.default~x", globs, own) == (*named, "mesh", "grpc", "grpc/default/")
    every = ("raw", "raw-grpc", "raw/edge-?", "raw-grpc/edge-?")
    assert client_scopes("edge-1", globs, own) == ("mesh", "grpc", "grpc/default/", *every)
    sidecar = ClientView("sidecar", Client("default"))
    own_only = ("mesh", "sidecar", "sidecar/default/")
    assert client_scopes("sidecar~1~a.default~x", globs, sidecar) == ("raw/sidecar~*", *own_only)


def test_raw_resources_add_to_a_proxy_of_the_mesh_only_where_they_name_it_and_replace_nothing() -> None:
    globs = ((), ("node~*",), ("edge-?",))
    own = ("mesh", "node-envoy", "node-envoy/n1")
    assert client_scopes("node~10.0.0.1~n1~x", globs) == ("raw/node~*", *own)
    assert client_scopes("node~10.0.0.1~n1~x", ((),)) == own
