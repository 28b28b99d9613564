"""Validation of loadBalancer and outlierDetection (istio-translation.md 9.3 rows 37 to 40). Pure."""

from __future__ import annotations

from typing import Final

from xdsbpf.model import codes
from xdsbpf.model.checks import Checks, duplicates
from xdsbpf.model.destination_rule import (
    ConsistentHashLB,
    LoadBalancerSettings,
    LocalityLbSetting,
    OutlierDetection,
    Warmup,
)

MAGLEV_LIMIT: Final = 5_000_011
_REGION_LABELS: Final = frozenset({"topology.kubernetes.io/region", "topology.istio.io/region"})


def check_load_balancer(checks: Checks, path: str, settings: LoadBalancerSettings, outlier: bool) -> None:
    """`outlier`: whether the same policy has outlierDetection, which failover needs."""
    if settings.simple is not None and settings.consistent_hash is not None:
        checks.error(codes.DR_HASH, path, "simple and consistentHash exclude each other", "keep one of them")
    if settings.simple == "LEAST_CONN":
        checks.warning(codes.DEPRECATED, f"{path}.simple", "LEAST_CONN is deprecated", "use LEAST_REQUEST")
    if settings.consistent_hash is not None:
        _check_hash(checks, f"{path}.consistentHash", settings.consistent_hash)
    if settings.locality_lb_setting is not None:
        _check_locality(checks, f"{path}.localityLbSetting", settings.locality_lb_setting, outlier)
    if settings.warmup_duration_secs is not None:
        place = f"{path}.warmupDurationSecs"
        checks.duration(place, settings.warmup_duration_secs)
        checks.warning(codes.DEPRECATED, place, "warmupDurationSecs is deprecated", "use warmup.duration")
    if settings.warmup is not None:
        _check_warmup(checks, f"{path}.warmup", settings.warmup)


def _check_warmup(checks: Checks, path: str, warmup: Warmup) -> None:
    """Row 40; the percentage was checked when it was read."""
    checks.duration(f"{path}.duration", warmup.duration)
    if warmup.aggression is not None and warmup.aggression <= 0:
        checks.error(codes.DR_WARMUP, f"{path}.aggression", "expected a number above 0")


def _check_hash(checks: Checks, path: str, hashing: ConsistentHashLB) -> None:
    """Row 38."""
    keys = [
        name
        for name, given in (
            ("httpHeaderName", hashing.http_header_name),
            ("httpCookie", hashing.http_cookie),
            ("useSourceIp", hashing.use_source_ip),
            ("httpQueryParameterName", hashing.http_query_parameter_name),
        )
        if given
    ]
    if len(keys) != 1:
        found = " and ".join(keys) or "none"
        message = f"expected one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName, found {found}"
        checks.error(codes.DR_HASH, path, message)
    if hashing.http_header_name:
        checks.header_name(f"{path}.httpHeaderName", hashing.http_header_name)
    cookie = hashing.http_cookie
    if cookie is not None:
        if not cookie.name:
            checks.error(codes.DR_HASH, f"{path}.httpCookie.name", "the name is empty")
        if cookie.ttl is not None and cookie.ttl < 0:
            checks.error(codes.BAD_TIME, f"{path}.httpCookie.ttl", "expected a duration of at least 0")
        names = [attribute.name for attribute in cookie.attributes]
        for index, name in enumerate(names):
            if not name or name in names[:index]:
                place = f"{path}.httpCookie.attributes[{index}].name"
                checks.error(codes.DR_HASH, place, f"expected a name that occurs once, found {name!r}")
    _check_ring(checks, path, hashing)


def _check_ring(checks: Checks, path: str, hashing: ConsistentHashLB) -> None:
    if hashing.minimum_ring_size and (hashing.ring_hash is not None or hashing.maglev is not None):
        checks.error(codes.DR_HASH, f"{path}.minimumRingSize", "minimumRingSize excludes ringHash and maglev")
    elif hashing.minimum_ring_size:
        hint = "use ringHash.minimumRingSize"
        checks.warning(codes.DEPRECATED, f"{path}.minimumRingSize", "minimumRingSize is deprecated", hint)
    if hashing.ring_hash is not None and hashing.maglev is not None:
        checks.error(codes.DR_HASH, path, "ringHash and maglev exclude each other")
    if hashing.maglev is not None:
        size = hashing.maglev.table_size
        if not 0 < size <= MAGLEV_LIMIT or not is_prime(size):
            message = f"expected a prime number of at most {MAGLEV_LIMIT}, found {size}"
            checks.error(codes.DR_HASH, f"{path}.maglev.tableSize", message, "for example 65537")


