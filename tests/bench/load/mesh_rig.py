"""Two labs side by side: one with the mesh, one bare with two Envoys as sidecars; C servers and clients in their pods.

In: a directory for manifests. Out: clients for each path to a server of the same kind: direct
without any program on the way, direct within the mesh, through the kernel's service, through the node's Envoy, and
through two sidecars. Root; nothing leaves namespaces that were made here. Used by `bench_mesh`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import msgspec

from tests.bench.load.http import Client, Server
from tests.envoy.test_sidecar import ENVOY_GROUP, METADATA, REDIRECT
from xdsbpf.compile.raw.bootstrap import ClientBootstrap, envoy_bootstrap
from xdsbpf.envoy_binary import find_binary
from xdsbpf.lab.bringup import down, up
from xdsbpf.lab.lab import Lab
from xdsbpf.lab.measure import wait_until
from xdsbpf.lab.plan import LabOptions
from xdsbpf.lab.processes import environment

PORT = 9100
KERNEL, PROXIED, MOVING, MOVING_PROXIED, SIDECARS = (f"240.240.9.{number}" for number in range(1, 6))
"""Addresses of the services, of which the lab's nodes have a blackhole."""
SERVICES = {
    "kernel": (KERNEL, "server"),
    "proxied": (PROXIED, "server"),
    "moving": (MOVING, "first"),
    "moving-proxied": (MOVING_PROXIED, "first"),
}
"""Address, and the pod that serves it, of each service of the mesh."""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: moving}
spec:
  selector: {matchLabels: {guarded: "yes"}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]
"""


def deployment(name: str, *, is_guarded: bool = False) -> str:
    """One pod that serves nothing by itself."""
    labels = f"{{app: {name}, guarded: {json.dumps('yes' if is_guarded else 'no')}}}"
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {labels}}}
    spec: {{serviceAccountName: {name}, containers: [{{name: main, image: none}}]}}
---"""


def service(name: str, address: str, selector: str = "") -> str:
    """A service of port 80; without a selector, its endpoints are `slice_of`."""
    selected = f"selector: {{app: {selector}}}, " if selector else ""
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{clusterIP: {address}, {selected}ports: [{{name: http, port: 80, targetPort: {PORT}}}]}}
---"""


def routed(name: str) -> str:
    """A route of HTTP, for which the service needs Envoy."""
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec: {{hosts: [{name}], http: [{{route: [{{destination: {{host: {name}}}}}]}}]}}
---"""


def slice_of(name: str, lab: Lab, pod: str) -> str:
    """The endpoints of a service: one pod."""
    found = lab.pod(pod)
    return f"""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: {PORT}}}]
endpoints:
- addresses: [{found.address}]
  nodeName: {found.node}
  targetRef: {{kind: Pod, name: {found.name}, namespace: default}}
---"""


def replace(path: Path, text: str) -> None:
    """Write a manifest as an editor does: whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.rename(path)


class Rig(msgspec.Struct, frozen=True):
    """A lab, and the pids of what serves in it: by pod, of the servers and of the sidecars."""

    lab: Lab
    servers: dict[str, int]
    sidecars: tuple[int, ...] = ()

    def client(self, pod: str, address: str, host: str, port: int = 80) -> Client:
        """A client in a pod."""
        return Client(address, port, host, partial(self.lab.exec_argv, pod))

    def address(self, pod: str) -> str:
        return self.lab.pod(pod).address

    def envoy(self) -> int:
        """The pid of the node's Envoy."""
        return next(item.pid for item in self.lab.status().processes if item.role.startswith("envoy/"))


