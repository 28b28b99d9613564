"""Commands that ask a running control plane: tables, JSON, and what they say when nobody answers sensibly."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from xdsbpf.cli.tables import format_age

ROOT = Path(__file__).resolve().parents[3]
ANSWERS: dict[str, Any] = {
    "/services": {
        "items": [
            {"host": "a", "port": 80, "address": "10.0.0.1", "plane": "L4", "endpoints": 2, "reasons": []},
            {"host": "longer", "port": 9080, "address": "", "plane": "L7", "endpoints": 0, "reasons": ["HTTP route"]},
        ],
        "listeners": [
            {"object": "E/L/db", "address": "10.96.0.7:5432", "plane": "L4", "endpoints": 1, "reasons": ["tcp_proxy"]},
            {"object": "E/L/web", "address": "", "plane": "L7", "endpoints": 0, "reasons": ["only Envoy does x"]},
        ],
    },
    "/objects": {
        "items": [
            {"object": "Service/a", "state": "APPLIED", "detail": "", "location": "f:1:1", "diagnostics": []},
            {"object": "Service/b", "state": "REJECTED", "detail": "because", "location": "f:9:1", "diagnostics": []},
        ],
        "sources": [{"path": "f", "state": "broken", "diagnostics": [{"location": "f:3:2", "message": "no YAML"}]}],
    },
    "/proxies": {
        "items": [
            {
                "node_id": "agent~10.0.0.1~n~d",
                "kind": "agent",
                "node": "n",
                "variant": "delta",
                "connected_s": 3725.0,
                "types": [
                    {
                        "type": "frontend",
                        "state": "PENDING",
                        "version": "8",
                        "acked_version": "7",
                        "held": 3,
                        "accepted": 2,
                        "subscribed": 0,
                        "sent_age_s": 0.42,
                        "acked_age_s": None,
                        "error": "",
                        "nacked": [{"name": "x", "version": "1", "error": "full", "manifests": ["a.yaml:3 Service/a"]}],
                        "withheld": [{"name": "y", "reasons": ["not acknowledged"]}],
                    },
                    {
                        "type": "policy",
                        "state": "SYNCED",
                        "version": "6",
                        "acked_version": "6",
                        "held": 1,
                        "accepted": 1,
                        "subscribed": 0,
                        "sent_age_s": 200.0,
                        "acked_age_s": 100.0,
                        "error": "",
                        "nacked": [],
                        "withheld": [],
                    },
                ],
            },
            {
                "node_id": "front",
                "kind": "envoy",
                "node": "",
                "variant": "sotw",
                "connected_s": 1.0,
                "types": [],
            },
        ]
    },
    "/debug/whynot?node=n&resource=x&type=": {
        "items": [
            {
                "node": "agent~10.0.0.1~n~d",
                "type": "frontend",
                "type_url": "T",
                "resource": "x",
                "answer": "it has version 7",
                "manifests": ["a.yaml:3 Service/a"],
            }
        ]
    },
    "/confirm": {"confirmed": 3},
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path in ANSWERS
        body = json.dumps(ANSWERS[self.path] if known else {"error": "made for a test"}).encode()
        self.send_response(200 if known else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def admin() -> Iterator[str]:
    """Address of a server that gives the answers above."""
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def xdsbpf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "xdsbpf", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("command", "kind", "names"),
    [
        ("services", "Services", "a:80\nlonger:9080\n"),
        ("objects", "Objects", "Service/a\nService/b\n"),
        ("ps", "ProxyStatus", "agent~10.0.0.1~n~d\nfront\n"),
    ],
)
def test_json_has_version_and_kind_and_names_are_one_a_line(admin: str, command: str, kind: str, names: str) -> None:
    document = json.loads(xdsbpf(command, "--admin", admin, "-o", "json").stdout)
    assert (document["apiVersion"], document["kind"]) == ("xdsbpf.io/v1", kind)
    assert document["items"] == ANSWERS["/proxies" if command == "ps" else f"/{command}"]["items"]
    assert xdsbpf(command, "--admin", admin, "-o", "name").stdout == names


def test_every_column_of_a_table_starts_at_the_same_place(admin: str) -> None:
    lines = xdsbpf("services", "--admin", admin).stdout.splitlines()
    assert len(lines) == 5
    for column in ("PORT", "ADDRESS", "PLANE", "ENDPOINTS", "WHY"):
        at = lines[0].index(column)
        assert all(line[at - 1] == " " and line[at] != " " for line in lines)


def test_objects_show_the_reason_and_broken_files_on_standard_error(admin: str) -> None:
    done = xdsbpf("objects", "--admin", admin)
    assert "because" in done.stdout
    assert done.stderr == "f:3:2: broken: no YAML\n"


def test_ps_explains_what_is_refused_and_withheld_on_standard_error(admin: str) -> None:
    done = xdsbpf("ps", "--admin", admin)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "NODE", "STATE", "CONNECTED", "TYPES"]
    assert lines[1].split()[:5] == ["agent~10.0.0.1~n~d", "agent", "n", "PENDING", "1h2m"]
    assert lines[1].endswith("frontend PENDING, policy SYNCED")
    assert lines[2].split() == ["front", "envoy", "-", "NOT-SENT", "1.0s", "-"]
    assert "frontend x: refused in version 1: full" in done.stderr
    assert "frontend y: withheld: not acknowledged" in done.stderr


def test_ps_verbose_has_versions_ages_and_the_manifests_of_what_is_refused(admin: str) -> None:
    done = xdsbpf("ps", "-v", "--admin", admin)
    assert done.stderr == ""
    types, troubles, _ = done.stdout.split("\n\n")
    rows = [line.split() for line in types.splitlines()]
    assert rows[1] == ["agent~10.0.0.1~n~d", "frontend", "PENDING", "8", "7", "2/3", "0.4s", "-", "-"]
    assert rows[2] == ["agent~10.0.0.1~n~d", "policy", "SYNCED", "6", "6", "1/1", "3m20s", "1m40s", "-"]
    assert len(rows[0]) == len(rows[1])
    refused, withheld = troubles.splitlines()[1:]
    assert "frontend x   a.yaml:3 Service/a   refused in version 1: full" in refused
    assert "frontend y   -                    withheld: not acknowledged" in withheld


@pytest.mark.parametrize("name", ["n", "agent~10.0.0.1~n~d"])
def test_ps_of_one_node_shows_that_one(admin: str, name: str) -> None:
    assert xdsbpf("ps", name, "--admin", admin, "-o", "name").stdout == "agent~10.0.0.1~n~d\n"


def test_ps_of_a_node_that_is_not_there_fails(admin: str) -> None:
    done = xdsbpf("ps", "nobody", "--admin", admin)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no client 'nobody' is connected" in done.stderr


def test_why_prints_the_answer_and_where_it_is_written(admin: str) -> None:
    done = xdsbpf("why", "n", "x", "--admin", admin)
    assert done.stdout == "agent~10.0.0.1~n~d frontend: it has version 7\n  from a.yaml:3 Service/a\n"
    document = json.loads(xdsbpf("why", "n", "x", "--admin", admin, "-o", "json").stdout)
    assert (document["kind"], document["items"][0]["answer"]) == ("Whynot", "it has version 7")


def test_yaml_is_the_same_document_as_json(admin: str) -> None:
    as_yaml = yaml.safe_load(xdsbpf("ps", "--admin", admin, "-o", "yaml").stdout)
    assert as_yaml == json.loads(xdsbpf("ps", "--admin", admin, "-o", "json").stdout)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0.0s"),
        (9.94, "9.9s"),
        (59.9, "59s"),
        (60, "1m"),
        (200, "3m20s"),
        (7500, "2h5m"),
        (90000, "1d1h"),
    ],
)
def test_ages_are_short(seconds: float | None, text: str) -> None:
    assert format_age(seconds) == text


def test_ps_tells_the_planes_of_raw_listeners_when_asked_for_more(admin: str) -> None:
    listeners = xdsbpf("ps", "-v", "--admin", admin).stdout.split("\n\n")[2]
    assert [line.split(maxsplit=2) for line in listeners.splitlines()] == [
        ["LISTENER", "PLANE", "WHY"],
        ["E/L/db", "L4", "tcp_proxy"],
        ["E/L/web", "L7", "only Envoy does x"],
    ]
    assert "E/L/db" not in xdsbpf("ps", "--admin", admin).stderr


def test_confirm_says_how_many(admin: str) -> None:
    assert xdsbpf("confirm", "--admin", admin).stdout == "3 held objects confirmed\n"


def test_the_servers_own_error_is_shown(admin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ANSWERS, "/services")
    done = xdsbpf("services", "--admin", admin)
    assert done.returncode == 1
    assert done.stderr == "xdsbpf: error: GET /services: 500 made for a test\n"


def test_a_peer_that_speaks_no_http_is_unreachable_and_no_traceback() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            peer.recv(1000)
            peer.sendall(b"SSH-2.0-nonsense\r\n")
            peer.close()

        thread = threading.Thread(target=answer)
        thread.start()
        done = xdsbpf("ps", "--admin", f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert done.returncode == 69
    assert "Traceback" not in done.stderr
    assert "hint:" in done.stderr


def test_an_address_that_is_none_is_wrong_usage() -> None:
    done = xdsbpf("ps", "--admin", "localhost:nonsense")
    assert done.returncode == 64
    assert "Traceback" not in done.stderr
