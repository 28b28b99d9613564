"""One state per object: what the stages say of it, and which of them decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from xdsbpf.compiler import BUILD_FAILED, Compiler
from xdsbpf.diagnostics import State
from xdsbpf.mesh.findings import findings
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.model.names import FRONTEND, VIRTUAL_HOST
from xdsbpf.report.landing import REFUSED, WITHHELD, landings
from xdsbpf.report.objects import object_rows, object_states
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.loading import load_once
from xdsbpf.xds.status import NackedResource, NodeStatus, SyncState, TypeStatus, WithheldResource

ENVOY = "node~10.0.0.1~node1~cluster.local"
AGENT = "agent~10.0.0.1~node1~cluster.local"
HOST = "9080/reviews.default.svc.cluster.local"
FRONT = "10.9.0.1:9080/tcp"


def service(name: str, address: str, extra: str = "") -> str:
    ports = "[{name: http, port: 9080}]"
    return f"""apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{clusterIP: {address}, selector: {{app: {name}}}, ports: {ports}{extra}}}
"""


def route(name: str, host: str = "reviews", gateways: str = "") -> str:
    return f"""apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec: {{hosts: [{host}], http: [{{route: [{{destination: {{host: reviews}}}}], timeout: 1s}}]{gateways}}}
