"""One YAML document -> the manifest objects in it (a List holds several).

Decides what a document is (API group, version, kind), reads and validates it, and gives every
object its name and disposition. Positions are relative to the chunk of text. Pure; called by
`yaml_reader`.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from xdsbpf.diagnostics import Diagnostic, ObjectId, Severity
from xdsbpf.model import codes, registry
from xdsbpf.model.meta import Manifest, ObjectMeta
from xdsbpf.model.sharing import shared_text
from xdsbpf.model.validate import validate
from xdsbpf.sources.fail_closed import deny_placeholder
from xdsbpf.sources.yaml_findings import MAX_OBJECT_BYTES, Budget, Finding, Path, Walk
from xdsbpf.sources.yaml_nodes import PLAIN, TAG_STR, Segment, child, find, parse_path
from xdsbpf.sources.yaml_readers import suggestion
from xdsbpf.sources.yaml_walk import read_struct

DEFAULT_NAMESPACE: Final = "default"


class Disposition(enum.StrEnum):
    """What the reader made of an object."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNSUPPORTED = "unsupported"
    UNKNOWN = "unknown"


class ReadObject(msgspec.Struct, frozen=True):
    """An object as read from its chunk; `line` and `column` count from 1 within the chunk.

    `manifest` is set when accepted. `placeholder` is the policy that denies what a rejected security
    object selects. `prefix` is the path of the entry inside a List.
    """

    id: ObjectId
    disposition: Disposition
    manifest: Manifest | None
    placeholder: Manifest | None
    findings: tuple[Finding, ...]
    line: int
    column: int
    prefix: tuple[Segment, ...] = ()

    @property
    def named(self) -> bool:
        """Whether the object says its own name."""
        return bool(self.id.name)


def read_objects(root: Node) -> list[ReadObject] | Finding:
    """Objects of one document, or the finding that says why the document is no object."""
    return _expand(root, (), None, Budget(root.end_mark.index - root.start_mark.index))


def _expand(
    node: Node, prefix: tuple[Segment, ...], inherited: tuple[str, str] | None, budget: Budget
) -> list[ReadObject] | Finding:
    if not isinstance(node, MappingNode):
        return _no_object(node, "expected an object with apiVersion, kind and metadata")
    api_version, kind = _text(node, "apiVersion"), _text(node, "kind")
    if inherited is not None:
        api_version, kind = api_version or inherited[0], kind or inherited[1]
    if not api_version or not kind:
        missing = "apiVersion" if kind else "kind" if api_version else "apiVersion and kind"
        return _no_object(node, f"the document has no {missing}")
    items = child(node, "items")
    if kind.endswith("List") and items is not None and isinstance(items[1], SequenceNode):
        item_kind = kind.removesuffix("List")
        of = (api_version, item_kind) if item_kind else None
        objects: list[ReadObject] = []
        for index, entry in enumerate(items[1].value):
            # Security: a List that contains itself by an alias would never end.
            if prefix:
                return _no_object(entry, "a List inside a List is not supported")
            found = _expand(entry, ("items", index), of, budget)
            if isinstance(found, Finding):
                return found
            objects.extend(found)
        return objects
    return [_read_object(node, prefix, api_version, kind, budget)]


def _no_object(node: Node, message: str) -> Finding:
    hint = "nothing of the file is taken; its last good content stays in force"
    mark = node.start_mark
    return Finding(codes.NOT_AN_OBJECT, Severity.ERROR, "", message, hint, mark.line + 1, mark.column + 1)


def _text(node: Node, name: str) -> str:
    found = child(node, name)
    value = found[1] if found is not None else None
    return value.value if isinstance(value, ScalarNode) and value.tag in (PLAIN, TAG_STR) else ""


