"""Manifests in, Envoy resources out: what the unit, golden and Envoy tests of the compiler share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from xdsbpf.compile.envoy.outputs import envoy_generators
from xdsbpf.diagnostics import Diagnostic, ObjectId, Severity
from xdsbpf.incremental import ABSENT, Database
from xdsbpf.mesh.inputs import MESH, SETTINGS, MeshSettings, put_object
from xdsbpf.model.meta import Manifest
from xdsbpf.model.names import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES, VIRTUAL_HOST
from xdsbpf.model.resource import Resource
from xdsbpf.sources.loading import load_once

MESSAGES = {
    LISTENER: Listener,
    CLUSTER: Cluster,
    ENDPOINTS: ClusterLoadAssignment,
    ROUTES: RouteConfiguration,
    VIRTUAL_HOST: VirtualHost,
    EXTENSION: TypedExtensionConfig,
}
NODE = "node1"


def service(name: str, *ports: str, namespace: str = "default", address: str = "") -> str:
    """A Service; a port is `9080/http` or `9080/http/8080` (number, name, target)."""
    lines = []
    for port in ports or ("9080/http",):
        number, title, target = (*port.split("/"), "")[:3]
        lines.append(f"    - {{port: {number}, name: {title}, targetPort: {target or number}}}")
    listed = "\n".join(lines)
    ip = f"\n  clusterIP: {address}" if address else ""
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{app: {name}}}{ip}
  ports:
{listed}
---"""


def pod(
    name: str,
    address: str,
    *,
    app: str,
    version: str = "v1",
    namespace: str = "default",
    account: str = "",
    node: str = NODE,
) -> str:
    """A running Pod with labels `app` and `version`."""
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}, version: {version}}}}}
spec: {{nodeName: {node}, serviceAccountName: {account or app}}}
status: {{phase: Running, podIP: {address}}}
---"""


def slice_of(
    service_name: str,
    *pods: tuple[str, str],
    port: int = 9080,
    title: str = "http",
    namespace: str = "default",
) -> str:
    """An EndpointSlice of (pod name, address) pairs."""
    entries = "\n".join(
        f"  - addresses: [{address}]\n"
        f"    nodeName: {NODE}\n"
        f"    targetRef: {{kind: Pod, name: {name}, namespace: {namespace}}}"
        for name, address in pods
    )
    return f"""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {service_name}-1
  namespace: {namespace}
  labels: {{kubernetes.io/service-name: {service_name}}}
addressType: IPv4
endpoints:
{entries}
ports:
  - {{name: {title}, port: {port}}}
---"""


def load(text: str) -> dict[ObjectId, Manifest]:
    """The manifests of a YAML text; fails on any error in it."""
    catalog = load_once(["-"], stdin=text.encode())
    errors = [found for found in catalog.diagnostics() if found.severity is Severity.ERROR]
    assert not errors, errors
    return dict(catalog.manifests())


class Mesh:
    """A database of manifests and every Envoy resource compiled from it, for the nodes given."""

    def __init__(self, text: str, nodes: Sequence[str] = (NODE,), settings: MeshSettings | None = None) -> None:
        self.db = Database()
        self.nodes = tuple(nodes)
        with self.db.change() as change:
            if settings is not None:
                change.put(SETTINGS, MESH, settings)
            for id, manifest in load(text).items():
                put_object(change, id, manifest)

    def apply(self, text: str) -> None:
        """Put more manifests, or other versions of the same ones."""
        with self.db.change() as change:
            for id, manifest in load(text).items():
                put_object(change, id, manifest)

    def resources(self) -> dict[tuple[str, str, str], Resource]:
        """Every resource by (scope, type URL, name)."""
        found: dict[tuple[str, str, str], Resource] = {}
        for generator in envoy_generators(self.nodes):
            for name in generator.names(self.db, *generator.args):
                built = generator.build(self.db, *generator.args, name)
                if built is not ABSENT:
                    found[generator.scope, generator.type_url, name] = built
        return found

    def message(self, type_url: str, name: str) -> Any:
        """The decoded message of a resource, or None."""
        for (_, found_type, found_name), resource in self.resources().items():
            if (found_type, found_name) == (type_url, name):
                return MESSAGES[type_url].FromString(resource.body)
        return None

    def routes(self, name: str) -> list[Any]:
        """The routes of a virtual host."""
        return list(self.message(VIRTUAL_HOST, name).routes)

    def findings(self) -> tuple[Diagnostic, ...]:
        """Everything reported while compiling."""
        found: dict[Diagnostic, None] = {}
        for generator in envoy_generators(self.nodes):
            for name in generator.names(self.db, *generator.args):
                found.update(dict.fromkeys(self.db.diagnostics(generator.build, *generator.args, name)))
        return tuple(found)

    def codes(self) -> set[str]:
        """Codes of the compiler's own findings (XB3...)."""
        return {finding.code for finding in self.findings() if finding.code.startswith("XB3")}


def names(routes: Iterable[Any]) -> list[str]:
    """Names of routes in order."""
    return [route.name for route in routes]
