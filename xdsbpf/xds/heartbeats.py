"""When a client has to hear again of what it holds: resources with a time to live (rule 52).

In: what was sent, and the time. Out: names that are due, a third of their time to live after they were heard of last.
One instance per session; pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from xdsbpf.model.resource import Resource

PER_LIFE: Final = 3
"""Heartbeats in one time to live: two may be late or lost."""


class Heartbeats:
    """Due times of one stream, by type and name, in seconds of the session's clock."""

    def __init__(self) -> None:
        self.due: dict[str, dict[str, float]] = {}
        """Empty until there is something with a time to live."""

    def heard(self, type_url: str, resources: Iterable[Resource], now: float) -> None:
        """The client hears of these now. Those without a time to live need no heartbeat (any more)."""
        for resource in resources:
            if resource.ttl_ms:
                self.due.setdefault(type_url, {})[resource.name] = now + resource.ttl_ms / 1000 / PER_LIFE
            elif type_url in self.due:
                self.due[type_url].pop(resource.name, None)

    @property
    def at(self) -> float | None:
        """The next due time; None if there is none. Cost: O(resources with a time to live)."""
        return min((due for names in self.due.values() for due in names.values()), default=None)

    def is_due(self, now: float) -> bool:
        """Whether something is due."""
        at = self.at
        return at is not None and at <= now

    def take(self, now: float) -> dict[str, list[str]]:
        """Type -> names that are due, sorted; they are forgotten until they are `heard` of again."""
        found: dict[str, list[str]] = {}
        for type_url, names in self.due.items():
            due = sorted(name for name, at in names.items() if at <= now)
            for name in due:
                del names[name]
            if due:
                found[type_url] = due
        return found
