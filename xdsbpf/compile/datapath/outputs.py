"""What the datapath compiler offers to the server: its families of resources, shared and per node."""

from __future__ import annotations

from xdsbpf.compile.datapath import backends, frontends, identities, names, node_config, policies
from xdsbpf.compile.generator import Generator
from xdsbpf.model.names import BACKENDS, FRONTEND, IDENTITY, NODE_CONFIG, POLICY


def datapath_generators(nodes: tuple[str, ...]) -> tuple[Generator, ...]:
    """Generators of all datapath resources: those that all agents share, then one per node."""
    shared = (
        Generator(names.SCOPE, IDENTITY, identities.identity_names, identities.identity_resource),
        Generator(names.SCOPE, POLICY, policies.policy_names, policies.policy_resource),
        Generator(names.SCOPE, BACKENDS, backends.backends_names, backends.backends),
        Generator(names.SCOPE, FRONTEND, frontends.frontend_names, frontends.frontend),
    )
    own = tuple(
        Generator(
            names.node_scope(node),
            NODE_CONFIG,
            node_config.node_config_names,
            node_config.node_config,
            (node,),
        )
        for node in nodes
    )
    return shared + own
