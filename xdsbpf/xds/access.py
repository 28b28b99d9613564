"""What stands before every handler: who may call a service at all.

In: handlers by method path, and what each service asks of a peer. Out: the same handlers behind the check; a peer that
fails it is refused before a byte of its request is looked at, counted and logged. What a peer may claim in its request
is checked where the request is read, with the same `PeerRules`. Bound by the composition root.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from xdsbpf.errors import ProtocolError
from xdsbpf.xds import protocol
from xdsbpf.xds.h2.limits import Bucket
from xdsbpf.xds.peers import PeerRules, readable_identity
from xdsbpf.xds.transport import Call, Handler, Peer

REFUSALS: Final = ("UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED")
"""Statuses that tell a peer that it may not, or may not now."""

log = structlog.get_logger(__name__)


class Access(enum.Enum):
    """Who may call a service."""

    ANYONE = "anyone"
    """Whoever has a certificate of our authorities, whatever it names: nothing of the mesh is in the answers."""
    PEER = "peer"
    """An identity of this mesh."""
    ADMIN = "admin"
    """An identity that may see what others are served."""


class AccessControl:
    """The check of one server. `access` is by full name of a service; PEER for those it does not name."""

    def __init__(self, rules: PeerRules, access: Mapping[str, Access], clock: Callable[[], float]) -> None:
        self.refused: Counter[str] = Counter()
        """Calls that ended with a status of `REFUSALS`, whoever refused them."""
        self._rules = rules
        self._access = access
        self._clock = clock
        self._log_budget = Bucket(20, 1.0, clock())
        self._unlogged = 0

    def protect(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """The same handlers behind the check."""
        return {path: self._guarded(path, handler) for path, handler in handlers.items()}

    def _guarded(self, path: str, handler: Handler) -> Handler:
        access = self._access.get(path.split("/")[1], Access.PEER)

        async def guarded(call: Call) -> None:
            try:
                self._check(access, call.peer)
            except ProtocolError as error:
                self._refuse(call, error)
                raise
            try:
                await handler(call)
            except ProtocolError as error:
                if error.status in REFUSALS:
                    self.refused[error.status] += 1
                raise

        return guarded

    def _check(self, access: Access, peer: Peer) -> None:
        match access:
            case Access.PEER:
                self._rules.identify(peer)
            case Access.ADMIN:
                self._rules.check_admin(peer)
            case Access.ANYONE:
                return

    def _refuse(self, call: Call, error: ProtocolError) -> None:
        """At most about one line a second: a peer can be refused as often as it can call."""
        self.refused[error.status] += 1
        if not self._log_budget.take(self._clock()):
            self._unlogged += 1
            return
        log.warning(
            "xds.call_refused",
            peer=call.peer.address,
            identity=readable_identity(call.peer),
            method=call.method,
            status=error.status,
            error=protocol.readable_error(str(error)),
            unlogged=self._unlogged,
        )
        self._unlogged = 0
