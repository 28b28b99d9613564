"""The policy that stands in for a security object that cannot be understood.

It denies everything to what the object selects; if the selector itself cannot be read, to the whole
namespace of the object (DESIGN 13, reliability.md I12). The annotation makes findings name it.
"""

from __future__ import annotations

from typing import Final

from yaml.nodes import MappingNode, Node

from xdsbpf.diagnostics import ObjectId
from xdsbpf.model.authorization_policy import (
    AuthorizationPolicy,
    AuthorizationPolicySpec,
    PolicySelector,
    PolicyTargetRef,
    Rule,
)
from xdsbpf.model.meta import ObjectMeta
from xdsbpf.sources.yaml_findings import Budget, Walk
from xdsbpf.sources.yaml_nodes import child, is_null
from xdsbpf.sources.yaml_walk import entries, read_struct

UNINTELLIGIBLE: Final = "xdsbpf.io/unintelligible"
_SELECTING: Final = ("spec.selector", "spec.targetRef", "spec.targetRefs")


def deny_placeholder(object: ObjectId, node: Node, failed_paths: tuple[str, ...]) -> AuthorizationPolicy:
    """A DENY of everything for what `node` selects.

    `failed_paths` are the field paths that were found wrong: a selector among them is not trusted.
    """
    spec = child(node, "spec")
    selecting: AuthorizationPolicySpec | None = None
    if spec is not None and not any(_is_selecting(path) for path in failed_paths):
        selecting = _read_selection(spec[1])
    selecting = selecting or AuthorizationPolicySpec()
    return AuthorizationPolicy(
        metadata=ObjectMeta(name=object.name, namespace=object.namespace, annotations=((UNINTELLIGIBLE, "true"),)),
        spec=AuthorizationPolicySpec(
            selector=selecting.selector,
            target_ref=selecting.target_ref,
            target_refs=selecting.target_refs,
            rules=(Rule(),),
            action="DENY",
        ),
    )


def _is_selecting(path: str) -> bool:
    return path in ("", "spec") or path.startswith(_SELECTING)


def _read_selection(spec: Node) -> AuthorizationPolicySpec | None:
    """Only the fields that select, or None if one of them cannot be read."""
    if not isinstance(spec, MappingNode):
        return None
    walk = Walk(Budget(), strict=True)
    fields = {key: value for key, _, value in entries(walk, spec, None) if not is_null(value)}
    selector = read_struct(PolicySelector, fields["selector"], walk) if "selector" in fields else None
    target = read_struct(PolicyTargetRef, fields["targetRef"], walk) if "targetRef" in fields else None
    targets: tuple[PolicyTargetRef, ...] = ()
    if "targetRefs" in fields:
        items = fields["targetRefs"].value if not isinstance(fields["targetRefs"], MappingNode) else []
        read = [read_struct(PolicyTargetRef, item, walk) for item in items if isinstance(item, Node)]
        targets = tuple(item for item in read if item is not None)
    if walk.failed:
        return None
    return AuthorizationPolicySpec(selector=selector, target_ref=target, target_refs=targets)
