"""What Envoy knows about the source of a connection: how it is written and how it is matched.

The listener filter `srcid` (identity_table) sets two strings for every accepted connection, found by the
client's anti-spoofed address: `xb.principal`, its SPIFFE id, and `xb.attrs`, for example
`;ns=default;sa=reviews;app=reviews;version=v1;`. Routes and authorisation match on them; nothing else
here may spell that format. The namespace and service account come first and are matched from the start,
because labels, which a workload's owner writes, follow: a label `ns=prod` must not look like a namespace.
"""

from __future__ import annotations

import re
from typing import Final

from envoy.type.matcher.v3.filter_state_pb2 import FilterStateMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from xdsbpf.compile.envoy.names import ATTRIBUTES_KEY, PRINCIPAL_KEY
from xdsbpf.mesh.route_values import SourceGuard
from xdsbpf.model.scalars import Labels

RESERVED_LABELS: Final = frozenset({"ns", "sa"})
SAFE: Final = re.compile(r"[A-Za-z0-9._/:\[\]=;-]*")


def attributes(namespace: str, service_account: str, labels: Labels) -> str:
    """The value of `xb.attrs`: `;ns=<namespace>;sa=<account>;<label>=<value>;...` in label order."""
    # As `label_key` says, without the calls: this is written for every pod.
    written = [f".{key}={value};" if key in RESERVED_LABELS else f"{key}={value};" for key, value in labels]
    return account_prefix(namespace, service_account) + "".join(written)


def label_key(key: str) -> str:
    """A label's name in `xb.attrs`; no Kubernetes label starts with a dot, so these two cannot collide."""
    return f".{key}" if key in RESERVED_LABELS else key


def namespace_prefix(namespace: str) -> str:
    """How the attributes of every workload of a namespace start."""
    return f";ns={namespace};"


def account_prefix(namespace: str, service_account: str) -> str:
    """How the attributes of every workload of a service account start."""
    return f";ns={namespace};sa={service_account};"


def is_safe(text: str) -> bool:
    """Whether `text` can stand in a quoted CEL literal inside a format string (no quote, backslash, %)."""
    return SAFE.fullmatch(text) is not None


def attribute_prefix(prefix: str) -> FilterStateMatcher:
    """Matches sources whose attributes start with `prefix`."""
    return FilterStateMatcher(key=ATTRIBUTES_KEY, string_match=StringMatcher(prefix=prefix))


def principal_matcher(match: StringMatcher) -> FilterStateMatcher:
    """Matches sources by their SPIFFE id."""
    return FilterStateMatcher(key=PRINCIPAL_KEY, string_match=match)


def namespace_ending(ending: str) -> FilterStateMatcher:
    """Matches sources whose namespace ends with `ending`: `;sa=` follows it, and occurs only once."""
    return FilterStateMatcher(key=ATTRIBUTES_KEY, string_match=StringMatcher(contains=f"{ending};sa="))


def guard_alternatives(guard: SourceGuard) -> tuple[tuple[FilterStateMatcher, ...], ...]:
    """Matchers for the sources a guard lets in: any of the alternatives, all matchers of one.

    Envoy ANDs the filter-state matchers of a route, so a guard of several namespaces needs a route for
    each. An open guard is one alternative without matchers.
    """
    labels = tuple(
        FilterStateMatcher(key=ATTRIBUTES_KEY, string_match=StringMatcher(contains=f";{label_key(key)}={value};"))
        for key, value in guard.labels
    )
    if not guard.namespaces:
        return (labels,)
    return tuple((attribute_prefix(namespace_prefix(name)), *labels) for name in guard.namespaces)
