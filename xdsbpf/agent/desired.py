"""Desired state of one node: datapath resources decoded, checked and kept by name.

Bytes of `xdsbpf.datapath.v1.*` in, frozen values out; a resource that cannot be enforced exactly as
it is written raises `ResourceRejected`, and the caller keeps the previous version of that resource.
Used by the client (decode) and by the plan (read). Pure: no I/O, no numbers of the kernel.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Mapping, Set

import msgspec
from google.protobuf.message import DecodeError

from xdsbpf._pb.xdsbpf.datapath.v1 import datapath_pb2 as pb
from xdsbpf.datapath.abi import Limit, Verdict
from xdsbpf.datapath.address import address16, address_text, family_bytes
from xdsbpf.errors import XdsbpfError
from xdsbpf.model.address_block import AddressBlock, masked
from xdsbpf.model.names import BACKENDS, FRONTEND, IDENTITY, NODE_CONFIG, POLICY, RESERVED_IDENTITY

TCP = 6
MAX_WEIGHTED_BACKENDS = 1024
CONFLICT_POLICY = "xdsbpf:conflict"
"""Guards addresses that two policies claim: denies everything. The agent's own."""


class ResourceRejected(XdsbpfError):
    """One resource cannot be used; `name` is the resource's name, the message says why."""

    name: str

    def __init__(self, name: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.name = name


class Balance(msgspec.Struct, frozen=True):
    """L4: the kernel picks an endpoint of the Backends resource of this name, for whom `policy` ("": none) lets in."""

    backends: str
    policy: str = ""
    policy_port: int = 0


class Redirect(msgspec.Struct, frozen=True):
    """L7: to the node proxy; `policy` (name, or "") is checked with `policy_port` at connect."""

    proxy_port: int
    policy: str
    policy_port: int


class Frontend(msgspec.Struct, frozen=True):
    """A service address; `address` has the 16 bytes of the ABI."""

    address: bytes
    port: int
    service: str
    plane: Balance | Redirect


class Backend(msgspec.Struct, frozen=True, order=True):
    """An endpoint; weights are relative and at least 1."""

    address: bytes
    port: int
    weight: int


class Backends(msgspec.Struct, frozen=True):
    """Endpoints of one service port, sorted, each (address, port) once."""

    service: str
    backends: tuple[Backend, ...]


class Identity(msgspec.Struct, frozen=True):
    """A SPIFFE identity and the addresses that it is seen with."""

    name: str
    addresses: tuple[bytes, ...]


class PolicyEntry(msgspec.Struct, frozen=True):
    """Verdict of one (source, block, port) cell; source None: any source, port 0: any port.

    `block` is the narrowest of the policy's around the source's address, None outside all of them.
    """

    source: str | None
    port: int
    verdict: Verdict
    rule: str
    block: AddressBlock | None = None


class Policy(msgspec.Struct, frozen=True):
    """Entries and the addresses of the workloads that they guard; the blocks of sources that it tells apart."""

    name: str
    destinations: tuple[bytes, ...]
    entries: tuple[PolicyEntry, ...]
    blocks: tuple[AddressBlock, ...] = ()


class Workload(msgspec.Struct, frozen=True):
    """A pod of this node."""

    name: str
    uid: str
    addresses: tuple[bytes, ...]
    identity: str


class NodeConfig(msgspec.Struct, frozen=True):
    """What the node needs to know of itself; `proxy_address` has 16 bytes, zero: none."""

    node: str
    proxy_address: bytes
    workloads: tuple[Workload, ...]
    trust_domain: str


class Enrolled(msgspec.Struct, frozen=True, order=True):
    """A workload whose network namespace (by cookie) and host veth (by ifindex) were found here."""

    workload: str
    cookie: int
    ifindex: int
    addresses: tuple[bytes, ...]


class DesiredState(msgspec.Struct, frozen=True):
    """Everything the kernel of this node shall hold, by resource name.

    `kept`: names of frontends that exist but whose content is withheld (their Envoy is not ready): what
    the kernel has for them stays.
    """

    frontends: Mapping[str, Frontend] = {}
    backends: Mapping[str, Backends] = {}
    identities: Mapping[str, Identity] = {}
    policies: Mapping[str, Policy] = {}
    node: NodeConfig | None = None
    enrolled: tuple[Enrolled, ...] = ()
    kept: Set[str] = frozenset()


DatapathValue = Frontend | Backends | Identity | Policy | NodeConfig


def decode(type_url: str, name: str, body: bytes) -> DatapathValue:
    """Decode one resource's bytes.

    Raises: ResourceRejected for undecodable bytes, a value out of range, a name that does not fit
    the content, or a type that no agent takes.
    """
    decoder = _DECODERS.get(type_url)
    if decoder is None:
        raise ResourceRejected(name, f"type {type_url} is no datapath resource")
    try:
        return decoder(name, body)
    except DecodeError as err:
        raise ResourceRejected(name, f"body is no {type_url.rpartition('.')[2]}: {err}") from err


def frontend_name(address: bytes, port: int) -> str:
    """Resource name of a TCP frontend: `10.0.0.1:80/tcp`, `[fd00::1]:80/tcp`."""
    text = address_text(address)
    return f"[{text}]:{port}/tcp" if ":" in text else f"{text}:{port}/tcp"


def _frontend(name: str, body: bytes) -> Frontend:
    message = pb.Frontend.FromString(body)
    address = _address(name, "address", message.address)
    port = _port(name, "port", message.port)
    if message.protocol != pb.TCP:
        raise ResourceRejected(name, f"protocol {message.protocol} is not balanced by this agent, only TCP")
    if name != frontend_name(address, port):
        raise ResourceRejected(name, f"the content is that of {frontend_name(address, port)}")
    plane: Balance | Redirect
    match message.WhichOneof("plane"):
        case "balance":
            plane = Balance(_text(name, "balance.backends", message.balance.backends))
        case "guarded_balance":
            guarded = message.guarded_balance
            plane = Balance(
                _text(name, "guarded_balance.backends", guarded.backends),
                _text(name, "guarded_balance.policy", guarded.policy),
                _port(name, "guarded_balance.policy_port", guarded.policy_port),
            )
        case "redirect":
            wanted = message.redirect
            port_of_policy = _port(name, "redirect.policy_port", wanted.policy_port) if wanted.policy else 0
            proxy_port = _port(name, "redirect.proxy_port", wanted.proxy_port)
            plane = Redirect(proxy_port, wanted.policy, port_of_policy)
        case _:
            raise ResourceRejected(name, "neither balance nor redirect is set")
    return Frontend(address, port, _text(name, "service", message.service), plane)


def _backends(name: str, body: bytes) -> Backends:
    """An endpoint that is listed twice (overlapping EndpointSlices) counts once, at its larger weight."""
    message = pb.Backends.FromString(body)
    _same_name(name, message.service)
    weights: dict[tuple[bytes, int], int] = {}
    for index, backend in enumerate(message.backends):
        path = f"backends[{index}]"
        key = (_address(name, f"{path}.address", backend.address), _port(name, f"{path}.port", backend.port))
        if backend.weight < 1:
            raise ResourceRejected(name, f"{path}.weight is 0; an endpoint without traffic is left out")
        weights[key] = max(backend.weight, weights.get(key, 0))
    if len(weights) > MAX_WEIGHTED_BACKENDS and len(set(weights.values())) > 1:
        raise ResourceRejected(name, f"{len(weights)} endpoints of unequal weight; {MAX_WEIGHTED_BACKENDS} fit")
    return Backends(name, tuple(Backend(*key, weights[key]) for key in sorted(weights)))


def _identity(name: str, body: bytes) -> Identity:
    message = pb.Identity.FromString(body)
    _same_name(name, message.name)
    return Identity(name, _addresses(name, "addresses", message.addresses))


def _policy(name: str, body: bytes) -> Policy:
    message = pb.Policy.FromString(body)
    _same_name(name, message.name)
    if name == CONFLICT_POLICY:
        raise ResourceRejected(name, "the name is the agent's own")
    blocks = tuple(_block(name, f"blocks[{index}]", block) for index, block in enumerate(message.blocks))
    entries: dict[tuple[str | None, AddressBlock | None, int], PolicyEntry] = {}
    for index, entry in enumerate(message.entries):
        decoded = _policy_entry(name, f"entries[{index}]", entry)
        cell = (decoded.source, decoded.block, decoded.port)
        if cell in entries:
            raise ResourceRejected(name, f"entries[{index}] decides a source and port a second time")
        entries[cell] = decoded
    _check_blocks(name, blocks, entries)
    destinations = _addresses(name, "destinations", message.destinations)
    return Policy(name, destinations, tuple(entries.values()), blocks)


def _check_blocks(
    name: str, blocks: tuple[AddressBlock, ...], cells: Iterable[tuple[str | None, AddressBlock | None, int]]
) -> None:
    """Security: a source that is decided in one place is decided in all, or another's verdict would be its own."""
    ports: dict[str | None, dict[AddressBlock | None, set[int]]] = {}
    for source, block, port in cells:
        ports.setdefault(source, {}).setdefault(block, set()).add(port)
    for source, found in ports.items():
        reserved = source is not None and source.startswith(RESERVED_IDENTITY)
        wanted = dict.fromkeys((None,) if reserved else (None, *blocks), found.get(None))
        if found != wanted:
            raise ResourceRejected(name, f"the entries of {source or 'any source'} do not cover its blocks")


def _policy_entry(name: str, path: str, entry: pb.PolicyEntry) -> PolicyEntry:
    if entry.protocol != pb.TCP:
        raise ResourceRejected(name, f"{path}.protocol {entry.protocol}: only TCP is enforced")
    source: str | None
    match entry.WhichOneof("source"):
        case "identity":
            source = _text(name, f"{path}.identity", entry.identity)
        case "any_source":
            source = None
        case _:
            # Security: a source that got lost on the way is not "any".
            raise ResourceRejected(name, f"{path} has no source; any source is said with any_source")
    port = _port(name, f"{path}.port", entry.port) if entry.HasField("port") else 0
    if entry.verdict not in (pb.ALLOW, pb.DENY):
        raise ResourceRejected(name, f"{path}.verdict {entry.verdict} is neither ALLOW nor DENY")
    block = _block(name, f"{path}.block", entry.block) if entry.HasField("block") else None
    rule = _text(name, f"{path}.rule", entry.rule, empty=True)
    return PolicyEntry(source, port, Verdict(entry.verdict), rule, block)


def _block(name: str, path: str, message: pb.Block) -> AddressBlock:
    size = len(message.network)
    if size not in (4, 16) or message.bits > 8 * size or masked(message.network, message.bits) != message.network:
        raise ResourceRejected(name, f"{path}: {message.network.hex()}/{message.bits} is no block of addresses")
    if size == 16 and message.bits >= 96 and family_bytes(message.network) != message.network:
        raise ResourceRejected(name, f"{path}: a block of IPv4 addresses is written with 4 bytes")
    return AddressBlock(message.network, message.bits)


def _node_config(name: str, body: bytes) -> NodeConfig:
    message = pb.NodeConfig.FromString(body)
    _same_name(name, message.node)
    proxy = _address(name, "proxy_address", message.proxy_address) if message.proxy_address else bytes(16)
    workloads = []
    for index, workload in enumerate(message.workloads):
        path = f"workloads[{index}]"
        addresses = _addresses(name, f"{path}.addresses", workload.addresses)
        workloads.append(
            Workload(_text(name, f"{path}.name", workload.name), workload.uid, addresses, workload.identity)
        )
    if len({workload.name for workload in workloads}) < len(workloads):
        raise ResourceRejected(name, "two workloads have the same name")
    return NodeConfig(name, proxy, tuple(workloads), message.trust_domain)


_DECODERS: dict[str, Callable[[str, bytes], DatapathValue]] = {
    FRONTEND: _frontend,
    BACKENDS: _backends,
    IDENTITY: _identity,
    POLICY: _policy,
    NODE_CONFIG: _node_config,
}


def _same_name(name: str, inner: str) -> None:
    if name != inner or not name:
        raise ResourceRejected(name, f"the content names itself {inner!r}")
    _text(name, "name", name)


def _text(name: str, path: str, value: str, *, empty: bool = False) -> str:
    if not value and not empty:
        raise ResourceRejected(name, f"{path} is empty")
    if "\0" in value:
        raise ResourceRejected(name, f"{path} contains a zero byte")
    return value


def _port(name: str, path: str, value: int) -> int:
    if not 1 <= value <= 65535:
        raise ResourceRejected(name, f"{path} is {value}, not 1 to 65535")
    return value


def _address(name: str, path: str, value: bytes) -> bytes:
    try:
        address = address16(value)
    except ValueError as err:
        raise ResourceRejected(name, f"{path}: {err}") from err
    parsed = ipaddress.IPv6Address(address)
    plain = parsed.ipv4_mapped or parsed
    if plain.is_unspecified or plain.is_multicast:
        raise ResourceRejected(name, f"{path}: {plain} is no address of one host")
    return address


def _addresses(name: str, path: str, values: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(sorted({_address(name, f"{path}[{i}]", value) for i, value in enumerate(values)}))


def kernel_name(text: str) -> str:
    """The form of a name that fits `xb_name`; a longer one keeps its start and gets a hash, so stays unique.

    Shortening instead of refusing: a policy that many AuthorizationPolicies share has a long name, and
    refusing it would leave its workloads unguarded.
    """
    encoded = text.encode()
    if len(encoded) < Limit.NAME_SIZE:
        return text
    digest = hashlib.sha256(encoded).hexdigest()[:32]
    return encoded[: Limit.NAME_SIZE - 34].decode(errors="ignore") + "~" + digest
