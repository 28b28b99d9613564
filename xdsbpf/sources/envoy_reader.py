"""Text of one file of raw Envoy resources -> the resources in it, with their positions.

The format is the one of Envoy's filesystem subscriptions, a DiscoveryResponse:

    resources: [{"@type": …}, …]      each may be wrapped in envoy.service.discovery.v3.Resource (name, version, ttl)
    version: "7"                      ours: served as it is; without it the hash of each resource is
    nodes: [edge-*]                   ours: globs of the node ids that may see them; default every other Envoy

A file counts as a whole, as for Envoy itself: one mistake and nothing of its new text is taken. Called by `files`
and `loading` through `parse_envoy_steps`; no I/O here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from google.protobuf.message import Message
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from xdsbpf.diagnostics import Diagnostic, Severity
from xdsbpf.model import codes
from xdsbpf.model.envoy_resource import make_envoy_resource, resource_id
from xdsbpf.model.globs import MAX_GLOB
from xdsbpf.sources.envoy_walk import encode, plain_value, read_any, type_url_of
from xdsbpf.sources.yaml_findings import Budget, Finding, Path, Walk, describe
from xdsbpf.sources.yaml_nodes import Segment, TextError, child, compose, find
from xdsbpf.sources.yaml_objects import Disposition, ReadObject
from xdsbpf.sources.yaml_reader import Chunk, ParsedFile, broken_file, split_documents, text_of
from xdsbpf.sources.yaml_readers import suggestion
from xdsbpf.sources.yaml_scalars import duration_ns
from xdsbpf.sources.yaml_walk import entries

WRAPPER: Final = "envoy.service.discovery.v3.Resource"
_NAME_FIELDS: Final = ("cluster_name", "name")
MAX_DEPTH: Final = 60
"""Envoy's messages nest deeper than manifests: routes in filters in chains in a listener."""

MIN_TTL_MS: Final = 1_000
MAX_TTL_MS: Final = 86_400_000

_FRAME: Final = ("resources", "version", "nodes")
_OF_ENVOY: Final = frozenset({"version_info", "type_url", "typeUrl", "versionInfo", "nonce", "canary", "control_plane"})
"""Fields of a DiscoveryResponse that say nothing here. Envoy itself takes a changed file whose `version_info`
stayed the same, so that does not become the version."""
_HINT: Final = "resources: is a list of messages with @type, as in Envoy's filesystem subscriptions"


class Frame(msgspec.Struct, frozen=True):
    """What one document says about all of its resources."""

    version: str
    nodes: tuple[str, ...]


def parse_envoy_steps(file: str, data: bytes, previous: ParsedFile | None = None) -> Iterator[ParsedFile | None]:
    """Read a file in steps of one resource: yields None between them and the result last.

    Documents that are equal to those of `previous` are taken over.
    """
    text = text_of(file, data)
    if isinstance(text, ParsedFile):
        yield text
        return
    known = {chunk.text: chunk for _, chunk in previous.chunks} if previous is not None else {}
    chunks: list[tuple[int, Chunk]] = []
    for first_line, piece in split_documents(text):
        chunk = known.get(piece)
        if chunk is None:
            found: list[Finding] = []
            objects: list[ReadObject] = []
            for read in _read_document(piece, found):
                objects.append(read)
                yield None
            problems = [finding for read in objects for finding in read.findings]
            if found or problems:
                placed = [finding.diagnostic(None, file, first_line) for finding in found]
                placed += [
                    finding.diagnostic(read.id, file, first_line) for read in objects for finding in read.findings
                ]
                yield broken_file(file, data, sorted(placed, key=_place))
                return
            chunk = Chunk(piece, tuple(objects), None)
        chunks.append((first_line, chunk))
        yield None
    yield ParsedFile(file, data, tuple(chunks))


def _read_document(text: str, found: list[Finding]) -> Iterator[ReadObject]:
    """The resources of one document; what is wrong with the document itself goes to `found`."""
    try:
        roots = list(compose(text))
    except TextError as error:
        found.append(Finding(codes.SYNTAX, Severity.ERROR, "", error.message, "", error.line, error.column))
        return
    for root in roots:
        budget = Budget(root.end_mark.index - root.start_mark.index)
        walk = Walk(budget, strict=True, max_depth=MAX_DEPTH)
        frame = _read_frame(walk, root)
        found.extend(walk.findings)
        listed = child(root, "resources")
        if frame is None or listed is None or not isinstance(listed[1], SequenceNode):
            continue
        for index, entry in enumerate(listed[1].value):
            yield _read_resource(entry, index, frame, budget)


def _read_frame(walk: Walk, root: Node) -> Frame | None:
    if not isinstance(root, MappingNode):
        walk.report(codes.ENVOY_FILE, None, root, f"expected a mapping with resources, found {describe(root)}", _HINT)
        return None
    values = {key: (key_node, value) for key, key_node, value in entries(walk, root, None)}
    if {"apiVersion", "kind"} <= values.keys():
        walk.report(
            codes.ENVOY_FILE, None, root, "this is a manifest, not a file of Envoy resources", "give it with -f"
        )
        return None
    if "resources" not in values:
        walk.report(codes.ENVOY_FILE, None, root, "the document has no resources", _HINT)
        return None
    for key, (key_node, _) in values.items():
        if key not in _FRAME and key not in _OF_ENVOY:
            hint = suggestion(key, _FRAME) or f"known here: {', '.join(_FRAME)}"
            walk.report(codes.UNKNOWN_FIELD, (None, key), key_node, f"unknown field {key}", hint)
    listed = values["resources"][1]
    if not isinstance(listed, SequenceNode):
        text = f"expected a list of resources, found {describe(listed)}"
        walk.report(codes.WRONG_TYPE, (None, "resources"), listed, text, _HINT)
    version = _text(walk, values["version"][1], (None, "version")) if "version" in values else ""
    nodes = _globs(walk, values["nodes"][1]) if "nodes" in values else ()
    return Frame(version, nodes)


