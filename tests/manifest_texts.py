"""Manifest texts for tests of sources, and short ways to read them."""

from __future__ import annotations

from xdsbpf.diagnostics import Diagnostic, ObjectId
from xdsbpf.model.meta import Manifest
from xdsbpf.sources.catalog import Catalog, CatalogDelta
from xdsbpf.sources.yaml_reader import parse_file

NETWORKING = "networking.istio.io"
SECURITY = "security.istio.io"


def service(name: str, port: int = 9080, namespace: str = "default") -> str:
    """A Service with one port."""
    return f"""apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
spec:
  selector:
    app: {name}
  ports:
  - name: http
    port: {port}
"""


def virtual_service(name: str, http: str = "[{route: [{destination: {host: reviews}}]}]") -> str:
    """A VirtualService for the host of its own name."""
    return f"""apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: {name}
spec:
  hosts: [{name}]
  http: {http}
"""


def deny_policy(name: str, spec: str = "{selector: {matchLabels: {app: ratings}}, action: DENY, rules: [{}]}") -> str:
    """An AuthorizationPolicy."""
    return f"""apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {name}
spec: {spec}
"""


def documents(*texts: str) -> str:
    """Several documents as one text."""
    return "---\n".join(texts)


def services(count: int, start: int = 0) -> str:
    """`count` Services s0, s1, …"""
    return documents(*(service(f"s{index}") for index in range(start, start + count)))


def service_id(name: str) -> ObjectId:
    return ObjectId("Service", "default", name)


def policy_id(name: str) -> ObjectId:
    return ObjectId("AuthorizationPolicy", "default", name, SECURITY)


def virtual_service_id(name: str) -> ObjectId:
    return ObjectId("VirtualService", "default", name, NETWORKING)


def put(catalog: Catalog, text: str | bytes, *, file: str = "a.yaml", at: float = 0.0, index: int = 0) -> CatalogDelta:
    """Give a catalog a content of a file, as the watcher would."""
    data = text.encode() if isinstance(text, str) else text
    return catalog.put_file(parse_file(file, data, catalog.previous(file)), (index, file), at)


def read(text: str | bytes) -> Catalog:
    """A catalog of one file."""
    catalog = Catalog()
    put(catalog, text)
    return catalog


def found(text: str | bytes) -> tuple[Diagnostic, ...]:
    """Everything that reading one file finds."""
    return read(text).diagnostics()


def only(text: str) -> Manifest:
    """The one object of a text, which has no errors."""
    catalog = read(text)
    assert [item for item in catalog.diagnostics() if item.severity == "error"] == []
    (manifest,) = catalog.manifests().values()
    return manifest


def places(text: str) -> list[tuple[str, int, int, str]]:
    """(code, line, column, path) of every error that reading a text finds."""
    return [
        (item.code, item.location.line, item.location.column, item.path)
        for item in found(text)
        if item.severity == "error" and item.location is not None
    ]


def put_names(delta: CatalogDelta) -> list[str]:
    return [key.name for key, _ in delta.puts]


def removed_names(delta: CatalogDelta) -> list[str]:
    return [key.name for key in delta.removes]
