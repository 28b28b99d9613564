"""Up to which change every client must have answered before it can have what an object says.

In: the objects of each batch that was taken, and two stamps around the change that it made. Out: both per object.
Owned by `serve.py`; asked by `report.distribution`. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from xdsbpf.diagnostics import ObjectId

REMEMBERED_OBJECTS: Final = 16_384
"""Objects whose own span is known. For one that changed before all of those, the newest forgotten stamp stands."""


class Span(msgspec.Struct, frozen=True):
    """What a change made clients owe has stamps greater than `since`, and at most `until`."""

    since: int
    until: int


class Barriers:
    """The span of the last change by object, the last changed at the end."""

    def __init__(self) -> None:
        self._unpublished: set[ObjectId] = set()
        self._spans: OrderedDict[ObjectId, Span] = OrderedDict()
        self._floor = Span(0, 0)

    def taken(self, objects: Iterable[ObjectId]) -> None:
        """These have changed and are not compiled yet."""
        self._unpublished.update(objects)

    def published(self, since: int, until: int) -> None:
        """All that was taken is with the streams; whatever it made them owe has a stamp between these two."""
        span = Span(since, until)
        for object_id in self._unpublished:
            self._spans[object_id] = span
            self._spans.move_to_end(object_id)
        self._unpublished.clear()
        while len(self._spans) > REMEMBERED_OBJECTS:
            forgotten = self._spans.popitem(last=False)[1].until
            self._floor = Span(forgotten, forgotten)

    def is_published(self, object_id: ObjectId) -> bool:
        """Whether all changes of the object that were taken are published."""
        return object_id not in self._unpublished

    def of(self, object_id: ObjectId) -> Span:
        """The span of its last change; (0, 0) if it has not changed since clients were served."""
        return self._spans.get(object_id, self._floor)