def is_prime(number: int) -> bool:
    """Whether a number is prime. O(sqrt(number)); meant for table sizes."""
    if number < 4:
        return number > 1
    return number % 2 != 0 and all(number % divisor for divisor in range(3, int(number**0.5) + 1, 2))


def _check_locality(checks: Checks, path: str, setting: LocalityLbSetting, outlier: bool) -> None:
    """Row 39."""
    if setting.distribute and (setting.failover or setting.failover_priority):
        checks.error(codes.DR_LOCALITY, path, "distribute excludes failover and failoverPriority")
    for index, entry in enumerate(setting.distribute):
        place = f"{path}.distribute[{index}]"
        _check_pattern(checks, f"{place}.from", entry.from_)
        for name, weight in entry.to:
            _check_pattern(checks, f"{place}.to[{name}]", name)
            if weight < 1:
                checks.error(codes.DR_LOCALITY, f"{place}.to[{name}]", "expected a weight of at least 1, found 0")
        total = sum(weight for _, weight in entry.to)
        if total != 100:
            checks.error(codes.DR_LOCALITY, f"{place}.to", f"the weights add up to {total}, not to 100")
        _check_overlap(checks, f"{place}.to", [name for name, _ in entry.to])
    _check_overlap(checks, f"{path}.distribute", [entry.from_ for entry in setting.distribute])
    _check_failover(checks, path, setting, outlier)


def _check_failover(checks: Checks, path: str, setting: LocalityLbSetting, outlier: bool) -> None:
    for index, entry in enumerate(setting.failover):
        place = f"{path}.failover[{index}]"
        for name, region in (("from", entry.from_), ("to", entry.to)):
            if not region or "/" in region or "*" in region:
                message = f"expected a region without zone and *, found {region!r}"
                checks.error(codes.DR_LOCALITY, f"{place}.{name}", message)
        if entry.from_ == entry.to:
            checks.error(codes.DR_LOCALITY, place, f"from and to are the same region {entry.to!r}")
    keys = [label.partition("=")[0] for label in setting.failover_priority]
    for key in duplicates(keys):
        checks.error(codes.DR_LOCALITY, f"{path}.failoverPriority", f"the label {key} is given twice")
    if setting.failover and any(key in _REGION_LABELS for key in keys):
        message = "failoverPriority repeats the region, which failover uses already"
        checks.error(codes.DR_LOCALITY, f"{path}.failoverPriority", message)
    if (setting.failover or setting.failover_priority) and not outlier:
        hint = "add outlierDetection to the same policy"
        checks.warning(codes.DR_LOCALITY, path, "failover has no effect without outlierDetection", hint)


def _check_pattern(checks: Checks, path: str, locality: str) -> None:
    parts = locality.split("/")
    star = "*" in locality.removesuffix("*") or (locality.endswith("*") and parts[-1] != "*")
    if not all(parts) or len(parts) > 3 or star:
        message = f"expected region/zone/subzone, with * only at the end, found {locality!r}"
        checks.error(codes.DR_LOCALITY, path, message)


def _check_overlap(checks: Checks, path: str, localities: list[str]) -> None:
    for index, locality in enumerate(localities):
        for earlier in localities[:index]:
            first, second = locality.removesuffix("*"), earlier.removesuffix("*")
            whole = f"{first.rstrip('/')}/", f"{second.rstrip('/')}/"
            if whole[0].startswith(whole[1]) or whole[1].startswith(whole[0]) or "*" in (locality, earlier):
                checks.error(codes.DR_LOCALITY, path, f"{locality} overlaps {earlier}")


def check_outlier_detection(checks: Checks, path: str, outlier: OutlierDetection) -> None:
    """Row 37."""
    checks.positive(f"{path}.interval", outlier.interval)
    checks.positive(f"{path}.baseEjectionTime", outlier.base_ejection_time)
    checks.percent(f"{path}.maxEjectionPercent", outlier.max_ejection_percent)
    checks.percent(f"{path}.minHealthPercent", outlier.min_health_percent)
    if outlier.consecutive_local_origin_failures and not outlier.split_external_local_origin_errors:
        message = "consecutiveLocalOriginFailures needs splitExternalLocalOriginErrors: true"
        checks.error(codes.DR_OUTLIER, f"{path}.consecutiveLocalOriginFailures", message)
    if outlier.consecutive_errors is not None:
        hint = "use consecutive5xxErrors or consecutiveGatewayErrors"
        message = "consecutiveErrors is deprecated and has no effect"
        checks.warning(codes.DEPRECATED, f"{path}.consecutiveErrors", message, hint)
