"""Validation of the values in rules of an AuthorizationPolicy (istio-translation.md 9.7 rows 67 to 70). Pure."""

from __future__ import annotations

from typing import Final

from xdsbpf.model import codes
from xdsbpf.model.authorization_policy import Condition, Operation, Source
from xdsbpf.model.checks import Checks, is_dns_label, is_subnet

MAX_SERVICE_ACCOUNTS: Final = 16
MAX_SERVICE_ACCOUNT: Final = 320

_PLAIN_KEYS: Final = frozenset(
    {
        "connection.sni",
        "destination.ip",
        "destination.port",
        "remote.ip",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.principal",
        "source.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "source.trustDomain",
    }
)
_BRACKET_KEYS: Final = ("request.headers", "request.auth.claims")
_METADATA_KEY: Final = "experimental.envoy.filters."
_NOT_FOR_CUSTOM: Final = frozenset(
    {"source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"}
)


def check_source(checks: Checks, path: str, source: Source, custom: bool) -> None:
    """All fields of a source; `custom`: the action is CUSTOM, which has no identities (row 70)."""
    wildcards = {
        "principals": source.principals,
        "notPrincipals": source.not_principals,
        "requestPrincipals": source.request_principals,
        "notRequestPrincipals": source.not_request_principals,
        "namespaces": source.namespaces,
        "notNamespaces": source.not_namespaces,
        "trustDomains": source.trust_domains,
        "notTrustDomains": source.not_trust_domains,
    }
    for name, values in wildcards.items():
        _check_patterns(checks, f"{path}.{name}", values)
    accounts = {
        "serviceAccounts": source.service_accounts,
        "notServiceAccounts": source.not_service_accounts,
    }
    for name, values in accounts.items():
        _check_service_accounts(checks, f"{path}.{name}", values)
    if source.service_accounts and (source.principals or source.namespaces):
        message = "serviceAccounts cannot be combined with principals or namespaces"
        checks.error(codes.AP_RULE, f"{path}.serviceAccounts", message, "use principals only")
    if source.not_service_accounts and (source.not_principals or source.not_namespaces):
        message = "notServiceAccounts cannot be combined with notPrincipals or notNamespaces"
        checks.error(codes.AP_RULE, f"{path}.notServiceAccounts", message, "use notPrincipals only")
    if custom:
        for name, values in (wildcards | accounts).items():
            if values:
                checks.error(codes.AP_CUSTOM, f"{path}.{name}", f"{name} cannot be used with action CUSTOM")
    for name, values in (
        ("ipBlocks", source.ip_blocks),
        ("notIpBlocks", source.not_ip_blocks),
        ("remoteIpBlocks", source.remote_ip_blocks),
        ("notRemoteIpBlocks", source.not_remote_ip_blocks),
    ):
        _check_subnets(checks, f"{path}.{name}", values)


def check_operation(checks: Checks, path: str, operation: Operation) -> None:
    """All fields of an operation."""
    for name, values in (
        ("hosts", operation.hosts),
        ("notHosts", operation.not_hosts),
        ("methods", operation.methods),
        ("notMethods", operation.not_methods),
    ):
        _check_patterns(checks, f"{path}.{name}", values)
    for name, values in (("ports", operation.ports), ("notPorts", operation.not_ports)):
        _check_ports(checks, f"{path}.{name}", values)
    for name, values in (("paths", operation.paths), ("notPaths", operation.not_paths)):
        for index, value in enumerate(values):
            place = f"{path}.{name}[{index}]"
            if "{" in value or "}" in value:
                _check_template(checks, place, value)
            else:
                _check_pattern(checks, place, value)


