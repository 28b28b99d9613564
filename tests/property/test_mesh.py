"""After any sequence of changes every output equals its value in a fresh database."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import (
    Mesh,
    bookinfo,
    destination_rule,
    endpoint,
    endpoint_slice,
    header,
    namespace,
    policy,
    route,
    rule,
    service,
    subset,
    to,
    to_operation,
    virtual_service,
)
from xdsbpf.compile.outputs import generators
from xdsbpf.mesh.findings import findings
from xdsbpf.mesh.summary import summaries
from xdsbpf.model.destination_rule import OutlierDetection, TrafficPolicy
from xdsbpf.model.meta import Manifest

CHOICES: tuple[Manifest, ...] = (
    *bookinfo(),
    service("reviews", annotations={"xdsbpf.io/dataplane": "l4"}),
    service("reviews", address="10.0.0.9"),
    service("ratings", address="10.0.0.9"),
    namespace("default", {"xdsbpf.io/dataplane": "l7"}),
    endpoint_slice("ratings", endpoint("10.10.1.21"), endpoint("127.0.0.1")),
    destination_rule("reviews", "reviews", subset("v1"), subset("v2")),
    destination_rule("all", "*", traffic_policy=TrafficPolicy(outlier_detection=OutlierDetection())),
    virtual_service("reviews", "reviews", route(to("reviews", "v1"))),
    virtual_service(
        "reviews", "reviews", route(to("reviews", "v2"), match=(header("a", "b", source_namespace="default"),))
    ),
    virtual_service("other", "reviews", route(to("ratings")), export_to=("shop",)),
    policy("viewer", rule(to_operation(ports=("9080",))), selector={"app": "ratings"}),
    policy("base", rule(), namespace="istio-system", action="DENY", selector={"version": "v2"}),
)

changes = st.lists(st.tuples(st.booleans(), st.integers(0, len(CHOICES) - 1)), min_size=1, max_size=25)


def everything(mesh: Mesh) -> dict[Any, Any]:
    found: dict[Any, Any] = {"summaries": summaries(mesh.db), "findings": mesh.findings()}
    for generator in generators(("node1", "node2")):
        for name in generator.names(mesh.db, *generator.args):
            key = (generator.scope, generator.type_url, name)
            found[key] = generator.build(mesh.db, *generator.args, name)
            found[key, "origins"] = mesh.db.origins(generator.build, *generator.args, name)
    return found


@given(changes, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_history_does_not_matter(steps: list[tuple[bool, int]], shuffle: Any) -> None:
    mesh = Mesh()
    mesh.db.watch(summaries)
    mesh.db.watch(findings)
    for generator in generators(("node1", "node2")):
        mesh.db.watch(generator.names, *generator.args)
    present: dict[Any, Manifest] = {}
    for is_put, number in steps:
        manifest = CHOICES[number]
        if is_put:
            mesh.put(manifest)
            present[manifest.id] = manifest
        else:
            mesh.remove(manifest.id)
            present.pop(manifest.id, None)
        mesh.db.drain()
    final = list(present.values())
    shuffle.shuffle(final)
    assert everything(mesh) == everything(Mesh(*final))
