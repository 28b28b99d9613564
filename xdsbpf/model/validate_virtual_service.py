"""Validation of a VirtualService (istio-translation.md 9.2): its frame, tls and tcp routes.

Pure. http routes are in `validate_http_route`, their matches in `validate_http_match`.
"""

from __future__ import annotations

from typing import Final

from xdsbpf.diagnostics import Diagnostic
from xdsbpf.model import codes
from xdsbpf.model.checks import (
    Checks,
    covers,
    host_hint,
    is_address,
    is_dns_label,
    is_wildcard_host,
)
from xdsbpf.model.validate_http_match import check_gateway_name, is_catch_all
from xdsbpf.model.validate_http_route import check_destination, check_http_route, check_weights
from xdsbpf.model.virtual_service import (
    L4MatchAttributes,
    TLSMatchAttributes,
    VirtualService,
    VirtualServiceSpec,
)

MESH_GATEWAY: Final = "mesh"


def validate_virtual_service(manifest: VirtualService) -> tuple[Diagnostic, ...]:
    """Rows 8 to 31 that one object decides; missing hosts, subsets and gateways are mesh's."""
    spec = manifest.spec
    checks = Checks(manifest.id)
    on_gateway = any(gateway != MESH_GATEWAY for gateway in spec.gateways)
    if spec.hosts:
        _check_hosts(checks, spec, on_gateway)
        if not (spec.http or spec.tls or spec.tcp):
            hint = "add at least one route"
            checks.error(codes.VS_NO_ROUTES, "spec", "one of http, tls and tcp is required", hint)
    else:
        _check_delegate(checks, spec)
    _check_gateways(checks, spec)
    checks.export_to("spec.exportTo", spec.export_to)
    for index, route in enumerate(spec.http):
        # A delegate is included by its root, which may be on a gateway.
        check_http_route(checks, f"spec.http[{index}]", route, bool(spec.hosts), on_gateway or not spec.hosts)
    _check_http_order(checks, spec)
    _check_tls(checks, spec)
    _check_tcp(checks, spec)
    return checks.done()


def _check_hosts(checks: Checks, spec: VirtualServiceSpec, on_gateway: bool) -> None:
    for index, host in enumerate(spec.hosts):
        path = f"spec.hosts[{index}]"
        if host == "*" and not on_gateway:
            hint = "name the hosts, or list the gateway in spec.gateways"
            checks.error(codes.VS_HOSTS, path, "the host * needs a gateway other than mesh", hint)
        elif not is_address(host) and not is_wildcard_host(host):
            message = f"expected a host, *.host or an IP address, found {host!r}"
            checks.error(codes.BAD_HOST, path, message, host_hint(host))
        for earlier in spec.hosts[:index]:
            if covers(earlier, host) or covers(host, earlier):
                message = f"{host} overlaps {earlier} in the same VirtualService"
                checks.error(codes.VS_HOSTS, path, message, "remove one, or move it to another VirtualService")
                break


def _check_delegate(checks: Checks, spec: VirtualServiceSpec) -> None:
    """No hosts: the VirtualService is there to be delegated to (row 8)."""
    if not spec.http:
        hint = "without hosts it is a delegate and needs http routes; else give hosts"
        checks.error(codes.VS_HOSTS, "spec.hosts", "hosts are missing", hint)
    for name, present in (("gateways", spec.gateways), ("tls", spec.tls), ("tcp", spec.tcp)):
        if present:
            message = f"a VirtualService without hosts is a delegate and cannot have {name}"
            checks.error(codes.VS_DELEGATE, f"spec.{name}", message, "give hosts, or remove it")


def _check_gateways(checks: Checks, spec: VirtualServiceSpec) -> None:
    for index, gateway in enumerate(spec.gateways):
        check_gateway_name(checks, f"spec.gateways[{index}]", gateway)


