"""Raw Envoy resources as text: a TCP listener with its RBAC, a web listener with its routes, clusters, endpoints.

And a compiler over files of them.
"""

from __future__ import annotations

from pathlib import Path

from xdsbpf.compiler import Compiler
from xdsbpf.mesh.inputs import MeshSettings
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.loading import load_once

T = "type.googleapis.com/envoy"
ADS = "{ads: {}, resource_api_version: V3}"
PLACE = "address: {socket_address: {address: 10.96.0.7, port_value: 5432}}"
APP = "spiffe://cluster.local/ns/default/sa/app"
ANY_OF_APP = f'{{authenticated: {{principal_name: {{exact: "{APP}"}}}}}}'


def rbac(principals: str, permissions: str = "{any: true}", action: str = "ALLOW", extra: str = "") -> str:
    """A network RBAC filter with one policy."""
    return f"""\
    - name: rbac
      typed_config:
        "@type": {T}.extensions.filters.network.rbac.v3.RBAC
        stat_prefix: db
        rules: {{action: {action}, policies: {{app: {{permissions: [{permissions}], principals: [{principals}]}}}}}}
        {extra}
"""


def proxy(target: str = "cluster: db", extra: str = "") -> str:
    """A tcp_proxy filter."""
    return f"""\
    - name: tcp
      typed_config:
        "@type": {T}.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: db
        {target}
        {extra}
"""


def listener(filters: str = "", *, name: str = "db", place: str = PLACE, chain: str = "", more: str = "") -> str:
    """A listener of one chain; `chain` and `more` are further fields of the chain and of the listener."""
    return f"""\
- "@type": {T}.config.listener.v3.Listener
  name: {name}
  {place}
  {more}
  filter_chains:
  - filters:
{filters or proxy()}
    {chain}
"""


def endpoint(address: str = "10.2.0.1", port: int = 5432, extra: str = "") -> str:
    """An entry of lb_endpoints."""
    place = f"{{socket_address: {{address: {address}, port_value: {port}}}}}"
    return f"{{endpoint: {{address: {place}}}{', ' if extra else ''}{extra}}}"


def cluster(*endpoints: str, name: str = "db", extra: str = "", group: str = "", timeout: str = "1s") -> str:
    """A STATIC cluster."""
    members = ", ".join(endpoints or (endpoint(),))
    return f"""\
- "@type": {T}.config.cluster.v3.Cluster
  name: {name}
  connect_timeout: {timeout}
  type: STATIC
  load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{members}]{group}}}]}}
  {extra}
"""


def eds_cluster(*endpoints: str, name: str = "db", source: str = ADS, extra: str = "") -> str:
    """An EDS cluster with its ClusterLoadAssignment, which has another name."""
    return f"""\
- "@type": {T}.config.cluster.v3.Cluster
  name: {name}
  type: EDS
  connect_timeout: 1s
  eds_cluster_config: {{eds_config: {source}, service_name: {name}-endpoints}}
  {extra}
- "@type": {T}.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: {name}-endpoints
  endpoints: [{{lb_endpoints: [{", ".join(endpoints or (endpoint(),))}]}}]
"""


def web_listener(port: int, source: str = ADS, *, routing: str = "", filters: str = "") -> str:
    """A listener `web` on a port of loopback; its routes come by RDS if no other `routing` is given, in flow style.

    `filters` are entries of `http_filters` before the router, in flow style.
    """
    routing = routing or f"rds: {{route_config_name: web, config_source: {source}}}"
    router = f'{{name: router, typed_config: {{"@type": {T}.extensions.filters.http.router.v3.Router}}}}'
    return f"""\
- "@type": {T}.config.listener.v3.Listener
  name: web
  address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
  filter_chains:
  - filters:
    - name: http
      typed_config:
        "@type": {T}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: web
        {routing}
        http_filters: [{filters}{router}]
"""


def web_routes(cluster: str) -> str:
    """The routes of that listener: everything to one cluster."""
    return f"""\
- "@type": {T}.config.route.v3.RouteConfiguration
  name: web
  virtual_hosts:
  - name: all
    domains: ["*"]
    routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]
"""


def raw_file(*resources: str, nodes: str = "") -> str:
    """A file of raw resources; `nodes` is the list of globs."""
    head = f"nodes: [{nodes}]\n" if nodes else ""
    return f"{head}resources:\n{''.join(resources)}"


def compiled(directory: Path, manifests: str = "", **files: str) -> tuple[Compiler, Catalog]:
    """A compiler over raw files, and over manifests if there are any."""
    raw = directory / "raw"
    raw.mkdir(exist_ok=True)
    for name, text in files.items():
        (raw / f"{name}.yaml").write_text(text)
    mesh = directory / "mesh.yaml"
    mesh.write_text(manifests)
    catalog = load_once([mesh] if manifests else [], envoy_paths=[raw])
    assert catalog.diagnostics() == (), [str(found) for found in catalog.diagnostics()]
    compiler = Compiler(MeshSettings(), check_values=True)
    compiler.apply(catalog.manifests().items())
    compiler.compile()
    return compiler, catalog
