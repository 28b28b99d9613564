"""Checks of metadata that hold for every kind: name, namespace, labels, known annotations."""

from __future__ import annotations

from typing import Final

from xdsbpf.diagnostics import Diagnostic
from xdsbpf.model import codes
from xdsbpf.model.checks import Checks, is_dns_label, is_dns_subdomain
from xdsbpf.model.meta import Manifest

_LABEL_NAMED: Final = frozenset({"Service", "Namespace"})
"""Kinds whose names become a DNS label of a host or a SPIFFE path."""

ANNOTATION_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "xdsbpf.io/dataplane": ("l4", "l7"),
    "xdsbpf.io/unenforced": ("allow",),
}
"""Annotations of ours with a closed set of values."""


def validate_metadata(manifest: Manifest) -> tuple[Diagnostic, ...]:
    """Name and namespace as DNS names, labels, and annotations of xdsbpf."""
    meta = manifest.metadata
    checks = Checks(manifest.id)
    if manifest.id.kind in _LABEL_NAMED:
        if not is_dns_label(meta.name):
            hint = "at most 63 lower-case letters, digits and inner hyphens"
            checks.error(codes.BAD_NAME, "metadata.name", f"expected a DNS label, found {meta.name!r}", hint)
    elif not is_dns_subdomain(meta.name):
        hint = "lower-case letters, digits, - and . with a letter or digit at both ends"
        checks.error(codes.BAD_NAME, "metadata.name", f"expected a DNS name, found {meta.name!r}", hint)
    if meta.namespace and not is_dns_label(meta.namespace):
        message = f"expected a DNS label, found {meta.namespace!r}"
        checks.error(codes.BAD_NAMESPACE, "metadata.namespace", message)
    checks.labels("metadata.labels", meta.labels)
    for key, value in meta.annotations:
        allowed = ANNOTATION_CHOICES.get(key)
        if allowed is not None and value not in allowed:
            message = f"expected {' or '.join(allowed)}, found {value!r}"
            checks.error(codes.BAD_ANNOTATION, f"metadata.annotations[{key}]", message)
    return checks.done()
