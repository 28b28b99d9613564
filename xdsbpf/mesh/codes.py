"""Codes of the findings that mesh queries report, and how they report them.

Every code is listed in `CODES` once; queries call `warn` or `inform`, which attach the finding to
the running query. `not_enforced` marks what a manifest asks for and nobody does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from xdsbpf.diagnostics import Diagnostic, ObjectId, Severity

if TYPE_CHECKING:
    from xdsbpf.incremental import Database

CODES: Final[dict[str, str]] = {
    "XB2001": "service kind not supported yet: the service has no frontend",
    "XB2002": "port protocol not supported yet: the port has no frontend",
    "XB2003": "service field not supported yet: the field has no effect",
    "XB2004": "service address unusable, or used by an older service (SHADOWED-BY)",
    "XB2005": "port protocol unknown: handled as TCP",
    "XB2006": "range of virtual addresses exhausted",
    "XB2007": "service port listed twice",
    "XB2010": "endpoint address refused",
    "XB2011": "endpoint names a pod that does not have its address",
    "XB2012": "address claimed by pods of several identities: it has none",
    "XB2013": "policy not enforced for a pod on the host's network",
    "XB2014": "proxy address of a node not given, unusable or shared with the host",
    "XB2020": "DestinationRule shadowed by another one",
    "XB2021": "subset defined twice: the later one is ignored",
    "XB2022": "DestinationRule for a host that is not known",
    "XB2023": "DestinationRule feature not supported yet",
    "XB2024": "DestinationRule field not enforced by the kernel yet",
    "XB2025": "subset without endpoints",
    "XB2030": "VirtualService shadowed by another one",
    "XB2031": "destination host unknown",
    "XB2032": "destination subset unknown",
    "XB2033": "destination port unknown or missing",
    "XB2034": "VirtualService of a gateway not supported yet",
    "XB2035": "delegation not supported yet",
    "XB2036": "VirtualService for a host that is not known",
    "XB2037": "match or visibility of a TCP route not supported yet",
    "XB2038": "HTTP or TLS routes for a port that has another protocol",
    "XB2039": "TCP destination without endpoints: its share goes to the others",
    "XB2040": "annotation with an unknown value",
    "XB2041": "not enforced: the annotation keeps the service in the kernel, or the port is TCP",
    "XB2043": "all weights of a route are zero: what it matches fails",
    "XB2050": "rule cannot be enforced: the ALLOW rule is dropped (it denies)",
    "XB2051": "rule cannot be enforced as written: the DENY is widened",
    "XB2052": "CUSTOM action not supported: what it selects is denied",
    "XB2053": "policy without effect on traffic (AUDIT or dry run)",
    "XB2054": "target of the policy not supported yet",
    "XB2055": "policy could not be read: what it selects is denied",
    "XB2060": "rule that asks who the peer is, where peers have no certificate: it allows nobody",
    "XB2061": "rule that asks who the peer is, where peers have no certificate: the DENY is widened",
    "XB2056": "not enforced, and traffic left open as the annotation asks",
    "XB2057": "remote address of a policy: taken to be the address that the connection comes from",
}
"""Code -> meaning. Stable: users' CI builds on them."""


def warn(db: Database, code: str, object: ObjectId, path: str, message: str, hint: str = "") -> None:
    """Report a finding of severity warning from the running query."""
    db.report(Diagnostic(code, Severity.WARNING, object, path, message, hint))


def inform(db: Database, code: str, object: ObjectId, path: str, message: str, hint: str = "") -> None:
    """Report a finding of severity info from the running query."""
    db.report(Diagnostic(code, Severity.INFO, object, path, message, hint))


def refuse(db: Database, code: str, object: ObjectId, path: str, message: str, hint: str = "") -> None:
    """Report a finding of severity error from the running query: the part at `path` is not applied."""
    db.report(Diagnostic(code, Severity.ERROR, object, path, message, hint))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean "reviews"?` for the nearest known name, or "" if none is near.

    >>> did_you_mean("v22", ("v1", "v2"))
    'did you mean "v2"?'
    """
    near = difflib.get_close_matches(name, tuple(known), n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else ""
