"""Model clients of the xDS protocol: what a client asks for, accepts and refuses, without any code of the server.

In: responses as bytes. Out: requests as bytes, each with what it means. One class for each variant; driven by
`xds_world`, which checks what the server sends.
"""

from __future__ import annotations

import abc
from collections import deque
from typing import Any

import msgspec
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest

from tests.xds.resources import CDS, EDS, LDS, RDS, RTDS, SDS
from tests.xds.wire import Response, Variant, decode

NAMES = ("a", "b", "c")
TYPES = (CDS, EDS, SDS, LDS, RDS, RTDS)
"""In push order."""
WHOLE = (CDS, LDS)
"""Sent as a whole set in the state-of-the-world variant."""
WILD = (CDS, LDS, RTDS)
STAR = "*"


class Asked(msgspec.Struct, frozen=True):
    """What a client subscribes to of one type."""

    names: frozenset[str] = frozenset()
    wild: bool = False

    def covers(self, name: str) -> bool:
        return self.wild or name in self.names


class Sent(msgspec.Struct, frozen=True):
    """A request on its way; what it subscribes to in full, and what it refuses (None: nothing)."""

    type_url: str
    raw: bytes
    asked: Asked
    nonce: str
    is_first: bool
    accused: frozenset[str] | None
    subscribed: frozenset[str]
    """Names that it asks for by themselves (delta)."""
    claims: dict[str, int]
    version: str
    is_certain: bool
    """What it refuses is named, or was alone."""


class TypeState:
    """One type at one client. Contents are known by their edition: every change has another one."""

    def __init__(self, *, wild: bool) -> None:
        self.asked = Asked(wild=wild)
        self.is_open = False
        self.is_legacy = True
        """No name has been sent on this stream, so an empty list still means everything."""
        self.version = ""
        self.nonce = ""
        self.held: dict[str, int] = {}
        """What is in force."""
        self.versions: dict[str, str] = {}
        self.whole: dict[str, int] = {}
        """What `version` stands for, if it is of a whole set."""
        self.refused: dict[str, set[int]] = {}
        """Editions on this stream."""

    def forget(self, name: str) -> None:
        """It is not there any more, or nobody is interested."""
        for kept in (self.held, self.versions, self.refused):
            kept.pop(name, None)


