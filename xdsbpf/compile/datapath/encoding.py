"""Encoding a datapath message into a resource: deterministic bytes, so that versions are comparable."""

from __future__ import annotations

from google.protobuf.message import Message

from xdsbpf.model.resource import Requirement, Resource, make_resource


def resource(type_url: str, name: str, message: Message, requires: tuple[Requirement, ...] = ()) -> Resource:
    """The resource that holds `message`."""
    return make_resource(type_url, name, message.SerializeToString(deterministic=True), requires=requires)
