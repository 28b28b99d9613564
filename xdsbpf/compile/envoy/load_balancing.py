"""Load-balancing policy, panic threshold and outlier detection of a cluster (istio-translation.md 3.8, 3.10).

Always the typed `load_balancing_policy`, never the old enum fields, which Envoy lets win or lose silently.
"""

from __future__ import annotations

from typing import Any as Message
from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster, LoadBalancingPolicy
from envoy.config.cluster.v3.outlier_detection_pb2 import OutlierDetection as EnvoyOutlierDetection
from envoy.config.core.v3.base_pb2 import RuntimeDouble
from envoy.extensions.load_balancing_policies.common.v3.common_pb2 import SlowStartConfig
from envoy.extensions.load_balancing_policies.least_request.v3.least_request_pb2 import LeastRequest
from envoy.extensions.load_balancing_policies.maglev.v3.maglev_pb2 import Maglev
from envoy.extensions.load_balancing_policies.random.v3.random_pb2 import Random
from envoy.extensions.load_balancing_policies.ring_hash.v3.ring_hash_pb2 import RingHash
from envoy.extensions.load_balancing_policies.round_robin.v3.round_robin_pb2 import RoundRobin
from envoy.type.v3.percent_pb2 import Percent
from google.protobuf.wrappers_pb2 import UInt32Value, UInt64Value

from xdsbpf.compile.envoy.codes import LOCALITY_IGNORED, MAGLEV_SIZE, Report, at, ignored, warn
from xdsbpf.compile.envoy.encoding import duration, typed
from xdsbpf.compile.envoy.hash_policy import consistent_hash
from xdsbpf.diagnostics import Origin
from xdsbpf.model.destination_rule import ConsistentHashLB, LoadBalancerSettings, OutlierDetection

PREFIX: Final = "envoy.load_balancing_policies."
MINIMUM_RING_SIZE: Final = 1024
MAXIMUM_RING_SIZE: Final = 8_388_608
MAXIMUM_TABLE_SIZE: Final = 5_000_011
WARMUP_PERCENT: Final = 10
AGGRESSION_KEY: Final = "xdsbpf.slow_start.aggression"
"""Envoy requires a runtime key; nobody sets it."""


def load_balancing_policy(settings: LoadBalancerSettings | None, where: Origin, report: Report) -> LoadBalancingPolicy:
    """The cluster's policy; LEAST_REQUEST unless written otherwise. `where` is the `loadBalancer` field."""
    if settings is None:
        return default_load_balancing_policy()
    if settings.locality_lb_setting is not None:
        text = "locality settings are not supported yet: all endpoints are used alike"
        warn(report, LOCALITY_IGNORED, at(where, "localityLbSetting"), text)
    hashing = consistent_hash(settings)
    if hashing is not None:
        return _consistent_hash(hashing, at(where, "consistentHash"), report)
    if settings.simple == "RANDOM":
        return _policy("random", Random())
    if settings.simple == "PASSTHROUGH":
        ignored(report, where, "simple", "PASSTHROUGH: the proxy balances the load; use LEAST_REQUEST")
    slow_start = _slow_start(settings)
    if settings.simple == "ROUND_ROBIN":
        return _policy("round_robin", RoundRobin(slow_start_config=slow_start))
    return _policy("least_request", LeastRequest(slow_start_config=slow_start))


def default_load_balancing_policy() -> LoadBalancingPolicy:
    """LEAST_REQUEST."""
    return _policy("least_request", LeastRequest())


def set_outlier_detection(cluster: Cluster, settings: OutlierDetection, where: Origin, report: Report) -> None:
    """Ejection of failing endpoints, and the panic threshold, off unless `minHealthPercent` sets it."""
    result = EnvoyOutlierDetection(enforcing_success_rate=UInt32Value(value=0))
    if settings.consecutive_errors is not None:
        ignored(report, where, "consecutiveErrors", "use consecutive5xxErrors")
    if settings.consecutive_5xx_errors is not None:
        _enforce(result, "consecutive_5xx", "enforcing_consecutive_5xx", settings.consecutive_5xx_errors)
    if settings.consecutive_gateway_errors is not None:
        _enforce(
            result,
            "consecutive_gateway_failure",
            "enforcing_consecutive_gateway_failure",
            settings.consecutive_gateway_errors,
        )
    if settings.interval is not None:
        result.interval.CopyFrom(duration(settings.interval))
    if settings.base_ejection_time is not None:
        result.base_ejection_time.CopyFrom(duration(settings.base_ejection_time))
    if settings.max_ejection_percent > 0:
        result.max_ejection_percent.value = min(settings.max_ejection_percent, 100)
    if settings.split_external_local_origin_errors:
        result.split_external_local_origin_errors = True
        result.enforcing_local_origin_success_rate.value = 0
        if settings.consecutive_local_origin_failures:
            _enforce(
                result,
                "consecutive_local_origin_failure",
                "enforcing_consecutive_local_origin_failure",
                settings.consecutive_local_origin_failures,
            )
    cluster.outlier_detection.CopyFrom(result)
    cluster.common_lb_config.healthy_panic_threshold.value = min(max(settings.min_health_percent, 0), 100)


def _enforce(result: EnvoyOutlierDetection, threshold: str, enforcing: str, count: int) -> None:
    """`count` errors in a row eject; 0 turns this kind of error off (Envoy wants a positive threshold)."""
    if count > 0:
        getattr(result, threshold).value = count
    getattr(result, enforcing).value = 100 if count > 0 else 0


def _policy(name: str, message: Message) -> LoadBalancingPolicy:
    policy = LoadBalancingPolicy()
    policy.policies.add(typed_extension_config=typed(PREFIX + name, message))
    return policy


def _consistent_hash(settings: ConsistentHashLB, where: Origin, report: Report) -> LoadBalancingPolicy:
    if settings.maglev is not None:
        table = Maglev()
        size = settings.maglev.table_size
        if size and (size > MAXIMUM_TABLE_SIZE or not _is_prime(size)):
            text = f"a table size must be a prime up to {MAXIMUM_TABLE_SIZE}: the default 65537 is used"
            warn(report, MAGLEV_SIZE, at(where, "maglev.tableSize"), text)
        elif size:
            table.table_size.CopyFrom(UInt64Value(value=size))
        return _policy("maglev", table)
    size = settings.ring_hash.minimum_ring_size if settings.ring_hash is not None else 0
    size = min(size or settings.minimum_ring_size or MINIMUM_RING_SIZE, MAXIMUM_RING_SIZE)
    return _policy("ring_hash", RingHash(minimum_ring_size=UInt64Value(value=size)))


def _slow_start(settings: LoadBalancerSettings) -> SlowStartConfig | None:
    if settings.warmup is not None:
        percent = settings.warmup.minimum_percent
        aggression = settings.warmup.aggression
        return SlowStartConfig(
            slow_start_window=duration(settings.warmup.duration),
            min_weight_percent=Percent(value=WARMUP_PERCENT if percent is None else percent / 10_000),
            aggression=RuntimeDouble(
                default_value=1.0 if aggression is None else aggression / 1_000_000,
                runtime_key=AGGRESSION_KEY,
            ),
        )
    if settings.warmup_duration_secs is not None:
        return SlowStartConfig(slow_start_window=duration(settings.warmup_duration_secs))
    return None


def _is_prime(number: int) -> bool:
    if number < 2:
        return False
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            return False
        divisor += 1
    return True
