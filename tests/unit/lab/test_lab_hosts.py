"""/etc/hosts of a pod."""

from __future__ import annotations

import socket
from pathlib import Path

from lab_builders import deployment, service

from xdsbpf.lab.hosts import ServiceAddress, bare_addresses, names, render_hosts, write_in_place
from xdsbpf.lab.plan import LabOptions, schedule

PLAN = schedule(
    LabOptions(paths=(Path("x"),), name="xbl"),
    (deployment("web", app="web"), deployment("web", app="web", namespace="shop")),
    (),
    (),
)
SERVICES = (
    ServiceAddress("web.default.svc.cluster.local", "240.240.0.1"),
    ServiceAddress("web.shop.svc.cluster.local", "240.240.0.2"),
)


def lookup(text: str, name: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if name in line.split()[1:]]


def test_a_bare_name_means_the_service_of_the_pods_own_namespace() -> None:
    ours, theirs = (render_hosts(pod, SERVICES) for pod in PLAN.pods)
    assert lookup(ours, "web") == ["240.240.0.1"]
    assert lookup(theirs, "web") == ["240.240.0.2"]


def test_longer_names_reach_services_of_every_namespace() -> None:
    text = render_hosts(PLAN.pods[0], SERVICES)
    for name in ("web.shop", "web.shop.svc", "web.shop.svc.cluster.local"):
        assert lookup(text, name) == ["240.240.0.2"]


def test_a_host_outside_the_cluster_has_only_its_own_name() -> None:
    assert names("api.example.com", "default") == ("api.example.com",)
    assert names("a.b.c.svc.cluster.local", "default") == ("a.b.c.svc.cluster.local",)


def test_a_service_with_several_ports_is_listed_once() -> None:
    text = render_hosts(PLAN.pods[0], SERVICES + SERVICES)
    assert lookup(text, "web") == ["240.240.0.1"]


def test_without_a_mesh_a_name_leads_to_a_pod() -> None:
    web = service("web", {"app": "web"}, ((80, "http", None),))
    (found,) = bare_addresses(PLAN, (web,))
    assert found == ServiceAddress("web.default.svc.cluster.local", PLAN.pods[0].address)
    socket.inet_aton(found.address)


def test_a_hosts_file_is_rewritten_in_its_own_inode(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    write_in_place(file, "a long first version\n")
    inode = file.stat().st_ino
    write_in_place(file, "short\n")
    assert file.read_text() == "short\n"
    assert file.stat().st_ino == inode
