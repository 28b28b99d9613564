"""Rows of `xdsbpf ps`: one per client and type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xdsbpf.model.names import SHORT_TYPES
from xdsbpf.xds.status import NodeStatus

SHORT_NAMES = {type_url: short for short, type_url in SHORT_TYPES.items()}


def proxy_rows(statuses: Iterable[NodeStatus]) -> list[dict[str, Any]]:
    """One item per connected client, its types in push order."""
    return [
        {
            "node_id": status.node_id,
            "kind": status.kind,
            "node": status.node,
            "types": [
                {
                    "type": SHORT_NAMES.get(entry.type_url, entry.type_url),
                    "type_url": entry.type_url,
                    "state": entry.state.value,
                    "wildcard": entry.wildcard,
                    "subscribed": entry.subscribed,
                    "held": entry.held,
                    "error": entry.error,
                    "nacked": [
                        {"name": nack.name, "version": nack.version, "error": nack.text} for nack in entry.nacked
                    ],
                    "withheld": [
                        {"name": waiting.name, "reasons": list(waiting.reasons)} for waiting in entry.withheld
                    ],
                }
                for entry in status.types
            ],
        }
        for status in statuses
    ]