class ModelClient(abc.ABC):
    """The common part."""

    variant: Variant

    def __init__(self) -> None:
        self.types = {type_url: TypeState(wild=type_url in WILD) for type_url in TYPES}
        self.to_server: deque[Sent] = deque()
        self.to_client: deque[bytes] = deque()

    def open(self, order: tuple[str, ...]) -> None:
        """The first requests of a new stream, in that order; nothing of the former one arrives any more."""
        self.to_server.clear()
        self.to_client.clear()
        for type_url in order:
            state = self.types[type_url]
            state.is_open, state.is_legacy, state.nonce, state.refused = False, True, "", {}
            if state.asked.wild or state.asked.names:
                self.ask_first(type_url)

    def ask_first(self, type_url: str) -> None:
        """The first request of a type on a stream."""
        state = self.types[type_url]
        names = self.names(state, is_legacy=True)
        state.is_open, state.is_legacy = True, not names
        self.first(type_url, names, state)

    def names(self, state: TypeState, *, is_legacy: bool) -> list[str]:
        """All names; a wildcard is left to an empty list where that still means everything."""
        names = sorted(state.asked.names)
        return [STAR, *names] if state.asked.wild and (names or not is_legacy) else names

    @abc.abstractmethod
    def first(self, type_url: str, names: list[str], state: TypeState) -> None:
        """Send the first request of a type."""

    @abc.abstractmethod
    def change_names(self, type_url: str, added: str = "", dropped: str = "") -> None:
        """Tell the server, on an open type."""

    @abc.abstractmethod
    def answer(self, response: Response, accused: frozenset[str] | None, error: str, *, is_certain: bool) -> None:
        """ACK, or NACK with the names that the error is about."""

    def subscribe(self, type_url: str, name: str) -> None:
        """Ask for a name or `*`, held already or not."""
        state = self.types[type_url]
        if name == STAR:
            state.asked = Asked(state.asked.names, wild=True)
        else:
            state.asked = Asked(state.asked.names | {name}, state.asked.wild)
        if state.is_open:
            self.change_names(type_url, added=name)
        else:
            self.ask_first(type_url)

    def unsubscribe(self, type_url: str, name: str) -> None:
        """Give up a name or `*`."""
        state = self.types[type_url]
        if name == STAR:
            state.asked = Asked(state.asked.names)
        else:
            state.asked = Asked(state.asked.names - {name}, state.asked.wild)
        for other in NAMES:
            if not state.asked.covers(other):
                state.forget(other)
        self.change_names(type_url, dropped=name)

    def send(
        self,
        type_url: str,
        *,
        is_first: bool = False,
        accused: frozenset[str] | None = None,
        is_certain: bool = True,
        **fields: Any,
    ) -> None:
        """Queue one request with exactly these fields."""
        error = fields.pop("error", "")
        message: Any = (DeltaDiscoveryRequest if self.variant.is_delta else DiscoveryRequest)(
            type_url=type_url, **fields
        )
        if error:
            message.error_detail.message = error
        state = self.types[type_url]
        claims = dict(state.held) if is_first and (self.variant.is_delta or self.is_whole(type_url)) else {}
        subscribed = frozenset(fields.get("resource_names_subscribe", ()))
        nonce = fields.get("response_nonce", "")
        raw = message.SerializeToString()
        version = fields.get("version_info", "")
        self.to_server.append(
            Sent(type_url, raw, state.asked, nonce, is_first, accused, subscribed, claims, version, is_certain)
        )

    def refusable(self) -> tuple[str, ...]:
        """Names in the next response whose content is new to the client."""
        if not self.to_client:
            return ()
        response = decode(self.to_client[0], self.variant)
        held = self.types[response.type_url].held
        return tuple(sorted(name for name, edition in response.holds.items() if held.get(name) != edition))

    def read(self, blamed: tuple[str, ...] = (), *, is_strict: bool = True, says_names: bool = True) -> None:
        """Take one response, apply it, answer it.

        `blamed` is refused, by name or (`says_names` false) without one, which blames all that was new. A strict
        client then takes nothing of the response; of a whole set every client is.
        """
        fresh = self.refusable()
        response = decode(self.to_client.popleft(), self.variant)
        state = self.types[response.type_url]
        state.nonce = response.nonce
        covered = {name: edition for name, edition in response.holds.items() if state.asked.covers(name)}
        accused = frozenset(blamed if says_names else fresh) if blamed else None
        for name in response.removed:
            state.forget(name)
        if accused is None:
            if self.is_whole(response.type_url):
                state.held, state.versions, state.whole = {}, {}, response.holds
            self.accept(response, covered, state)
            state.version = response.version
        else:
            for name in covered.keys() & accused:
                state.refused.setdefault(name, set()).add(covered[name])
            if not is_strict and not self.is_whole(response.type_url):
                self.accept(response, {name: covered[name] for name in covered if name not in accused}, state)
        text = ", ".join(sorted(blamed)) + ": refused" if says_names else "refused"
        self.answer(response, accused, text if blamed else "", is_certain=says_names or len(fresh) == 1)

    def accept(self, response: Response, taken: dict[str, int], state: TypeState) -> None:
        versions = {item.name: item.version for item in response.items}
        for name, edition in taken.items():
            state.refused.get(name, set()).discard(edition)
            state.held[name], state.versions[name] = edition, versions[name]

    def is_whole(self, type_url: str) -> bool:
        return not self.variant.is_delta and type_url in WHOLE


class DeltaClient(ModelClient):
    """Differences."""

    variant = Variant.DELTA_ADS

    def first(self, type_url: str, names: list[str], state: TypeState) -> None:
        self.send(
            type_url, is_first=True, resource_names_subscribe=names, initial_resource_versions=dict(state.versions)
        )

    def change_names(self, type_url: str, added: str = "", dropped: str = "") -> None:
        lists = {
            "resource_names_subscribe": [added] if added else [],
            "resource_names_unsubscribe": [dropped] if dropped else [],
        }
        self.send(type_url, **lists)

    def answer(self, response: Response, accused: frozenset[str] | None, error: str, *, is_certain: bool) -> None:
        self.send(response.type_url, accused=accused, is_certain=is_certain, response_nonce=response.nonce, error=error)


class SotwClient(ModelClient):
    """The state of the world."""

    variant = Variant.SOTW_ADS

    def first(self, type_url: str, names: list[str], state: TypeState) -> None:
        """A version is a claim to the whole set that had it, and spares the set of a wildcard.

        What of it a client gave up later, on a stream that is no more, no server can know: one that did starts anew.
        """
        if self.is_whole(type_url) and not names and state.held != state.whole:
            state.held, state.versions, state.whole, state.version = {}, {}, {}, ""
        self.send(type_url, is_first=True, resource_names=names, version_info=state.version)

    def change_names(self, type_url: str, added: str = "", dropped: str = "") -> None:
        self.send_names(type_url, self.types[type_url].nonce)

    def answer(self, response: Response, accused: frozenset[str] | None, error: str, *, is_certain: bool) -> None:
        self.send_names(response.type_url, response.nonce, accused, error, is_certain=is_certain)

    def send_names(
        self,
        type_url: str,
        nonce: str,
        accused: frozenset[str] | None = None,
        error: str = "",
        *,
        is_certain: bool = True,
    ) -> None:
        """The whole list, as every request has it."""
        state = self.types[type_url]
        names = self.names(state, is_legacy=state.is_legacy)
        state.is_legacy = state.is_legacy and not names
        self.send(
            type_url,
            accused=accused,
            is_certain=is_certain,
            resource_names=names,
            version_info=state.version,
            response_nonce=nonce,
            error=error,
        )
