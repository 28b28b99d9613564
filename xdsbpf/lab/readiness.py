"""What the lab asks its control plane and agents: are you ready, and which addresses do services have.

Input: the sockets of a lab. Output: yes or no, and `ServiceAddress` values. Called by `bringup` and `lab`;
every question is one short request on a unix socket, and "not listening yet" is an answer, not an error.
"""

from __future__ import annotations

import http.client

import msgspec

from xdsbpf.lab.hosts import ServiceAddress
from xdsbpf.lab.layout import Layout
from xdsbpf.lab.processes import LabError
from xdsbpf.unix_http import UnixConnection

TIMEOUT = 5.0


class _Services(msgspec.Struct, frozen=True):
    items: tuple[ServiceAddress, ...]


def control_plane_is_ready(layout: Layout) -> bool:
    """Whether the control plane has read all its inputs and serves xDS."""
    try:
        return _get(layout, "/ready")[0] == 200 and layout.xds_socket.exists()
    except (OSError, http.client.HTTPException):
        return False


def service_addresses(layout: Layout) -> tuple[ServiceAddress, ...]:
    """Hosts of the mesh and their addresses, allocated ones included.

    Raises: LabError when the control plane does not answer.
    """
    try:
        status, body = _get(layout, "/services")
    except (OSError, http.client.HTTPException) as error:
        raise LabError(f"the control plane does not answer on {layout.admin_socket}: {error}") from error
    if status != 200:
        raise LabError(f"the control plane answered {status} for /services")
    found = msgspec.json.decode(body, type=_Services).items
    return tuple(sorted({item for item in found if item.address}))


def _get(layout: Layout, path: str) -> tuple[int, bytes]:
    connection = UnixConnection(str(layout.admin_socket), TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
