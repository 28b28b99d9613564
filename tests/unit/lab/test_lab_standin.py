"""The stand-in server and the client's traffic, over loopback sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from xdsbpf.lab import bookinfo
from xdsbpf.lab.exchange import Connection
from xdsbpf.lab.standin import EchoPort, HttpPort, StandIn, StandInConfig
from xdsbpf.lab.traffic import Probe, Target, Until, echo, probe, send

LOOPBACK = "127.0.0.1"


def config(app: str, version: str = "v1", **env: str) -> StandInConfig:
    return StandInConfig(f"{app}-pod", "default", "node1", app, version, LOOPBACK, (), env, "")


@asynccontextmanager
async def running(settings: StandInConfig, protocol: type[asyncio.Protocol] = HttpPort) -> AsyncIterator[int]:
    """A stand-in on a free port of loopback."""
    factory: Any = protocol
    server = await asyncio.get_running_loop().create_server(partial(factory, StandIn(settings)), LOOPBACK, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def ask(port: int, path: str, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = await Connection.open((LOOPBACK, port))
    try:
        fields = [("host", "x"), *((name.replace("_", "-"), value) for name, value in headers.items())]
        message = await connection.request("GET", path, fields)
        return message.status, msgspec.json.decode(message.body)
    finally:
        connection.close()


async def test_an_answer_says_who_gave_it_and_what_arrived() -> None:
    async with running(config("web")) as port:
        status, body = await ask(port, "/hello?a=b", end_user="jason")
    assert status == 200
    assert (body["service"], body["version"], body["pod"], body["node"]) == ("web", "v1", "web-pod", "node1")
    assert body["path"] == "/hello?a=b"
    assert body["headers"]["end-user"] == "jason"
    assert body["peer"].startswith("127.0.0.1:")


async def test_a_stand_in_answers_with_the_status_that_is_asked_for() -> None:
    async with running(config("web")) as port:
        assert (await ask(port, "/status/503"))[0] == 503
        assert (await ask(port, "/status/999"))[0] == 200


async def test_productpage_calls_details_and_reviews_and_reviews_v3_calls_ratings_for_the_same_user() -> None:
    async with running(config("details")) as details, running(config("ratings")) as ratings:
        rated = config("reviews", "v3", RATINGS_HOSTNAME=LOOPBACK, RATINGS_SERVICE_PORT=str(ratings))
        async with running(rated) as reviews:
            env = {"DETAILS_HOSTNAME": LOOPBACK, "REVIEWS_HOSTNAME": LOOPBACK}
            ports = {"DETAILS_SERVICE_PORT": str(details), "REVIEWS_SERVICE_PORT": str(reviews)}
            async with running(config("productpage", **env, **ports)) as page:
                status, body = await ask(page, "/productpage", end_user="jason")
    assert status == 200
    assert body["details"]["body"]["headers"]["end-user"] == "jason"
    stars = body["reviews"]["body"]["ratings"]
    assert (stars["status"], stars["body"]["service"]) == (200, "ratings")
    assert stars["body"]["headers"]["end-user"] == "jason"


async def test_reviews_v1_calls_nothing() -> None:
    async with running(config("reviews", "v1")) as port:
        _, body = await ask(port, "/reviews/0")
    assert "ratings" not in body


async def test_a_call_that_fails_is_shown_and_the_page_still_answers() -> None:
    async with running(config("gone")) as free:
        pass
    settings = config("reviews", "v2", RATINGS_HOSTNAME=LOOPBACK, RATINGS_SERVICE_PORT=str(free))
    async with running(settings) as port:
        status, body = await ask(port, "/reviews/0")
    assert status == 200
    assert body["ratings"]["status"] == 0
    assert body["ratings"]["error"] == "ECONNREFUSED"


async def test_a_call_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookinfo, "CALL_TIMEOUT", 0.05)
    silent = await asyncio.get_running_loop().create_server(asyncio.Protocol, LOOPBACK, 0)
    env = {"RATINGS_HOSTNAME": LOOPBACK, "RATINGS_SERVICE_PORT": str(silent.sockets[0].getsockname()[1])}
    async with running(config("reviews", "v2", **env)) as port:
        _, body = await ask(port, "/reviews/0")
    silent.close()
    assert body["ratings"]["error"] == "TIMEOUT"


async def test_a_server_first_port_greets_and_echoes() -> None:
    async with running(config("db"), EchoPort) as port:
        outcome = await echo((LOOPBACK, port), 100_000, 5)
    assert outcome["greeting"] == "db db-pod"
    assert (outcome["echoed"], outcome["error"]) == (100_000, "")


async def test_a_request_that_is_not_http_is_refused_and_the_connection_closed() -> None:
    async with running(config("web")) as port:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(b"nonsense\r\n\r\n")
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_the_client_counts_answers_by_pod_and_connections(keep_alive: bool) -> None:
    async with running(config("web")) as port:
        target = Target(LOOPBACK, port, "/", (("host", "web"),), keep_alive=keep_alive)
        summary = await send(target, 4, 40, asyncio.Event())
    (entry,) = summary["by"]
    assert entry == {"status": 200, "service": "web", "version": "v1", "pod": "web-pod", "count": 40}
    assert summary["connections"] == (4 if keep_alive else 40)
    assert summary["errors"] == {}


async def test_the_client_counts_failures_by_name() -> None:
    async with running(config("gone")) as free:
        pass
    target = Target(LOOPBACK, free, "/", (("host", "web"),))
    summary = await send(target, 2, 6, asyncio.Event())
    assert (summary["requests"], summary["errors"]) == (6, {"ECONNREFUSED": 6})


async def test_probes_tell_a_connection_from_a_refusal_and_from_one_that_is_closed_unanswered(
    tmp_path: Path,
) -> None:
    stop, log = asyncio.Event(), tmp_path / "log"

    class Closing(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.close()

    closing = await asyncio.get_running_loop().create_server(Closing, LOOPBACK, 0)
    shut = closing.sockets[0].getsockname()[1]
    async with running(config("db"), EchoPort) as port:
        allowed = await probe(Probe((LOOPBACK, port), 10, 0.001, until=Until.BYTE), stop, log)
        handshake = await probe(Probe((LOOPBACK, shut), 10, 0.001), stop)
        closed = await probe(Probe((LOOPBACK, shut), 10, 0.001, until=Until.BYTE), stop)
    closing.close()
    refused = await probe(Probe((LOOPBACK, port), 10, 0.001), stop)
    assert allowed["outcomes"] == {"connected": 10}
    assert handshake["outcomes"] == {"connected": 10}
    assert set(closed["outcomes"]) <= {"CLOSED", "ECONNRESET"}
    assert refused["outcomes"] == {"ECONNREFUSED": 10}
    assert len(refused["changes"]) == 1
    records = [msgspec.json.decode(line) for line in log.read_text().splitlines()]
    assert [record["outcome"] for record in records] == ["connected"] * 10


async def test_a_probe_of_something_silent_times_out_without_holding_up_the_others() -> None:
    silent = await asyncio.get_running_loop().create_server(asyncio.Protocol, LOOPBACK, 0)
    address = (LOOPBACK, silent.sockets[0].getsockname()[1])
    begun = asyncio.get_running_loop().time()
    summary = await probe(Probe(address, 20, 0.001, 0.2, Until.BYTE), asyncio.Event())
    elapsed = asyncio.get_running_loop().time() - begun
    silent.close()
    assert summary["outcomes"] == {"TIMEOUT": 20}
    assert elapsed < 20 * 0.2
