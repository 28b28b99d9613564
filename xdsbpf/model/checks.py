"""The collector and the syntactic checks that validations of several kinds share.

`Checks` gathers diagnostics of one object; the predicates decide about one text each. Regular
expressions of users are never run here and never built from names: Envoy's RE2 judges them, here
only their length and brackets are looked at.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from xdsbpf.diagnostics import Diagnostic, ObjectId, Severity
from xdsbpf.model import codes
from xdsbpf.model.regex import MAX_REGEX, regex_problem
from xdsbpf.model.scalars import Labels

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MILLISECOND: Final = 1_000_000

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_HOST_LABEL: Final = re.compile(r"[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?")
_LABEL_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_TOKEN: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")


class Checks:
    """Diagnostics of one object, in the order in which they are found."""

    def __init__(self, object: ObjectId) -> None:
        self.object = object
        self.found: list[Diagnostic] = []

    def error(self, code: str, path: str, message: str, hint: str = "") -> None:
        """A mistake that rejects the object."""
        self.found.append(Diagnostic(code, Severity.ERROR, self.object, path, message, hint))

    def warning(self, code: str, path: str, message: str, hint: str = "") -> None:
        """Something that is accepted and probably not meant."""
        self.found.append(Diagnostic(code, Severity.WARNING, self.object, path, message, hint))

    def done(self) -> tuple[Diagnostic, ...]:
        """What was found."""
        return tuple(self.found)

    def regex(self, path: str, pattern: str) -> None:
        """Length and brackets of a user's pattern (istio-translation.md 9.2 row 20)."""
        if len(pattern) > MAX_REGEX:
            message = f"the regular expression has {len(pattern)} characters, more than {MAX_REGEX}"
            self.error(codes.BAD_REGEX, path, message, "use a prefix, or several matches")
            return
        problem = regex_problem(pattern)
        if problem:
            message = f"expected an RE2 regular expression, found {pattern!r}: {problem}"
            self.error(codes.BAD_REGEX, path, message, "escape the character with a backslash")

    def duration(self, path: str, nanoseconds: int | None) -> None:
        """A timeout: at least 1 ms and whole milliseconds (row 7)."""
        if nanoseconds is None:
            return
        if nanoseconds < MILLISECOND:
            message = f"expected a duration of at least 1ms, found {seconds_text(nanoseconds)}"
            self.error(codes.BAD_TIME, path, message, "leave the field out to have no limit")
        elif nanoseconds % MILLISECOND:
            message = f"expected whole milliseconds, found {seconds_text(nanoseconds)}"
            self.error(codes.BAD_TIME, path, message)

    def positive(self, path: str, nanoseconds: int | None) -> None:
        """A duration above 0 (row 7)."""
        if nanoseconds is not None and nanoseconds <= 0:
            message = f"expected a duration above 0, found {seconds_text(nanoseconds)}"
            self.error(codes.BAD_TIME, path, message)

    def percent(self, path: str, value: int | None) -> None:
        """A whole percentage 0 to 100 (row 6)."""
        if value is not None and not 0 <= value <= 100:
            self.error(codes.BAD_PERCENT, path, f"expected 0 to 100, found {value}")

    def port(self, path: str, value: int | None) -> None:
        """A port number 1 to 65535."""
        if value is not None and not 1 <= value <= 65535:
            self.error(codes.BAD_PORT, path, f"expected a port from 1 to 65535, found {value}")

    def labels(self, path: str, labels: Labels) -> None:
        """Keys and values of labels as Kubernetes has them."""
        for key, value in labels:
            place = f"{path}[{key}]"
            if not is_label_key(key):
                self.error(codes.BAD_LABEL, place, f"{key!r} is no label key", "such as app or example.com/app")
            if value and _LABEL_NAME.fullmatch(value) is None:
                hint = "at most 63 letters, digits, - _ and . with a letter or digit at both ends"
                self.error(codes.BAD_LABEL, place, f"{value!r} is no label value", hint)

    def subnet(self, path: str, text: str) -> None:
        """An IP address or CIDR."""
        if not is_subnet(text):
            message = f"expected an IP address or CIDR, found {text!r}"
            self.error(codes.BAD_SUBNET, path, message, "for example 10.0.0.0/8")

    def header_name(self, path: str, name: str) -> None:
        """An HTTP header name (RFC 9110 token)."""
        if not is_token(name):
            self.error(codes.BAD_HEADER, path, f"expected an HTTP header name, found {name!r}")

    def export_to(self, path: str, values: tuple[str, ...]) -> None:
        """exportTo of a VirtualService or DestinationRule (row 1)."""
        seen: set[str] = set()
        for index, value in enumerate(values):
            place = f"{path}[{index}]"
            meaning = self.object.namespace if value == "." else value
            if value == "~":
                self.error(codes.BAD_EXPORT, place, "~ (no namespace) has a meaning for ServiceEntry only")
            elif value not in (".", "*") and not is_dns_label(value):
                message = f"expected a namespace, . or *, found {value!r}"
                self.error(codes.BAD_EXPORT, place, message)
            if meaning in seen:
                self.error(codes.BAD_EXPORT, place, f"{value} is given twice", "remove one of the two")
            seen.add(meaning)
        if "*" in seen and len(values) > 1:
            self.error(codes.BAD_EXPORT, path, "* cannot be combined with other values", 'use ["*"] alone')


