"""Validation of a DestinationRule (istio-translation.md 9.3): its frame, subsets and traffic policies.

Pure. Load balancing and outlier detection are in `validate_load_balancing`.
"""

from __future__ import annotations

from xdsbpf.diagnostics import Diagnostic
from xdsbpf.model import codes
from xdsbpf.model.checks import Checks, duplicates, host_hint, is_dns_label, is_fqdn, is_wildcard_host
from xdsbpf.model.destination_rule import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    DestinationRule,
    HTTPSettings,
    PortTrafficPolicy,
    TCPSettings,
    TrafficPolicy,
)
from xdsbpf.model.validate_load_balancing import check_load_balancer, check_outlier_detection


def validate_destination_rule(manifest: DestinationRule) -> tuple[Diagnostic, ...]:
    """Rows 32 to 42; whether the host exists and a subset selects anything is for mesh to say."""
    spec = manifest.spec
    checks = Checks(manifest.id)
    if not is_wildcard_host(spec.host):
        message = f"expected a host or *.host, found {spec.host!r}"
        checks.error(codes.BAD_HOST, "spec.host", message, host_hint(spec.host))
    if spec.traffic_policy is not None:
        _check_policy(checks, "spec.trafficPolicy", spec.traffic_policy, manifest.namespace)
    twice = duplicates(subset.name for subset in spec.subsets)
    for index, subset in enumerate(spec.subsets):
        path = f"spec.subsets[{index}]"
        if not is_dns_label(subset.name):
            hint = "lower-case letters, digits and inner hyphens"
            checks.error(codes.DR_SUBSET, f"{path}.name", f"expected a name, found {subset.name!r}", hint)
        if subset.name in twice:
            checks.error(codes.DR_SUBSET, f"{path}.name", f"the subset {subset.name} is given twice")
        if not subset.labels and subset.traffic_policy is None:
            hint = "it selects every endpoint of the host"
            checks.warning(codes.DR_SUBSET, path, f"the subset {subset.name} has no labels and no policy", hint)
        checks.labels(f"{path}.labels", subset.labels)
        if subset.traffic_policy is not None:
            _check_policy(checks, f"{path}.trafficPolicy", subset.traffic_policy, manifest.namespace)
    checks.export_to("spec.exportTo", spec.export_to)
    _check_selector(checks, manifest)
    return checks.done()


def _check_selector(checks: Checks, manifest: DestinationRule) -> None:
    """Row 42: a rule for some clients stays in its namespace."""
    selector = manifest.spec.workload_selector
    if selector is None:
        return
    checks.labels("spec.workloadSelector.matchLabels", selector.match_labels)
    if not selector.match_labels:
        message = "an empty workloadSelector selects every client"
        checks.warning(codes.BAD_SELECTOR, "spec.workloadSelector", message, "leave it out")
    exported = manifest.spec.export_to
    if exported and exported not in ((".",), (manifest.namespace,)):
        hint = 'leave exportTo out, or use ["."]'
        checks.error(codes.DR_SELECTOR, "spec.exportTo", "with a workloadSelector only . is allowed", hint)


def _check_policy(checks: Checks, path: str, policy: TrafficPolicy, namespace: str) -> None:
    if policy == TrafficPolicy():
        checks.error(codes.DR_POLICY, path, "the trafficPolicy is empty", "leave it out")
    _check_blocks(checks, path, policy, namespace)
    seen: set[int] = set()
    for index, entry in enumerate(policy.port_level_settings):
        place = f"{path}.portLevelSettings[{index}]"
        if entry.port is None:
            checks.error(codes.DR_PORT_LEVEL, place, "port.number is required")
        elif entry.port.number in seen:
            message = f"port {entry.port.number} is given twice; the first entry counts"
            checks.warning(codes.DR_PORT_LEVEL, place, message)
        else:
            seen.add(entry.port.number)
        _check_blocks(checks, place, entry, namespace)
    _check_tunnel(checks, path, policy)
    budget = policy.retry_budget
    if budget is not None and budget.percent is None and budget.min_retry_concurrency is None:
        checks.warning(codes.DR_RETRY_BUDGET, f"{path}.retryBudget", "the retryBudget is empty: defaults hold")


def _check_tunnel(checks: Checks, path: str, policy: TrafficPolicy) -> None:
    tunnel = policy.tunnel
    if tunnel is None:
        return
    place = f"{path}.tunnel"
    if policy.proxy_protocol is not None:
        checks.error(codes.DR_TUNNEL, place, "tunnel and proxyProtocol exclude each other")
    if tunnel.protocol not in ("", "CONNECT", "POST"):
        message = f"expected CONNECT or POST, found {tunnel.protocol!r}"
        checks.error(codes.DR_TUNNEL, f"{place}.protocol", message)
    if not is_fqdn(tunnel.target_host):
        message = f"expected a host or an address, found {tunnel.target_host!r}"
        checks.error(codes.DR_TUNNEL, f"{place}.targetHost", message)
    checks.port(f"{place}.targetPort", tunnel.target_port)