def _check_http_order(checks: Checks, spec: VirtualServiceSpec) -> None:
    """Rules that no request can reach (row 31)."""
    catch_all = ""
    seen: dict[object, str] = {}
    for index, route in enumerate(spec.http):
        path = f"spec.http[{index}]"
        if catch_all:
            hint = f"move it before {catch_all}"
            checks.warning(codes.VS_UNREACHABLE, path, f"never reached: {catch_all} matches everything", hint)
        if not route.match:
            catch_all = catch_all or path
        for number, match in enumerate(route.match):
            place = f"{path}.match[{number}]"
            key = (*(getattr(match, name) for name in match.__struct_fields__ if name != "name"),)
            if key in seen and not catch_all:
                checks.warning(codes.VS_UNREACHABLE, place, f"never reached: the same as {seen[key]}")
            seen.setdefault(key, place)
            if is_catch_all(match):
                catch_all = catch_all or path


def _check_tls(checks: Checks, spec: VirtualServiceSpec) -> None:
    for index, route in enumerate(spec.tls):
        path = f"spec.tls[{index}]"
        if not route.match:
            checks.error(codes.VS_TLS, path, "a tls route needs a match with sniHosts")
        for number, match in enumerate(route.match):
            place = f"{path}.match[{number}]"
            _check_sni_hosts(checks, place, match, spec.hosts)
            _check_l4_match(checks, place, match)
        if not route.route:
            checks.error(codes.VS_TLS, path, "a tls route needs a destination in route")
        check_weights(checks, f"{path}.route", tuple(item.weight for item in route.route))
        for number, item in enumerate(route.route):
            check_destination(checks, f"{path}.route[{number}].destination", item.destination)


def _check_sni_hosts(checks: Checks, path: str, match: TLSMatchAttributes, hosts: tuple[str, ...]) -> None:
    if not match.sni_hosts:
        checks.error(codes.VS_TLS, path, "sniHosts are required")
    for index, sni in enumerate(match.sni_hosts):
        place = f"{path}.sniHosts[{index}]"
        if is_address(sni):
            hint = "clients send no SNI for an IP address; use destinationSubnets"
            checks.warning(codes.VS_TLS, place, f"{sni} is an IP address", hint)
        elif not is_wildcard_host(sni):
            checks.error(codes.VS_TLS, place, f"expected a host or *.host, found {sni!r}", host_hint(sni))
        elif not any(covers(host, sni) for host in hosts):
            message = f"{sni} is not one of the hosts of the VirtualService"
            checks.error(codes.VS_TLS, place, message, "add it to spec.hosts")


def _check_tcp(checks: Checks, spec: VirtualServiceSpec) -> None:
    for index, route in enumerate(spec.tcp):
        path = f"spec.tcp[{index}]"
        for number, match in enumerate(route.match):
            place = f"{path}.match[{number}]"
            _check_l4_match(checks, place, match)
            if match.source_subnet:
                message = "sourceSubnet is deprecated and has no effect"
                checks.warning(codes.DEPRECATED, f"{place}.sourceSubnet", message)
        if not route.route:
            checks.error(codes.VS_TCP, path, "a tcp route needs a destination in route")
        check_weights(checks, f"{path}.route", tuple(item.weight for item in route.route))
        for number, item in enumerate(route.route):
            check_destination(checks, f"{path}.route[{number}].destination", item.destination)
        if not route.match and index + 1 < len(spec.tcp):
            later = f"spec.tcp[{index + 1}]"
            checks.warning(codes.VS_UNREACHABLE, later, f"never reached: {path} matches everything")
            break


def _check_l4_match(checks: Checks, path: str, match: L4MatchAttributes | TLSMatchAttributes) -> None:
    for index, subnet in enumerate(match.destination_subnets):
        checks.subnet(f"{path}.destinationSubnets[{index}]", subnet)
    checks.port(f"{path}.port", match.port)
    checks.labels(f"{path}.sourceLabels", match.source_labels)
    for index, gateway in enumerate(match.gateways):
        check_gateway_name(checks, f"{path}.gateways[{index}]", gateway)
    if match.source_namespace and not is_dns_label(match.source_namespace):
        message = f"expected a namespace, found {match.source_namespace!r}"
        checks.error(codes.BAD_NAMESPACE, f"{path}.sourceNamespace", message)
