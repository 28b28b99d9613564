"""One copy of what many manifests say alike: names of nodes, accounts and namespaces, and sets of labels.

A hundred thousand pods repeat a few thousand of them, and each copy is some 60 bytes, of labels 200. Readers of
manifests call it for the fields that the schema marks as shared; nothing depends on it but the memory.
"""

from __future__ import annotations

import sys
from functools import lru_cache

from xdsbpf.model.scalars import Labels

shared_text = sys.intern
"""The copy of a text that is kept; it goes with the last object that has it."""


@lru_cache(maxsize=1024)
def shared_labels(labels: Labels) -> Labels:
    """The copy of a set of labels that is kept, if it was among the last thousand: the pods of one workload mostly
    follow one another in a file or a listing."""
    return tuple([(shared_text(key), shared_text(value)) for key, value in labels])
