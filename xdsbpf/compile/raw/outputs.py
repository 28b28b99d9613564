"""What raw resources add to the families of resources that are served."""

from __future__ import annotations

from xdsbpf.compile.generator import Generator
from xdsbpf.compile.raw.kernel_outputs import kernel_families, kernel_generators
from xdsbpf.compile.raw.resources import (
    Globs,
    assignment_names,
    grpc_assignment,
    grpc_scope,
    raw_resource,
    raw_scope,
    resource_names,
)
from xdsbpf.model.names import ENDPOINTS


def raw_generators(families: tuple[tuple[Globs, str], ...], *, for_grpc: bool) -> tuple[Generator, ...]:
    """Generators of raw resources of these families (`resources.families`), and of those made for gRPC and agents."""
    as_written = (
        Generator(raw_scope(nodes), type_url, resource_names, raw_resource, (nodes, type_url))
        for nodes, type_url in families
    )
    repaired = (
        Generator(grpc_scope(nodes), ENDPOINTS, assignment_names, grpc_assignment, (nodes,))
        for nodes, type_url in families
        if for_grpc and type_url == ENDPOINTS
    )
    kernel = (entry for nodes in kernel_families(families) for entry in kernel_generators(nodes))
    return (*as_written, *repaired, *kernel)
