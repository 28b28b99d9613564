"""`xdsbpf diff` over files: what it finds in both planes, what it prints, how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.raw_texts import cluster, raw_file

ROOT = Path(__file__).resolve().parents[3]
NODE = "node~10.0.0.1~node1~cluster.local"
AGENT = "agent~10.0.0.1~node1~cluster.local"
HOST = "reviews.default.svc.cluster.local"

BASE = """apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {clusterIP: 10.9.0.1, selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: 10.9.0.2, selector: {app: db}, ports: [{name: tcp, port: 5432}]}
"""
ROUTE = f"""apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [reviews]
  http:
  - route: [{{destination: {{host: {HOST}}}}}]
    timeout: 2s
"""
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
SECRET = f"""- "@type": {TLS}
  name: key
  tls_certificate: {{private_key: {{inline_string: WORD}}}}
"""


class Files:
    """A directory with what is in force and what somebody wants."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.base = self.write("base.yaml", BASE)

    def write(self, name: str, text: str) -> str:
        (self.directory / name).write_text(text)
        return str(self.directory / name)

    def diff(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Compared with the manifests in force."""
        return xdsbpf("diff", "--against", self.base, *arguments)

    def document(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.diff(*arguments, "-o", "json").stdout)
        return found


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def xdsbpf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "xdsbpf", *arguments], cwd=ROOT, capture_output=True, text=True)


def changes(document: dict[str, Any]) -> set[tuple[str, str, str, str]]:
    return {(item["plane"], item["change"], item["type"], item["name"]) for item in document["resources"]}


def test_a_route_moves_a_service_to_the_proxy_in_both_planes(files: Files) -> None:
    wanted = files.write("vs.yaml", ROUTE)
    document = files.document("-f", wanted)
    assert (document["kind"], document["proxy"]) == ("Difference", "")
    assert changes(document) == {
        ("envoy", "changed", "vhds", f"9080/{HOST}"),
        ("kernel", "changed", "frontend", "10.9.0.1:9080/tcp"),
    }
    (plane,) = document["planes"]
    assert (plane["name"], plane["before"], plane["after"]) == (f"{HOST}:9080", "L4", "L7")
    host, frontend = sorted(document["resources"], key=lambda item: str(item["plane"]))
    assert f"{wanted}:7 VirtualService/default/reviews spec.http[0]" in " ".join(host["origins"])
    assert host["before"]["routes"][0]["route"]["timeout"] == "0s"
    assert host["after"]["routes"][0]["route"]["timeout"] == "2s"
    assert ("balance" in frontend["before"], "redirect" in frontend["after"]) == (True, True)


def test_a_table_has_what_changes_where_and_why_and_the_exit_code_says_so(files: Files) -> None:
    found = files.diff("-f", files.write("vs.yaml", ROUTE))
    assert found.returncode == 1
    assert found.stderr == ""
    lines = found.stdout.splitlines()
    assert lines[0].split() == ["PLANE", "CHANGE", "TYPE", "NAME", "SCOPE", "FROM"]
    assert lines[2].split()[:5] == ["kernel", "changed", "frontend", "10.9.0.1:9080/tcp", "datapath"]
    assert lines[4].split() == ["SERVICE", "BEFORE", "AFTER", "WHY"]
    assert lines[5].split()[:3] == [f"{HOST}:9080", "L4", "L7"]


def test_what_is_in_force_already_changes_nothing(files: Files) -> None:
    found = files.diff("-f", files.write("again.yaml", "# a comment\n" + BASE))
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "nothing would change\n")


def test_a_deletion_removes_what_only_that_object_was_for(files: Files) -> None:
    document = files.document("-f", files.write("db.yaml", BASE.partition("---\n")[2]), "--delete")
    assert ("kernel", "removed", "frontend", "10.9.0.2:5432/tcp") in changes(document)
    assert {change for _, change, _, _ in changes(document)} <= {"removed", "changed"}
    assert not any("10.9.0.1" in name for _, _, _, name in changes(document))
    assert [(plane["before"], plane["after"]) for plane in document["planes"]] == [("L4", "")]
    removed = next(item for item in document["resources"] if item["type"] == "frontend")
    assert (removed["before"]["port"], removed["after"], removed["origins"]) == (5432, None, [])


@pytest.mark.parametrize(("proxy", "plane"), [(NODE, "envoy"), (AGENT, "kernel")])
def test_a_proxy_is_shown_what_it_sees_alone(files: Files, proxy: str, plane: str) -> None:
    document = files.document("-f", files.write("vs.yaml", ROUTE), "--proxy", proxy)
    assert {found for found, _, _, _ in changes(document)} == {plane}
    assert {item["scope"] for item in document["resources"]} == {""}


def test_a_sidecar_whose_pod_gets_other_labels_sees_the_difference_of_two_views(files: Files) -> None:
    """The policy is there already: what changes is whom it selects."""
    policy = """---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed}
