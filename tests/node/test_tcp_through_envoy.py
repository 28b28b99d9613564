"""TCP through the node's Envoy, under real BPF: who is served, by whom, and who hears no byte.

`db` (two versions, 80:20) and `vault` (two versions with policies of their own) are on Envoy; `plain` is in the
kernel and is the control. All servers speak first.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.bookinfo_lab import ATTEMPTS, objects, run_attempts, running, virtual_address
from xdsbpf.lab.lab import Lab
from xdsbpf.lab.measure import TCP_LISTENER_CONNECTIONS, envoy_connections, wait_until, xdsbpf_json
from xdsbpf.lab.processes import environment

pytestmark = [pytest.mark.root, pytest.mark.envoy, pytest.mark.timeout(180)]

NAME = f"xbtcp{os.getpid()}"
PORT = 5432
L7 = "{xdsbpf.io/dataplane: l7}"

DIAL = """
import collections, errno, json, socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
found = collections.Counter()
for _ in range(count):
    heard = b""
    try:
        with socket.create_connection((host, port), 3) as sock:
            while not heard.endswith(b"\\n"):
                some = sock.recv(4096)
                if not some:
                    break
                heard += some
        outcome = "CLOSED"
    except OSError as error:
        outcome = errno.errorcode.get(error.errno or 0, "TIMEOUT")
    app, _, pod = heard.decode().partition(" ")
    found[app + " " + pod.rsplit("-", 2)[0] if heard else outcome] += 1
print(json.dumps(found))
"""
"""Counts who greeted; with no greeting, how the connection ended. A byte that was heard counts, whatever came after."""

KEEP = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
reader = sock.makefile("rb")
print(reader.readline().decode(), end="", flush=True)
for line in sys.stdin:
    sock.sendall(line.encode())
    print(reader.readline().decode(), end="", flush=True)
"""
"""One connection: prints the greeting, then the echo of every line that it is told."""


def workload(app: str, version: str = "", *, server: bool = True) -> str:
    name = f"{app}-{version}" if version else app
    labels = f"{{app: {app}, version: {version}}}" if version else f"{{app: {app}}}"
    ports = f", ports: [{{containerPort: {PORT}, name: tcp-{app}}}]" if server else ""
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {labels}}}
  template:
    metadata: {{labels: {labels}}}
    spec: {{serviceAccountName: {app}, containers: [{{name: main{ports}}}]}}
---"""


def service(app: str, annotations: str = "{}") -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {app}, annotations: {annotations}}}
spec:
  selector: {{app: {app}}}
  ports: [{{name: tcp-{app}, port: {PORT}}}]
---"""


SPLIT = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db}
spec:
  host: db
  subsets:
    - {name: v1, labels: {version: v1}}
    - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: [db]
  tcp:
    - route:
        - {destination: {host: db, subset: v1}, weight: 80}
        - {destination: {host: db, subset: v2}, weight: 20}
---"""


def deny(name: str, labels: str, account: str) -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {labels}}}
  action: DENY
  rules:
    - from: [{{source: {{principals: [cluster.local/ns/default/sa/{account}]}}}}]
---"""


def allow_from(app: str, blocks: str) -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {app}-from}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  rules:
    - from: [{{source: {blocks}}}]
---"""


MESH = "".join(
    (
        *(workload(app, version) for app in ("db", "vault") for version in ("v1", "v2")),
        workload("plain"),
        workload("client-allowed", server=False),
        workload("client-denied", server=False),
        service("db", L7),
        service("vault", L7),
        SPLIT,
    )
)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manifests")
    (directory / "mesh.yaml").write_text(MESH)
    (directory / "plain.yaml").write_text(service("plain"))
    return directory


@pytest.fixture(scope="module")
def lab(manifests: Path) -> Iterator[Lab]:
    with running(NAME, manifests) as lab:
        yield lab


@pytest.fixture
def policies(lab: Lab, manifests: Path) -> Iterator[Path]:
    """A file for the policies of one test; they are gone when it ends."""
    path = manifests / "policies.yaml"
    yield path
    path.unlink(missing_ok=True)
    wait_until(lambda: not any("AuthorizationPolicy" in row["object"] for row in objects(lab)), 20, "no policy")
    for name in ("plain", "db", "vault"):
        wait_until(lambda name=name: "EPERM" not in dial(lab, "client-denied", name, 1), 20, "the kernel without it")
        wait_until(lambda name=name: "CLOSED" not in dial(lab, "client-denied", name, 5), 20, "Envoy without it")


def dial(lab: Lab, pod: str, host: str, count: int) -> Counter[str]:
    """Who greeted ("db db-v1"), or how connections without a byte ended, by count."""
    answer = lab.run(pod, (sys.executable, "-c", DIAL, host, str(PORT), str(count)))
    assert not answer.returncode, answer.stderr
    return Counter(json.loads(answer.stdout))


def taken(lab: Lab) -> int:
    return envoy_connections(lab, TCP_LISTENER_CONNECTIONS)


def plane(lab: Lab, app: str) -> str:
    items = xdsbpf_json(lab, "bpf", "frontends")["items"]
    planes = {item["plane"] for item in items if item["service"].startswith(f"{app}.")}
    return planes.pop() if len(planes) == 1 else "mixed"


def attempt(lab: Lab, pod: str, *tricks: tuple[str, str, str, int, str]) -> dict[str, str]:
    """Outcome of each (name, trick, address, port, host); a server's bytes are neither "closed" nor an errno."""
    places = {
        "OWN_ADDRESS": lab.pod(pod).address,
        "FOREIGN_ADDRESS": lab.pod("plain").address,
        "OPEN_ADDRESS": virtual_address(lab, "plain"),
        "OPEN_PORT": str(PORT),
        "REDIRECTED_ADDRESS": virtual_address(lab, "db"),
        "REDIRECTED_PORT": str(PORT),
    }
    return run_attempts(lab.exec_argv(pod, ATTEMPTS), places, {"tricks": tricks})


