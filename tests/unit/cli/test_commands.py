"""The command line as scripts see it: exit codes, what goes to which stream, and the JSON contract."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.raw_texts import cluster, raw_file

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = "deploy/examples/bookinfo"
NODE = "node~10.0.0.1~node1~cluster.local"
AGENT = "agent~10.0.0.1~node1~cluster.local"


def xdsbpf(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xdsbpf", *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True
    )


def translation(proxy: str, *arguments: str) -> dict[str, Any]:
    result = xdsbpf("translate", "-f", EXAMPLES, "--proxy", proxy, "-o", "json", *arguments)
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def named(document: dict[str, Any], type_suffix: str) -> dict[str, dict[str, Any]]:
    for type_url, items in document["resources"].items():
        if type_url.endswith(type_suffix):
            return {item["name"]: item for item in items}
    return {}


def test_wrong_usage_exits_64() -> None:
    assert xdsbpf("translate").returncode == 64
    assert xdsbpf("no-such-command").returncode == 64


def test_a_file_that_does_not_exist_exits_65_and_says_so_on_standard_error() -> None:
    result = xdsbpf("analyze", "-f", "no/such/file.yaml")
    assert result.returncode == 65
    assert "no/such/file.yaml" in result.stderr
    assert result.stdout == ""


def test_text_that_is_no_yaml_exits_65_with_the_position(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("kind: [\n")
    result = xdsbpf("analyze", "-f", str(broken))
    assert result.returncode == 65
    assert f"{broken}:2" in result.stderr


def test_findings_exit_79_with_file_line_column_path_and_hint(tmp_path: Path) -> None:
    manifest = tmp_path / "vs.yaml"
    manifest.write_text(
        "apiVersion: networking.istio.io/v1\n"
        "kind: VirtualService\n"
        "metadata: {name: reviews}\n"
        "spec:\n"
        "  hosts: [reviews]\n"
        "  http:\n"
        "  - rout:\n"
        "    - destination: {host: reviews}\n"
    )
    result = xdsbpf("analyze", "-f", str(manifest))
    assert result.returncode == 79
    assert f"{manifest}:7:5: error: VirtualService/default/reviews spec.http[0].rout" in result.stdout
    assert "hint:" in result.stdout


def test_clean_manifests_exit_0(tmp_path: Path) -> None:
    manifest = tmp_path / "service.yaml"
    manifest.write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
        "spec: {clusterIP: 10.9.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}\n"
    )
    result = xdsbpf("analyze", "-f", str(manifest))
    assert result.returncode == 0, result.stdout


def test_manifests_can_come_from_standard_input() -> None:
    text = (ROOT / EXAMPLES / "bookinfo.yaml").read_text()
    result = xdsbpf("translate", "-f", "-", "--proxy", NODE, "-o", "json", stdin=text)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["kind"] == "Translation"


def test_translate_prints_the_documented_shape() -> None:
    document = translation(NODE)
    assert (document["apiVersion"], document["kind"], document["proxy"]) == ("xdsbpf.io/v1", "Translation", NODE)
    for items in document["resources"].values():
        for item in items:
            assert {"name", "version", "origins", "body"} <= set(item)


def test_a_virtual_host_names_the_lines_of_the_manifests_that_made_it() -> None:
    host = named(translation(NODE), "VirtualHost")["9080/reviews.default.svc.cluster.local"]
    lines = (ROOT / EXAMPLES / "reviews.yaml").read_text().splitlines()
    origin = next(text for text in host["origins"] if "VirtualService/default/reviews" in text)
    file, line = origin.split()[0].rsplit(":", 1)
    assert file.endswith("reviews.yaml")
    assert 1 <= int(line) <= len(lines)


def test_the_split_of_the_manifest_is_in_the_virtual_host() -> None:
    host = named(translation(NODE), "VirtualHost")["9080/reviews.default.svc.cluster.local"]
    weights = [
        cluster["weight"]
        for route in host["body"]["routes"]
        for cluster in route.get("route", {}).get("weightedClusters", {}).get("clusters", [])
    ]
    assert weights == [90, 10]


def test_details_stays_in_the_kernel_and_reviews_waits_for_its_virtual_host() -> None:
    envoy = named(translation(NODE), "VirtualHost")
    frontends = named(translation(AGENT), "Frontend").values()
    planes = {item["body"]["service"]: item for item in frontends}
    details = planes["details.default.svc.cluster.local:9080"]
    reviews = planes["reviews.default.svc.cluster.local:9080"]
    assert "balance" in details["body"]
    assert "requires" not in details
    assert "redirect" in reviews["body"]
    needed = envoy["9080/reviews.default.svc.cluster.local"]
    assert [(need["name"], need["version"]) for need in reviews["requires"]] == [(needed["name"], needed["version"])]


def test_the_policy_entry_names_the_rule_that_it_comes_from() -> None:
    policies = named(translation(AGENT), "Policy")
    rules = {entry["rule"] for item in policies.values() for entry in item["body"].get("entries", [])}
    assert any(rule.startswith("AuthorizationPolicy/default/details") for rule in rules) or not policies


@pytest.mark.parametrize(("proxy", "timeout"), [("edge-1", "7s"), (NODE, "10s")])
def test_of_two_resources_of_a_name_the_one_is_shown_that_the_proxy_gets(
    tmp_path: Path, proxy: str, timeout: str
) -> None:
    """An Envoy of its own takes the raw one, a proxy of the mesh that of the mesh."""
    name = "outbound|9080||details.default.svc.cluster.local"
    raw = tmp_path / "raw.yaml"
    raw.write_text(raw_file(cluster(name=f'"{name}"', extra="", timeout="7s"), nodes="'*'"))
    clusters = translation(proxy, "--envoy-resources", str(raw), "--type", "cds")["resources"]
    (listed,) = clusters.values()
    assert [item["body"]["connectTimeout"] for item in listed if item["name"] == name] == [timeout]


def test_type_limits_the_output() -> None:
    assert {url.rpartition(".")[2] for url in translation(NODE, "--type", "vhds")["resources"]} == {"VirtualHost"}


def test_nothing_inside_an_extension_is_left_out() -> None:
    table = named(translation(NODE), "TypedExtensionConfig")["srcid"]["body"]["typedConfig"]
    (formatter,) = table["onAccept"][0]["formatString"]["formatters"]
    assert formatter["typedConfig"]["celConfig"] == {"enableStringFunctions": True}


def test_a_sidecar_is_shown_all_of_its_resources() -> None:
    document = translation("sidecar~10.0.0.1~a.default~default.svc.cluster.local")
    assert "outbound|9080|v1|reviews.default.svc.cluster.local" in named(document, "Cluster")
    assert {"virtualOutbound", "0.0.0.0_9080", "virtualInbound"} <= set(named(document, "Listener"))
    assert "not served yet" not in str(document["diagnostics"])
    hosts = {
        host["name"]: host["domains"] for host in named(document, "RouteConfiguration")["9080"]["body"]["virtualHosts"]
    }
    assert "reviews" in hosts["reviews.default.svc.cluster.local:9080"]
    assert hosts["allow_any"] == ["*"]


def test_registry_only_refuses_unknown_hosts() -> None:
    document = translation("sidecar~10.0.0.1~a.default~default.svc.cluster.local", "--registry-only")
    (last,) = named(document, "RouteConfiguration")["9080"]["body"]["virtualHosts"][-1]["routes"]
    assert last["directResponse"] == {"status": 502}


def test_a_grpc_client_is_told_by_its_metadata(tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.json"
    metadata.write_text('{"GENERATOR": "grpc", "NAMESPACE": "default"}')
    document = translation("any-name", "--metadata", str(metadata))
    assert {"reviews:9080", "reviews.default.svc.cluster.local:9080"} <= set(named(document, "Listener"))
    assert "apiListener" in named(document, "Listener")["reviews:9080"]["body"]


def test_a_gateway_is_shown_its_clusters_and_told_what_is_missing() -> None:
    document = translation("router~10.0.0.1~a.default~default.svc.cluster.local")
    assert {url.rpartition(".")[2] for url in document["resources"]} == {"Cluster", "ClusterLoadAssignment"}
    assert "not served yet" in document["diagnostics"][0]["message"]


@pytest.mark.parametrize("proxy", ["node~10.0.0.1", "waypoint~10.0.0.1~a.default~default.svc.cluster.local"])
def test_a_proxy_that_is_not_served_is_refused_with_a_hint(proxy: str) -> None:
    result = xdsbpf("translate", "-f", EXAMPLES, "--proxy", proxy)
    assert result.returncode == 64
    assert "hint:" in result.stderr


def test_yaml_says_the_same_as_json() -> None:
    result = xdsbpf("translate", "-f", EXAMPLES, "--proxy", NODE, "-o", "yaml")
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout) == translation(NODE)


def test_two_runs_translate_to_the_same_bytes() -> None:
    assert translation(NODE) == translation(NODE)
    assert translation(AGENT) == translation(AGENT)


def test_an_unreachable_control_plane_exits_69() -> None:
    result = xdsbpf("ps", "--admin", "127.0.0.1:1")
    assert result.returncode == 69
    assert "hint:" in result.stderr


def test_the_bootstrap_of_an_envoy_with_certificates_names_the_control_plane(tmp_path: Path) -> None:
    files = ("--tls-cert", "/c/cert.pem", "--tls-key", "/c/key.pem", "--tls-ca", "/c/ca.pem")
    for address, name, expected in (
        ("10.0.0.1:15012", "", {"san_type": "IP_ADDRESS", "matcher": {"exact": "10.0.0.1"}}),
        ("xds.mesh:15012", "", {"san_type": "DNS", "matcher": {"exact": "xds.mesh"}}),
        ("xds.mesh:15012", "spiffe://td/ns/a/sa/b", {"san_type": "URI", "matcher": {"exact": "spiffe://td/ns/a/sa/b"}}),
    ):
        options = ("--node-id", "edge-1", "--xds", address, "--tls-server-name", name, "--sds-dir", str(tmp_path))
        result = xdsbpf("bootstrap", *options, *files, "-o", "json")
        assert result.returncode == 0, result.stderr
        assert "xds_certificate" in result.stdout
        (secret,) = json.loads((tmp_path / "xds_authorities.json").read_text())["resources"]
        assert secret["validation_context"]["match_typed_subject_alt_names"] == [expected]
        assert secret["validation_context"]["watched_directory"] == {"path": "/c"}
    assert xdsbpf("bootstrap", "--node-id", "edge-1", "--sds-dir", str(tmp_path)).returncode == 64
