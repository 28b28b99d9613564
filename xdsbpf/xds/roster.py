"""Which clients of the mesh's nodes were here, so that somebody who is away is missed.

In: streams that open and close. Out: which kinds of client there are, and since when one is away. Owned by
`xds.streams`; bounded, since the names are the peers'. Pure.
"""

from __future__ import annotations

from typing import Final

from xdsbpf.xds.store import View

REMEMBERED_DEPARTURES: Final = 4096


class Roster:
    """Kinds of client seen since the server started, and the nodes whose clients have left."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self._left: dict[tuple[str, str], float] = {}

    def entered(self, view: View) -> None:
        """A stream of such a client was opened."""
        self.kinds.add(view.kind)
        self._left.pop((view.kind, view.node), None)

    def left(self, view: View, at: float) -> None:
        """A stream of such a client was closed."""
        if view.node:
            self._left.pop((view.kind, view.node), None)
            self._left[view.kind, view.node] = at
            if len(self._left) > REMEMBERED_DEPARTURES:
                del self._left[next(iter(self._left))]

    def left_at(self, kind: str, node: str) -> float | None:
        """When the last stream of that node's client of that kind was closed; None if none was, as far as is known."""
        return self._left.get((kind, node))
