"""How one EDS cluster is written: the settings of a traffic policy as a message.

`clusters` and `tcp_clusters` say which clusters there are and where their endpoints come from. A cluster whose
policy asks for TLS that cannot be originated yet is to be withheld: Envoy then fails instead of sending plaintext.
"""

from __future__ import annotations

import functools

from envoy.config.cluster.v3.cluster_pb2 import Cluster

from xdsbpf.compile.envoy.codes import TLS_UNSUPPORTED, at, fail, ignored
from xdsbpf.compile.envoy.connection_pool import set_connection_pool
from xdsbpf.compile.envoy.encoding import over_ads
from xdsbpf.compile.envoy.load_balancing import (
    default_load_balancing_policy,
    load_balancing_policy,
    set_outlier_detection,
)
from xdsbpf.diagnostics import ObjectId, Origin
from xdsbpf.incremental import Database
from xdsbpf.mesh.destination_rules import DEFAULTS, EffectivePolicy
from xdsbpf.mesh.services import PortInfo

EDS = over_ads()


def is_withheld(db: Database, policy: EffectivePolicy, where: Origin, owner: ObjectId) -> bool:
    """Whether a cluster must not be sent (reported).

    Security: traffic that was asked to be encrypted never leaves as plaintext.
    """
    if policy.tls is None or policy.tls.mode == "DISABLE":
        return False
    fail(
        db.report,
        TLS_UNSUPPORTED,
        at(where, "tls.mode"),
        f"TLS mode {policy.tls.mode} is not supported yet: the proxy serves nobody who calls {owner.name}",
        "remove the tls block or set mode: DISABLE",
    )
    return True


def eds_cluster(
    db: Database, name: str, stat_name: str, service_name: str, info: PortInfo, policy: EffectivePolicy, where: Origin
) -> Cluster:
    """The cluster `name`, whose endpoints are the assignment `service_name`; findings go to `where`."""
    message = Cluster()
    if policy is DEFAULTS or policy == DEFAULTS:
        message.CopyFrom(_default_message(info.is_http, info.is_http2))
    else:
        _set_policy(db, message, info, policy, where)
        _set_source(message)
    message.name = name
    message.alt_stat_name = f"{stat_name};"
    message.eds_cluster_config.service_name = service_name
    return message


def _set_source(message: Cluster) -> None:
    message.type = Cluster.EDS
    message.eds_cluster_config.eds_config.CopyFrom(EDS)


@functools.cache
def _default_message(is_http: bool, is_http2: bool) -> Cluster:
    """What every cluster without a DestinationRule has in common: half of the cost of one. Copy before changing."""
    message = Cluster()
    message.load_balancing_policy.CopyFrom(default_load_balancing_policy())
    message.common_lb_config.SetInParent()
    set_connection_pool(message, None, None, is_http=is_http, is_http2=is_http2)
    _set_source(message)
    return message


def _set_policy(db: Database, message: Cluster, info: PortInfo, policy: EffectivePolicy, where: Origin) -> None:
    message.load_balancing_policy.CopyFrom(
        load_balancing_policy(policy.load_balancer, at(where, "loadBalancer"), db.report)
    )
    message.common_lb_config.SetInParent()
    if policy.outlier_detection is not None:
        set_outlier_detection(message, policy.outlier_detection, at(where, "outlierDetection"), db.report)
    set_connection_pool(
        message, policy.connection_pool, policy.retry_budget, is_http=info.is_http, is_http2=info.is_http2
    )
    if policy.tunnel is not None:
        ignored(db.report, where, "tunnel")
    if policy.proxy_protocol is not None:
        ignored(db.report, where, "proxyProtocol", "servers that expect a PROXY header refuse connections")
