"""What a client says of a response: it took it, or it refused it and blames some of what was in it.

In: a response that was out, and the text of a refusal. Out: versions in force, refusals and uses in the subscription,
the ledger of a node's Envoy, the telemetry. A part of `xds.session`, which sets the attributes. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from xdsbpf.xds import protocol
from xdsbpf.xds.gate import NEVER_REQUIRED, EnvoyLedger
from xdsbpf.xds.guard import ClusterGuard
from xdsbpf.xds.subscription import Nack, Sent, Subscription
from xdsbpf.xds.telemetry import Telemetry


class AnswerTaker:
    """What follows from an ACK or a NACK, in both variants."""

    _guard: ClusterGuard
    _ledger: EnvoyLedger | None
    _clock: Callable[[], float]
    _telemetry: Telemetry

    def _accepted(self, subscription: Subscription, sent: Sent) -> None:
        """The client took a response."""
        subscription.acked_at = self._clock()
        subscription.acked_version = sent.version
        self._telemetry.response_accepted(subscription.type_url, sent.stamp, subscription.acked_at)
        subscription.last_error = ""
        if subscription.nacks:
            for name in (*sent.versions, *sent.removed):
                subscription.nacks.pop(name, None)
            # What was taken may be what a quarantine left: the refusal of the rest still stands.
            subscription.last_error = next((nack.text for nack in subscription.nacks.values()), "")
        if subscription.unusable:
            subscription.unusable.difference_update(sent.versions)
        if sent.uses:
            self._guard.took(subscription, sent.uses)
        if self._ledger is not None and subscription.type_url not in NEVER_REQUIRED:
            self._ledger.accept(subscription.type_url, _still_current(subscription, sent.versions))

    def _refused(self, subscription: Subscription, sent: Sent, error: str) -> tuple[str, ...]:
        """The client refused a response. Returns the names that were in it and that the text does not blame.

        What was removed, unsubscribed or sent anew since is nobody's concern any more.
        """
        text = subscription.last_error = protocol.readable_error(error)
        subscription.nacked_at = self._clock()
        refused = {name: version for name, version in sent.versions.items() if name in subscription.held}
        blamed = [name for name in protocol.blamed(text, tuple(sent.versions)) if name in refused]
        is_certain = len(sent.versions) == 1 or bool(protocol.named(text, blamed))
        for name in blamed:
            subscription.nacks[name] = Nack(refused[name], text, is_certain)
        if self._ledger is not None:
            self._ledger.refuse(subscription.type_url, refused, text)
        rest = [name for name in refused if name not in blamed]
        return tuple(name for name in rest if subscription.held[name] == refused[name])


def _still_current(subscription: Subscription, versions: dict[str, str]) -> dict[str, str]:
    """Those of an ACKed response that the client has not been sent another version of, or a removal, since."""
    held, later = subscription.held, subscription.in_flight.values()
    if versions.items() <= held.items() and all(versions.keys().isdisjoint(sent.versions) for sent in later):
        return versions
    current = {name: version for name, version in versions.items() if held.get(name) == version}
    return {name: version for name, version in current.items() if not any(name in sent.versions for sent in later)}
