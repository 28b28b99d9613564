"""Who a peer is by its certificate, and which node ids and services that entitles it to.

In: the URI names of a verified certificate, and what the peer claims. Out: nothing, or a ProtocolError that says what
was claimed and what is allowed; whatever no rule allows is refused. Called by `access` and, through the composition
root, by whatever reads a node. Pure: chains, dates and signatures are the transports' business.
"""

from __future__ import annotations

import ipaddress
import string
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from xdsbpf.errors import ConfigError, ProtocolError
from xdsbpf.model.globs import MAX_GLOB, glob_matches
from xdsbpf.model.names import NodeId, parse_node_id
from xdsbpf.xds.protocol import readable_error
from xdsbpf.xds.transport import Peer

_SCHEME: Final = "spiffe://"
_MAX_ID: Final = 2048
_MAX_TRUST_DOMAIN: Final = 255
_TRUST_DOMAIN_CHARS: Final = frozenset(string.ascii_lowercase + string.digits + ".-_")
_SEGMENT_CHARS: Final = frozenset(string.ascii_letters + string.digits + ".-_")
_MESH_TYPES: Final = frozenset({"node", "agent", "sidecar", "router", "waypoint", "ztunnel"})
_NODE_TYPES: Final = frozenset({"node", "agent"})
_WORKLOAD_TYPES: Final = frozenset({"sidecar", "router"})
_NOBODY: Final = "its path is neither /node/NAME nor /ns/NAMESPACE/sa/ACCOUNT, and no rule names it"

AccountOf = Callable[[str, str], str | None]
"""(namespace, pod) -> service account of a pod that is known, else None."""

Authorize = Callable[[Peer, str, Mapping[str, object]], str]
"""(peer, node id or "" if it says none, metadata) -> the node id that it is served as.

Raises: ProtocolError if the peer may not be what it claims, or says no id and its certificate does not, either.
"""


class Identity(msgspec.Struct, frozen=True):
    """A SPIFFE id: `spiffe://<trust_domain>/<path joined by slashes>`."""

    trust_domain: str
    path: tuple[str, ...]

    def __str__(self) -> str:
        return f"{_SCHEME}{'/'.join((self.trust_domain, *self.path))}"

    @property
    def node(self) -> str:
        """The node that it is: `/node/NAME`; "" for every other path."""
        return self.path[1] if len(self.path) == 2 and self.path[0] == "node" else ""

    @property
    def workload(self) -> tuple[str, str] | None:
        """(namespace, service account) of a workload: `/ns/NS/sa/SA`; None for every other path."""
        if len(self.path) == 4 and (self.path[0], self.path[2]) == ("ns", "sa"):
            return self.path[1], self.path[3]
        return None


def readable_identity(peer: Peer) -> str:
    """The names in a peer's certificate, whatever they are, made safe for logs."""
    return readable_error(", ".join(peer.identities))


def parse_identity(text: str) -> Identity:
    """A SPIFFE id as its standard has it (SPIFFE-ID section 2). Raises: ValueError for everything else."""
    if not text.startswith(_SCHEME) or len(text) > _MAX_ID:
        raise ValueError("it is no spiffe:// name")
    trust_domain, *path = text[len(_SCHEME) :].split("/")
    if not trust_domain or len(trust_domain) > _MAX_TRUST_DOMAIN or not _TRUST_DOMAIN_CHARS.issuperset(trust_domain):
        raise ValueError("its trust domain is malformed")
    if not path or any(not part or part in (".", "..") or not _SEGMENT_CHARS.issuperset(part) for part in path):
        raise ValueError("its path is missing or malformed")
    return Identity(trust_domain, tuple(path))


class AllowRule(msgspec.Struct, frozen=True):
    """Peers whose id fits `identity` may claim the node ids that fit the glob `node_id`.

    `identity` is a SPIFFE id whose path segments are globs: `*` stands for any name, never for a slash.
    """

    identity: str
    node_id: str

    def fits(self, identity: Identity) -> bool:
        """Whether the rule is about this peer."""
        return identity_fits(self.identity, identity)

    def allows(self, node_id: str) -> bool:
        """Whether the node id is one of those; ids of the mesh's own form only if the glob spells their type out."""
        parsed = _mesh_id(node_id)
        is_meant = parsed is None or self.node_id.startswith(f"{parsed.type}~")
        return is_meant and glob_matches(self.node_id, node_id)


