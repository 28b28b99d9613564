"""Network namespaces of a lab: a fabric that routes between nodes, and pods behind routed veths.

Input: a `LabPlan`. Makes and removes namespaces with `ip -batch`. No namespace has a route out of the lab
or an IPv6 address, and every node and the fabric drop the service range, so that an address that the datapath
did not translate goes nowhere. A pod reaches everything through its node (169.254.1.1), as with a routed CNI.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from xdsbpf.lab.layout import NETNS_ROOT
from xdsbpf.lab.plan import LabPlan, NodePlan, PodPlan
from xdsbpf.lab.processes import LabError

POD_GATEWAY = "169.254.1.1"
NODE_GATEWAY = "169.254.2.1"
POD_RANGE = "10.88.0.0/16"

# IPv6 goes before any link comes up, so that no link-local address is ever made.
_COMMON = ("net/ipv6/conf/all/disable_ipv6=1", "net/ipv6/conf/default/disable_ipv6=1")
_ROUTER = (
    *_COMMON,
    "net/ipv4/ip_forward=1",
    "net/ipv4/conf/all/rp_filter=0",
    "net/ipv4/conf/default/rp_filter=0",
    "net/ipv4/conf/all/send_redirects=0",
    "net/ipv4/conf/default/send_redirects=0",
)


def build(plan: LabPlan) -> None:
    """Make every namespace, link, address and route of the plan.

    Raises: LabError with the words of `ip`; what was made until then stays, for `remove`.
    """
    _batch((f"netns add {name}" for name in plan.namespaces), "make the network namespaces")
    for node in plan.nodes:
        _configure(node.netns, _ROUTER, node_commands(plan, node))
    for pod in plan.pods:
        _configure(pod.netns, _COMMON, pod_commands(pod))
    _configure(plan.fabric, _ROUTER, fabric_commands(plan))


def node_commands(plan: LabPlan, node: NodePlan) -> list[str]:
    """`ip` commands inside a node: blackholes first, then uplink, then the links of its pods."""
    commands = [
        "link set lo up",
        f"route add blackhole {plan.service_cidr}",
        f"route add blackhole 10.88.{node.index}.0/24",
        f"addr add {node.proxy_address}/32 dev lo",
        f"link add up0 type veth peer name {node.name} netns {plan.fabric}",
        f"addr add {node.address}/32 dev up0",
        "link set up0 up",
        f"route add {NODE_GATEWAY}/32 dev up0 scope link",
        f"route add {POD_RANGE} via {NODE_GATEWAY} dev up0 src {node.address}",
    ]
    for pod in plan.pods_of(node.name):
        commands += [
            f"link add {pod.veth} type veth peer name eth0 netns {pod.netns}",
            f"addr add {POD_GATEWAY}/32 dev {pod.veth}",
            f"link set {pod.veth} up",
            f"route add {pod.address}/32 dev {pod.veth} src {node.address}",
        ]
    return commands


def pod_commands(pod: PodPlan) -> list[str]:
    """`ip` commands inside a pod: its address, and its node as the only way out."""
    return [
        "link set lo up",
        f"addr add {pod.address}/32 dev eth0",
        "link set eth0 up",
        f"route add {POD_GATEWAY}/32 dev eth0 scope link",
        f"route add default via {POD_GATEWAY} dev eth0",
    ]


def fabric_commands(plan: LabPlan) -> list[str]:
    """`ip` commands inside the fabric: one link per node, and what lies behind it."""
    commands = ["link set lo up", f"route add blackhole {plan.service_cidr}"]
    for node in plan.nodes:
        commands += [
            f"addr add {NODE_GATEWAY}/32 dev {node.name}",
            f"link set {node.name} up",
            f"route add {node.address}/32 dev {node.name} scope link",
            f"route add {node.proxy_address}/32 via {node.address} dev {node.name} onlink",
            f"route add 10.88.{node.index}.0/24 via {node.address} dev {node.name} onlink",
        ]
    return commands


def leftovers(name: str) -> list[str]:
    """Namespaces that bear the name of this lab: its fabric proves that the others are its own."""
    if not (NETNS_ROOT / f"{name}-fabric").exists():
        return []
    return sorted(path.name for path in NETNS_ROOT.iterdir() if path.name.startswith(f"{name}-"))


def remove(names: Iterable[str]) -> None:
    """Delete those of the namespaces that exist; their links go with them. Raises: LabError."""
    present = [name for name in names if (NETNS_ROOT / name).exists()]
    _batch((f"netns del {name}" for name in present), "remove the network namespaces")


def _configure(netns: str, settings: Iterable[str], commands: Iterable[str]) -> None:
    """One process per namespace: sysctls through /proc, which follows the namespace, then a batch."""
    script = "".join(f"echo {value} > /proc/sys/{key}\n" for key, _, value in (s.partition("=") for s in settings))
    _run(
        ["nsenter", f"--net={NETNS_ROOT / netns}", "sh", "-ec", f"{script}exec ip -batch -"],
        "\n".join(commands) + "\n",
        f"configure the network namespace {netns}",
    )


def _batch(commands: Iterable[str], purpose: str) -> None:
    text = "\n".join(commands)
    if text:
        _run(["ip", "-batch", "-"], text + "\n", purpose)


def _run(argv: list[str], stdin: str, purpose: str) -> None:
    result = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60)
    if result.returncode:
        raise LabError(f"cannot {purpose}: {result.stderr.strip() or f'exit {result.returncode}'}")
