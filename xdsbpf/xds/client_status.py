"""The client status discovery service (CSDS), answered from our own sync state: what every client has of its resources.

In: requests with node matchers. Out: one ClientConfig per connected client that matches, with a row per resource; all
clients are served meanwhile. Secrets are listed without their contents, whoever asks. Bound to a transport by the
composition root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from envoy.admin.v3 import config_dump_shared_pb2 as dump
from envoy.service.status.v3 import csds_pb2 as csds
from google.protobuf.message import DecodeError

from xdsbpf.errors import ProtocolError
from xdsbpf.model import names
from xdsbpf.xds.pacing import unhurried
from xdsbpf.xds.resource_status import ResourceState, ResourceStatus, resource_statuses
from xdsbpf.xds.session import Session
from xdsbpf.xds.store import ResourceStore
from xdsbpf.xds.transport import Call, Handler

SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"

MAX_ANSWER: Final = 64 << 20
"""Bytes of one answer, about; a mesh of a thousand clients would fill the memory."""
_ROW_BYTES: Final = 64

_CLIENT_STATUS: Final[Mapping[ResourceState, int]] = {
    ResourceState.NACKED: dump.NACKED,
    ResourceState.WITHHELD: dump.REQUESTED,
    ResourceState.SENT: dump.REQUESTED,
    ResourceState.ACKED: dump.ACKED,
    ResourceState.REQUESTED: dump.REQUESTED,
    ResourceState.MISSING: dump.DOES_NOT_EXIST,
}
_CONFIG_STATUS: Final[Mapping[ResourceState, int]] = {
    ResourceState.NACKED: csds.ERROR,
    ResourceState.WITHHELD: csds.NOT_SENT,
    ResourceState.SENT: csds.STALE,
    ResourceState.ACKED: csds.SYNCED,
    ResourceState.REQUESTED: csds.NOT_SENT,
    ResourceState.MISSING: csds.NOT_SENT,
}


class ClientStatus:
    """Serves CSDS over the sessions that `sessions` gives at the moment of a request."""

    def __init__(self, store: ResourceStore, sessions: Callable[[], Iterable[Session]]) -> None:
        self._store = store
        self._sessions = sessions

    def handlers(self) -> Mapping[str, Handler]:
        """Method path -> handler; the unary method is a stream with one message."""
        return {f"/{SERVICE}/StreamClientStatus": self._stream, f"/{SERVICE}/FetchClientStatus": self._fetch}

    async def _fetch(self, call: Call) -> None:
        data = await call.read()
        await call.write(await self._answer(data or b""))

    async def _stream(self, call: Call) -> None:
        while (data := await call.read()) is not None:
            await call.write(await self._answer(data))

    async def _answer(self, data: bytes) -> bytes:
        """Cost: O(resources of the clients that match). Raises: ProtocolError, also for more than MAX_ANSWER bytes."""
        try:
            request = csds.ClientStatusRequest.FromString(data)
        except DecodeError as error:
            raise ProtocolError("INVALID_ARGUMENT", f"not a ClientStatusRequest: {error}") from error
        chosen = [session for session in self._sessions() if _is_asked_for(request, session.node_id)]
        response = csds.ClientStatusResponse()
        size = 0
        chosen.sort(key=lambda session: session.node_id)
        async for config, session, row in unhurried(self._rows(response, chosen)):
            size += self._add(config, session, row, with_body=not request.exclude_resource_contents)
            if size > MAX_ANSWER:
                text = f"the answer has more than {MAX_ANSWER >> 20} MiB"
                hint = "match fewer nodes, or set exclude_resource_contents"
                raise ProtocolError("RESOURCE_EXHAUSTED", f"{text}: {hint}")
        return bytes(response.SerializeToString(deterministic=True))

    def _rows(self, response: Any, sessions: Iterable[Session]) -> Iterator[tuple[Any, Session, ResourceStatus]]:
        """Every row with the ClientConfig that it belongs in; those are added to the response."""
        for session in sessions:
            config = response.config.add()
            config.node.id = session.node_id
            for row in resource_statuses(session, self._store):
                yield config, session, row

    def _add(self, config: Any, session: Session, row: ResourceStatus, *, with_body: bool) -> int:
        """Add a row to a ClientConfig; about how many bytes it takes."""
        entry = config.generic_xds_configs.add(
            type_url=row.type_url,
            name=row.name,
            version_info=row.version,
            config_status=_CONFIG_STATUS[row.state],
            client_status=_CLIENT_STATUS[row.state],
        )
        if row.error:
            entry.error_state.details = row.error
            entry.error_state.version_info = row.version
        resource = self._store.get(session.view, row.type_url, row.name)
        # Security: whoever may ask for the status of all clients is not thereby entitled to their keys.
        if with_body and resource is not None and resource.version == row.version and row.type_url != names.SECRET:
            entry.xds_config.type_url = row.type_url
            entry.xds_config.value = resource.body
        return _ROW_BYTES + len(row.type_url) + len(row.name) + len(row.error) + len(entry.xds_config.value)


def _is_asked_for(request: Any, node_id: str) -> bool:
    """Whether one of the matchers names the node; without matchers all are meant."""
    if not request.node_matchers:
        return True
    return any(_matches(matcher, node_id) for matcher in request.node_matchers)


def _matches(matcher: Any, node_id: str) -> bool:
    """Raises: ProtocolError(UNIMPLEMENTED) for what is not matched here, rather than a list that lacks somebody."""
    if matcher.node_metadatas:
        raise ProtocolError("UNIMPLEMENTED", "matching nodes by metadata is not supported: match the node id")
    pattern = matcher.node_id
    text, value = (node_id.lower(), str.lower) if pattern.ignore_case else (node_id, str)
    kind = pattern.WhichOneof("match_pattern")
    if kind == "exact":
        return text == value(pattern.exact)
    if kind == "prefix":
        return text.startswith(value(pattern.prefix))
    if kind == "suffix":
        return text.endswith(value(pattern.suffix))
    if kind == "contains":
        return value(pattern.contains) in text
    raise ProtocolError("UNIMPLEMENTED", "match the node id by exact, prefix, suffix or contains")
