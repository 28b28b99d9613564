"""Validation of a whole manifest by its kind (istio-translation.md 9).

`validate(manifest)` is what sources call after reading; the checks of one kind live in
`validate_<kind>.py`. Pure, and of one object only: what needs other objects (a missing subset, an
unknown host) belongs to mesh.
"""

from __future__ import annotations

from xdsbpf.diagnostics import Diagnostic
from xdsbpf.model.authorization_policy import AuthorizationPolicy
from xdsbpf.model.destination_rule import DestinationRule
from xdsbpf.model.kube import Deployment, EndpointSlice, Node, Pod, Service
from xdsbpf.model.meta import Manifest
from xdsbpf.model.validate_authorization_policy import validate_authorization_policy
from xdsbpf.model.validate_destination_rule import validate_destination_rule
from xdsbpf.model.validate_kube import (
    validate_deployment,
    validate_endpoint_slice,
    validate_node,
    validate_pod,
    validate_service,
)
from xdsbpf.model.validate_metadata import validate_metadata
from xdsbpf.model.validate_virtual_service import validate_virtual_service
from xdsbpf.model.virtual_service import VirtualService


def validate(manifest: Manifest) -> tuple[Diagnostic, ...]:
    """All mistakes of one object, in the order of its fields; an error rejects it, a warning does not."""
    return validate_metadata(manifest) + _validate_kind(manifest)


def _validate_kind(manifest: Manifest) -> tuple[Diagnostic, ...]:
    match manifest:
        case VirtualService():
            return validate_virtual_service(manifest)
        case DestinationRule():
            return validate_destination_rule(manifest)
        case AuthorizationPolicy():
            return validate_authorization_policy(manifest)
        case Service():
            return validate_service(manifest)
        case EndpointSlice():
            return validate_endpoint_slice(manifest)
        case Pod():
            return validate_pod(manifest)
        case Deployment():
            return validate_deployment(manifest)
        case Node():
            return validate_node(manifest)
        case _:
            return ()
