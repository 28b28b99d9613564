"""Up to which change every client must have answered before it can have what an object says.

In: the objects of each batch that was taken, and a stamp once everything taken is published. Out: the stamp per object.
Owned by `serve.py`; asked by `report.distribution`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from xdsbpf.diagnostics import ObjectId

REMEMBERED_OBJECTS: Final = 16_384
"""Objects whose own stamp is known. For one that changed before all of those, the newest forgotten stamp stands."""


class Barriers:
    """Stamps by object, the last changed at the end."""

    def __init__(self) -> None:
        self._unpublished: set[ObjectId] = set()
        self._stamps: dict[ObjectId, int] = {}
        self._floor = 0

    def taken(self, objects: Iterable[ObjectId]) -> None:
        """These have changed and are not compiled yet."""
        self._unpublished.update(objects)

    def published(self, stamp: int) -> None:
        """All that was taken is with the streams; whatever it made them owe has a stamp up to this one."""
        for object_id in self._unpublished:
            self._stamps.pop(object_id, None)
            self._stamps[object_id] = stamp
        self._unpublished.clear()
        while len(self._stamps) > REMEMBERED_OBJECTS:
            self._floor = max(self._floor, self._stamps.pop(next(iter(self._stamps))))

    def is_published(self, object_id: ObjectId) -> bool:
        """Whether all changes of the object that were taken are published."""
        return object_id not in self._unpublished

    def of(self, object_id: ObjectId) -> int:
        """The stamp of its last change; 0 if it has not changed since clients were served."""
        return self._stamps.get(object_id, self._floor)
