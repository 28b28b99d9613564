"""Field path of an object -> line and column, looked up when it is printed.

Nothing is kept per field: the chunk of text that an object came from is composed again, and the few
chunks asked for last stay composed. Called by `catalog.locate`; `Layered` puts one catalog on top of another.
"""

from __future__ import annotations

from functools import lru_cache

from yaml.nodes import Node

from xdsbpf.diagnostics import Location, Locator, ObjectId
from xdsbpf.sources.yaml_nodes import TextError, compose, find, parse_path
from xdsbpf.sources.yaml_objects import ReadObject


def locate_in_text(text: str, read: ReadObject, path: str) -> tuple[int, int]:
    """(line, column) from 1 within `text` of `path` in the object, or of its nearest parent there.

    Cost: composing the text (about 6 MB/s) unless it was asked for lately.
    """
    if not path:
        return read.line, read.column
    for root in _roots(text):
        node = find(root, read.prefix)
        if (node.start_mark.line + 1, node.start_mark.column + 1) == (read.line, read.column):
            mark = find(root, (*read.prefix, *parse_path(path))).start_mark
            return mark.line + 1, mark.column + 1
    return read.line, read.column


class Layered:
    """A `Locator`: what the first does not know, the second may."""

    def __init__(self, first: Locator, second: Locator) -> None:
        self._first, self._second = first, second

    def locate(self, object: ObjectId, path: str = "") -> Location | None:
        """See `Locator`."""
        return self._first.locate(object, path) or self._second.locate(object, path)


@lru_cache(maxsize=16)
def _roots(text: str) -> tuple[Node, ...]:
    try:
        return tuple(compose(text))
    except TextError:
        # Cannot be for text that was read; a position is never worth an exception.
        return ()
