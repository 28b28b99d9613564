"""Fan-out of one endpoint change to many delta ADS streams, and first sync, over loopback gRPC.

Run it by hand: `python -m tests.bench.bench_xds [--streams 1000] [--names 100]`. The clients run in a second
process; figures are the server process's own CPU per push (ACK handling included), the time until all
streams have the change, and its memory per stream. No assertion: this is a measurement, not a test.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import resource as rusage
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

import structlog
from grpc import aio

from xdsbpf.model.names import CLUSTER, ENDPOINTS
from xdsbpf.model.resource import Resource, make_resource
from xdsbpf.xds import protocol
from xdsbpf.xds.server import XdsServer
from xdsbpf.xds.store import NODE_ENVOY, ResourceStore, View

BODY = b"x" * 400
VIEW = View(("node-envoy",), "n", NODE_ENVOY)


def endpoints(number: int, content: int) -> Resource:
    return make_resource(ENDPOINTS, f"cluster-{number}", b"%08d" % content + BODY)


def cpu_s() -> float:
    usage = rusage.getrusage(rusage.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def client_stream(address: str, number: int, subscriptions: dict[str, list[str]], count: list[int]) -> None:
    """One stream on a connection of its own; ACKs everything, counts resources."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    async with aio.insecure_channel(address, options=options) as channel:
        call = channel.stream_stream(protocol.DELTA_ADS)()
        node_id = f"node~127.0.0.1~n{number}~x"
        for type_url, names in subscriptions.items():
            await call.write(protocol.encode_request(type_url, node_id=node_id, subscribe=names))
            node_id = ""
        while (raw := await call.read()) is not aio.EOF:
            got = protocol.decode_response(raw)
            count[0] += len(got.resources)
            await call.write(protocol.encode_request(got.type_url, nonce=got.nonce))
            if got.type_url == CLUSTER:  # as Envoy: endpoints of the clusters that it has just learned
                await call.write(protocol.encode_request(ENDPOINTS, subscribe=[item.name for item in got.resources]))


def run_clients(address: str, streams: int, subscriptions: dict[str, list[str]], pipe: Connection) -> None:
    """Second process: all client streams; reports the number of resources received when asked."""

    async def main() -> None:
        count = [0]
        tasks = [asyncio.create_task(client_stream(address, number, subscriptions, count)) for number in range(streams)]
        while True:
            while not pipe.poll():
                await asyncio.sleep(0.001)
            wanted = pipe.recv()
            if wanted is None:
                break
            while count[0] < wanted:
                await asyncio.sleep(0.0005)
            pipe.send(count[0])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


async def received(pipe: Connection, wanted: int) -> None:
    """Wait until the clients have that many resources, without blocking the server's loop."""
    pipe.send(wanted)
    while not pipe.poll():
        await asyncio.sleep(0.0005)
    pipe.recv()


async def fan_out(streams: int, names: int, rounds: int) -> None:
    store = ResourceStore()
    store.apply("node-envoy", [endpoints(number, 0) for number in range(names)])
    server = XdsServer(store, lambda node_id, metadata: VIEW, time.monotonic)
    (address,) = await server.start(["127.0.0.1:0"])
    before = resident_bytes()
    ours, theirs = multiprocessing.Pipe()
    wanted = {ENDPOINTS: [f"cluster-{number}" for number in range(names)]}
    process = multiprocessing.get_context("spawn").Process(target=run_clients, args=(address, streams, wanted, theirs))
    process.start()
    total = streams * names
    await received(ours, total)
    memory = (resident_bytes() - before) / streams
    walls, cpus = [], []
    for number in range(rounds):
        start, used = time.perf_counter(), cpu_s()
        server.changed(store.apply("node-envoy", [endpoints(number % names, number + 1)]))
        total += streams
        await received(ours, total)
        walls.append(time.perf_counter() - start)
        await asyncio.sleep(0.2)
        cpus.append((cpu_s() - used) / streams)
    ours.send(None)
    process.join()
    await server.stop(1.0)
    print(f"fan-out: {streams} streams x {names} names, {rounds} rounds of one change")
    print(f"  CPU per push incl. ACK  p50 {statistics.median(cpus) * 1e6:6.0f} us")
    print(f"  all received            p50 {statistics.median(walls) * 1e3:6.0f} ms   max {max(walls) * 1e3:.0f} ms")
    print(f"  memory per stream           {memory / 1024:6.0f} KB")


async def first_sync(streams: int, clusters: int) -> None:
    store = ResourceStore()
    store.apply("node-envoy", [make_resource(CLUSTER, f"cluster-{n}", BODY) for n in range(clusters)])
    store.apply("node-envoy", [endpoints(n, 0) for n in range(clusters)])
    server = XdsServer(store, lambda node_id, metadata: VIEW, time.monotonic)
    (address,) = await server.start(["127.0.0.1:0"])
    before, used, start = resident_bytes(), cpu_s(), time.perf_counter()
    ours, theirs = multiprocessing.Pipe()
    wanted = {CLUSTER: ["*"]}
    process = multiprocessing.get_context("spawn").Process(target=run_clients, args=(address, streams, wanted, theirs))
    process.start()
    await received(ours, 2 * streams * clusters)
    wall, cpu, memory = time.perf_counter() - start, cpu_s() - used, resident_bytes() - before
    ours.send(None)
    process.join()
    await server.stop(1.0)
    print(f"first sync: {clusters} clusters and their endpoints to {streams} streams")
    print(f"  server CPU {cpu:.2f} s   wall {wall:.2f} s   memory +{memory / 2**20:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--names", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sync-streams", type=int, default=100)
    parser.add_argument("--sync-clusters", type=int, default=10_000)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(fan_out(options.streams, options.names, options.rounds))
    asyncio.run(first_sync(options.sync_streams, options.sync_clusters))


if __name__ == "__main__":
    main()
