"""Findings on raw resources that are well formed and still wrong, with the place of each."""

from __future__ import annotations

from pathlib import Path

from xdsbpf.compiler import Compiler
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.sources.loading import load_once
from xdsbpf.sources.report import format_lines

T = "type.googleapis.com/envoy"
ADS = "{ads: {}, resource_api_version: V3}"
LISTENER = f"""\
resources:
- "@type": {T}.config.listener.v3.Listener
  name: web
  filter_chains:
  - filters:
    - name: http
      typed_config:
        "@type": {T}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: web
        rds: {{route_config_name: web, config_source: {ADS}}}
    transport_socket:
      name: tls
      typed_config:
        "@type": {T}.extensions.transport_sockets.tls.v3.DownstreamTlsContext
        common_tls_context:
          tls_certificate_sds_secret_configs: [{{name: cert, sds_config: {ADS}}}]
"""
ROUTES = f"""\
resources:
- "@type": {T}.config.route.v3.RouteConfiguration
  name: web
  virtual_hosts:
  - name: all
    domains: ["*"]
    routes:
    - match: {{prefix: /a}}
      route: {{cluster: first}}
    - match: {{prefix: /}}
      route: {{weighted_clusters: {{clusters: [{{name: first, weight: 1}}, {{name: second, weight: 1}}]}}}}
"""
CLUSTERS = f"""\
resources:
- {{"@type": {T}.config.cluster.v3.Cluster, name: first, type: EDS, eds_cluster_config: {{eds_config: {ADS}}}}}
- {{"@type": {T}.config.cluster.v3.Cluster, name: second, type: STATIC}}
"""


def findings(directory: Path, **files: str) -> list[str]:
    """`file:line: message [code]` of every finding."""
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    catalog = load_once([], envoy_paths=[directory])
    assert catalog.diagnostics() == ()
    compiler = Compiler(MeshSettings(), check_values=True)
    compiler.apply(catalog.manifests().items())
    compiler.compile()
    lines = format_lines(compiler.diagnostics(), catalog)
    return [line.replace(f"{directory}/", "") for line in lines if not line.startswith("  hint")]


def test_references_that_lead_nowhere_are_named_with_their_lines(tmp_path: Path) -> None:
    lines = findings(tmp_path, listener=LISTENER, routes=ROUTES)
    said = [(line.split(":")[0], line.split(":")[1], line.rpartition(": ")[2]) for line in lines]
    assert said == [
        ("listener.yaml", "16", "there is no Secret 'cert' [XB3040]"),
        ("routes.yaml", "9", "there is no Cluster 'first' [XB3040]"),
        ("routes.yaml", "11", "there is no Cluster 'first' [XB3040]"),
        ("routes.yaml", "11", "there is no Cluster 'second' [XB3040]"),
    ]


def test_references_that_are_there_are_no_findings(tmp_path: Path) -> None:
    secret = f'resources:\n- {{"@type": {T}.extensions.transport_sockets.tls.v3.Secret, name: cert}}\n'
    endpoints = f'resources:\n- {{"@type": {T}.config.endpoint.v3.ClusterLoadAssignment, cluster_name: first}}\n'
    full = {"listener": LISTENER, "routes": ROUTES, "clusters": CLUSTERS, "secret": secret, "endpoints": endpoints}
    assert findings(tmp_path, **full) == []
    (tmp_path / "endpoints.yaml").unlink()
    assert ["ClusterLoadAssignment 'first'" in line for line in findings(tmp_path)] == [True]


def test_scoped_routes_and_filters_by_name_refer_to_what_they_need(tmp_path: Path) -> None:
    scoped = f"""\
resources:
- {{"@type": {T}.config.route.v3.ScopedRouteConfiguration, name: s, route_configuration_name: web}}
"""
    filters = f"{{config_source: {ADS}, type_urls: [{T}.extensions.filters.http.router.v3.Router]}}"
    listener = LISTENER.replace("rds: ", f"http_filters: [{{name: found, config_discovery: {filters}}}]\n        rds: ")
    lines = findings(tmp_path, scoped=scoped, listener=listener)
    said = {line.rpartition(": ")[2].removesuffix(" [XB3040]") for line in lines}
    assert "there is no TypedExtensionConfig 'found'" in said
    assert "there is no RouteConfiguration 'web'" in said
    extension = f"""\
resources:
- "@type": {T}.config.core.v3.TypedExtensionConfig
  name: found
  typed_config: {{"@type": {T}.extensions.filters.http.router.v3.Router}}
"""
    lines = findings(tmp_path, extension=extension, routes=ROUTES)
    assert lines
    for kind in ("TypedExtensionConfig", "RouteConfiguration"):
        assert not [line for line in lines if f"there is no {kind}" in line]


def test_endpoints_that_clients_refuse_are_named(tmp_path: Path) -> None:
    def entry(locality: str, priority: int, *ports: int) -> str:
        hosts = ", ".join(
            f"{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}"
            for port in ports
        )
        return f"  - {{locality: {{zone: {locality}}}, priority: {priority}, lb_endpoints: [{hosts}]}}\n"

    head = f'resources:\n- "@type": {T}.config.endpoint.v3.ClusterLoadAssignment\n  cluster_name: a\n  endpoints:\n'
    assert findings(tmp_path, a=head + entry("north", 0, 1) + entry("south", 0, 2) + entry("north", 1, 3)) == []
    lines = findings(tmp_path, a=head + entry("north", 0, 1, 1) + entry("north", 0, 2) + entry("south", 2, 3))
    assert ["twice" in line or "gap" in line for line in lines] == [True, True, True], lines
    assert all("gRPC clients" in line for line in lines)
    assert {line.split(":")[1] for line in lines} == {"4", "5", "6"}
    zero = entry("north", 0, 1).replace("{endpoint:", "{load_balancing_weight: 0, endpoint:")
    assert ["at least 1" in line for line in findings(tmp_path, a=head + zero)] == [True]


def test_a_listener_of_grpc_clients_is_noted(tmp_path: Path) -> None:
    router = f'{{"@type": {T}.extensions.filters.http.router.v3.Router}}'
    text = f"""\
resources:
- "@type": {T}.config.listener.v3.Listener
  name: a
  api_listener: {{api_listener: {router}}}
"""
    assert ["api_listener" in line for line in findings(tmp_path, a=text)] == [True]
