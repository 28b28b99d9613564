"""Two nodes whose agents and Envoys dial the control plane over the lab's network, with certificates.

Both planes carry traffic and deny; certificates and authorities are replaced under traffic; who has the certificate
of another is refused and keeps what it has.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.node.bookinfo_lab import bookinfo
from xdsbpf._pb.xdsbpf.agent.v1 import agent_pb2
from xdsbpf.agent.status import fetch_status
from xdsbpf.errors import SourceError
from xdsbpf.lab.authority import Authority, control_plane_id, node_id, write_files
from xdsbpf.lab.bringup import down, up
from xdsbpf.lab.lab import Lab
from xdsbpf.lab.layout import CONTROL_PLANE, PartyFiles
from xdsbpf.lab.measure import envoy_stat, wait_until, xdsbpf_json
from xdsbpf.lab.network import NODE_GATEWAY
from xdsbpf.lab.plan import LabOptions
from xdsbpf.lab.state import require_record
from xdsbpf.unix_http import UnixConnection

pytestmark = [pytest.mark.root, pytest.mark.envoy, pytest.mark.node_envoy, pytest.mark.timeout(180)]

NAME = f"xbtls{os.getpid()}"
REVIEWS, DETAILS = "http://reviews:9080/reviews/0", "http://details:9080/details/0"
DOMAIN = "cluster.local"
NODES = ("node1", "node2")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifests = bookinfo(tmp_path_factory.mktemp("manifests"), "details-policy")
    down(NAME)
    try:
        yield up(LabOptions(name=NAME, paths=(manifests,), nodes=2, mtls=True))
    finally:
        down(NAME)


def agent(lab: Lab, node: str) -> agent_pb2.Status:
    """Its status; one that says nothing while it starts."""
    try:
        return fetch_status(lab.agent_socket(node))
    except SourceError:
        return agent_pb2.Status()


def files(lab: Lab, party: str) -> PartyFiles:
    return lab.layout.tls(party)


def held(files: PartyFiles) -> tuple[bytes, bytes, bytes]:
    return files.certificate.read_bytes(), files.key.read_bytes(), files.authorities.read_bytes()


def serial_of(files: PartyFiles) -> int:
    return x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number


def get(socket: Path, path: str) -> dict[str, Any]:
    """A document of an admin interface."""
    connection = UnixConnection(str(socket), 5.0)
    try:
        connection.request("GET", path)
        document: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return document


def envoy_serial(lab: Lab, node: str) -> int:
    """Of the certificate with which the node's Envoy dials the control plane."""
    entries = get(lab.envoy_admin(node), "/certs")["certificates"]
    return next((int(entry["cert_chain"][0]["serial_number"], 16) for entry in entries if entry["cert_chain"]), 0)


def connected(lab: Lab) -> set[str]:
    """Names of the clients that have answered everything they were sent."""
    items = get(lab.layout.admin_socket, "/proxies")["items"]
    return {
        f"{item['kind']}/{item['node']}"
        for item in items
        if item["types"] and {entry["state"] for entry in item["types"]} <= {"SYNCED", "NOT-SENT"}
    }


def all_are_connected(lab: Lab) -> bool:
    return len(connected(lab)) == 2 * len(NODES)


def failed(answer: dict[str, Any]) -> dict[str, Any]:
    """What was no 200."""
    return {**answer["errors"], **{str(e["status"]): e["count"] for e in answer["by"] if e["status"] != 200}}


def traffic_is_as_ever(lab: Lab) -> None:
    """Both planes answer who is allowed, and the kernel refuses who is not."""
    for url in (REVIEWS, DETAILS):
        answer = lab.client("client-allowed", "get", url, "-n", "30", "--close")
        assert (failed(answer), answer["requests"]) == ({}, 30)
    assert lab.client("client-denied", "probe", "details:9080", "-n", "10")["outcomes"] == {"EPERM": 10}


