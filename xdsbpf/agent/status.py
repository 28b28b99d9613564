"""The agent's status service: what the kernel holds, with names for numbers, and how the agent is.

Reads the tables at every call; writes nothing. Served on a unix socket (0600) for `xdsbpf bpf ...` and the
lab, with clients for both here.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc

from xdsbpf._pb.xdsbpf.agent.v1 import agent_pb2
from xdsbpf.datapath import abi
from xdsbpf.datapath.abi import NameSpace
from xdsbpf.datapath.address import address_text
from xdsbpf.datapath.tables import Kernel
from xdsbpf.errors import SourceError

SERVICE = "xdsbpf.agent.v1.AgentStatus"
M = TypeVar("M", agent_pb2.Tables, agent_pb2.Status)
_PROTOCOLS = {6: "tcp", 17: "udp"}


def read_tables(kernel: Kernel, nobodies: Mapping[bytes, str]) -> agent_pb2.Tables:
    """All tables as rows, sorted by address or name; a number without a name is shown as `#number`.

    `nobodies`: addresses of this node's pods whose interface is not guarded, with the reason.
    """
    names = {(key.space, key.number): name.text for key, name in kernel.names.items()}

    def name(space: NameSpace, number: int) -> str:
        return names.get((space, number), f"#{number}") if number else ""

    frontends = sorted(kernel.frontends.items())
    return agent_pb2.Tables(
        frontends=[_frontend_row(key, value, name) for key, value in frontends],
        backends=_backend_rows(kernel, [value for _, value in frontends], name),
        identities=[
            agent_pb2.IdentityRow(
                address=_prefix_text(key),
                identity=name(NameSpace.IDENTITY, value.identity),
                number=value.identity,
                policy=name(NameSpace.POLICY, value.policy),
                note=nobodies.get(key.address, ""),
            )
            for key, value in sorted(kernel.addresses.items())
        ],
        policies=[_policy_row(key, value, name) for key, value in sorted(kernel.policies.items())],
        counters=[
            agent_pb2.CounterRow(name=index.name.lower(), value=value) for index, value in kernel.counters().items()
        ],
    )


Namer = Callable[[NameSpace, int], str]


def _frontend_row(key: abi.FrontendKey, value: abi.Frontend, name: Namer) -> agent_pb2.FrontendRow:
    redirect = bool(value.flags & abi.FrontendFlag.REDIRECT)
    return agent_pb2.FrontendRow(
        address=address_text(key.address),
        port=key.port,
        protocol=_PROTOCOLS.get(key.protocol, str(key.protocol)),
        service=name(NameSpace.SERVICE, value.service),
        plane="L7" if redirect else "L4",
        proxy_port=value.proxy_port,
        policy=name(NameSpace.POLICY, value.policy),
        backends=value.slot_count,
    )


def _backend_rows(kernel: Kernel, frontends: list[abi.Frontend], name: Namer) -> list[agent_pb2.BackendRow]:
    """Endpoints that a frontend can choose (weight: slots), and others that still have connections."""
    ranges = {(value.slot_offset, value.slot_count) for value in frontends if value.slot_count}
    weights = Counter(index for place in ranges for index in kernel.slots.read(*place))
    rows = []
    for index, backend in sorted(kernel.backends.items(), key=lambda item: (item[1].service, item[1])):
        active = kernel.active(index)
        if weights[index] or active:
            rows.append(
                agent_pb2.BackendRow(
                    service=name(NameSpace.SERVICE, backend.service),
                    address=address_text(backend.address),
                    port=backend.port,
                    weight=weights[index],
                    active_connections=active,
                )
            )
    return rows


def _policy_row(key: abi.PolicyKey, value: abi.Policy, name: Namer) -> agent_pb2.PolicyRow:
    anybody = key.source == abi.Identity.ANY
    return agent_pb2.PolicyRow(
        policy=name(NameSpace.POLICY, key.policy),
        source="any" if anybody else name(NameSpace.IDENTITY, key.source),
        port=key.port,
        protocol=_PROTOCOLS.get(key.protocol, str(key.protocol)),
        verdict=abi.Verdict(value.verdict).name,
        rule=name(NameSpace.RULE, value.rule),
    )


def _prefix_text(key: abi.AddressKey) -> str:
    text = address_text(key.address)
    length = key.prefix_length - (0 if ":" in text else 96)
    return text if key.prefix_length == 128 else f"{text}/{length}"


class StatusServer:
    """gRPC server on a unix socket; `status` is called for every GetStatus."""

    def __init__(
        self, socket: Path, kernel: Kernel, status: Callable[[], Any], nobodies: Callable[[], Mapping[bytes, str]]
    ) -> None:
        """`status`: coroutine function that returns an agent_pb2.Status; `nobodies`: see `read_tables`."""
        self._socket = socket
        self._kernel = kernel
        self._status = status
        self._nobodies = nobodies
        self._server = grpc.aio.server()
        self._readings: set[asyncio.Task[agent_pb2.Tables]] = set()

    async def start(self) -> None:
        """Listen; the socket is the owner's alone from its first instant on."""
        methods = {
            "GetTables": grpc.unary_unary_rpc_method_handler(
                self._get_tables,
                request_deserializer=agent_pb2.GetTablesRequest.FromString,
                response_serializer=agent_pb2.Tables.SerializeToString,
            ),
            "GetStatus": grpc.unary_unary_rpc_method_handler(
                self._get_status,
                request_deserializer=agent_pb2.GetStatusRequest.FromString,
                response_serializer=agent_pb2.Status.SerializeToString,
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        self._socket.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{self._socket}")
            await self._server.start()
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Stop listening and remove the socket; no thread reads the tables after it."""
        await self._server.stop(0.2)
        await asyncio.gather(*self._readings, return_exceptions=True)
        self._socket.unlink(missing_ok=True)

    async def _get_tables(self, request: agent_pb2.GetTablesRequest, context: object) -> agent_pb2.Tables:
        del request, context
        # All tables of a large mesh take a second: not on the loop that applies changes.
        reading = asyncio.create_task(asyncio.to_thread(read_tables, self._kernel, self._nobodies()))
        self._readings.add(reading)
        reading.add_done_callback(self._readings.discard)
        return await asyncio.shield(reading)

    async def _get_status(self, request: agent_pb2.GetStatusRequest, context: object) -> agent_pb2.Status:
        del request, context
        status: agent_pb2.Status = await self._status()
        return status


def fetch_status(socket: Path, timeout: float = 5.0) -> agent_pb2.Status:
    """GetStatus of the agent behind a socket. Raises: SourceError if it does not answer."""
    return _call(socket, "GetStatus", agent_pb2.GetStatusRequest(), agent_pb2.Status, timeout)


def fetch_tables(socket: Path, timeout: float = 5.0) -> agent_pb2.Tables:
    """GetTables of the agent behind a socket. Raises: SourceError if it does not answer."""
    return _call(socket, "GetTables", agent_pb2.GetTablesRequest(), agent_pb2.Tables, timeout)


def _call(socket: Path, method: str, request: Any, answer: type[M], timeout: float) -> M:
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            result: M = call(request, timeout=timeout)
        except grpc.RpcError as err:
            raise SourceError(
                f"no agent answers on {socket}: {err}",
                hint="is `xdsbpf agent` running with this state directory?",
            ) from err
        return result
