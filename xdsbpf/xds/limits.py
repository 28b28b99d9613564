"""How much one stream may ask for: what it costs the server to remember is the client's choice otherwise.

In: the subscriptions of a stream after a request. Out: a refusal, which ends the stream. How many streams there may be
is `admission`'s, how large a message `request`'s. Called by `xds.session`. Pure.
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
