"""Wire helpers of the delta xDS protocol, shared by the server and by the agent's client.

In: raw gRPC message bytes, or values to be encoded. Out: the other one. A resource travels as
`Resource{name, version, resource: Any{type_url, body}}`; its body is never parsed or serialised here,
a response is the concatenation of small headers and the bodies that the store already holds.
Called by `xds.session`, `xds.server` and by the agent; must not import grpc.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.protobuf.message import DecodeError, EncodeError

from xdsbpf.errors import ProtocolError
from xdsbpf.model import names
from xdsbpf.model.resource import Resource

ADS_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
DELTA_ADS = f"/{ADS_SERVICE}/DeltaAggregatedResources"
SOTW_ADS = f"/{ADS_SERVICE}/StreamAggregatedResources"
"""gRPC method paths of the aggregated streams."""

SCOPED_ROUTES = names.TYPE_PREFIX + "envoy.config.route.v3.ScopedRouteConfiguration"
RUNTIME = names.TYPE_PREFIX + "envoy.service.runtime.v3.Runtime"
LOCALITY_ENDPOINTS = names.TYPE_PREFIX + "envoy.config.endpoint.v3.LbEndpoint"

WILDCARD = "*"

PUSH_ORDER: tuple[str, ...] = (
    names.CLUSTER,
    names.ENDPOINTS,
    names.SECRET,
    names.LISTENER,
    names.ROUTES,
    SCOPED_ROUTES,
    names.VIRTUAL_HOST,
    names.EXTENSION,
    RUNTIME,
    *names.DATAPATH_TYPES,
)
"""Order of additions and updates on one stream; removals go in reverse. Other types come last."""

NAMED_ONLY = frozenset({names.ENDPOINTS, LOCALITY_ENDPOINTS, names.ROUTES, names.SECRET, names.EXTENSION})
"""Types whose empty first request subscribes to nothing; for all others it is the legacy wildcard."""

KNOWN_TYPES = frozenset((*PUSH_ORDER, LOCALITY_ENDPOINTS))
"""Types for which a name that does not exist is answered as removed even if we never had one."""

STATELESS_SETS = frozenset({*NAMED_ONLY, RUNTIME})
"""Types whose state-of-the-world responses may hold a part; of all others a response is the whole set."""

DELTA_ONLY = frozenset({names.VIRTUAL_HOST, LOCALITY_ENDPOINTS})
"""Types that have no state-of-the-world variant."""

SHARED_TYPES = KNOWN_TYPES - {names.VIRTUAL_HOST, *names.DATAPATH_TYPES}
"""Types whose pages depend on nothing but the view; a missing virtual host is answered in its own way, and a datapath
resource may have to wait."""

MAX_ERROR_BYTES = 4096

# Field tags of DeltaDiscoveryResponse, Resource and Any: (number << 3) | 2, all length-delimited.
_RESPONSE_VERSION, _RESPONSE_RESOURCE, _RESPONSE_TYPE = b"\x0a", b"\x12", b"\x22"
_RESPONSE_NONCE, _RESPONSE_REMOVED = b"\x2a", b"\x32"
_RESOURCE_VERSION, _RESOURCE_ANY, _RESOURCE_NAME, _RESOURCE_ALIAS = b"\x0a", b"\x12", b"\x1a", b"\x22"
_RESOURCE_TTL = b"\x32"
_ANY_TYPE, _ANY_VALUE = b"\x0a", b"\x12"


class ReceivedResource(msgspec.Struct, frozen=True):
    """A resource as it came over the wire; `body` is None if the server sent a name without a value."""

    name: str
    version: str
    type_url: str
    body: bytes | None


class ReceivedResponse(msgspec.Struct, frozen=True):
    """A decoded DeltaDiscoveryResponse."""

    type_url: str
    nonce: str
    resources: tuple[ReceivedResource, ...]
    removed: tuple[str, ...]


def varint(value: int) -> bytes:
    """Base-128 encoding of a length or tag."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(tag: bytes, value: bytes) -> bytes:
    """A length-delimited field on the wire."""
    return tag + varint(len(value)) + value


def resource_header(resource: Resource) -> bytes:
    """The bytes that precede `resource.body` in a response, field tag of `resources` included.

    header + body is one complete `resources` entry (protobuf wire format, body is its last field), so
    a body is shared by every response that carries it. A time to live is in the header. Cost: O(len(name)).
    """
    body_length = len(resource.body)
    any_head = field(_ANY_TYPE, resource.type_url.encode())
    if body_length:
        any_head += _ANY_VALUE + varint(body_length)
    head = (
        field(_RESOURCE_NAME, resource.name.encode())
        + field(_RESOURCE_VERSION, resource.version.encode())
        + time_to_live(resource)
        + _RESOURCE_ANY
        + varint(len(any_head) + body_length)
        + any_head
    )
    return _RESPONSE_RESOURCE + varint(len(head) + body_length) + head


def time_to_live(resource: Resource) -> bytes:
    """The field `ttl` of a Resource, a Duration; nothing without one."""
    if not resource.ttl_ms:
        return b""
    seconds, rest = divmod(resource.ttl_ms, 1000)
    nanos = b"\x10" + varint(rest * 1_000_000) if rest else b""
    return field(_RESOURCE_TTL, (b"\x08" + varint(seconds) if seconds else b"") + nanos)


