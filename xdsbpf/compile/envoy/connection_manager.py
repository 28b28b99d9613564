"""The HTTP connection manager of `out_http`: settings and filter chain (istio-translation.md 6.3, 6.4).

The same for every port but for its route configuration. Changing anything here drains the connections
of the chain, so nothing that varies at run time may enter: that travels in routes and in ECDS.
"""

from __future__ import annotations

from typing import Any as Message
from typing import Final

from envoy.extensions.filters.http.cors.v3.cors_pb2 import Cors
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from envoy.extensions.filters.http.on_demand.v3.on_demand_pb2 import OnDemand
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.http.early_header_mutation.header_mutation.v3.header_mutation_pb2 import HeaderMutation
from google.protobuf.duration_pb2 import Duration

from xdsbpf.compile.envoy import names
from xdsbpf.compile.envoy.encoding import any_of, duration, over_ads, typed
from xdsbpf.model.scalars import NANOSECONDS

MAX_CONNECTION_DURATION: Final = 600 * NANOSECONDS
CLUSTER_TIMEOUT: Final = 2 * NANOSECONDS
"""How long a request waits for a cluster that the control plane does not answer for."""


def base_manager(stat_prefix: str) -> HttpConnectionManager:
    """What every connection manager has in common: no routes and no filters."""
    message = HttpConnectionManager(
        stat_prefix=stat_prefix,
        merge_slashes=True,
        path_with_escaped_slashes_action=HttpConnectionManager.UNESCAPE_AND_FORWARD,
        server_header_transformation=HttpConnectionManager.PASS_THROUGH,
        internal_address_config=HttpConnectionManager.InternalAddressConfig(),
        proxy_100_continue=True,
    )
    message.use_remote_address.value = False
    message.normalize_path.value = True
    message.stream_idle_timeout.CopyFrom(Duration())
    message.upgrade_configs.add(upgrade_type="websocket")
    return message


def connection_manager(port: int) -> HttpConnectionManager:
    """The connection manager of one service port number."""
    message = base_manager(f"out_{port}")
    message.http1_safe_max_connection_duration = True
    message.common_http_protocol_options.max_connection_duration.CopyFrom(duration(MAX_CONNECTION_DURATION))
    message.rds.route_config_name = names.route_config_name(port)
    message.rds.config_source.CopyFrom(over_ads())
    refuse_instructions(message)
    for name in names.HTTP_FILTERS:
        message.http_filters.add(name=name, typed_config=any_of(_filter_config(name)))
    return message


def refuse_instructions(manager: HttpConnectionManager) -> None:
    """Security: drop every x-envoy-* request header before a route is chosen.

    They would let a client set timeouts, retries and more. Envoy itself drops them only where it takes
    over x-forwarded-for (`use_remote_address`), which is the application's here.
    """
    message = HeaderMutation()
    message.mutations.add().remove_on_match.key_matcher.prefix = "x-envoy-"
    manager.early_header_mutation_extensions.append(typed(names.EARLY_MUTATION, message))


def _filter_config(name: str) -> Message:
    """Chain-level configuration of a filter: empty but for `on_demand`; routes fill the others."""
    if name == names.ON_DEMAND:
        on_demand = OnDemand()
        on_demand.odcds.source.CopyFrom(over_ads())
        on_demand.odcds.timeout.CopyFrom(duration(CLUSTER_TIMEOUT))
        return on_demand
    return FILTER_CONFIGS[name]


FILTER_CONFIGS: Final[dict[str, Message]] = {
    names.CORS: Cors(),
    names.AUTHZ_DENY: RBAC(),
    names.AUTHZ_ALLOW: RBAC(),
    names.FAULT: HTTPFault(),
    names.ROUTER: Router(),
}