def _check_blocks(checks: Checks, path: str, policy: TrafficPolicy | PortTrafficPolicy, namespace: str) -> None:
    """The blocks that a policy of a port has too."""
    if policy.connection_pool is not None:
        _check_pool(checks, f"{path}.connectionPool", policy.connection_pool)
    if policy.load_balancer is not None:
        outlier = policy.outlier_detection is not None
        check_load_balancer(checks, f"{path}.loadBalancer", policy.load_balancer, outlier)
    if policy.outlier_detection is not None:
        check_outlier_detection(checks, f"{path}.outlierDetection", policy.outlier_detection)
    if policy.tls is not None:
        _check_tls(checks, f"{path}.tls", policy.tls, namespace)


def _check_pool(checks: Checks, path: str, pool: ConnectionPoolSettings) -> None:
    """Row 36; the counts are not negative, that was checked when they were read."""
    if pool.http is None and pool.tcp is None:
        checks.error(codes.DR_POOL, path, "one of tcp and http is required")
    if pool.tcp is not None:
        _check_tcp_pool(checks, f"{path}.tcp", pool.tcp)
    if pool.http is not None:
        _check_http_pool(checks, f"{path}.http", pool.http)


def _check_tcp_pool(checks: Checks, path: str, tcp: TCPSettings) -> None:
    checks.duration(f"{path}.connectTimeout", tcp.connect_timeout)
    checks.duration(f"{path}.maxConnectionDuration", tcp.max_connection_duration)
    checks.duration(f"{path}.idleTimeout", tcp.idle_timeout)
    if tcp.tcp_keepalive is not None:
        checks.positive(f"{path}.tcpKeepalive.time", tcp.tcp_keepalive.time)
        checks.positive(f"{path}.tcpKeepalive.interval", tcp.tcp_keepalive.interval)


def _check_http_pool(checks: Checks, path: str, http: HTTPSettings) -> None:
    if http == HTTPSettings():
        checks.warning(codes.DR_POOL, path, "nothing is set: defaults hold")
    checks.duration(f"{path}.idleTimeout", http.idle_timeout)
    if http.use_client_protocol and http.h2_upgrade_policy == "UPGRADE":
        hint = "remove one of the two"
        message = "useClientProtocol cannot be combined with h2UpgradePolicy UPGRADE"
        checks.error(codes.DR_POOL, f"{path}.useClientProtocol", message, hint)
    if http.http2_keep_alive is not None:
        checks.positive(f"{path}.http2KeepAlive.interval", http.http2_keep_alive.interval)
        checks.positive(f"{path}.http2KeepAlive.timeout", http.http2_keep_alive.timeout)


def _check_tls(checks: Checks, path: str, tls: ClientTLSSettings, namespace: str) -> None:
    """Row 41."""
    certificate = bool(tls.client_certificate or tls.private_key)
    if tls.mode == "MUTUAL" and not tls.credential_name:
        for name, value in (("clientCertificate", tls.client_certificate), ("privateKey", tls.private_key)):
            if not value:
                hint = "give it, or credentialName"
                checks.error(codes.DR_TLS, f"{path}.{name}", f"{name} is required for MUTUAL", hint)
    if tls.mode in ("SIMPLE", "MUTUAL"):
        if tls.credential_name and (certificate or tls.ca_certificates or tls.ca_crl):
            message = "credentialName excludes clientCertificate, privateKey, caCertificates and caCrl"
            checks.error(codes.DR_TLS, f"{path}.credentialName", message)
        if tls.insecure_skip_verify and (tls.ca_certificates or tls.subject_alt_names):
            message = "insecureSkipVerify excludes caCertificates and subjectAltNames"
            checks.error(codes.DR_TLS, f"{path}.insecureSkipVerify", message)
        if tls.insecure_skip_verify and tls.credential_name and tls.mode == "SIMPLE":
            message = "insecureSkipVerify excludes credentialName"
            checks.error(codes.DR_TLS, f"{path}.insecureSkipVerify", message)
        if not (tls.ca_certificates or tls.credential_name or tls.insecure_skip_verify):
            hint = "the system's roots are trusted; give caCertificates to name the authority"
            checks.warning(codes.DR_TLS, path, "no certificate authority is named", hint)
    reference = tls.credential_name.removeprefix("configmap://")
    if reference != tls.credential_name and "/" in reference and not reference.startswith(f"{namespace}/"):
        message = f"a configmap of another namespace cannot be used: {tls.credential_name!r}"
        checks.error(codes.DR_TLS, f"{path}.credentialName", message)
