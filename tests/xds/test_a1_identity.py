"""Rule 2 and 46 over mutual TLS: a certificate that says who the client is, and one that says it is nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from envoy.service.load_stats.v3.lrs_pb2 import LoadStatsRequest

from tests.xds.client import DEADLINE_S
from tests.xds.lab import Lab
from tests.xds.resources import EDS, endpoints
from tests.xds.test_a5_services import LRS
from tests.xds.wire import ADS, ALL, Variant
from xdsbpf.xds.peers import AllowRule

INVALID = grpc.StatusCode.INVALID_ARGUMENT
DENIED = grpc.StatusCode.PERMISSION_DENIED

MESH = "spiffe://cluster.local"
ONE, SEVERAL, GLOB = f"{MESH}/edge/one", f"{MESH}/edge/several", f"{MESH}/edge/glob"
NODE, WORKLOAD, NOBODY = f"{MESH}/node/node1", f"{MESH}/ns/edge/sa/one", f"{MESH}/job/backup"
RULES = (
    AllowRule(ONE, "edge-1"),
    AllowRule(SEVERAL, "edge-1"),
    AllowRule(SEVERAL, "edge-2"),
    AllowRule(GLOB, "edge-*"),
    AllowRule(WORKLOAD, "edge-1"),
)
CHOICES = {
    SEVERAL: "edge-1 or edge-2",
    GLOB: "edge-*",
    NODE: "agent~<ip>~node1~cluster.local or node~<ip>~node1~cluster.local",
    WORKLOAD: "router~<ip>~<pod>.edge~edge.svc.<domain> or ",
}
"""Whom the rules entitle to several node ids."""


def nodes(lab: Lab) -> list[str]:
    """The node ids that our server sees."""
    return [session.node_id for session in lab.own.server.streams.sessions()]


@pytest.mark.rule(2, on=ALL, needs="own server")
async def test_a_certificate_that_entitles_to_one_node_id_stands_for_it(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    await lab.own.secure(*RULES)
    client = lab.client(identity=ONE, node_id="")
    await client.subscribe(EDS, "a")
    await client.expect(EDS, {"a": 1})
    assert nodes(lab) == ["edge-1"]
    await client.send(EDS, node="edge-2")
    assert (await client.end(EDS))[0] is INVALID, "a later request that names another one"


@pytest.mark.rule(2, on=(Variant.SOTW_TYPE,), needs="own server")
@pytest.mark.parametrize("identity", CHOICES, ids=lambda identity: identity.removeprefix(MESH))
async def test_a_certificate_that_entitles_to_several_node_ids_stands_for_none(lab: Lab, identity: str) -> None:
    await lab.put(endpoints("a"))
    await lab.own.secure(*RULES)
    client = lab.client(identity=identity, node_id="")
    await client.subscribe(EDS, "a")
    code, text = await client.end(EDS)
    assert code is INVALID
    assert f"the first request of a stream has no node.id, and {identity} may claim {CHOICES[identity]}" in text


@pytest.mark.rule(2, on=(Variant.DELTA_ADS,), needs="own server")
@pytest.mark.parametrize(("identity", "is_served"), [(ONE, True), (SEVERAL, False)])
async def test_a_load_reporter_without_a_node_is_who_its_certificate_says(
    lab: Lab, identity: str, is_served: bool
) -> None:
    await lab.own.secure(*RULES)
    client = lab.client(identity=identity)
    call: Any = client.channel.stream_stream(LRS)()
    await call.write(LoadStatsRequest().SerializeToString())
    async with asyncio.timeout(DEADLINE_S):
        if is_served:
            assert await call.read()
            call.cancel()
        else:
            assert await call.code() is INVALID


@pytest.mark.rule(46, on=ADS, needs="own server")
async def test_who_may_be_no_client_at_all_is_refused_before_it_says_anything(lab: Lab) -> None:
    await lab.put(endpoints("a"))
    await lab.own.secure(*RULES)
    nobody, somebody = lab.client(identity=NOBODY), lab.client(identity=GLOB, node_id="edge-7")
    somebody.open(EDS)
    nobody.open(EDS)
    code, text = await nobody.end(EDS)
    assert code is DENIED
    assert f"{NOBODY} may claim no node id" in text
    await somebody.quiet()
    await somebody.subscribe(EDS, "a")
    await somebody.expect(EDS, {"a": 1})