"""


BASE = (service("reviews", "10.9.0.1"), service("details", "10.9.0.2"), route("reviews"))


def compiled(directory: Path, *texts: str) -> tuple[Compiler, Catalog]:
    (directory / "a.yaml").write_text("---\n".join(texts))
    catalog = load_once([str(directory)])
    compiler = Compiler(MeshSettings(), check_values=True)
    compiler.apply(catalog.manifests().items())
    compiler.compile()
    return compiler, catalog


def states(compiler: Compiler, catalog: Catalog, *clients: NodeStatus) -> dict[str, str]:
    return {row["object"]: row["state"] for row in object_rows(compiler, catalog, clients)}


def client(node_id: str, type_url: str, *, nacked: str = "", version: str = "", withheld: str = "") -> NodeStatus:
    """A client that refused one resource, or is kept from one."""
    entry = TypeStatus(
        type_url=type_url,
        state=SyncState.NACKED if nacked else SyncState.PENDING,
        subscribed=0,
        wildcard=True,
        held=0,
        revision=1,
        nonce="1",
        error="no such filter" if nacked else "",
        nacked=(NackedResource(nacked, version, "no such filter"),) if nacked else (),
        withheld=(WithheldResource(withheld, ("Envoy is not connected",)),) if withheld else (),
    )
    kind, scope = ("agent", "datapath") if node_id == AGENT else ("node-envoy", "node-envoy")
    return NodeStatus(node_id, kind, "node1", (entry,), scopes=("mesh", scope, f"{scope}/node1"))


def version_of(compiler: Compiler, type_url: str, name: str) -> str:
    found = next(
        compiler.store._scopes[scope][type_url][name]
        for scope in compiler.store.scopes()
        if name in compiler.store.names(scope, type_url)
    )
    return found.version


def test_accepted_objects_are_applied(tmp_path: Path) -> None:
    compiler, catalog = compiled(tmp_path, *BASE)
    assert set(states(compiler, catalog).values()) == {"APPLIED"}
    assert [entry.state for entry in object_states(compiler, catalog, ())] == [State.APPLIED] * 3


def test_a_refusal_by_a_client_rejects_the_objects_it_came_from_and_no_other(tmp_path: Path) -> None:
    compiler, catalog = compiled(tmp_path, *BASE)
    refused = client(ENVOY, VIRTUAL_HOST, nacked=HOST, version=version_of(compiler, VIRTUAL_HOST, HOST))
    found = states(compiler, catalog, refused)
    assert found["VirtualService/default/reviews"] == found["Service/default/reviews"] == "REJECTED"
    assert found["Service/default/details"] == "APPLIED"
    row = next(r for r in object_rows(compiler, catalog, (refused,)) if r["state"] == "REJECTED")
    assert ENVOY in row["detail"]
    assert "no such filter" in row["detail"]
    assert {entry["code"] for entry in row["diagnostics"]} == {REFUSED}


def test_the_refusal_of_an_older_version_says_nothing_of_the_present_one(tmp_path: Path) -> None:
    compiler, catalog = compiled(tmp_path, *BASE)
    refused = client(ENVOY, VIRTUAL_HOST, nacked=HOST, version="0123456789abcdef")
    assert set(states(compiler, catalog, refused).values()) == {"APPLIED"}
    gone = client(ENVOY, VIRTUAL_HOST, nacked="9080/gone.default.svc.cluster.local", version="x")
    assert landings(compiler, (gone,)) == ()


def test_what_is_withheld_from_a_client_is_pending_with_the_reason(tmp_path: Path) -> None:
    compiler, catalog = compiled(tmp_path, *BASE)
    waiting = client(AGENT, FRONTEND, withheld=FRONT)
    found = states(compiler, catalog, waiting)
    assert found["VirtualService/default/reviews"] == "PENDING"
    assert found["Service/default/details"] == "APPLIED"
    (first, *_) = landings(compiler, (waiting,))
    assert first.code == WITHHELD
    assert "Envoy is not connected" in first.message


def test_a_refusal_weighs_more_than_a_wait(tmp_path: Path) -> None:
    compiler, catalog = compiled(tmp_path, *BASE)
    refused = client(ENVOY, VIRTUAL_HOST, nacked=HOST, version=version_of(compiler, VIRTUAL_HOST, HOST))
    found = states(compiler, catalog, client(AGENT, FRONTEND, withheld=FRONT), refused)
    assert found["VirtualService/default/reviews"] == "REJECTED"


def test_routes_of_a_gateway_are_not_enforced(tmp_path: Path) -> None:
    compiler, catalog = compiled(tmp_path, *BASE, route("edge", gateways=", gateways: [edge]"))
    found = states(compiler, catalog)
    assert found["VirtualService/default/edge"] == "NOT-ENFORCED"
    assert found["VirtualService/default/reviews"] == "APPLIED"


def test_two_virtual_services_of_one_host_shadow(tmp_path: Path) -> None:
    compiler, catalog = compiled(tmp_path, *BASE, route("zz"))
    entry = next(e for e in object_states(compiler, catalog, ()) if e.status.object.name == "zz")
    assert entry.state is State.SHADOWED
    assert entry.reason.startswith("VirtualService/default/reviews for reviews.default")
    assert states(compiler, catalog)["VirtualService/default/reviews"] == "APPLIED"


def test_a_service_whose_address_is_taken_is_shadowed(tmp_path: Path) -> None:
    compiler, catalog = compiled(tmp_path, *BASE, service("thief", "10.9.0.1"))
    found = states(compiler, catalog)
    assert found["Service/default/thief"] == "SHADOWED-BY"
    assert found["Service/default/reviews"] == "APPLIED"


def test_every_state_but_applied_has_a_reason(tmp_path: Path) -> None:
    wrong = route("wrong").replace("timeout", "timeoot")
    unknown = "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\n"
    compiler, catalog = compiled(
        tmp_path, *BASE, route("zz"), route("edge", gateways=", gateways: [e]"), wrong, unknown
    )
    found = list(object_states(compiler, catalog, ()))
    assert {entry.state for entry in found} >= {State.APPLIED, State.SHADOWED, State.NOT_ENFORCED, State.REJECTED}
    for entry in found:
        assert bool(entry.reason) == (entry.state is not State.APPLIED), entry


def test_findings_are_those_of_every_output_and_follow_a_change(tmp_path: Path) -> None:
    """One pass over the cells says the same as asking every output."""
    compiler, catalog = compiled(tmp_path, *BASE, route("zz"), route("far", host="nowhere"))
    one_by_one = set(compiler.database.diagnostics(findings))
    for generator in compiler._generators.values():
        for name in generator.names(compiler.database, *generator.args):
            one_by_one.update(compiler.database.diagnostics(generator.build, *generator.args, name))
    assert one_by_one
    assert set(compiler.diagnostics()) == one_by_one
    cells = compiler.database.cells
    far = next(key for key in catalog.manifests() if key.name == "far")
    compiler.apply((), [far])
    compiler.compile()
    assert not any(found.object == far for found in compiler.diagnostics())
    assert compiler.diagnostics()
    assert compiler.database.cells <= cells


def test_findings_asked_for_before_the_change_is_compiled_are_not_kept(tmp_path: Path) -> None:
    """The finding is one of the build of a resource, which has not run when it is asked for first."""
    compiler, _ = compiled(tmp_path, *BASE)
    assert compiler.diagnostics() == ()
    (tmp_path / "rule.yaml").write_text(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\n"
        "spec: {host: reviews, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}\n"
    )
    compiler.apply(load_once([str(tmp_path)]).manifests().items())
    assert compiler.diagnostics() == ()
    compiler.compile()
    assert {found.code for found in compiler.diagnostics()} == {"XB3001"}


def test_a_defect_in_a_build_is_a_finding_on_the_objects_concerned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xdsbpf.compile.envoy import virtual_hosts

    def broken(port: int) -> object:
        raise ValueError("made for a test")

    monkeypatch.setattr(virtual_hosts, "route_config_requirement", broken)
    compiler, catalog = compiled(tmp_path, *BASE)
    failed = [found for found in compiler.diagnostics() if found.code == BUILD_FAILED]
    assert {"VirtualService/default/reviews", "Service/default/reviews"} <= {str(found.object) for found in failed}
    assert all("made for a test" in found.message for found in failed)
    assert states(compiler, catalog)["VirtualService/default/reviews"] == "NOT-ENFORCED"


def test_what_cannot_be_examined_is_a_finding_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: an object that a defect keeps from being looked at hides no finding on another one."""
    from xdsbpf.mesh import findings

    def broken(*_: object) -> object:
        raise ValueError("made for a test")

    compiler, _ = compiled(tmp_path, *BASE)
    assert [found for found in compiler.diagnostics() if found.code == BUILD_FAILED] == []
    monkeypatch.setattr(findings, "identities", broken)
    compiler.generation += 1
    (failed,) = (found for found in compiler.diagnostics() if found.code == BUILD_FAILED)
    assert failed.object is None
    assert "not everything could be examined" in failed.message
    assert "made for a test" in failed.message
