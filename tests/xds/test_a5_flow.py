"""Rules 41 to 56 as far as a client sees them: pacing, pages, limits, life cycle, the services beside."""

from __future__ import annotations

import asyncio
import os
import struct

import grpc
import pytest

from tests.xds.lab import Lab
from tests.xds.resources import BUILDERS, CDS, EDS, LDS, RTDS, cluster, endpoints, runtime
from tests.xds.wire import ADS, ALL, DELTA, SOTW, Variant

CHANGES = 100
BURST = 10_000
MIB = 1 << 20
PAGE_LIMIT = 2 * MIB
MANY = 200_000
LITTLE = 150 * MIB


@pytest.mark.rule(41, on=ALL)
async def test_while_an_ack_is_out_changes_collect_and_the_latest_wins(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    await lab.put(endpoints("a", 2))
    first = await client.receive(EDS)
    for number in range(3, CHANGES):
        await lab.put(endpoints("a", number))
    await client.quiet()
    await client.ack(first)
    await client.expect(EDS, {"a": CHANGES - 1})
    await client.quiet()


@pytest.mark.rule(41, on=ALL)
async def test_a_name_is_answered_while_another_response_waits_for_its_ack(lab: Lab) -> None:
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    await client.receive(EDS)
    await client.subscribe(EDS, "b")
    assert (await client.receive(EDS)).holds["b"] == 1


@pytest.mark.rule(41, on=ALL)
async def test_a_nack_lets_the_next_change_go(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    first = await client.receive(EDS)
    await lab.put(endpoints("a", 2))
    await client.quiet()
    await client.nack(first)
    await client.expect(EDS, {"a": 2})


@pytest.mark.rule(44, on=ALL)
async def test_five_megabytes_of_endpoints_come_in_pages(lab: Lab) -> None:
    """The client refuses messages over 4 MiB, as gRPC's do."""
    names = [f"a{number}" for number in range(50)]
    await lab.put(*(endpoints(name, size=4800) for name in names))
    client = lab.client()
    await client.subscribe(EDS, *names)
    responses = await client.expect(EDS, dict.fromkeys(names, 1))
    sizes = [response.size for response in responses]
    assert sum(sizes) > 5 * MIB
    assert max(sizes) <= PAGE_LIMIT


@pytest.mark.rule(44, on=ALL)
async def test_a_grpc_client_is_not_sent_what_it_cannot_take_and_keeps_what_it_has(lab: Lab) -> None:
    """It would close the stream, and open it again, for ever."""
    await lab.put(endpoints("a"), endpoints("b"))
    client = lab.client(user_agent="gRPC C-core linux Python")
    await client.subscribe(EDS, "a", "b")
    await client.expect(EDS, {"a": 1, "b": 1})
    await lab.put(endpoints("a", 2, size=200_000))
    await client.quiet()
    await lab.put(endpoints("b", 2))
    await client.expect(EDS, {"b": 2})
    await lab.put(endpoints("a", 3))
    await client.expect(EDS, {"a": 3})


@pytest.mark.rule(44, on=SOTW)
async def test_a_set_of_clusters_that_a_grpc_client_cannot_take_leaves_it_with_the_last_one(lab: Lab) -> None:
    many = [cluster(f"{number:04000}") for number in range(1200)]
    await lab.put(cluster("a"), endpoints("a"))
    client = lab.client(user_agent="gRPC C-core linux Python")
    await client.subscribe(CDS)
    await client.expect(CDS, {"a": 1})
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    await lab.put(*many, endpoints("a", 2))
    await client.expect(EDS, {"a": 2})
    await lab.change([cluster("a", 2)], [(CDS, served.name) for served in many])
    await client.expect(CDS, {"a": 2})


@pytest.mark.rule(45, on=DELTA)
async def test_a_first_sync_of_many_clusters_comes_in_pages(lab: Lab) -> None:
    names = [f"c{number}" for number in range(4500)]
    await lab.put(*(cluster(name) for name in names))
    client = lab.client()
    await client.subscribe(CDS)
    responses = await client.expect(CDS, dict.fromkeys(names, 1))
    assert max(len(response.items) for response in responses) <= 2000


@pytest.mark.rule(46, on=(Variant.DELTA_ADS,))
async def test_a_client_that_claims_two_hundred_thousand_names_is_served(lab: Lab) -> None:
    """As a client that is back: it asks for what it claims, and hears page by page that all of it but one is gone."""
    await lab.put(endpoints("a"))
    client = lab.client()
    claims = {f"outbound|80||service-{number}.default": "0123456789abcdef" for number in range(MANY - 1)}
    await client.send(EDS, resource_names_subscribe=["a", *claims], initial_resource_versions=claims)
    held: dict[str, int] = {}
    gone: set[str] = set()
    for _ in range(3):
        response = await client.receive(EDS)
        held |= response.holds
        assert gone.isdisjoint(response.removed)
        gone.update(response.removed)
        assert response.size <= PAGE_LIMIT
        await client.ack(response)
    assert held == {"a": 1}
    assert len(gone) > 1_000
    assert gone <= claims.keys()


@pytest.mark.rule(46, on=SOTW)
async def test_a_client_that_names_two_hundred_thousand_resources_is_served(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    names = ["a", *(f"outbound|80||service-{number}.default" for number in range(MANY - 1))]
    await client.send(EDS, resource_names=names)
    assert (await client.receive(EDS)).holds == {"a": 1}


@pytest.mark.rule(47, on=(Variant.DELTA_ADS,))
async def test_pings_of_a_client_are_answered_and_never_too_many(lab: Lab) -> None:
    """HTTP/2 by hand: ten pings without a stream, which gRPC servers punish by default."""
    host, _, port = lab.driver.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    ping, goaway, settings = 6, 7, 4
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(settings, b""))
    answered = 0
    async with asyncio.timeout(5.0):
        for number in range(10):
            writer.write(_frame(ping, number.to_bytes(8, "big")))
            while answered <= number:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                assert head[3] != goaway, payload
                if head[3] == ping and head[4] & 1:
                    assert payload == answered.to_bytes(8, "big")
                    answered += 1
    writer.close()
    await writer.wait_closed()


@pytest.mark.rule(48, on=ALL, needs="own server")
async def test_a_server_that_stops_ends_its_streams_with_a_status(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    client = lab.client()
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    await lab.own.server.stop(5.0)
    assert (await client.end(EDS))[0] in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)


@pytest.mark.rule(50, on=ALL)
async def test_ten_thousand_changes_reach_a_client_in_few_responses(lab: Lab) -> None:
    """The client takes as long for each response as a tenth of the changes takes."""
    names = [f"e{number}" for number in range(100)]
    await lab.put(*map(endpoints, names))
    client = lab.client()
    await client.subscribe(EDS, *names)
    await client.expect(EDS, dict.fromkeys(names, 1))
    before, made = len(client.log), 0

    async def burst() -> None:
        nonlocal made
        for made in range(1, BURST + 1):
            await lab.put(endpoints(names[made % len(names)], 2 + made // len(names)))
            await asyncio.sleep(0)  # the server has its turns between two changes

    burst_task = asyncio.create_task(burst())
    got: dict[str, int] = {}
    last = {name: 1 + BURST // len(names) for name in names} | {names[0]: 2 + BURST // len(names)}
    while got != last:
        response = await client.receive(EDS)
        got |= response.holds
        applied_at = made + BURST // 10
        while made < applied_at and not burst_task.done():
            await asyncio.sleep(0.001)
        await client.ack(response)
    await burst_task
    assert len(client.log) - before <= 20


@pytest.mark.rule(42, on=ADS, needs="own server")
async def test_clients_that_do_not_read_cost_names_and_no_bytes(lab: Lab) -> None:
    """Each asks 300 times for 200 KB that change each time: 1.2 GB if the answers or the changes were queued."""
    editions = [endpoints("a", edition, size=6000) for edition in (1, 2)]
    await lab.put(editions[0])
    stalled = [lab.client(reads=False) for _ in range(20)]
    for client in stalled:
        await client.subscribe(EDS, "a")
    before = resident_bytes()
    for number in range(300):
        await lab.put(editions[number % 2])
        for client in stalled:
            await client.subscribe(EDS, "a")
        assert resident_bytes() - before < LITTLE
    await stalled[0].quiet()
    assert resident_bytes() - before < LITTLE
    reading = lab.client()
    await reading.subscribe(EDS, "a")
    await reading.expect(EDS, {"a": 2})


@pytest.mark.rule(55, on=ALL)
@pytest.mark.parametrize("type_url", [CDS, EDS, LDS])
async def test_a_refused_resource_does_not_hold_back_the_others(lab: Lab, type_url: str) -> None:
    build = BUILDERS[type_url]
    await lab.put(build("bad"), build("good"))
    client = lab.client()
    await client.subscribe(type_url, "bad", "good")
    await client.nack(await client.receive(type_url), "bad: is refused")
    await client.expect(type_url, {"good": 1})
    await client.quiet()
    await lab.put(build("good", 2))
    await client.expect(type_url, {"good": 2})
    await lab.put(build("bad", 2))
    response = await client.receive(type_url)
    assert response.holds["bad"] == 2


@pytest.mark.rule(55, on=SOTW)
async def test_of_a_refused_cluster_the_accepted_version_stays_in_the_set(lab: Lab) -> None:
    await lab.put(cluster("bad"), cluster("good"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.expect(CDS, {"bad": 1, "good": 1})
    await lab.put(cluster("bad", 2), cluster("good", 2))
    response = await client.receive(CDS)
    assert response.holds == {"bad": 2, "good": 2}
    await client.nack(response, "bad: is refused")
    await client.expect(CDS, {"bad": 1, "good": 2})


@pytest.mark.rule(55, on=SOTW)
async def test_a_client_that_finds_one_bad_cluster_after_the_other_gets_the_rest(lab: Lab) -> None:
    await lab.put(cluster("bad"), cluster("worse"), cluster("good"))
    client = lab.client()
    await client.subscribe(CDS)
    await client.nack(await client.receive(CDS), "bad: is refused")
    response = await client.receive(CDS)
    assert response.holds == {"worse": 1, "good": 1}
    await client.nack(response, "worse: is refused")
    await client.expect(CDS, {"good": 1})
    await client.quiet()


@pytest.mark.rule(55, on=SOTW)
async def test_a_refused_cluster_that_is_deleted_is_not_sent_once_more(lab: Lab) -> None:
    await lab.put(cluster("bad"), cluster("good"))
    client = lab.client()
    await client.subscribe(CDS)
    response = await client.receive(CDS)
    await lab.remove((CDS, "bad"))
    await client.nack(response, "bad: is refused")
    await client.expect(CDS, {"good": 1})
    await client.quiet()


@pytest.mark.rule(55, on=SOTW)
async def test_a_client_of_another_stream_does_not_lose_what_it_refuses(lab: Lab) -> None:
    """It may have an older version in force, and would take a set without the cluster for its deletion."""
    await lab.put(cluster("bad"), cluster("good"))
    before = lab.client()
    await before.subscribe(CDS)
    await before.expect(CDS, {"bad": 1, "good": 1})
    await before.close()
    await lab.put(cluster("bad", 2), cluster("good", 2))
    client = lab.client()
    await client.resume(CDS, before)
    await client.nack(await client.receive(CDS), "bad: is refused")
    await client.quiet()
    await lab.put(cluster("good", 3))
    await client.expect(CDS, {"bad": 2, "good": 3})


def resident_bytes() -> int:
    """Resident memory of this process, the server and the clients."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _frame(kind: int, payload: bytes) -> bytes:
    """An HTTP/2 frame on stream 0 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, 0, 0, 0, 0, 0)) + payload


@pytest.mark.rule(52, on=DELTA)
async def test_a_resource_with_a_ttl_is_kept_alive_by_heartbeats_without_a_body(lab: Lab) -> None:
    await lab.put(runtime("layer", ttl_s=0.9), runtime("lasting"))
    client = lab.client()
    await client.subscribe(RTDS, "layer", "lasting")
    first = await client.receive(RTDS)
    assert {(item.name, item.edition, item.ttl_s) for item in first.items} == {("layer", 1, 0.9), ("lasting", 1, 0.0)}
    (version,) = (item.version for item in first.items if item.name == "layer")
    await client.ack(first)
    for _ in range(3):
        beat = await client.receive(RTDS)
        (item,) = beat.items
        assert (item.name, item.version, item.edition, item.ttl_s) == ("layer", version, None, 0.9)
        await client.ack(beat)


@pytest.mark.rule(52, on=SOTW)
async def test_a_ttl_goes_only_to_a_client_that_reads_wrapped_resources(lab: Lab) -> None:
    await lab.put(runtime("layer", ttl_s=0.9))
    plain = lab.client()
    await plain.subscribe(RTDS, "layer")
    first = await plain.receive(RTDS)
    assert [(item.edition, item.ttl_s) for item in first.items] == [(1, 0.0)]
    await plain.ack(first)
    for feature in ("xds.config.supports-resource-in-sotw", "xds.config.resource-in-sotw"):
        able = lab.client(features=(feature,))
        await able.subscribe(RTDS, "layer")
        first = await able.receive(RTDS)
        assert [(item.edition, item.ttl_s) for item in first.items] == [(1, 0.9)]
        await able.ack(first)
        beat = await able.receive(RTDS)
        assert [(item.name, item.edition, item.ttl_s) for item in beat.items] == [("layer", None, 0.9)]
        assert beat.version == first.version, "another version would make it an update"
        await able.ack(beat)
    await plain.quiet()