@contextmanager
def mesh(directory: Path) -> Iterator[Rig]:
    """A node with agent and Envoy: `client`, `denied`, `server`; `first` and `second`, which only `client` may ask."""
    pods = [deployment(name) for name in ("client", "denied", "server")]
    pods += [deployment(name, is_guarded=True) for name in ("first", "second")]
    texts = {"pods": "".join(pods), "policy": POLICY, "routes": routed("proxied") + routed("moving-proxied")}
    texts["services"] = "".join(service(name, address) for name, (address, _) in SERVICES.items())
    for name, text in texts.items():
        (directory / f"{name}.yaml").write_text(text)
    with _lab(f"xbbm{os.getpid()}", directory, bare=False) as lab, ExitStack() as stack:
        rig = Rig(lab, {name: stack.enter_context(_serving(lab, name)) for name in ("server", "first", "second")})
        for name, (_, pod) in SERVICES.items():
            replace(directory / f"{name}.yaml", slice_of(name, lab, pod))
        for name, (address, _) in SERVICES.items():
            with rig.client("client", address, f"{name}.default.svc.cluster.local") as probe:
                wait_until(lambda probe=probe: probe.connects(1).served == 1, 20, f"{name} to answer")
        yield rig


@contextmanager
def bare(directory: Path) -> Iterator[Rig]:
    """No mesh: `client` and `server`, and `near` and `far`, each of which has an Envoy beside it."""
    (directory / "pods.yaml").write_text("".join(map(deployment, ("client", "server", "near", "far"))))
    with _lab(f"xbbb{os.getpid()}", directory, bare=True) as lab, ExitStack() as stack:
        servers = {name: stack.enter_context(_serving(lab, name)) for name in ("server", "far")}
        (directory / "more").mkdir()
        (directory / "more" / "far.yaml").write_text(service("far", SIDECARS, "far") + slice_of("far", lab, "far"))
        socket = directory / "xds.sock"
        files = [part for path in (lab.layout.observed, directory / "more") for part in ("-f", str(path))]
        listen = ["--listen", f"unix:{socket}", "--admin", f"unix:{directory / 'admin.sock'}", "--log-level", "warning"]
        stack.enter_context(_process([sys.executable, "-m", "xdsbpf", "serve", *files, *listen]))
        wait_until(socket.exists, 20, "the sidecars' control plane")
        sidecars = tuple(stack.enter_context(_sidecar(lab, pod, directory, socket)) for pod in ("near", "far"))
        rig = Rig(lab, servers, sidecars)
        with rig.client("near", SIDECARS, "far") as probe:
            wait_until(lambda: probe.connects(1).served == 1, 20, "an answer through two sidecars")
        yield rig


@contextmanager
def _serving(lab: Lab, pod: str) -> Iterator[int]:
    with Server(lab.pod(pod).address, PORT, pod, partial(lab.exec_argv, pod)) as server:
        yield server.pid


@contextmanager
def _lab(name: str, manifests: Path, *, bare: bool) -> Iterator[Lab]:
    try:
        yield up(LabOptions(name=name, paths=(manifests,), nodes=1, bare=bare))
    finally:
        down(name)


@contextmanager
def _sidecar(lab: Lab, name: str, directory: Path, xds_socket: Path) -> Iterator[int]:
    """An Envoy in a pod's network, of the group whose connections are left alone, and the redirection to it."""
    pod = lab.pod(name)
    place = directory / f"sidecar-{name}"
    place.mkdir()
    node_id = f"sidecar~{pod.address}~{pod.name}.default~default.svc.cluster.local"
    document = envoy_bootstrap(ClientBootstrap(node_id, f"unix:{xds_socket}", admin=str(place / "admin.sock")))
    document["node"]["metadata"] = {**METADATA, "INSTANCE_IPS": pod.address, "LABELS": dict(pod.labels)}
    (place / "bootstrap.json").write_text(json.dumps(document))
    inside = ["nsenter", f"--net={lab.layout.netns(pod.netns)}"]
    subprocess.run([*inside, "nft", "-f", "-"], input=REDIRECT, text=True, check=True)
    envoy = [str(find_binary(None)), "-c", str(place / "bootstrap.json"), "--concurrency", "2", "--use-dynamic-base-id"]
    group = ["setpriv", "--regid", str(ENVOY_GROUP), "--clear-groups"]
    with _process([*inside, *group, *envoy, "--log-path", str(place / "log"), "-l", "warning"]) as pid:
        yield pid


@contextmanager
def _process(argv: Sequence[str]) -> Iterator[int]:
    # A session of its own, as the node's Envoy has: the scheduler shares processors out by sessions, too.
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield process.pid
        finally:
            process.kill()
