"""Every family of resources that is served: both planes' generators in one list."""

from __future__ import annotations

from xdsbpf.compile.datapath.outputs import datapath_generators
from xdsbpf.compile.envoy.outputs import envoy_generators
from xdsbpf.compile.generator import Generator


def generators(nodes: tuple[str, ...]) -> tuple[Generator, ...]:
    """Generators of all resources for these nodes (`views.known_nodes`)."""
    return datapath_generators(nodes) + envoy_generators(nodes)
