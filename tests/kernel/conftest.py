"""Fixtures of the kernel tests: the built object, the node lab, an empty loaded datapath on it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nodelab
import pytest
from nodelab import BPF, CAPACITIES, PIN_ROOT, PODS, Node

from xdsbpf.datapath import abi
from xdsbpf.datapath.address import address16, host_key
from xdsbpf.datapath.attach import Attachments, detach_all
from xdsbpf.datapath.loader import Datapath, open_datapath
from xdsbpf.datapath.namespaces import cgroup_id, netns_cookie

IDENTITY = {1: 301, 2: 302, 3: 303}


@pytest.fixture(scope="session")
def object_file() -> Path:
    assert os.geteuid() == 0, "kernel tests need root"
    subprocess.run(["make", "-s", "-C", str(BPF)], check=True, capture_output=True)
    return BPF / "build" / "xdsbpf.o"


@pytest.fixture(scope="session")
def lab(object_file: Path) -> Iterator[Node]:
    """The namespaces and cgroups, with a server on each pod."""
    node = Node()
    node.close()  # what a killed run left
    detach_all(PIN_ROOT)
    try:
        node.open()
        for pod in node.pods.values():
            node.start(pod, nodelab.serve(pod.name, nodelab.PORT))
        yield node
    finally:
        node.close()
        detach_all(PIN_ROOT)


@pytest.fixture(scope="session")
def loaded(lab: Node, object_file: Path) -> Iterator[Datapath]:
    with open_datapath(PIN_ROOT, object_file=object_file, capacities=CAPACITIES) as datapath:
        hooks = Attachments(datapath, netns=lab.host.netns_file)
        hooks.attach_node(nodelab.CGROUP)
        hooks.attach_proxy(nodelab.CGROUP / "proxy")
        yield datapath


@pytest.fixture
def kernel(loaded: Datapath, lab: Node) -> Iterator[Datapath]:
    """The datapath with what an agent writes first: configuration, identities, the pods' namespaces."""
    tables = loaded.tables
    tables.set_config(
        abi.Config(
            proxy_cgroup=cgroup_id(nodelab.CGROUP / "proxy"),
            agent_cgroup=0,
            proxy_address=address16(nodelab.packed(nodelab.PROXY)),
            abi=abi.AbiVersion.VERSION,
            generation=1,
        )
    )
    for number, address in PODS.items():
        tables.addresses.put(host_key(nodelab.packed(address)), abi.Address(identity=IDENTITY[number], policy=0))
        cookie = netns_cookie(lab.pods[number].netns_file)
        tables.netns.put(abi.NetnsKey(cookie), abi.Netns(address16(nodelab.packed(address))))
    yield loaded
    for table in (
        tables.frontends,
        tables.addresses,
        tables.netns,
        tables.policies,
        tables.veths,
        tables.names,
    ):
        for key, _ in table.items():
            table.delete(key)
    for index, _ in tables.backends.items():
        tables.backends.delete(index)