def seconds_text(nanoseconds: int) -> str:
    """A duration for a message, in seconds: 1500000000 -> `1.5s`."""
    whole, rest = divmod(abs(nanoseconds), 1_000_000_000)
    fraction = f"{rest:09d}".rstrip("0")
    sign = "-" if nanoseconds < 0 else ""
    return f"{sign}{whole}.{fraction}s" if fraction else f"{sign}{whole}s"


def is_dns_label(text: str) -> bool:
    """RFC 1123 label: at most 63 lower-case letters, digits and inner hyphens."""
    return _LABEL.fullmatch(text) is not None


def is_dns_subdomain(text: str) -> bool:
    """Labels joined by dots, at most 253 characters: the name of most Kubernetes objects."""
    return len(text) <= 253 and all(is_dns_label(part) for part in text.split("."))


def is_label_key(key: str) -> bool:
    """Kubernetes' qualified name: `name` or `prefix/name`."""
    prefix, slash, name = key.rpartition("/")
    return _LABEL_NAME.fullmatch(name) is not None and (not slash or is_dns_subdomain(prefix))


def is_token(text: str) -> bool:
    """RFC 9110 token."""
    return _TOKEN.fullmatch(text) is not None


def parse_address(text: str) -> IPAddress | None:
    """An IPv4 or IPv6 address without a zone, or None."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def is_address(text: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address without a zone."""
    return parse_address(text) is not None


def is_subnet(text: str) -> bool:
    """An address or a CIDR; host bits may be set, as Envoy and Istio allow."""
    if "%" in text or text.count("/") > 1 or (("/" in text) and not text.rpartition("/")[2].isdecimal()):
        return False
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def is_fqdn(text: str) -> bool:
    """DNS labels joined by dots, at most 255 characters; one trailing dot is allowed, a short name too."""
    name = text.removesuffix(".")
    return 0 < len(name) <= 255 and all(_HOST_LABEL.fullmatch(part) for part in name.split("."))


def is_wildcard_host(text: str) -> bool:
    """`*`, `*.` and an FQDN, or an FQDN."""
    return text == "*" or is_fqdn(text.removeprefix("*."))


def host_hint(text: str) -> str:
    """What is wrong with a host that `is_wildcard_host` refused."""
    if ":" in text:
        return "a host has no port; use match.port or destination.port"
    if "*" in text:
        return "a wildcard is * alone or the first label, as in *.example.com"
    return "letters, digits and - in labels of at most 63 characters, joined by dots"


def covers(pattern: str, host: str) -> bool:
    """Whether a (wildcard) host covers another (wildcard) host."""
    pattern, host = pattern.lower(), host.lower()
    if pattern == host or pattern == "*":
        return True
    return pattern.startswith("*.") and host.removeprefix("*").endswith(pattern[1:])


def duplicates(values: Iterable[str]) -> tuple[str, ...]:
    """Values that occur more than once, in order of their second occurrence."""
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for value in values:
        if value in seen:
            twice[value] = None
        seen.add(value)
    return tuple(twice)