def parse_allow_rule(text: str) -> AllowRule:
    """`SPIFFE-PATTERN=NODE-ID-GLOB`, as users write it. Raises: ConfigError."""
    identity, equals, node_id = text.partition("=")
    if not equals or not node_id or len(node_id) > MAX_GLOB:
        hint = "for example spiffe://cluster.local/ns/edge/sa/*=edge-*"
        raise ConfigError(f"{text!r} is not SPIFFE-PATTERN=NODE-ID-GLOB", hint=hint)
    return AllowRule(parse_identity_pattern(identity), node_id)


def parse_identity_pattern(text: str) -> str:
    """A SPIFFE id whose path segments may be globs. Raises: ConfigError."""
    try:
        parse_identity(text.replace("*", "x").replace("?", "x"))
    except ValueError as error:
        hint = "for example spiffe://cluster.local/ns/edge/sa/*"
        raise ConfigError(f"{text!r} is no pattern of SPIFFE ids: {error}", hint=hint) from error
    if "*" in text.split("/")[2] or "?" in text.split("/")[2]:
        raise ConfigError(f"{text!r}: a trust domain is written out", hint="globs stand in the path only")
    return text


def identity_fits(pattern: str, identity: Identity) -> bool:
    """Whether an id fits a pattern, segment by segment."""
    trust_domain, *globs = pattern[len(_SCHEME) :].split("/")
    return (
        trust_domain == identity.trust_domain
        and len(globs) == len(identity.path)
        and all(glob_matches(glob, part) for glob, part in zip(globs, identity.path, strict=True))
    )


