"""Codes of the findings that compiling to Envoy can report, and the one way to report them.

A finding names the object and the field path; the file and line are found when it is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from xdsbpf.diagnostics import Diagnostic, Origin, Severity
from xdsbpf.model.resource import GRPC_LIMIT, Resource

FIELD_IGNORED: Final = "XB3001"
"""A field that is not compiled yet; traffic flows as if it were absent."""
REGEX_INVALID: Final = "XB3002"
"""A regular expression that Envoy's RE2 would refuse; what holds it is left out."""
ROUTE_LEFT_OUT: Final = "XB3003"
"""An HTTP match that cannot be expressed; requests go on to the routes after it."""
HEADER_INVALID: Final = "XB3006"
"""A header name or value that Envoy would refuse; the operation is left out."""
VALUE_INVALID: Final = "XB3007"
"""A value out of the range Envoy accepts; what holds it is left out."""
NO_EFFECT: Final = "XB3008"
"""Valid, but does nothing as written."""
SHORT_NAME_SHARED: Final = "XB3004"
"""Several namespaces have a service of this name and port; the bare name is not a domain of either."""
TLS_UNSUPPORTED: Final = "XB3010"
"""A client TLS mode that cannot be originated yet: the cluster is withheld, requests get 503."""
LOCALITY_IGNORED: Final = "XB3011"
"""Locality settings are not compiled yet."""
MAGLEV_SIZE: Final = "XB3012"
"""A Maglev table size that Envoy would refuse (not a prime, or too large)."""
TCP_POLICIES_DIFFER: Final = "XB3013"
"""Destinations of a split TCP service have different traffic policies: those of the first hold for all."""
IDENTITY_UNSAFE: Final = "XB3020"
"""A workload whose identity cannot be written into the table safely; it is an unknown source."""
IDENTITY_SHARED: Final = "XB3021"
"""An address of several pods with one identity and different labels; it is an unknown source."""
POLICY_MIXED: Final = "XB3032"
"""Endpoints of one cluster are guarded differently: a request must satisfy the policies of all of them."""
TOO_LARGE: Final = "XB3034"
"""A resource that is larger than gRPC clients take: they do not get it."""
MIRROR_WITHHELD: Final = "XB3033"
"""A mirror whose destination has a policy: mirrored copies could not be checked, so none are sent."""

FAILS: Final = "requests that the route matches are answered 503"

Report: TypeAlias = Callable[[Diagnostic], None]


def at(origin: Origin, path: str) -> Origin:
    """The field `path` below `origin`."""
    if not origin.path or not path:
        return Origin(origin.object, origin.path or path)
    return Origin(origin.object, origin.path + path if path.startswith("[") else f"{origin.path}.{path}")


def warn(report: Report, code: str, where: Origin, message: str, hint: str = "") -> None:
    """Report something that is not applied as written, while the rest of the object is."""
    report(Diagnostic(code, Severity.WARNING, where.object, where.path, message, hint))


def fail(report: Report, code: str, where: Origin, message: str, hint: str = "") -> None:
    """Report something that makes its object, or the part that holds it, not applied."""
    report(Diagnostic(code, Severity.ERROR, where.object, where.path, message, hint))


def note(report: Report, code: str, where: Origin, message: str, hint: str = "") -> None:
    """Report a consequence the user may want to know."""
    report(Diagnostic(code, Severity.INFO, where.object, where.path, message, hint))


def ignored(report: Report, where: Origin, field: str, hint: str = "") -> None:
    """Report a set field that is not compiled yet."""
    warn(report, FIELD_IGNORED, at(where, field), f"{field} is not supported yet and has no effect", hint)


def check_size(report: Report, where: Origin, built: Resource) -> None:
    """Report a resource that the server keeps from gRPC clients because of its size (spec rule 44)."""
    if len(built.body) > GRPC_LIMIT:
        kind = built.type_url.rpartition(".")[2]
        text = (
            f"{kind} {built.name!r} has {len(built.body)} bytes: gRPC clients, which take {GRPC_LIMIT}, do not get it"
        )
        warn(report, TOO_LARGE, where, text)