def test_a_server_that_speaks_first_is_reached_through_envoy_and_the_control_is_not(lab: Lab) -> None:
    assert (plane(lab, "db"), plane(lab, "plain")) == ("L7", "L4")
    before = taken(lab)
    control = lab.client("client-allowed", "tcp", f"plain:{PORT}")
    assert (control["echoed"], control["error"], taken(lab)) == (1000, "", before)
    answer = lab.client("client-allowed", "tcp", f"db:{PORT}")
    assert answer["greeting"].startswith("db db-v")
    assert (answer["echoed"], answer["error"], taken(lab)) == (1000, "", before + 1)


def test_the_weights_of_the_route_hold(lab: Lab) -> None:
    before = taken(lab)
    found = dial(lab, "client-allowed", "db", 300)
    assert set(found) == {"db db-v1", "db db-v2"}
    assert 0.74 <= found["db db-v1"] / 300 <= 0.86
    assert taken(lab) == before + 300


def test_a_denied_pod_is_refused_at_connect_and_hears_no_byte(lab: Lab, policies: Path) -> None:
    assert set(dial(lab, "client-denied", "db", 20)) <= {"db db-v1", "db db-v2"}
    policies.write_text(deny("db", "{app: db}", "client-denied"))
    wait_until(lambda: set(dial(lab, "client-denied", "db", 20)) == {"EPERM"}, 20, "the kernel's policy")
    assert dial(lab, "client-denied", "db", 100) == {"EPERM": 100}
    assert set(dial(lab, "client-allowed", "db", 50)) == {"db db-v1", "db db-v2"}


def test_sources_are_told_apart_by_their_address_in_both_planes(lab: Lab, policies: Path) -> None:
    """`plain` in the kernel and `db` behind Envoy; the same two clients change places twice."""
    one, two = (lab.pod(name).address for name in ("client-allowed", "client-denied"))
    served = {"plain": {"plain plain"}, "db": {"db db-v1", "db db-v2"}}
    refused = {"EPERM", "CLOSED", "ECONNRESET"}
    for name, greetings in served.items():
        for pod in ("client-allowed", "client-denied"):
            assert set(dial(lab, pod, name, 50)) == greetings
    for blocks, let_in, left_out in (
        (f'{{ipBlocks: ["{one}/32"]}}', "client-allowed", "client-denied"),
        (f'{{ipBlocks: ["{one}", "{two}"], notIpBlocks: ["{one}"]}}', "client-denied", "client-allowed"),
        (f'{{ipBlocks: ["0.0.0.0/0"], notIpBlocks: ["{two}/32"]}}', "client-allowed", "client-denied"),
    ):
        policies.write_text(allow_from("plain", blocks) + allow_from("db", blocks))
        for name, greetings in served.items():
            wait_until(lambda n=name, p=left_out: set(dial(lab, p, n, 10)) <= refused, 20, f"{name} refuses {blocks}")
            wait_until(lambda n=name, p=let_in, g=greetings: set(dial(lab, p, n, 10)) <= g, 20, f"{name} lets in")
            assert set(dial(lab, left_out, name, 100)) <= refused
            assert set(dial(lab, let_in, name, 200)) == greetings


def test_with_several_policies_envoy_decides_and_a_denied_pod_hears_no_byte(lab: Lab, policies: Path) -> None:
    """The kernel knows one policy of a redirect at most; each version of `vault` has one of its own."""
    assert set(dial(lab, "client-denied", "vault", 20)) == {"vault vault-v1", "vault vault-v2"}
    of_v1 = deny("one", "{app: vault, version: v1}", "client-denied")
    policies.write_text(of_v1 + deny("two", "{app: vault, version: v2}", "nobody"))
    refused = {"CLOSED", "ECONNRESET"}
    wait_until(lambda: set(dial(lab, "client-denied", "vault", 20)) <= refused, 20, "Envoy's matcher")
    assert set(dial(lab, "client-denied", "vault", 100)) <= refused
    assert set(dial(lab, "client-allowed", "vault", 50)) == {"vault vault-v1", "vault vault-v2"}