class PeerRules:
    """The rules of one listener. A local plaintext peer has no identity (None) and may claim anything."""

    def __init__(
        self,
        trust_domain: str = "cluster.local",
        domain: str = "cluster.local",
        *,
        allow: tuple[AllowRule, ...] = (),
        admins: tuple[str, ...] = (),
        account_of: AccountOf = lambda _namespace, _pod: None,
    ) -> None:
        self._trust_domain = trust_domain
        self._domain = domain
        self._allow = allow
        self._admins = admins
        self._account_of = account_of

    def identify(self, peer: Peer) -> Identity | None:
        """Who that is. Raises: ProtocolError(UNAUTHENTICATED) for a certificate that names nobody of this mesh."""
        if not peer.is_encrypted:
            return None
        if peer.is_expired:
            raise ProtocolError("UNAUTHENTICATED", "the certificate has expired since the TLS session began")
        if len(peer.identities) != 1:
            text = f"the certificate has {len(peer.identities)} URI names, and must have exactly one: a SPIFFE id"
            raise ProtocolError("UNAUTHENTICATED", text)
        try:
            identity = parse_identity(peer.identities[0])
        except ValueError as error:
            raise ProtocolError("UNAUTHENTICATED", f"the certificate's URI name is unusable: {error}") from error
        # Security: one authority may sign for several trust domains; only this mesh's names mean anything here.
        if identity.trust_domain != self._trust_domain:
            text = f"{identity} is not of the trust domain {self._trust_domain}"
            raise ProtocolError("UNAUTHENTICATED", text)
        return identity

    def identify_client(self, peer: Peer) -> Identity | None:
        """As `identify`, for who wants to be a client. Raises: also PERMISSION_DENIED for who may be none at all."""
        identity = self.identify(peer)
        if identity is not None and not identity.node and identity.workload is None and not self._rules_for(identity):
            raise ProtocolError("PERMISSION_DENIED", f"{identity} may claim no node id: {_NOBODY}")
        return identity

    def node_id_of(self, peer: Peer, said: str) -> str:
        """The node id of a client: what it says, or else the only one that its certificate entitles to.

        Raises: ProtocolError(INVALID_ARGUMENT) if it says none and may have several, or is local; as `identify_client`.
        """
        if said:
            return said
        text, hint = "the first request of a stream has no node.id", "set node.id in the bootstrap"
        identity = self.identify_client(peer)
        if identity is None:
            raise ProtocolError("INVALID_ARGUMENT", text, hint=hint)
        choices = (*_choices(identity, self._domain), *(rule.node_id for rule in self._rules_for(identity)))
        if len(set(choices)) > 1 or "*" in choices[0] or "?" in choices[0]:
            raise ProtocolError("INVALID_ARGUMENT", f"{text}, and {identity} may claim {_any_of(choices)}", hint=hint)
        return choices[0]

    def authorize(self, peer: Peer, said: str, metadata: Mapping[str, object]) -> str:
        """See `Authorize`, where no client is a gRPC client by what it says."""
        node_id = self.node_id_of(peer, said)
        self.check_claim(peer, node_id, metadata)
        return node_id

    def check_claim(self, peer: Peer, node_id: str, metadata: Mapping[str, object], *, is_grpc: bool = False) -> None:
        """Whether the peer may have that node id and metadata; `is_grpc`: it gets a gRPC client's view.

        Raises: ProtocolError(PERMISSION_DENIED) if it may not; INVALID_ARGUMENT for a malformed node id; as `identify`.
        """
        identity = self.identify(peer)
        if identity is None:
            return
        rules = self._rules_for(identity)
        if any(rule.allows(node_id) for rule in rules):
            return
        reason = self._not_by_path(identity, _Claim(node_id, metadata, is_grpc))
        if reason:
            choices = _any_of((*_choices(identity, self._domain), *(rule.node_id for rule in rules)))
            text = f"{identity} claims {node_id!r}: {reason}; it may claim {choices}"
            raise ProtocolError("PERMISSION_DENIED", text)

    def check_admin(self, peer: Peer) -> None:
        """Raises: ProtocolError(PERMISSION_DENIED) unless the peer may see what others are served."""
        identity = self.identify(peer)
        if identity is not None and not any(identity_fits(pattern, identity) for pattern in self._admins):
            raise ProtocolError("PERMISSION_DENIED", f"{identity} is no administrator")

    def _rules_for(self, identity: Identity) -> tuple[AllowRule, ...]:
        return tuple(rule for rule in self._allow if rule.fits(identity))

    def _not_by_path(self, identity: Identity, claim: _Claim) -> str:
        """Why the claim is not what the id's own path entitles to; "" if it is."""
        if identity.node:
            return self._not_that_node(identity.node, claim)
        if identity.workload is not None:
            return self._not_that_workload(*identity.workload, claim)
        return _NOBODY

    def _not_that_node(self, node: str, claim: _Claim) -> str:
        parsed = _mesh_id(claim.node_id)
        if parsed is None or parsed.type not in _NODE_TYPES:
            return "that is no node id of a node's own"
        if parsed.name != node:
            return f"that is node {parsed.name!r}"
        # Raw resources are addressed by globs over the whole id: no part of it is free text.
        if parsed.domain != self._domain:
            return f"{parsed.domain!r} is not the mesh's domain"
        return "" if _is_address(parsed.ip) else f"{parsed.ip!r} is no address"

    def _not_that_workload(self, namespace: str, account: str, claim: _Claim) -> str:
        said = {key: claim.metadata.get(key) for key in ("NAMESPACE", "SERVICE_ACCOUNT")}
        if said["NAMESPACE"] not in (None, "", namespace):
            return f"its metadata say namespace {said['NAMESPACE']!r}"
        if said["SERVICE_ACCOUNT"] not in (None, "", account):
            return f"its metadata say service account {said['SERVICE_ACCOUNT']!r}"
        parsed = _mesh_id(claim.node_id)
        if parsed is None:
            if not claim.is_grpc:
                return "an Envoy of its own needs a rule (--allow)"
            return "" if said["NAMESPACE"] else "a gRPC client must say its NAMESPACE"
        if parsed.type not in _WORKLOAD_TYPES:
            return "that is no workload"
        pod, dot, claimed = parsed.name.rpartition(".")
        if not dot or not pod or claimed != namespace or parsed.domain.partition(".")[0] != namespace:
            return "that is not of its namespace"
        known = self._account_of(namespace, pod)
        if known is not None and known != account:
            return f"pod {namespace}/{pod} runs as service account {known!r}"
        return ""


def _choices(identity: Identity, domain: str) -> tuple[str, ...]:
    """What an id's own path entitles to, in words: none, or several node ids each."""
    if identity.node:
        return tuple(f"{type}~<ip>~{identity.node}~{domain}" for type in sorted(_NODE_TYPES))
    if identity.workload is not None:
        namespace, _ = identity.workload
        proxies = (f"{type}~<ip>~<pod>.{namespace}~{namespace}.svc.<domain>" for type in sorted(_WORKLOAD_TYPES))
        return (*proxies, f"to be a gRPC client with the metadata NAMESPACE {namespace}")
    return ()


def _any_of(choices: tuple[str, ...]) -> str:
    return " or ".join(choices) or "nothing"


class _Claim(msgspec.Struct, frozen=True):
    """What a peer says it is."""

    node_id: str
    metadata: Mapping[str, object]
    is_grpc: bool


def _mesh_id(node_id: str) -> NodeId | None:
    """A node id of the mesh's form; None for the id of an Envoy of its own."""
    if node_id.partition("~")[0] not in _MESH_TYPES or "~" not in node_id:
        return None
    return parse_node_id(node_id)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone is free text
