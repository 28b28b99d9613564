"""security.istio.io AuthorizationPolicy: the whole v1 schema (istio-translation.md 5)."""

from __future__ import annotations

from typing import Literal

import msgspec

from xdsbpf.model.meta import Manifest
from xdsbpf.model.scalars import Labels, NonEmpty


class Source(msgspec.Struct, frozen=True, rename="camel"):
    """All fields are ANDed, the values of one field ORed."""

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    not_request_principals: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    not_service_accounts: tuple[str, ...] = ()
    trust_domains: tuple[str, ...] = ()
    not_trust_domains: tuple[str, ...] = ()
    ip_blocks: tuple[str, ...] = ()
    not_ip_blocks: tuple[str, ...] = ()
    remote_ip_blocks: tuple[str, ...] = ()
    not_remote_ip_blocks: tuple[str, ...] = ()


class From(msgspec.Struct, frozen=True):
    source: Source = Source()


class Operation(msgspec.Struct, frozen=True, rename="camel"):
    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    not_ports: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    not_methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()


class To(msgspec.Struct, frozen=True):
    operation: Operation = Operation()


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


class Rule(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """`from`, `to` and `when` are ANDed; an empty list means no constraint."""

    from_: NonEmpty[From] = ()
    to: NonEmpty[To] = ()
    when: tuple[Condition, ...] = ()


class PolicySelector(msgspec.Struct, frozen=True, rename="camel"):
    match_labels: Labels = ()


class PolicyTargetRef(msgspec.Struct, frozen=True):
    kind: str
    name: str
    group: str = ""
    namespace: str = ""


class Provider(msgspec.Struct, frozen=True):
    name: str


class AuthorizationPolicySpec(msgspec.Struct, frozen=True, rename="camel"):
    """Absent rules and `rules: []` both match nothing; `rules: [{}]` matches everything."""

    selector: PolicySelector | None = None
    target_ref: PolicyTargetRef | None = None
    target_refs: tuple[PolicyTargetRef, ...] = ()
    rules: tuple[Rule, ...] = ()
    action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"] = "ALLOW"
    provider: Provider | None = None


class AuthorizationPolicy(Manifest, frozen=True, kw_only=True):
    spec: AuthorizationPolicySpec = AuthorizationPolicySpec()
