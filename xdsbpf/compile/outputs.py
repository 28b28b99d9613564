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
    kinds: frozenset[str] = frozenset(),
) -> tuple[Generator, ...]:
    """Generators of all resources for these nodes (`views.known_nodes`), raw families and kinds of `ClientView`.

    What each view of a kind has of its own is not among them: `view_generators`.
    """
    planes = (*datapath_generators(nodes), *envoy_generators(nodes))
    # What a node has of its own follows one another: it is made from the same pods, which are then at hand.
    of_nodes = sorted((entry for entry in planes if entry.args), key=lambda entry: entry.args)
    return (
        *(entry for entry in planes if not entry.args),
        *of_nodes,
        *raw_generators(families, for_grpc=GRPC in kinds),
        *(proxyless.shared_generators() if GRPC in kinds else ()),
        *(sidecar.shared_generators() if SIDECAR in kinds else ()),
    )


def view_generators(view: ClientView) -> tuple[Generator, ...]:
    """What the clients of one view see besides what their kind shares."""
    if view.kind == GRPC:
        return proxyless.client_generators(view.scope, view.client)
    return sidecar.client_generators(view.scope, view.client)