def _read_object(
    node: MappingNode, prefix: tuple[Segment, ...], api_version: str, kind: str, budget: Budget
) -> ReadObject:
    group, _, version = api_version.rpartition("/")
    cls = registry.KINDS.get((group, kind))
    object_id = _object_id(node, group, kind)
    walk = Walk(budget, strict=group in registry.STRICT_GROUPS)
    if cls is None:
        disposition = _classify_foreign(walk, node, group, kind)
        return _result(object_id, disposition, None, None, walk, node, prefix)
    _check_frame(walk, node, group, version, kind)
    manifest = None
    if not walk.failed:
        manifest = read_struct(cls, node, walk)
    if manifest is not None:
        manifest = _with_id(manifest, object_id)
        if not walk.failed:
            _validate(walk, node, manifest)
    if manifest is not None and not walk.failed:
        return _result(object_id, Disposition.ACCEPTED, manifest, None, walk, node, prefix)
    placeholder = None
    if kind in registry.SECURITY_KINDS:
        placeholder = deny_placeholder(object_id, node, tuple(finding.path for finding in walk.findings))
    return _result(object_id, Disposition.REJECTED, None, placeholder, walk, node, prefix)


def _result(
    object_id: ObjectId,
    disposition: Disposition,
    manifest: Manifest | None,
    placeholder: Manifest | None,
    walk: Walk,
    node: Node,
    prefix: tuple[Segment, ...],
) -> ReadObject:
    mark = node.start_mark
    findings = tuple(sorted(walk.findings, key=lambda finding: (finding.line, finding.column)))
    return ReadObject(object_id, disposition, manifest, placeholder, findings, mark.line + 1, mark.column + 1, prefix)


def _object_id(node: Node, group: str, kind: str) -> ObjectId:
    """Identity as far as it can be read; the name is empty if there is none."""
    metadata = child(node, "metadata")
    inside = metadata[1] if metadata is not None else node
    name = _text(inside, "name") if metadata is not None else ""
    namespace = _text(inside, "namespace") if metadata is not None else ""
    namespace = "" if kind in registry.CLUSTER_SCOPED else namespace or DEFAULT_NAMESPACE
    return ObjectId(shared_text(kind), shared_text(namespace), name, shared_text(group))


def _with_id(manifest: Manifest, object_id: ObjectId) -> Manifest:
    """The manifest with its namespace filled in as Kubernetes would."""
    if manifest.metadata.namespace == object_id.namespace:
        return manifest
    metadata: ObjectMeta = msgspec.structs.replace(manifest.metadata, namespace=object_id.namespace)
    return msgspec.structs.replace(manifest, metadata=metadata)


def _classify_foreign(walk: Walk, node: Node, group: str, kind: str) -> Disposition:
    """A kind without a struct: a warning, or an error where leaving it out weakens security."""
    place = find(node, ("kind",))
    severity = Severity.ERROR if group == registry.ISTIO_SECURITY else Severity.WARNING
    path: Path = (None, "kind")
    consequence = registry.NOT_YET_SUPPORTED.get((group, kind))
    if consequence is not None:
        message = f"{kind} is not supported yet: {consequence}"
        walk.report(codes.UNSUPPORTED_KIND, path, place, message, severity=severity)
        return Disposition.UNSUPPORTED
    of_group = [name for owner, name in (*registry.KINDS, *registry.NOT_YET_SUPPORTED) if owner == group]
    message = f"{kind} in API group {group or 'core'} is not recognised, ignored"
    walk.report(codes.UNKNOWN_KIND, path, place, message, suggestion(kind, of_group), severity=severity)
    return Disposition.UNKNOWN


def _check_frame(walk: Walk, node: MappingNode, group: str, version: str, kind: str) -> None:
    """Version and size of an object of a supported kind."""
    known = registry.VERSIONS[group]
    if version not in known:
        message = f"version {version} of {kind} is not supported"
        hint = f"use {' or '.join(known)}"
        walk.report(codes.UNSUPPORTED_VERSION, (None, "apiVersion"), find(node, ("apiVersion",)), message, hint)
    size = node.end_mark.index - node.start_mark.index
    if size > MAX_OBJECT_BYTES:
        message = f"the object has {size} characters, more than {MAX_OBJECT_BYTES}"
        walk.report(codes.LIMIT, None, node, message, "split the object")


def _validate(walk: Walk, node: Node, manifest: Manifest) -> None:
    """Validation of the kind, each diagnostic placed where its path points."""
    for found in validate(manifest):
        walk.findings.append(_placed(found, node))


def _placed(found: Diagnostic, node: Node) -> Finding:
    mark = find(node, parse_path(found.path)).start_mark
    return Finding(found.code, found.severity, found.path, found.message, found.hint, mark.line + 1, mark.column + 1)