def check_condition(checks: Checks, path: str, condition: Condition, custom: bool) -> None:
    """Key and values of a `when` entry (rows 66, 69, 70)."""
    key = condition.key
    if not condition.values and not condition.not_values:
        checks.error(codes.AP_CONDITION, path, "values or notValues is required")
    if not is_known_key(key):
        hint = "for example request.headers[x-user], source.namespace or destination.port"
        checks.error(codes.AP_CONDITION, f"{path}.key", f"{key!r} is not a key of a condition", hint)
        return
    if custom and (key in _NOT_FOR_CUSTOM or key.startswith("request.auth.")):
        checks.error(codes.AP_CUSTOM, f"{path}.key", f"{key} cannot be used with action CUSTOM")
    for name, values in (("values", condition.values), ("notValues", condition.not_values)):
        place = f"{path}.{name}"
        if key == "destination.port":
            _check_ports(checks, place, values)
        elif key in ("source.ip", "remote.ip", "destination.ip"):
            _check_subnets(checks, place, values)
        elif key == "source.serviceAccount":
            _check_service_accounts(checks, place, values)
        else:
            for index, value in enumerate(values):
                if not value:
                    checks.error(codes.AP_VALUE, f"{place}[{index}]", "the value is empty")


def is_known_key(key: str) -> bool:
    """Whether a condition may have this key."""
    if key in _PLAIN_KEYS:
        return True
    if key.startswith(_METADATA_KEY):
        name, bracket, rest = key.removeprefix(_METADATA_KEY).partition("[")
        return bool(name and bracket and rest.endswith("]"))
    for prefix in _BRACKET_KEYS:
        rest = key.removeprefix(prefix)
        if rest != key and rest.startswith("[") and rest.endswith("]"):
            return all(rest[1:-1].split("]["))
    return False


def is_http_key(key: str) -> bool:
    """Whether a condition on this key needs HTTP."""
    return key.startswith(("request.headers", "request.auth."))


def _check_patterns(checks: Checks, path: str, values: tuple[str, ...]) -> None:
    for index, value in enumerate(values):
        _check_pattern(checks, f"{path}[{index}]", value)


def _check_pattern(checks: Checks, path: str, value: str) -> None:
    """Not empty; at most one *, at the start or the end."""
    if not value:
        checks.error(codes.AP_VALUE, path, "the value is empty", "remove it, or use * for any value")
    elif value.count("*") > 1 or ("*" in value and not (value.startswith("*") or value.endswith("*"))):
        message = f"expected at most one *, at the start or the end, found {value!r}"
        checks.error(codes.AP_VALUE, path, message)


def _check_service_accounts(checks: Checks, path: str, values: tuple[str, ...]) -> None:
    if len(values) > MAX_SERVICE_ACCOUNTS:
        message = f"{len(values)} entries, more than {MAX_SERVICE_ACCOUNTS}"
        checks.error(codes.AP_VALUE, path, message, "use several rules")
    for index, value in enumerate(values):
        namespace, slash, name = value.rpartition("/")
        good = bool(name) and "*" not in value and "/" not in namespace and len(value) <= MAX_SERVICE_ACCOUNT
        if not good or (slash and not is_dns_label(namespace)):
            message = f"expected name or namespace/name without *, found {value!r}"
            checks.error(codes.AP_VALUE, f"{path}[{index}]", message)


def _check_ports(checks: Checks, path: str, values: tuple[str, ...]) -> None:
    for index, value in enumerate(values):
        good = value.isascii() and value.isdecimal() and len(value) <= 5 and 1 <= int(value) <= 65535
        if not good:
            message = f'expected a port from "1" to "65535", found {value!r}'
            checks.error(codes.AP_VALUE, f"{path}[{index}]", message)


def _check_subnets(checks: Checks, path: str, values: tuple[str, ...]) -> None:
    for index, value in enumerate(values):
        if not is_subnet(value):
            message = f"expected an IP address or CIDR, found {value!r}"
            checks.error(codes.AP_VALUE, f"{path}[{index}]", message)


def _check_template(checks: Checks, path: str, value: str) -> None:
    """{*} and {**} are whole segments, {**} once and as the last operator (row 68)."""
    problem = ""
    operators = [part for part in value.split("/") if "{" in part or "}" in part]
    if not value.startswith("/"):
        problem = "it does not start with /"
    elif any(part not in ("{*}", "{**}") for part in operators):
        problem = "{*} and {**} must be whole segments"
    elif "{**}" in operators[:-1]:
        problem = "{**} must be the last operator and occur once"
    elif "*" in value.replace("{**}", "").replace("{*}", ""):
        problem = "* cannot be mixed with {*}"
    if problem:
        checks.error(codes.AP_VALUE, path, f"the path template {value!r} is not valid: {problem}")
