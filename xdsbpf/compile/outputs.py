"""Every family of resources that is served: the generators of both planes and of raw resources in one list."""

from __future__ import annotations

from xdsbpf.compile.datapath.outputs import datapath_generators
from xdsbpf.compile.envoy.outputs import envoy_generators
from xdsbpf.compile.generator import Generator
from xdsbpf.compile.proxyless import outputs as proxyless
from xdsbpf.compile.raw.outputs import raw_generators
from xdsbpf.compile.raw.resources import Globs
from xdsbpf.compile.sidecar import outputs as sidecar
from xdsbpf.compile.views import GRPC, SIDECAR, ClientView


def generators(
    nodes: tuple[str, ...],
    families: tuple[tuple[Globs, str], ...] = (),
    views: frozenset[ClientView] = frozenset(),
) -> tuple[Generator, ...]:
    """Generators of all resources for these nodes (`views.known_nodes`), raw families and views of clients."""
    return (
        *datapath_generators(nodes),
        *envoy_generators(nodes),
        *raw_generators(families, for_grpc=any(view.kind == GRPC for view in views)),
        *view_generators(views),
    )


def view_generators(views: frozenset[ClientView]) -> tuple[Generator, ...]:
    """What the clients of some views see: families that their kind shares, and each view's own."""
    kinds = {view.kind for view in views}
    found: list[Generator] = []
    if GRPC in kinds:
        found += proxyless.shared_generators()
    if SIDECAR in kinds:
        found += sidecar.shared_generators()
    for view in sorted(views):
        offer = proxyless if view.kind == GRPC else sidecar
        found += offer.client_generators(view.scope, view.client)
    return tuple(found)
