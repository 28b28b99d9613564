"""What raw resources add to the families of resources that are served."""

from __future__ import annotations

from xdsbpf.compile.generator import Generator
from xdsbpf.compile.raw.resources import Globs, raw_resource, raw_scope, resource_names


def raw_generators(families: tuple[tuple[Globs, str], ...]) -> tuple[Generator, ...]:
    """Generators of the raw resources of these families (`resources.families`)."""
    return tuple(
        Generator(raw_scope(nodes), type_url, resource_names, raw_resource, (nodes, type_url))
        for nodes, type_url in families
    )