@contextmanager
def loads(lab: Lab, stop: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Requests through both planes until the block ends."""
    until = ("-c", "2", "--close", "--seconds", "90", "--stop-file", str(stop))
    started = [lab.start_client("client-allowed", "load", url, *until) for url in (REVIEWS, DETAILS)]
    try:
        yield started
    finally:
        stop.touch()


def start_agent_anew(lab: Lab, node: str) -> None:
    """SIGKILL and a new process, which need not become ready."""
    role = f"agent/{node}"
    lab.kill(role, signal.SIGKILL)
    record = require_record(lab.layout).process(role)
    assert record is not None
    lab.start(role, record.argv)
    lab.save()


def test_both_planes_work_over_mutual_tls(lab: Lab) -> None:
    wait_until(lambda: all_are_connected(lab), 20, "agents and Envoys")
    for node in NODES:
        status = agent(lab, node)
        assert (status.xds_state, list(status.problems)) == ("connected", [])
        assert list(status.certificate.names) == [node_id(DOMAIN, node)]
        assert int(status.certificate.serial, 16) == envoy_serial(lab, node) == serial_of(files(lab, node))
        assert envoy_stat(lab.envoy_admin(node), "cluster.xds.ssl.handshake") >= 1
        key = lab.layout.node_state(node) / "envoy" / "tls" / "key.pem"
        assert key.stat().st_mode & 0o777 == 0o600
    traffic_is_as_ever(lab)


def test_certificates_and_authorities_are_replaced_under_traffic(lab: Lab, tmp_path: Path) -> None:
    """In the end the control plane trusts the new authority alone, and all have come back: with new certificates."""
    fresh = Authority("fresh")
    former = files(lab, CONTROL_PLANE).authorities.read_bytes()
    dials = [envoy_stat(lab.envoy_admin(node), "cluster.xds.upstream_cx_total") for node in NODES]
    pids = [agent(lab, node).envoy_pid for node in NODES]
    with loads(lab, tmp_path / "stop") as clients:
        for node in NODES:  # first the trust, of both sides
            certificate, key, _ = held(files(lab, node))
            write_files(files(lab, node), certificate, key, former + fresh.pem)
        wait_until(lambda: all(agent(lab, node).certificate.taken for node in NODES), 20, "both authorities")
        issued = fresh.issue(control_plane_id(DOMAIN), NODE_GATEWAY)
        write_files(files(lab, CONTROL_PLANE), *issued, former + fresh.pem)
        serial = serial_of(files(lab, CONTROL_PLANE))

        def is_in_force() -> bool:
            return int(get(lab.layout.admin_socket, "/proxies")["certificate"]["serial"], 16) == serial

        wait_until(is_in_force, 20, "the control plane's certificate")
        for node in NODES:
            write_files(files(lab, node), *fresh.issue(node_id(DOMAIN, node)), former + fresh.pem)

        def is_taken(node: str) -> bool:
            wanted = serial_of(files(lab, node))
            return int(agent(lab, node).certificate.serial, 16) == wanted == envoy_serial(lab, node)

        wait_until(lambda: all(map(is_taken, NODES)), 20, "new certificates of agents and Envoys")
        assert all(agent(lab, node).xds_state == "connected" for node in NODES)
        again = [envoy_stat(lab.envoy_admin(node), "cluster.xds.upstream_cx_total") for node in NODES]
        assert again == dials, "open streams stay"
        write_files(files(lab, CONTROL_PLANE), *issued, fresh.pem)
        lab.kill("control-plane", signal.SIGKILL)
        lab.restart("control-plane")
        wait_until(lambda: all_are_connected(lab), 20, "agents and Envoys with their new certificates")
        traffic_is_as_ever(lab)
    for client in clients:
        answer = json.loads(client.communicate(timeout=30)[0])
        assert failed(answer) == {}
        assert answer["requests"] > 100
    assert [agent(lab, node).envoy_pid for node in NODES] == pids


def test_an_agent_with_the_certificate_of_another_node_is_refused_and_its_node_stays_as_it_was(lab: Lab) -> None:
    traffic_is_as_ever(lab)
    own = held(files(lab, "node1"))
    before = xdsbpf_json(lab, "bpf", "frontends", "--node", "node1")["items"]
    write_files(files(lab, "node1"), *held(files(lab, "node2")))
    try:
        start_agent_anew(lab, "node1")
        wait_until(lambda: "PERMISSION_DENIED" in agent(lab, "node1").xds_state, 20, "the refusal")
        (shown,) = xdsbpf_json(lab, "bpf", "agents", "--node", "node1")["items"]
        assert f"{node_id(DOMAIN, 'node2')} claims 'agent~127.0.0.1~node1~cluster.local'" in shown["xds_state"]
        assert not shown.get("synced", False)
        assert "agent/node1" not in connected(lab)
        assert xdsbpf_json(lab, "bpf", "frontends", "--node", "node1")["items"] == before
        traffic_is_as_ever(lab)
    finally:
        write_files(files(lab, "node1"), *own)
    wait_until(lambda: all_are_connected(lab) and agent(lab, "node1").synced, 20, "node1 as itself")


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_a_control_plane_that_cannot_prove_itself_is_not_believed(lab: Lab, wrong: str) -> None:
    """Neither by agents nor by Envoys; the nodes go on as they are until the right one is back."""
    traffic_is_as_ever(lab)  # an Envoy asks for a virtual host when it is used for the first time
    own = held(files(lab, CONTROL_PLANE))
    impostor = Authority("another")
    refusals = {"authority": "cluster.xds.ssl.fail_verify_error", "name": "cluster.xds.ssl.fail_verify_san"}
    seen = {node: envoy_stat(lab.envoy_admin(node), refusals[wrong]) for node in NODES}
    if wrong == "authority":
        write_files(files(lab, CONTROL_PLANE), *impostor.issue(control_plane_id(DOMAIN), NODE_GATEWAY), own[2])
    else:
        # A workload's certificate is of the mesh's authority, too.
        write_files(files(lab, CONTROL_PLANE), *held(files(lab, "node2")))
    try:
        lab.restart("control-plane")
        words = {"authority": "Tls handshake failed", "name": "Hostname Verification Check failed"}
        wait_until(lambda: all(words[wrong] in agent(lab, node).xds_state for node in NODES), 20, "the agents' doubt")
        wait_until(
            lambda: all(envoy_stat(lab.envoy_admin(node), refusals[wrong]) > seen[node] for node in NODES),
            20,
            "the Envoys' doubt",
        )
        assert connected(lab) == set()
        assert all("Envoy" in {problem.subject for problem in agent(lab, node).problems} for node in NODES)
        traffic_is_as_ever(lab)
    finally:
        write_files(files(lab, CONTROL_PLANE), *own)
        lab.restart("control-plane")
    # An Envoy that was turned away again and again waits for up to 30 s.
    wait_until(lambda: all_are_connected(lab), 45, "agents and Envoys")