def heartbeat_entry(resource: Resource) -> bytes:
    """A `resources` entry that says "still there": name, version and time to live, and no body."""
    text = field(_RESOURCE_NAME, resource.name.encode()) + field(_RESOURCE_VERSION, resource.version.encode())
    return field(_RESPONSE_RESOURCE, text + time_to_live(resource))


def missing_entry(name: str) -> bytes:
    """A `resources` entry that says "no such name": the name as its own alias, and no body.

    VHDS only: Envoy holds a request for an unknown host until it gets this; `removed_resources` does not
    release it.
    """
    encoded = name.encode()
    return field(_RESPONSE_RESOURCE, field(_RESOURCE_NAME, encoded) + field(_RESOURCE_ALIAS, encoded))


def withheld_entry(name: str) -> bytes:
    """A `resources` entry that says "exists, keep what you have": the name, no version and no body.

    Datapath types only.
    """
    return field(_RESPONSE_RESOURCE, field(_RESOURCE_NAME, name.encode()))


def encode_response(
    type_url: str, nonce: str, segments: Iterable[bytes], removed: Iterable[str], revision: int
) -> bytes:
    """A DeltaDiscoveryResponse.

    `segments` are headers and bodies in turn; `revision` of the store is for debugging only.
    """
    parts = [field(_RESPONSE_VERSION, str(revision).encode())]
    parts.extend(segments)
    parts.append(field(_RESPONSE_TYPE, type_url.encode()))
    parts.append(field(_RESPONSE_NONCE, nonce.encode()))
    parts.extend(field(_RESPONSE_REMOVED, name.encode()) for name in removed)
    return b"".join(parts)


def encode_request(
    type_url: str,
    *,
    node_id: str = "",
    user_agent: str = "",
    subscribe: Sequence[str] = (),
    unsubscribe: Sequence[str] = (),
    initial_versions: Mapping[str, str] | None = None,
    nonce: str = "",
    error: str = "",
) -> bytes:
    """A DeltaDiscoveryRequest as a client sends it.

    `node_id` belongs in the first request of a stream, `initial_versions` (name -> version held) in the
    first one of a type. `nonce` without `error` is an ACK, with it a NACK (code INTERNAL, capped at 4 KB).
    """
    request = DeltaDiscoveryRequest(
        type_url=type_url,
        resource_names_subscribe=subscribe,
        resource_names_unsubscribe=unsubscribe,
        initial_resource_versions=dict(initial_versions or {}),
        response_nonce=nonce,
    )
    if node_id:
        request.node.id = node_id
        request.node.user_agent_name = user_agent
    if error:
        request.error_detail.code = 13
        request.error_detail.message = error[:MAX_ERROR_BYTES]
    try:
        return bytes(request.SerializeToString())
    except EncodeError as failure:
        raise ProtocolError("INTERNAL", f"cannot encode a request of {type_url}: {failure}") from failure


def decode_response(data: bytes) -> ReceivedResponse:
    """Parse a response on the client's side.

    Raises: ProtocolError(INVALID_ARGUMENT) if the bytes are no DeltaDiscoveryResponse.
    """
    response = DeltaDiscoveryResponse()
    try:
        response.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError("INVALID_ARGUMENT", f"not a DeltaDiscoveryResponse: {error}") from error
    return ReceivedResponse(
        type_url=response.type_url,
        nonce=response.nonce,
        resources=tuple(
            ReceivedResource(
                item.name,
                item.version,
                item.resource.type_url or response.type_url,
                item.resource.value if item.HasField("resource") else None,
            )
            for item in response.resources
        ),
        removed=tuple(response.removed_resources),
    )


def is_glob(name: str) -> bool:
    """Whether a subscribed name is a glob collection: a path that ends with `/*`, context parameters aside."""
    return name.partition("?")[0].endswith("/*")


def glob_matches(glob: str, name: str) -> bool:
    """Whether `name` is in the collection: below its path, with the same context parameters in any order."""
    path, _, parameters = glob.partition("?")
    found, _, others = name.partition("?")
    if not found.startswith(path[:-1]):
        return False
    return others == parameters or sorted(others.split("&")) == sorted(parameters.split("&"))


def readable_error(text: str) -> str:
    """A peer's error text made safe for logs and tables: control characters escaped, at most 4 KB."""
    text = text[: MAX_ERROR_BYTES + 1]  # before anything that costs by length: a peer may send 64 MB
    clean = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    encoded = clean.encode("utf-8", "replace")
    if len(encoded) <= MAX_ERROR_BYTES:
        return clean
    return encoded[: MAX_ERROR_BYTES - 3].decode("utf-8", "ignore") + "..."


def blamed(text: str, candidates: Sequence[str]) -> tuple[str, ...]:
    """The resource names that an error text names as whole words; all of them if it names none."""
    return named(text, candidates) or tuple(candidates)


def named(text: str, candidates: Sequence[str]) -> tuple[str, ...]:
    """The resource names that an error text names as whole words."""
    return tuple(name for name in candidates if _names(text, name))


def _names(text: str, name: str) -> bool:
    """True if `name` stands in `text` with no name character directly before or after it."""
    start = text.find(name) if name else -1
    while start >= 0:
        end = start + len(name)
        before, after = text[start - 1 : start], text[end : end + 2]
        sentence_end = after[:1] == "." and not after[1:].strip()
        if not _is_name_character(before) and (sentence_end or not _is_name_character(after[:1])):
            return True
        start = text.find(name, start + 1)
    return False


def _is_name_character(char: str) -> bool:
    return bool(char) and (char.isalnum() or char in "._-|/~*")
