"""How much one stream, and all streams of one identity, may ask for: what the server remembers is the client's choice.

In: the subscriptions of a stream after a request. Out: a refusal, which ends the stream. How many streams there may be
is `admission`'s, how large a message `request`'s. Called by `xds.session`; identities are `xds.streams`'s. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from xdsbpf.errors import ProtocolError
from xdsbpf.xds.request import MAX_NAMES
from xdsbpf.xds.subscription import Subscription

MAX_TYPES: Final = 64
"""Types that one stream may ask for; Envoy knows about twenty."""
MAX_UNANSWERED: Final = 10_000
"""Responses of one type that may wait for an ACK: a name asked for again is answered at once."""
MAX_NAME_BYTES: Final = 128 << 20
"""What all names and claims of a stream may cost (`Subscription.name_bytes`): two messages of the largest size."""
MAX_IDENTITY_BYTES: Final = 1 << 30
"""The same for all streams of an identity, which all replicas of a deployment are: 1,000 with 5,000 long names each."""


class NameBudget:
    """What the names of all streams of one identity cost together."""

    __slots__ = ("__weakref__", "used")

    def __init__(self) -> None:
        self.used = 0

    def charge(self, size: int) -> None:
        """Names came, or (negative) went. Raises: ProtocolError(RESOURCE_EXHAUSTED); it is charged all the same."""
        self.used += size
        if size > 0 and self.used > MAX_IDENTITY_BYTES:
            text = f"names of more than {MAX_IDENTITY_BYTES >> 20} MiB on all streams of one identity"
            raise ProtocolError("RESOURCE_EXHAUSTED", text)


class NameAccount:
    """The part of one stream in the budget of its identity; `budget` is None for a local peer, which has no limit."""

    __slots__ = ("_budget", "_charged")

    def __init__(self, budget: NameBudget | None) -> None:
        self._budget = budget
        self._charged = 0

    def changed(self, difference: int) -> None:
        """Names of the stream came or went. Raises: ProtocolError(RESOURCE_EXHAUSTED)."""
        if self._budget is not None and difference:
            self._charged += difference
            self._budget.charge(difference)

    def close(self) -> None:
        """The stream has ended."""
        if self._budget is not None:
            self._budget.charge(-self._charged)
            self._charged = 0


def check_limits(subscription: Subscription, all_types: Mapping[str, Subscription]) -> None:
    """After a request for that subscription, one of `all_types` of its stream. Cost: nothing where names are few.

    Raises: ProtocolError(RESOURCE_EXHAUSTED).
    """
    if len(subscription.names) > MAX_NAMES:
        text = f"more than {MAX_NAMES} names of {subscription.type_url} subscribed on one stream"
        raise ProtocolError("RESOURCE_EXHAUSTED", text)
    # Where every type is below its share there is nothing to add up.
    is_much = subscription.name_bytes > MAX_NAME_BYTES // MAX_TYPES
    if is_much and sum(each.name_bytes for each in all_types.values()) > MAX_NAME_BYTES:
        raise ProtocolError("RESOURCE_EXHAUSTED", f"names of more than {MAX_NAME_BYTES >> 20} MiB on one stream")
    if len(subscription.in_flight) > MAX_UNANSWERED:
        raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {MAX_UNANSWERED} responses without an ACK")
