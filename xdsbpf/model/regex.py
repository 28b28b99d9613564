"""A cheap look at a user's regular expression before Envoy's RE2 judges it.

One linear pass over the brackets: it finds what RE2 surely refuses and accepts the rest. google-re2
as a dependency is not worth it: a wheel with C++ per platform for a check that Envoy repeats anyway.
User patterns are never run here (ISTIO-SECURITY: a pattern is input, and Python's re backtracks).
"""

from __future__ import annotations

from typing import Final

MAX_REGEX: Final = 1024
_LOOK_AROUND: Final = ("?=", "?!", "?<=", "?<!")


def regex_problem(pattern: str) -> str:
    """Why a pattern cannot be RE2; "" if nothing is seen. O(length)."""
    depth, position, repeatable = 0, 0, False
    while position < len(pattern):
        char = pattern[position]
        step = 1
        if char == "\\":
            if position + 1 == len(pattern):
                return "it ends with a backslash"
            if pattern[position + 1] in "123456789":
                return "RE2 has no back-references"
            step, repeatable = 2, True
        elif char == "[":
            end = _class_end(pattern, position)
            if end < 0:
                return "[ is not closed"
            step, repeatable = end - position, True
        elif char == "(":
            if pattern.startswith(_LOOK_AROUND, position + 1):
                return "RE2 has no look-around"
            depth, repeatable = depth + 1, False
            step = 2 if pattern.startswith("?", position + 1) else 1
        elif char == ")":
            if depth == 0:
                return "a closing bracket has no opening one"
            depth, repeatable = depth - 1, True
        elif char in "*+?" and not repeatable:
            return f"nothing to repeat before {char}"
        else:
            repeatable = char != "|"
        position += step
    return "( is not closed" if depth else ""


def _class_end(pattern: str, start: int) -> int:
    """Position after the ] of the class that starts at `start`, or -1."""
    position = start + 1
    if pattern.startswith("^", position):
        position += 1
    # A ] directly after [ or [^ is a literal.
    if pattern.startswith("]", position):
        position += 1
    while position < len(pattern):
        if pattern[position] == "\\":
            position += 2
        elif pattern.startswith("[:", position) and ":]" in pattern[position + 2 : position + 16]:
            position = pattern.index(":]", position) + 2
        elif pattern[position] == "]":
            return position + 1
        else:
            position += 1
    return -1
