"""What the streams of a server have done so far, as numbers by type: for the metrics, and for `wait`.

In: calls of the sessions and of `xds.exchange`, one per response and per request, never one per resource. Out: counters
and the times from a change to its response and to the ACK. Labels are the type URLs that we know, and "" for all
others, so peers add no series. Pure: times are passed in, of one clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from typing import Final

from xdsbpf.xds import protocol

BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histograms, in seconds; one bucket more holds what took longer."""

_LABELS: Final = {type_url: type_url for type_url in protocol.KNOWN_TYPES}
"""The types that we know. All others have the label "": peers may ask for any number of them."""

REMEMBERED_CHANGES: Final = 16_384
"""Changes whose time is known. A response whose oldest change is older than that many others is not measured."""


class Delays:
    """A histogram: how many were at most so long, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total += seconds


class Telemetry:
    """Counters of one server since it started."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()
        """("sent" | "unfinished" | "acked" | "nacked", type) -> responses; unfinished: more of the type followed."""
        self.sent_bytes: Counter[str] = Counter()
        self.received_bytes: Counter[str] = Counter()
        self.until_sent: dict[str, Delays] = {}
        """By type: from the moment a change was taken until the response with it was made for a stream."""
        self.until_acked: dict[str, Delays] = {}
        """By type: as `until_sent`, until that stream's client accepted the response."""
        self._taken: dict[int, float] = {}
        self._order: deque[int] = deque()

    def change_taken(self, stamp: int, at: float) -> None:
        """The change with this stamp was taken from its source at `at`."""
        if len(self._order) >= REMEMBERED_CHANGES:
            del self._taken[self._order.popleft()]
        self._order.append(stamp)
        self._taken[stamp] = at

    def response_made(self, type_url: str, stamp: int, at: float, *, has_more: bool) -> None:
        """A response whose oldest change or question has this stamp goes out; `has_more`: more of its type waits."""
        label = _LABELS.get(type_url, "")
        self.events["sent", label] += 1
        if has_more:
            self.events["unfinished", label] += 1
        self._measure(self.until_sent, label, stamp, at)

    def response_accepted(self, type_url: str, stamp: int, at: float) -> None:
        """The client accepted a response."""
        self._measure(self.until_acked, _LABELS.get(type_url, ""), stamp, at)

    def written(self, type_url: str, size: int) -> None:
        """A response of so many bytes is with the transport."""
        self.sent_bytes[_LABELS.get(type_url, "")] += size

    def received(self, type_url: str, size: int, answer: str = "") -> None:
        """A request of so many bytes came; `answer`: what it says of a response, "acked" or "nacked"."""
        label = _LABELS.get(type_url, "")
        self.received_bytes[label] += size
        if answer:
            self.events[answer, label] += 1

    def count(self, event: str, type_url: str) -> None:
        """One more of an event of `events`."""
        self.events[event, _LABELS.get(type_url, "")] += 1

    def _measure(self, histograms: dict[str, Delays], label: str, stamp: int, at: float) -> None:
        taken = self._taken.get(stamp)
        if taken is None:  # an answer to a question, not a push
            return
        delays = histograms.get(label)
        if delays is None:
            delays = histograms[label] = Delays()
        delays.observe(at - taken)
