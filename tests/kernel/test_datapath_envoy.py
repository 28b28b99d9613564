"""What a real Envoy asks: its original_dst listener filter against the getsockopt program."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nodelab
import pytest
from nodelab import PROXY, VIP, Child, Node, dial, wait_until

from xdsbpf.datapath.loader import Datapath

pytestmark = [pytest.mark.root, pytest.mark.envoy]
ENVOY = Path(sys.executable).parent / "envoy"
TYPE = "type.googleapis.com/envoy.extensions.filters"
OTHER = "10.99.128.11"


def listener(name: str, address: str, port: int) -> dict[str, object]:
    """Greets connections whose original destination is VIP:80; has no chain for any other."""
    greeting = {
        "name": "greet",
        "typed_config": {
            "@type": f"{TYPE}.network.direct_response.v3.Config",
            "response": {"inline_string": json.dumps({"name": f"envoy-{name}"}) + "\n"},
        },
    }
    match = {"prefix_ranges": [{"address_prefix": VIP, "prefix_len": 32}], "destination_port": 80}
    original = {
        "name": "original_dst",
        "typed_config": {"@type": f"{TYPE}.listener.original_dst.v3.OriginalDst"},
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": address, "port_value": port, "ipv4_compat": address == "::"}},
        "listener_filters": [original],
        "filter_chains": [{"filter_chain_match": match, "filters": [greeting]}],
    }


@pytest.fixture(scope="module")
def envoy(lab: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Envoy in the proxy's cgroup with an IPv4 and a dual-stack listener."""
    config = {"static_resources": {"listeners": [listener("ipv4", "0.0.0.0", 15101), listener("dual", "::", 15102)]}}
    log = tmp_path_factory.mktemp("envoy") / "envoy.log"
    arguments = ["--config-yaml", json.dumps(config), "--concurrency", "1", "--use-dynamic-base-id"]

    def run(ready: Callable[[bool], None]) -> None:
        ready(True)
        with log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.execv(ENVOY, [str(ENVOY), *arguments, "--log-level", "warning"])

    def listens() -> bool:
        try:
            lab.host.run(lambda: [dial(PROXY, port).close() for port in (15101, 15102)])
        except ConnectionRefusedError:
            return False
        return True

    child = Child(lab.proxy, run)
    try:
        wait_until(listens, f"Envoy listening; see {log}", seconds=15)
        yield
    finally:
        child.kill()


@pytest.mark.parametrize(("port", "name"), [(15101, "envoy-ipv4"), (15102, "envoy-dual")])
@pytest.mark.parametrize("dialled", [VIP, f"::ffff:{VIP}"])
def test_envoy_chooses_its_chain_by_the_original_destination(
    kernel: Datapath, lab: Node, envoy: None, port: int, name: str, dialled: str
) -> None:
    nodelab.redirect(kernel.tables, port)
    assert lab.pods[1].run(lambda: nodelab.attempt(dialled, 80)) == name


@pytest.mark.parametrize("port", [15101, 15102])
def test_envoy_closes_what_has_another_original_destination_or_none(
    kernel: Datapath, lab: Node, envoy: None, port: int
) -> None:
    nodelab.redirect(kernel.tables, port)
    frontend = kernel.tables.frontends.get(nodelab.frontend_key())
    assert frontend is not None
    kernel.tables.frontends.put(nodelab.frontend_key(OTHER), frontend)

    def greeting(address: str, port: int) -> bytes:
        with dial(address, port) as connection:
            try:
                return connection.recv(100)
            except ConnectionResetError:
                return b""

    assert lab.pods[1].run(lambda: greeting(VIP, 80)).startswith(b'{"name"')
    assert lab.pods[1].run(lambda: greeting(OTHER, 80)) == b""
    assert lab.pods[1].run(lambda: greeting(PROXY, port)) == b""