spec: {selector: {matchLabels: {app: closed}}, action: DENY, rules: [{}]}
---
"""
    pod = """apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: APP}}
spec: {nodeName: node1}
status: {phase: Running, podIP: 10.0.0.7, podIPs: [{ip: 10.0.0.7}]}
"""
    files.base = files.write("base.yaml", BASE + policy + pod.replace("APP", "open"))
    for app, wanted in (("closed", {"lds"}), ("open", set())):
        change = files.write("pod.yaml", pod.replace("APP", app))
        document = files.document("-f", change, "--proxy", "sidecar~10.0.0.7~web.default~default.svc.cluster.local")
        assert {type_ for _, _, type_, _ in changes(document)} == wanted


def test_the_lines_of_a_change_are_shown_if_asked_for(files: Files) -> None:
    found = files.diff("-f", files.write("vs.yaml", ROUTE), "-v", "--proxy", NODE)
    assert f"--- before vhds/9080/{HOST}\n+++ after vhds/9080/{HOST}\n" in found.stdout
    lines = [line.replace(" ", "").rstrip(",") for line in found.stdout.splitlines()]
    assert {'-"timeout":"0s"', '+"timeout":"2s"'} <= set(lines)


@pytest.mark.parametrize("arguments", [("-o", "json"), ("-v",), ()])
def test_a_secret_is_named_and_never_shown(files: Files, arguments: tuple[str, ...]) -> None:
    old = files.write("old.yaml", raw_file(SECRET.replace("WORD", "hush")))
    new = files.write("new.yaml", raw_file(SECRET.replace("WORD", "whisper"), cluster(name="shown")))
    found = files.diff("--against-envoy-resources", old, "--envoy-resources", new, *arguments)
    assert found.returncode == 1
    assert "shown" in found.stdout
    assert "key" in found.stdout
    assert "hush" not in found.stdout
    assert "whisper" not in found.stdout


def test_findings_that_are_new_are_told_and_are_no_difference(files: Files) -> None:
    dangling = ROUTE.replace("hosts: [reviews]", "hosts: [nobody]")
    found = files.diff("-f", files.write("vs.yaml", dangling))
    assert f"{files.directory}/vs.yaml:" in found.stderr
    assert (found.returncode, found.stdout) == (0, "")
    files.base = files.write("base.yaml", BASE + "---\n" + dangling)
    assert files.diff("-f", files.write("vs.yaml", dangling)).stderr == "nothing would change\n"


@pytest.mark.parametrize(
    ("text", "arguments", "code", "said"),
    [
        (ROUTE.replace("timeout", "timeoot"), (), 65, "timeoot"),
        ("kind: [", (), 65, "wanted.yaml:2:1: error: "),
        ("", (), 65, "no object could be read"),
        (ROUTE, ("--against", "/no/such/file"), 65, "no such file"),
        (ROUTE, ("--proxy", "waypoint~10.0.0.1~x~y"), 64, "waypoints are not supported yet"),
        (ROUTE, ("-o", "csv"), 64, "csv"),
    ],
)
def test_what_cannot_be_compared_is_said(
    files: Files, text: str, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found = files.diff("-f", files.write("wanted.yaml", text), *arguments)
    assert (found.returncode, found.stdout) == (code, ""), found
    assert said in found.stderr


def test_without_files_or_a_control_plane_there_is_nothing_to_compare(files: Files) -> None:
    assert xdsbpf("diff", "--against", files.base).returncode == 64
    found = xdsbpf("diff", "-f", files.base, "--admin", f"unix:{files.directory}/nobody.sock")
    assert found.returncode == 69
    assert "--against" in found.stderr or "XDSBPF_ADMIN" in found.stderr
