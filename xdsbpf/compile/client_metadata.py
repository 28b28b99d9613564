"""What a sidecar's node metadata ask for (istio-translation.md 1.1): what is refused, and what has no effect yet.

In: the metadata of a node as JSON values. Out: a ProtocolError, or sentences for `translate` and the log: no manifest
stands behind them, so they are no finding on an object. Called by `views` and the shells. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final

from xdsbpf.errors import ProtocolError

_SET: Final = {
    "HTTP10": "HTTP/1.0 is answered with 426",
    "HTTP_PROXY_PORT": "there is no listener of an HTTP proxy",
    "IDLE_TIMEOUT": "connections stay open for as long as Envoy keeps them",
    "DNS_CAPTURE": "names are resolved as the pod does without a proxy",
    "ENABLE_HBONE": "there is no HBONE listener",
    "TLS_SERVER_CERT_CHAIN": "the inbound side is plaintext",
    "TLS_CLIENT_CERT_CHAIN": "the outbound side is plaintext",
}
"""Keys that change what Istio sends, and what is true without them."""
_OFF: Final = ("", "0", "false")


def check_interception(metadata: Mapping[str, object]) -> None:
    """Raises: ProtocolError(UNIMPLEMENTED) for a way of getting connections for which there are no listeners."""
    mode = metadata.get("INTERCEPTION_MODE", "")
    if mode not in ("", "REDIRECT"):
        text = f"INTERCEPTION_MODE {mode!r} is not supported yet: there are listeners for redirected connections only"
        raise ProtocolError("UNIMPLEMENTED", text, hint="use REDIRECT")


def without_effect(metadata: Mapping[str, object]) -> tuple[str, ...]:
    """What a sidecar's metadata ask for and it does not get, one sentence each."""
    found = [
        f"{key} has no effect yet: {text}"
        for key, text in _SET.items()
        if str(metadata.get(key) or "").lower() not in _OFF
    ]
    addresses = metadata.get("INSTANCE_IPS", "")
    listed = addresses.split(",") if isinstance(addresses, str) else addresses
    if isinstance(listed, list) and any(_is_ipv6(str(text)) for text in listed):
        found.append("INSTANCE_IPS has IPv6 addresses, which are not supported yet: listeners are for IPv4")
    return tuple(found)


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text.strip()).version == 6
    except ValueError:
        return False
