"""Validation of an AuthorizationPolicy (istio-translation.md 9.1 and 9.7 rows 65 to 71): frame and rules.

Pure. Errors here make the policy unintelligible: its last good version stays in force, or it denies
what it selects. The values of sources, operations and conditions are in `validate_rule_values`.
"""

from __future__ import annotations

from typing import Final

from xdsbpf.diagnostics import Diagnostic
from xdsbpf.model import codes
from xdsbpf.model.authorization_policy import (
    AuthorizationPolicy,
    AuthorizationPolicySpec,
    Operation,
    PolicyTargetRef,
    Rule,
    Source,
)
from xdsbpf.model.checks import Checks, is_dns_subdomain
from xdsbpf.model.scalars import lookup
from xdsbpf.model.validate_rule_values import check_condition, check_operation, check_source, is_http_key

DRY_RUN: Final = "istio.io/dry-run"
_GATEWAY_GROUP: Final = "gateway.networking.k8s.io"
_TARGET_GROUPS: Final = {
    "Gateway": (_GATEWAY_GROUP,),
    "GatewayClass": (_GATEWAY_GROUP,),
    "Service": ("", "core"),
    "ServiceEntry": ("networking.istio.io",),
}


def validate_authorization_policy(manifest: AuthorizationPolicy) -> tuple[Diagnostic, ...]:
    """Everything that one policy decides; whether it selects anything is for mesh to say."""
    spec = manifest.spec
    checks = Checks(manifest.id)
    _check_selection(checks, spec)
    _check_action(checks, spec)
    for index, rule in enumerate(spec.rules):
        _check_rule(checks, f"spec.rules[{index}]", rule, spec)
    dry_run = lookup(manifest.metadata.annotations, DRY_RUN)
    if dry_run is not None:
        place = f"metadata.annotations[{DRY_RUN}]"
        if dry_run not in ("true", "false"):
            checks.error(codes.BAD_ANNOTATION, place, f"expected true or false, found {dry_run!r}")
        elif spec.action not in ("ALLOW", "DENY"):
            checks.error(codes.BAD_ANNOTATION, place, f"a dry run of {spec.action} is not possible")
    return checks.done()


def _check_selection(checks: Checks, spec: AuthorizationPolicySpec) -> None:
    """Rows 2 to 5."""
    targets = [("spec.targetRef", spec.target_ref)] if spec.target_ref is not None else []
    targets += [(f"spec.targetRefs[{index}]", target) for index, target in enumerate(spec.target_refs)]
    if spec.target_ref is not None and spec.target_refs:
        checks.error(codes.BAD_TARGET, "spec.targetRef", "targetRef and targetRefs exclude each other")
    if spec.selector is not None:
        if targets:
            checks.error(codes.BAD_SELECTOR, "spec.selector", "selector and targetRefs exclude each other")
        if not spec.selector.match_labels:
            hint = "leave it out if that is meant"
            message = "an empty selector selects every workload of the namespace"
            checks.warning(codes.BAD_SELECTOR, "spec.selector", message, hint)
        checks.labels("spec.selector.matchLabels", spec.selector.match_labels)
    for path, target in targets:
        _check_target(checks, path, target)


def _check_target(checks: Checks, path: str, target: PolicyTargetRef) -> None:
    if target.namespace:
        hint = "leave it out; the target is in the policy's namespace"
        checks.error(codes.BAD_TARGET, f"{path}.namespace", "a namespace is not allowed", hint)
    groups = _TARGET_GROUPS.get(target.kind)
    if groups is None:
        message = f"expected {', '.join(_TARGET_GROUPS)}, found {target.kind!r}"
        checks.error(codes.BAD_TARGET, f"{path}.kind", message)
    elif target.group not in groups:
        message = f"expected group {groups[0]!r} for {target.kind}, found {target.group!r}"
        checks.error(codes.BAD_TARGET, f"{path}.group", message)
    if not is_dns_subdomain(target.name):
        checks.error(codes.BAD_TARGET, f"{path}.name", f"expected a name, found {target.name!r}")


def _check_action(checks: Checks, spec: AuthorizationPolicySpec) -> None:
    """Row 65."""
    if spec.action == "CUSTOM":
        if spec.provider is None or not spec.provider.name:
            checks.error(codes.AP_ACTION, "spec.provider", "action CUSTOM needs provider.name")
    elif spec.provider is not None:
        checks.error(codes.AP_ACTION, "spec.provider", f"a provider has no meaning with action {spec.action}")
    if spec.action in ("DENY", "CUSTOM") and not spec.rules:
        hint = "to match every request use one empty rule: rules: [{}]"
        message = f"action {spec.action} without rules never matches anything"
        checks.error(codes.AP_ACTION, "spec.rules", message, hint)


def _check_rule(checks: Checks, path: str, rule: Rule, spec: AuthorizationPolicySpec) -> None:
    """Rows 66 to 70."""
    custom = spec.action == "CUSTOM"
    for index, entry in enumerate(rule.from_):
        place = f"{path}.from[{index}].source"
        if entry.source == Source():
            checks.error(codes.AP_RULE, place, "the source is empty", "leave out `from` to match every source")
        check_source(checks, place, entry.source, custom)
    for index, operation in enumerate(rule.to):
        place = f"{path}.to[{index}].operation"
        if operation.operation == Operation():
            message = "the operation is empty"
            checks.error(codes.AP_RULE, place, message, "leave out `to` to match every operation")
        check_operation(checks, place, operation.operation)
    for index, condition in enumerate(rule.when):
        check_condition(checks, f"{path}.when[{index}]", condition, custom)
    if spec.action == "DENY" and _is_http_only(rule):
        hint = "name the ports of the HTTP services in to.operation.ports"
        message = "the rule has HTTP conditions only, so it denies all connections to TCP ports in its scope"
        checks.warning(codes.AP_HTTP_ONLY_DENY, path, message, hint)


def _is_http_only(rule: Rule) -> bool:
    """Whether a rule has conditions, and all of them need HTTP (row 69, istio-translation.md 5.4)."""
    sources = [entry.source for entry in rule.from_]
    operations = [entry.operation for entry in rule.to]
    l4_sources = any(
        Source(
            request_principals=source.request_principals,
            not_request_principals=source.not_request_principals,
        )
        != source
        for source in sources
    )
    l4_operations = any(operation.ports or operation.not_ports for operation in operations)
    l4_conditions = any(not is_http_key(condition.key) for condition in rule.when)
    return bool(sources or operations or rule.when) and not (l4_sources or l4_operations or l4_conditions)
