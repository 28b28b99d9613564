"""Globs over node ids: `*` is any run of characters, `?` any one; nothing else is special.

Matched character by character: a pattern never becomes a regular expression.
"""

from __future__ import annotations

from typing import Final

MAX_GLOB: Final = 256


def glob_matches(glob: str, text: str) -> bool:
    """Whether the whole of `text` fits `glob`. Cost: at most len(glob) x len(text) steps."""
    at = place = 0
    star, retry = -1, 0
    while at < len(text):
        if place < len(glob) and glob[place] == "*":
            star, retry = place, at
            place += 1
        elif place < len(glob) and glob[place] in ("?", text[at]):
            at += 1
            place += 1
        elif star >= 0:  # let the last star take one character more
            retry += 1
            at, place = retry, star + 1
        else:
            return False
    return not glob[place:].strip("*")
