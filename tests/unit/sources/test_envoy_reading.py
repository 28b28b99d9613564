"""Files of raw Envoy resources: what is read, and where each mistake is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

from xdsbpf.errors import ConfigError
from xdsbpf.model.envoy_resource import EnvoyResource
from xdsbpf.model.globs import glob_matches
from xdsbpf.sources.catalog import Catalog
from xdsbpf.sources.loading import check_arguments, load_once

PREFIX = "type.googleapis.com/envoy."
GOOD = f"""\
version_info: "0"
resources:
- "@type": {PREFIX}config.cluster.v3.Cluster
  name: web
  connect_timeout: 1.5s
  type: STATIC
  lb_policy: 2
  per_connection_buffer_limit_bytes: 4096
  metadata:
    filter_metadata:
      owner: {{team: edge, level: 3, tags: [a, null]}}
- "@type": {PREFIX}config.listener.v3.Listener
  name: main
  filterChains:
  - filters:
    - name: tcp
      typed_config:
        "@type": {PREFIX}extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: x
        cluster: web
"""


def load(path: Path, text: str) -> Catalog:
    path.write_text(text)
    return load_once([], envoy_paths=[path])


def resources(catalog: Catalog) -> dict[str, EnvoyResource]:
    found = {}
    for id, manifest in catalog.manifests().items():
        assert isinstance(manifest, EnvoyResource)
        found[str(id)] = manifest
    return found


def findings(catalog: Catalog) -> list[tuple[int, int, str, str]]:
    """(line, column, path, message)"""
    return [(d.location.line, d.location.column, d.path, d.message) for d in catalog.diagnostics() if d.location]


def test_resources_are_read_as_protobuf_reads_json(tmp_path: Path) -> None:
    catalog = load(tmp_path / "a.yaml", GOOD)
    assert catalog.diagnostics() == ()
    found = resources(catalog)
    assert set(found) == {"EnvoyResource/Cluster/web", "EnvoyResource/Listener/main"}
    cluster = Cluster.FromString(found["EnvoyResource/Cluster/web"].body)
    assert (cluster.type, cluster.lb_policy, cluster.per_connection_buffer_limit_bytes.value) == (0, 2, 4096)
    assert (cluster.connect_timeout.seconds, cluster.connect_timeout.nanos) == (1, 500_000_000)
    assert cluster.metadata.filter_metadata["owner"]["level"] == 3
    listener = Listener.FromString(found["EnvoyResource/Listener/main"].body)
    proxy = TcpProxy.FromString(listener.filter_chains[0].filters[0].typed_config.value)
    assert proxy.cluster == "web"


def test_json_and_yaml_give_the_same_bytes(tmp_path: Path) -> None:
    json_text = (
        f'{{"resources": [{{"@type": "{PREFIX}config.cluster.v3.Cluster", "name": "web", "connectTimeout": "2s"}}]}}'
    )
    yaml_text = f"resources:\n- '@type': {PREFIX}config.cluster.v3.Cluster\n  connect_timeout: 2s\n  name: web\n"
    assert [r.body for r in resources(load(tmp_path / "a.json", json_text)).values()] == [
        r.body for r in resources(load(tmp_path / "b.yaml", yaml_text)).values()
    ]


def test_a_field_is_found_in_either_spelling(tmp_path: Path) -> None:
    catalog = load(tmp_path / "a.yaml", GOOD)
    listener = next(id for id in catalog.manifests() if id.name == "main")
    place = catalog.locate(listener, "filter_chains[0].filters[0].typed_config.cluster")
    assert place is not None
    assert (place.line, place.column) == (20, 18)


@pytest.mark.parametrize(
    ("good", "bad", "line", "path", "message"),
    [
        ("cluster: web", "clustr: web", 20, "filterChains[0].filters[0].typed_config.clustr", "no field clustr"),
        ("1.5s", "1.5x", 5, "connect_timeout", "expected a Duration"),
        ("STATIC", "STATI", 6, "type", "expected a DiscoveryType"),
        ("4096", "many", 8, "per_connection_buffer_limit_bytes", "expected a UInt32Value"),
        ("name: main", "name: 3", 13, "name", "expected a string"),
        ("stat_prefix: x", "stat_prefix: x\n        weighted_clusters: {}", 21, "typed_config.cluster", "exclude"),
        ("tcp_proxy.v3.TcpProxy", "tcp_proxy.v3.TcpProxies", 18, "typed_config.@type", "is not known"),
        ("- filters:", "- filters: 3\n    x:", 15, "filterChains[0].filters", "expected a list"),
        ("resources:", "nodes: []\nresources:", 2, "nodes", "expected a list of globs"),
        ("resources:", "resource:", 1, "", "no resources"),
        ("  type: STATIC\n", "  type: STATIC\n  type: EDS\n", 7, "type", "given twice"),
        ("name: web\n", "names: web\n", 4, "names", "no field names"),
    ],
)
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, good: str, bad: str, line: int, path: str, message: str
) -> None:
    assert good in GOOD
    catalog = load(tmp_path / "a.yaml", GOOD.replace(good, bad, 1))
    hits = [f for f in findings(catalog) if f[2].endswith(path) and message in f[3]]
    assert [f[0] for f in hits] == [line], findings(catalog)
    assert catalog.manifests() == {}


def test_all_mistakes_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("1.5s", "1x").replace("cluster: web", "clustr: web").replace("STATIC", "STATI")
    assert [found[0] for found in findings(load(tmp_path / "a.yaml", text))] == [5, 6, 20]


def test_one_mistake_keeps_all_of_a_file_from_being_taken(tmp_path: Path) -> None:
    catalog = load(tmp_path / "a.yaml", GOOD)
    before = resources(catalog)
    from xdsbpf.sources.envoy_reader import parse_envoy_file

    newer = GOOD.replace("1.5s", "9s").replace("cluster: web", "clustr: web")
    delta = catalog.put_file(parse_envoy_file(str(tmp_path / "a.yaml"), newer.encode()), (0, "a"), 1.0)
    assert not delta
    assert resources(catalog) == before
    assert [source.state for source in catalog.sources()] == ["broken"]


def test_a_manifest_is_told_where_it_belongs(tmp_path: Path) -> None:
    catalog = load(tmp_path / "a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n")
    assert "give it with -f" in catalog.diagnostics()[0].hint


def test_versions_and_globs_are_taken_as_written(tmp_path: Path) -> None:
    wrapped = f"""\
