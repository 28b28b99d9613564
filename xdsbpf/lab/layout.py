"""Where a lab keeps things: state directory, sockets, cgroups, pins, all derived from its name.

Input: a lab name. Output: paths. Used by every module here that touches the machine; makes nothing itself.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from xdsbpf.errors import ConfigError
from xdsbpf.lab.plan import PodPlan

STATE_ROOT = Path("/run/xdsbpf-lab")
NETNS_ROOT = Path("/run/netns")
CONTROL_PLANE = "control-plane"
"""The party that is no node."""


class PartyFiles(msgspec.Struct, frozen=True):
    """The PEM files of one party of mutual TLS: `authorities` are those of its peers."""

    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "cert.pem"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    @property
    def authorities(self) -> Path:
        return self.directory / "ca.pem"


class Layout:
    """Paths of one lab. Unix socket paths stay below 108 bytes because lab names are short."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = STATE_ROOT / name

    @property
    def record(self) -> Path:
        """What was made, so that `down` works after any crash."""
        return self.state / "lab.json"

    @property
    def xds_socket(self) -> Path:
        return self.state / "xds.sock"

    @property
    def admin_socket(self) -> Path:
        return self.state / "admin.sock"

    @property
    def observed(self) -> Path:
        """Manifests that the lab writes and the control plane watches."""
        return self.state / "observed"

    @property
    def scratch(self) -> Path:
        return self.state / "scratch"

    @property
    def pins(self) -> Path:
        """A BPF filesystem of the lab's own: unmounting it removes every pin."""
        return self.state / "bpf"

    def tls(self, party: str) -> PartyFiles:
        """Certificate, key and authorities of the control plane or a node, in a lab with mutual TLS."""
        return PartyFiles(self.state / "tls" / party)

    def log(self, role: str) -> Path:
        """Log of a process by its role, e.g. `agent/node1`."""
        return self.state / "logs" / f"{role.replace('/', '-')}.log"

    def node_state(self, node: str) -> Path:
        """State directory of a node's agent."""
        return self.state / node

    def pod_file(self, pod: PodPlan, kind: str) -> Path:
        """A file of one pod: `hosts`, `config` or `ready`."""
        return self.state / "pods" / f"{pod.netns}.{kind}"

    @property
    def resolv_conf(self) -> Path:
        return self.state / "pods" / "resolv.conf"

    def netns(self, name: str) -> Path:
        """The file that keeps a network namespace."""
        return NETNS_ROOT / name

    @property
    def cgroup(self) -> Path:
        """Root of the lab's cgroups."""
        return cgroup2_mount() / f"xdsbpf-{self.name}"

    def node_cgroup(self, node: str) -> Path:
        """Root of one node: what its datapath programs are attached to."""
        return self.cgroup / node

    def pod_cgroup(self, pod: PodPlan) -> Path:
        return self.node_cgroup(pod.node) / "pods" / f"pod{pod.uid}"

    def role_cgroup(self, role: str) -> Path:
        """Cgroup of `control-plane`, `agent/NODE` or `envoy/NODE`."""
        kind, _, node = role.partition("/")
        if kind == "control-plane":
            return self.cgroup / "control"
        return self.node_cgroup(node) / ("proxy" if kind == "envoy" else "agent")


def cgroup2_mount(mounts: str | None = None) -> Path:
    """Mount point of the cgroup2 hierarchy (`mounts`: content of /proc/self/mounts).

    On hosts with both versions it is not /sys/fs/cgroup. Raises: ConfigError.
    """
    text = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    for line in text.splitlines():
        _, target, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(target.replace("\\040", " "))
    raise ConfigError("there is no cgroup2 hierarchy", hint="mount one: mount -t cgroup2 none /sys/fs/cgroup")
