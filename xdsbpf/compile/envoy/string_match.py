"""String matchers: Istio's exact, prefix and regex to Envoy's, and the check that RE2 will take a regex.

Envoy refuses a whole virtual host over one bad expression, so a regex is checked before it is sent. The
check uses Python's parser and refuses what RE2 lacks: look-around, back-references, atomic groups,
possessive quantifiers and repetitions above 1000.
"""

from __future__ import annotations

import re
from typing import Final

from envoy.type.matcher.v3.regex_pb2 import RegexMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from xdsbpf.model.matching import StringMatch

NOT_IN_RE2: Final = re.compile(
    r"""
    \\(?:\\|[^1-9])                     # an escaped character: skipped
    | \[\^?\]?(?:\\.|[^\]\\])*\]        # a character class: skipped
    | (?P<refused> \(\?(?: [=!>] | <[=!] | P= | \( )   # look-around, atomic, back-reference, conditional
      | \\[1-9]                         # back-reference
      | [*+?}]\+                        # possessive quantifier
      )
    """,
    re.VERBOSE | re.DOTALL,
)
REPETITION: Final = re.compile(r"(?<!\\)\{(\d+)(?:,(\d*))?\}")
MAX_REPETITION: Final = 1000


def regex_error(pattern: str) -> str:
    """Why RE2 would refuse `pattern`, or "" if it should not."""
    for found in NOT_IN_RE2.finditer(pattern):
        if found["refused"]:
            return f"{found['refused']!r} is not part of RE2"
    for found in REPETITION.finditer(pattern):
        if any(int(count) > MAX_REPETITION for count in found.groups() if count):
            return f"repetition {found[0]} is above {MAX_REPETITION}"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return ""


def is_presence(match: StringMatch) -> bool:
    """Istio's spellings of "present": an empty matcher, or the regex `*`."""
    if match.regex == "*":
        return True
    return match.exact is None and match.prefix is None and match.regex is None


def string_error(match: StringMatch) -> str:
    """Why Envoy would refuse this matcher, or "". A matcher for presence has no string to match."""
    if match.exact is not None or match.prefix is not None:
        return ""
    return regex_error(match.regex) if match.regex else "an empty matcher"


def string_matcher(match: StringMatch) -> StringMatcher:
    """Istio's matcher as Envoy's; the regex is a full match. Not for presence or invalid matchers."""
    if match.exact is not None:
        return StringMatcher(exact=match.exact)
    if match.prefix is not None:
        return StringMatcher(prefix=match.prefix)
    return StringMatcher(safe_regex=RegexMatcher(regex=match.regex or ""))