version: 7
nodes: [edge-*, core-?]
resources:
- "@type": {PREFIX}config.cluster.v3.Cluster
  name: a
- "@type": {PREFIX}service.discovery.v3.Resource
  name: b
  version: "9"
  resource: {{"@type": {PREFIX}config.cluster.v3.Cluster, name: b, type: EDS}}
"""
    catalog = load(tmp_path / "a.yaml", wrapped)
    found = resources(catalog)
    assert {name: (r.version, r.nodes) for name, r in found.items()} == {
        "EnvoyResource/Cluster/a@core-?,edge-*": ("7", ("core-?", "edge-*")),
        "EnvoyResource/Cluster/b@core-?,edge-*": ("9", ("core-?", "edge-*")),
    }
    place = catalog.locate(next(id for id in catalog.manifests() if id.name.startswith("b")), "type")
    assert place is not None
    assert place.line == 9


def test_the_same_name_twice_is_shadowed_and_for_other_nodes_it_is_another_object(tmp_path: Path) -> None:
    cluster = f'- {{"@type": {PREFIX}config.cluster.v3.Cluster, name: a, connect_timeout: %ss}}\n'
    (tmp_path / "1.yaml").write_text("resources:\n" + cluster % 1)
    (tmp_path / "2.yaml").write_text("resources:\n" + cluster % 2)
    (tmp_path / "3.yaml").write_text("nodes: [x]\nresources:\n" + cluster % 3)
    catalog = load_once([], envoy_paths=[tmp_path])
    seconds = {name: Cluster.FromString(r.body).connect_timeout.seconds for name, r in resources(catalog).items()}
    assert seconds == {"EnvoyResource/Cluster/a": 2, "EnvoyResource/Cluster/a@x": 3}
    assert [(d.code, d.location.file) for d in catalog.diagnostics() if d.location] == [
        ("XB1008", str(tmp_path / "1.yaml"))
    ]


def test_a_type_that_only_envoy_data_plane_has_is_encoded_by_it(tmp_path: Path) -> None:
    name = "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost"
    from xdsbpf.sources.envoy_types import encode_newer

    assert encode_newer(name, {}) == b""
    assert encode_newer("envoy.no.such.v3.Type", {}) is None
    with pytest.raises(ValueError, match="nothing"):
        encode_newer(name, {"nothing": 1})


def test_a_path_cannot_be_read_in_both_formats(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    check_arguments([str(tmp_path / "raw")], [])
    with pytest.raises(ConfigError, match="as well"):
        check_arguments([str(tmp_path)], [str(tmp_path / "raw")])


@pytest.mark.parametrize(
    ("glob", "text", "matches"),
    [
        ("*", "", True),
        ("edge-*", "edge-1", True),
        ("edge-*", "edge", False),
        ("*-eu-*", "edge-eu-1", True),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("a.c", "abc", False),
        ("[ab]", "a", False),
        ("*a*a*a*a*b", "a" * 500, False),
    ],
)
def test_globs_know_stars_and_question_marks_only(glob: str, text: str, matches: bool) -> None:
    assert glob_matches(glob, text) is matches


@pytest.mark.parametrize(("written", "milliseconds"), [("30s", 30_000), ("1.5s", 1_500), ("", 0)])
def test_a_wrapped_resource_may_have_a_time_to_live(tmp_path: Path, written: str, milliseconds: int) -> None:
    catalog = load(tmp_path / "a.yaml", mortal(written))
    (entry,) = resources(catalog).values()
    assert entry.ttl_ms == milliseconds


@pytest.mark.parametrize("written", ["0s", "0.5s", "25h", "soon", "-1s"])
def test_a_time_to_live_that_cannot_be_kept_is_named_with_its_place(tmp_path: Path, written: str) -> None:
    catalog = load(tmp_path / "a.yaml", mortal(written))
    assert not resources(catalog)
    ((line, column, _, message),) = findings(catalog)
    assert (line, column) == (3, 8)
    assert "a duration from 1s to 24h" in message


def mortal(ttl: str) -> str:
    line = f"  ttl: {ttl}\n" if ttl else ""
    return f"""\
resources:
- "@type": {PREFIX}service.discovery.v3.Resource
{line}  resource: {{"@type": {PREFIX}config.endpoint.v3.ClusterLoadAssignment, cluster_name: a}}
"""