def test_a_namespace_that_the_kernel_does_not_know_is_judged_by_envoy(lab: Lab, policies: Path) -> None:
    """Why the connect check is not the authority: a pod's nested namespace is nobody to it, and passes a DENY."""
    nested = ("nested", "nested_netns", virtual_address(lab, "db"), PORT, "db")
    silent = ("closed", "ECONNRESET", "timeout")
    assert attempt(lab, "client-denied", nested)["nested"] not in silent
    policies.write_text(deny("db", "{app: db}", "client-denied"))
    wait_until(lambda: set(dial(lab, "client-denied", "db", 5)) == {"EPERM"}, 20, "the kernel's policy")
    wait_until(lambda: attempt(lab, "client-denied", nested)["nested"] in ("closed", "ECONNRESET"), 20, "Envoy's")
    assert attempt(lab, "client-allowed", nested)["nested"] not in silent


def test_a_proxy_that_is_dialled_directly_serves_nobody(lab: Lab) -> None:
    """Neither node's, by no address, nor from the port of a redirected connection."""
    places = {place for node in lab.plan.nodes for place in (node.proxy_address, node.address)} | {"169.254.1.1"}
    tricks = [(f"{way} {at}", way, at, 15002, "db") for at in sorted(places) for way in ("plain", "reused_port")]
    for pod in ("client-allowed", "client-denied"):
        found = attempt(lab, pod, *tricks)
        assert {name: outcome for name, outcome in found.items() if outcome not in ("closed", "ECONNRESET")} == {}
        control = attempt(lab, pod, ("control", "plain", virtual_address(lab, "db"), PORT, "db"))["control"]
        assert control not in ("closed", "ECONNRESET", "timeout")


def test_a_service_changes_plane_and_back_without_a_dropped_connection(
    lab: Lab, manifests: Path, tmp_path: Path
) -> None:
    def keep() -> subprocess.Popen[str]:
        argv = lab.exec_argv("client-allowed", (sys.executable, "-c", KEEP, "plain", str(PORT)))
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=environment())

    def says(kept: subprocess.Popen[str], text: str) -> str:
        assert kept.stdin is not None
        assert kept.stdout is not None
        kept.stdin.write(text + "\n")
        kept.stdin.flush()
        return kept.stdout.readline().strip()

    stop = tmp_path / "stop"
    until = ("--until", "byte", "--seconds", "60", "--stop-file", str(stop))
    load = lab.start_client("client-allowed", "probe", f"plain:{PORT}", *until)
    kept: list[subprocess.Popen[str]] = []
    try:
        for wanted, annotations in (("L7", L7), ("L4", "{}")) * 3:
            kept.append(keep())
            assert kept[-1].stdout is not None
            assert kept[-1].stdout.readline().startswith("plain ")
            (manifests / "plain.yaml").write_text(service("plain", annotations))
            wait_until(lambda wanted=wanted: plane(lab, "plain") == wanted, 20, f"plain on {wanted}")
            before = taken(lab)
            assert sum(dial(lab, "client-allowed", "plain", 20).values()) == 20
            assert (taken(lab) >= before + 20) is (wanted == "L7")
        assert [says(connection, "still here") for connection in kept] == ["still here"] * 6
    finally:
        stop.touch()
        for connection in kept:
            connection.kill()
            connection.communicate()
    answer = json.loads(load.communicate(timeout=30)[0])
    assert set(answer["outcomes"]) == {"connected"}
    assert answer["probes"] > 200


def test_a_killed_envoy_comes_back_by_itself_and_nothing_goes_around_it(lab: Lab) -> None:
    node = lab.pod("client-allowed").node
    pid = lab.kill(f"envoy/{node}", signal.SIGKILL)
    during = dial(lab, "client-allowed", "db", 1)
    assert set(dial(lab, "client-allowed", "plain", 20)) == {"plain plain"}
    wait_until(lambda: set(dial(lab, "client-allowed", "db", 5)) <= {"db db-v1", "db db-v2"}, 30, "Envoy again")
    assert set(during) <= {"ECONNREFUSED", "CLOSED", "ECONNRESET", "TIMEOUT", "db db-v1", "db db-v2"}
    running = next(one.pid for one in lab.status().processes if one.role == f"envoy/{node}")
    assert running not in (0, pid)
    before = taken(lab)
    assert sum(dial(lab, "client-allowed", "db", 10).values()) == 10
    assert taken(lab) == before + 10
