"""The bootstrap of the node's Envoy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from xdsbpf.agent.bootstrap import BootstrapOptions, build_bootstrap
from xdsbpf.agent.client import check_address
from xdsbpf.datapath.address import address16
from xdsbpf.errors import ConfigError

PROXY = address16(bytes((10, 88, 255, 1)))


def bootstrap(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "node": "n1",
        "proxy_address": PROXY,
        "xds": "unix:/run/x/xds.sock",
        "admin_socket": Path("/run/x/admin.sock"),
    }
    value: dict[str, Any] = json.loads(build_bootstrap(BootstrapOptions(**(values | changes))))
    return value


def test_the_node_id_says_node_address_and_name() -> None:
    assert bootstrap()["node"]["id"] == "node~10.88.255.1~n1~cluster.local"


def test_admin_is_a_socket_of_the_owner_alone() -> None:
    pipe = bootstrap()["admin"]["address"]["pipe"]
    assert pipe == {"path": "/run/x/admin.sock", "mode": 0o600}


def test_every_upstream_connection_leaves_from_the_proxys_address_but_the_control_planes() -> None:
    value = bootstrap()
    source = value["cluster_manager"]["upstream_bind_config"]["source_address"]
    assert source["address"] == "10.88.255.1"
    (xds,) = value["static_resources"]["clusters"]
    assert xds["upstream_bind_config"] == {}


@pytest.mark.parametrize(
    ("xds", "address"),
    [
        ("unix:/run/x/xds.sock", {"pipe": {"path": "/run/x/xds.sock"}}),
        ("127.0.0.1:15010", {"socket_address": {"address": "127.0.0.1", "port_value": 15010}}),
        ("localhost:15010", {"socket_address": {"address": "127.0.0.1", "port_value": 15010}}),
        ("[::1]:15010", {"socket_address": {"address": "::1", "port_value": 15010}}),
    ],
)
def test_the_control_plane_is_reached_over_a_socket_or_loopback(xds: str, address: dict[str, Any]) -> None:
    assert check_address(xds) == xds
    (cluster,) = bootstrap(xds=xds)["static_resources"]["clusters"]
    (locality,) = cluster["load_assignment"]["endpoints"]
    assert locality["lb_endpoints"][0]["endpoint"]["address"] == address


@pytest.mark.parametrize("address", ["10.0.0.1:15010", "xds.example:15010", "127.0.0.1", "unix:relative", ""])
def test_plaintext_to_another_machine_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="neither unix:/path nor a loopback") as refused:
        check_address(address)
    assert "--tls-cert, --tls-key and --tls-ca" in refused.value.hint


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("xds.example:15012", "dns:///xds.example:15012"),
        ("10.0.0.1:15012", "dns:///10.0.0.1:15012"),
        ("localhost:15012", "dns:///127.0.0.1:15012"),
        ("[fd00::1]:15012", "[fd00::1]:15012"),
    ],
)
def test_mutual_tls_reaches_any_machine(address: str, target: str) -> None:
    assert check_address(address, is_secure=True) == target


def test_statistics_are_an_inclusion_list_and_connections_are_limited() -> None:
    value = bootstrap()
    patterns = value["stats_config"]["stats_matcher"]["inclusion_list"]["patterns"]
    assert {"prefix": "http."} in patterns
    (monitor,) = value["overload_manager"]["resource_monitors"]
    assert int(monitor["typed_config"]["max_active_downstream_connections"]) > 0


def test_the_same_options_give_the_same_text_and_strict_is_seen() -> None:
    assert bootstrap() == bootstrap()
    layers = {layer["name"]: layer for layer in bootstrap(strict=True)["layered_runtime"]["layers"]}
    assert layers["static"]["static_layer"] == {"envoy.features.fail_on_any_deprecated_feature": True}
    assert "fail_on" not in json.dumps(bootstrap())


@pytest.mark.envoy
@pytest.mark.parametrize("xds", ["unix:/nonexistent/xds.sock", "127.0.0.1:15010"])
def test_envoy_accepts_it_without_a_deprecated_field(xds: str, envoy: str, tmp_path: Path) -> None:
    file = tmp_path / "bootstrap.json"
    options = BootstrapOptions(
        node="n1", proxy_address=PROXY, xds=xds, admin_socket=tmp_path / "admin.sock", strict=True
    )
    command = [envoy, "-c", str(file), "--mode", "validate", "--log-level", "warning"]
    file.write_text(build_bootstrap(options))
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr.lower()
    file.write_text(file.read_text().replace('"suffix"', '"no_such_field"'))
    assert subprocess.run(command, capture_output=True).returncode != 0