def _text(walk: Walk, node: Node, path: Path) -> str:
    """A scalar as it is written: `version: 7` is "7"."""
    if not isinstance(node, ScalarNode) or not node.value:
        walk.report(codes.WRONG_TYPE, path, node, f"expected a text, found {describe(node)}")
        return ""
    return str(node.value)


def _globs(walk: Walk, node: Node) -> tuple[str, ...]:
    path: Path = (None, "nodes")
    value = plain_value(walk, node, path)
    globs = value if isinstance(value, list) else []
    is_good = bool(globs) and all(
        isinstance(glob, str) and 0 < len(glob) <= MAX_GLOB and not any(mark.isspace() or mark == "," for mark in glob)
        for glob in globs
    )
    if not is_good:
        text = f"expected a list of globs such as edge-*, without blanks and commas, found {describe(node)}"
        walk.report(codes.ENVOY_FILE, path, node, text, "leave nodes out for every Envoy that is no proxy of the mesh")
        return ()
    return tuple(sorted(set(globs)))


def _read_resource(entry: Node, index: int, frame: Frame, budget: Budget) -> ReadObject:
    walk = Walk(budget, strict=True, max_depth=MAX_DEPTH)
    content: Node | None = entry
    name, version, ttl_ms = "", frame.version, 0
    if isinstance(entry, MappingNode) and type_url_of(entry).rpartition("/")[2] == WRAPPER:
        name, version, ttl_ms, content = _unwrap(walk, entry, version)
    packed = read_any(walk, content, None) if content is not None else None
    type_url, manifest = "", None
    if packed is not None:
        type_url = packed[0]
        inner = _name_of(packed[1])
        if name and inner and name != inner and "VirtualHost" not in type_url:
            text = f"the wrapper says {name!r}, the resource itself {inner!r}"
            walk.report(codes.ENVOY_NAME, None, entry, text, "leave the name of the wrapper out")
        name = name or inner
        if not name and not walk.failed:
            hint = f"wrap it in {WRAPPER} with a name"
            walk.report(codes.ENVOY_NAME, None, entry, "the resource has no name", hint)
        elif name and not walk.failed:
            manifest = make_envoy_resource(
                type_url, name, encode(packed[1]), version=version, nodes=frame.nodes, ttl_ms=ttl_ms
            )
    id = resource_id(type_url, name, frame.nodes) if name else resource_id(type_url, f"resources[{index}]", frame.nodes)
    place: Node = entry
    prefix: tuple[Segment, ...] = ("resources", index)
    if content is not None and content is not entry:
        place, prefix = find(entry, ("resource",)), (*prefix, "resource")
    mark = place.start_mark
    disposition = Disposition.REJECTED if manifest is None else Disposition.ACCEPTED
    findings = tuple(sorted(walk.findings, key=lambda finding: (finding.line, finding.column)))
    return ReadObject(id, disposition, manifest, None, findings, mark.line + 1, mark.column + 1, prefix)


def _unwrap(walk: Walk, entry: MappingNode, version: str) -> tuple[str, str, int, Node | None]:
    """(name, version, time to live in milliseconds, node of the resource) of a wrapped resource."""
    name, ttl_ms, content = "", 0, None
    for key, key_node, value in entries(walk, entry, None):
        if key == "resource":
            content = value
        elif key == "name":
            name = _text(walk, value, (None, key))
        elif key == "version":
            version = _text(walk, value, (None, key))
        elif key == "ttl":
            ttl_ms = _ttl(walk, value)
        elif key != "@type":
            text = f"{key} of a wrapped resource is not supported: name, version, ttl and resource are"
            walk.report(codes.UNKNOWN_FIELD, (None, key), key_node, text)
    if content is None:
        walk.report(codes.MISSING_FIELD, (None, "resource"), entry, "the field resource is required")
    return name, version, ttl_ms, content


def _ttl(walk: Walk, node: Node) -> int:
    nanoseconds = duration_ns(_text(walk, node, (None, "ttl")))
    if nanoseconds is None or not MIN_TTL_MS * 1_000_000 <= nanoseconds <= MAX_TTL_MS * 1_000_000:
        hint = "proxies are told three times in that span that the resource is still there"
        walk.report(codes.WRONG_TYPE, (None, "ttl"), node, "expected a duration from 1s to 24h, such as 30s", hint)
        return 0
    return nanoseconds // 1_000_000


def _name_of(message: Message | bytes) -> str:
    """The name that the resource gives itself, "" for a type that has none."""
    if isinstance(message, bytes):
        return ""
    fields = message.DESCRIPTOR.fields_by_name
    return next((str(getattr(message, field)) for field in _NAME_FIELDS if field in fields), "")


def _place(found: Diagnostic) -> tuple[int, int]:
    return (found.location.line, found.location.column) if found.location is not None else (0, 0)


def parse_envoy_file(file: str, data: bytes) -> ParsedFile:
    """`parse_envoy_steps` in one go."""
    result: ParsedFile | None = None
    for step in parse_envoy_steps(file, data):
        result = step
    return result if result is not None else ParsedFile(file, data, ())
