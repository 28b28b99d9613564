"""One server process and its load clients, each on a processor of its own if there are two.

In: the kind of server, how many resources it holds. Out: changes, and what they cost. Used by the benchmarks and by the
tests of faults.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.load.client import NUMBER, LoadClient
from tests.bench.load.identities import write as write_identities
from tests.bench.load.processes import Lines
from tests.bench.load.subject import cluster, endpoints
from xdsbpf.model.names import CLUSTER, ENDPOINTS
from xdsbpf.xds import protocol

NODE_ID = f"node~10.0.0.1~n{NUMBER}~cluster.local"
"""Every client is the Envoy of a node of its own."""
PEER, PEER_COMMAND = "peer", "XDSBPF_BENCH_PEER"
"""The kind of a server of somebody else's, and the variable that names its program: it speaks as `subject` does."""
_CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU, CLIENT_CPU = (_CPUS[0], _CPUS[1]) if len(_CPUS) > 1 else (None, None)


class Cost(msgspec.Struct, frozen=True):
    """CPU time of both processes between two moments."""

    server_s: float
    client_s: float


class Rig:
    """A started server; `client` is not connected yet."""

    def __init__(
        self, server: Lines, client: LoadClient, address: str, log: Path, more_clients: Callable[[], LoadClient]
    ) -> None:
        """`more_clients` makes them in another process; numbers are shared, for they are the nodes' names."""
        self.server = server
        self.client = client
        self.address = address
        self.more_clients = more_clients
        self._log = log

    def ask(self, *command: Any, timeout_s: float = 120.0) -> Any:
        """One command to the server; see `subject.serve`."""
        return json.loads(self.server.ask(json.dumps(command), timeout_s))

    def log_lines(self) -> int:
        """Lines that the server has logged so far, warnings and worse."""
        return len(self._log.read_text().splitlines())

    def cpu(self) -> Cost:
        return Cost(self.server.cpu_s, self.client.cpu_s)

    def cost_since(self, before: Cost) -> Cost:
        now = self.cpu()
        return Cost(now.server_s - before.server_s, now.client_s - before.client_s)


@contextmanager
def started(
    kind: str,
    *,
    clusters: int = 0,
    endpoint_sets: int = 0,
    method: str = protocol.DELTA_ADS,
    module: str = "tests.bench.load.subject",
    identities: int = 1_100,
) -> Iterator[Rig]:
    """A server of that kind (see `subject`, or PEER) that holds so many resources.

    `module` may run it with a fault; over mutual TLS there are so many `identities` for clients.
    """
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        command = [sys.executable, "-m", module, kind]
        if kind == PEER:
            command = [os.environ[PEER_COMMAND]]
        files = write_identities(Path(directory), identities) if kind.endswith("-tls") else None
        if files is not None:
            command.append(str(files))
        server = Lines(command, cpu=SERVER_CPU, stderr=log)
        try:
            address = json.loads(server.ask(json.dumps(["load", clusters, endpoint_sets]), 60.0))
            clients = functools.partial(LoadClient, address, method=method, cpu=CLIENT_CPU, identities=files)
            with clients() as client:
                yield Rig(server, client, address, log, clients)
        except BaseException:
            sys.stderr.write(log.read_text()[-4000:])
            raise
        finally:
            server.close()


def named(count: int, *, held: bool = False) -> bytes:
    """The first delta request for the first `count` endpoints; `held`: claiming their current versions."""
    resources = [endpoints(number) for number in range(count)]
    return protocol.encode_request(
        ENDPOINTS,
        node_id=NODE_ID,
        user_agent="envoy",
        subscribe=[item.name for item in resources],
        initial_versions={item.name: item.version for item in resources} if held else None,
    )


def all_clusters(claimed: int = 0) -> bytes:
    """The first delta request for all clusters; `claimed`: so many held in their current version."""
    held = [cluster(number) for number in range(claimed)]
    return protocol.encode_request(
        CLUSTER,
        node_id=NODE_ID,
        user_agent="envoy",
        subscribe=[protocol.WILDCARD],
        initial_versions={item.name: item.version for item in held},
    )
