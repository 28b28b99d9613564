"""Every family of resources that is served: the generators of both planes and of raw resources in one list."""

from __future__ import annotations

from xdsbpf.compile.datapath.outputs import datapath_generators
from xdsbpf.compile.envoy.outputs import envoy_generators
from xdsbpf.compile.generator import Generator
from xdsbpf.compile.raw.outputs import raw_generators
from xdsbpf.compile.raw.resources import Globs


def generators(nodes: tuple[str, ...], families: tuple[tuple[Globs, str], ...] = ()) -> tuple[Generator, ...]:
    """Generators of all resources for these nodes (`views.known_nodes`) and raw families (`raw.resources.families`)."""
    return datapath_generators(nodes) + envoy_generators(nodes) + raw_generators(families)
