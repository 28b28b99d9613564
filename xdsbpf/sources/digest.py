"""A fingerprint of what an object says, to compare it between two processes of the same release.

In: a manifest as it was accepted. Out: text that is equal exactly if the manifests are. Layout, comments and the order
of fields in the file play no part, as they make no difference to the mesh.
"""

from __future__ import annotations

import hashlib

import msgspec

from xdsbpf.model.meta import Manifest


def content_digest(manifest: Manifest) -> str:
    """32 hex digits of BLAKE2b-128 over the kind and all fields."""
    encoded = msgspec.msgpack.encode((type(manifest).__name__, manifest), order="deterministic")
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()
