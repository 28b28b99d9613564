"""Network RBAC that the kernel is given decides about addresses as a real Envoy does with the same filters."""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.rbac.v3 import rbac_pb2 as rbac
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2

from tests.envoy.node_mesh import free_port
from xdsbpf.compile.raw.kernel_rbac import RbacFilter, blocks_of, decide, rbac_filter
from xdsbpf.mesh.authorization import Source, Verdict
from xdsbpf.model.address_block import BlockSet, parse_block

pytestmark = pytest.mark.envoy

LISTENERS, SEED, DEADLINE_S = 40, 7, 20.0
SOURCES = ("127.0.0.1", "127.0.0.2", "127.0.1.1", "127.9.0.1")
BLOCKS = ("127.0.0.2/32", "127.0.0.0/24", "127.0.0.0/16", "127.9.0.1", "10.0.0.0/8", "::/0", "0.0.0.0/0")
ADDRESS = "127.0.0.1"


def cidr(block: str) -> dict[str, object]:
    address, _, bits = block.partition("/")
    return {"address_prefix": address, **({"prefix_len": {"value": int(bits)}} if bits else {})}


def principal(draw: random.Random, depth: int = 2) -> rbac.Principal:
    kind = draw.choice(("block", "block", "any", *(("and", "or", "not") if depth else ())))
    match kind:
        case "and":
            return rbac.Principal(and_ids={"ids": [principal(draw, depth - 1) for _ in range(2)]})
        case "or":
            return rbac.Principal(or_ids={"ids": [principal(draw, depth - 1) for _ in range(2)]})
        case "not":
            return rbac.Principal(not_id=principal(draw, depth - 1))
        case "any":
            return rbac.Principal(any=True)
    field = draw.choice(("source_ip", "direct_remote_ip", "remote_ip"))
    return rbac.Principal(**{field: cidr(draw.choice(BLOCKS))})


def permission(draw: random.Random, port: int, depth: int = 2) -> rbac.Permission:
    kind = draw.choice(("any", "port", "range", "ip", *(("not", "and") if depth else ())))
    match kind:
        case "port":
            return rbac.Permission(destination_port=draw.choice((port, port, 1)))
        case "range":
            start = draw.choice((port, port - 1, port - 2))
            return rbac.Permission(destination_port_range={"start": start, "end": start + 2})
        case "ip":
            return rbac.Permission(destination_ip=cidr(draw.choice(BLOCKS)))
        case "not":
            return rbac.Permission(not_rule=permission(draw, port, depth - 1))
        case "and":
            return rbac.Permission(and_rules={"rules": [permission(draw, port, depth - 1) for _ in range(2)]})
    return rbac.Permission(any=True)


def chain(draw: random.Random, port: int) -> list[network.RBAC]:
    """One or two filters, each with one or two policies."""
    filters = []
    for _ in range(draw.choice((1, 1, 2))):
        policies = {
            f"p{index}": rbac.Policy(permissions=[permission(draw, port)], principals=[principal(draw)])
            for index in range(draw.choice((1, 2)))
        }
        action = draw.choice((rbac.RBAC.ALLOW, rbac.RBAC.DENY))
        filters.append(network.RBAC(stat_prefix="x", rules=rbac.RBAC(action=action, policies=policies)))
    return filters


def kernel_admits(filters: list[network.RBAC], port: int, source: str) -> bool:
    found = [rbac_filter(message, ADDRESS, port, "", "x") for message in filters]
    known: tuple[RbacFilter, ...] = tuple(entry for entry in found if entry is not None)
    block = BlockSet(map(parse_block, blocks_of(known))).around(ipaddress.ip_address(source).packed)
    return decide(known, Source(None, None, "" if block is None else str(block))).verdict is Verdict.ALLOW


def bootstrap(chains: dict[int, list[network.RBAC]], server: int) -> bootstrap_pb2.Bootstrap:
    message = bootstrap_pb2.Bootstrap()
    cluster = message.static_resources.clusters.add(name="server")
    cluster.connect_timeout.seconds = 5
    cluster.load_assignment.cluster_name = "server"
    place = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
    place.address, place.port_value = ADDRESS, server
    for port, filters in chains.items():
        listener = message.static_resources.listeners.add(name=str(port))
        listener.address.socket_address.address, listener.address.socket_address.port_value = ADDRESS, port
        into = listener.filter_chains.add().filters
        for guard in filters:
            into.add(name="rbac").typed_config.Pack(guard)
        into.add(name="tcp").typed_config.Pack(tcp_proxy_pb2.TcpProxy(stat_prefix="x", cluster="server"))
    return message


@pytest.fixture
async def running(envoy: str, tmp_path: Path) -> AsyncIterator[dict[int, list[network.RBAC]]]:
    """Port -> filters, of an Envoy in front of a server that answers every byte."""
    draw = random.Random(SEED)
    ports: set[int] = set()
    while len(ports) < LISTENERS:
        ports.add(free_port())
    chains = {port: chain(draw, port) for port in sorted(ports)}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1):
            writer.write(b"y")
        writer.close()

    server = await asyncio.start_server(answer, ADDRESS, 0)
    path = tmp_path / "bootstrap.pb"
    path.write_bytes(bootstrap(chains, server.sockets[0].getsockname()[1]).SerializeToString())
    options = ("--concurrency", "1", "--disable-hot-restart", "--log-path", str(tmp_path / "log"))
    process = await asyncio.create_subprocess_exec(envoy, "-c", str(path), *options)
    try:
        yield chains
    finally:
        process.terminate()
        await process.wait()
        server.close()


async def envoy_admits(port: int, source: str) -> bool:
    """Whether Envoy lets a connection from an address through; waits until it listens."""
    end = asyncio.get_running_loop().time() + DEADLINE_S
    while True:
        try:
            reader, writer = await asyncio.open_connection(ADDRESS, port, local_addr=(source, 0))
            break
        except ConnectionRefusedError:
            assert asyncio.get_running_loop().time() < end, "Envoy never listened"
            await asyncio.sleep(0.05)
    writer.write(b"x")
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await reader.read(1) == b"y"
    except ConnectionError:
        return False
    finally:
        writer.close()


async def test_random_filters_admit_the_same_addresses_in_both_planes(running: dict[int, list[network.RBAC]]) -> None:
    said = {(port, source): await envoy_admits(port, source) for port in running for source in SOURCES}
    expected = {(port, source): kernel_admits(running[port], port, source) for port, source in said}
    differing = {key: running[key[0]] for key in said if said[key] is not expected[key]}
    assert not differing
    assert min(sum(said.values()), len(said) - sum(said.values())) > len(said) // 5, "both answers occur"
