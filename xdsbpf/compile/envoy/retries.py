"""Retry policies (istio-translation.md 2.9): the route's own, or the built-in default."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from typing import Final

from envoy.config.route.v3.route_components_pb2 import RetryPolicy
from envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2 import PreviousHostsPredicate
from envoy.extensions.retry.priority.previous_priorities.v3.previous_priorities_config_pb2 import (
    PreviousPrioritiesConfig,
)
from google.protobuf.wrappers_pb2 import UInt32Value

from xdsbpf.compile.envoy.encoding import any_of, duration
from xdsbpf.model.virtual_service import HTTPRetry

DEFAULT_RETRY_ON: Final = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
DEFAULT_ATTEMPTS: Final = 2
STATUS_CODES: Final = "retriable-status-codes"
PREVIOUS_HOSTS: Final = "envoy.retry_host_predicates.previous_hosts"
PREVIOUS_PRIORITIES: Final = "envoy.retry_priorities.previous_priorities"
SELECTION_ATTEMPTS: Final = 5
UPDATE_FREQUENCY: Final = 2
KNOWN_STATUSES: Final = frozenset(status.value for status in HTTPStatus)


@cache
def default_retry_policy(*, consistent_hash: bool) -> RetryPolicy:
    """What a route without `retries` gets. Shared: copy before changing.

    With consistent hashing a retry must be able to reach the same host again.
    """
    policy = RetryPolicy(
        retry_on=DEFAULT_RETRY_ON,
        num_retries=UInt32Value(value=DEFAULT_ATTEMPTS),
        host_selection_retry_max_attempts=SELECTION_ATTEMPTS,
    )
    if not consistent_hash:
        _avoid_previous_hosts(policy)
    return policy


def retry_policy(retries: HTTPRetry | None, *, consistent_hash: bool) -> RetryPolicy | None:
    """The policy of a route, or None when it asks for no retries (`attempts: 0`)."""
    if retries is None:
        return default_retry_policy(consistent_hash=consistent_hash)
    if retries.attempts <= 0:
        return None
    conditions, codes = _retry_on(retries.retry_on)
    policy = RetryPolicy(
        retry_on=conditions,
        retriable_status_codes=codes,
        num_retries=UInt32Value(value=retries.attempts),
        host_selection_retry_max_attempts=SELECTION_ATTEMPTS,
    )
    if retries.per_try_timeout:
        policy.per_try_timeout.CopyFrom(duration(retries.per_try_timeout))
    if retries.backoff:
        policy.retry_back_off.base_interval.CopyFrom(duration(retries.backoff))
    ignore_previous = retries.retry_ignore_previous_hosts
    if not consistent_hash if ignore_previous is None else ignore_previous:
        _avoid_previous_hosts(policy)
    if retries.retry_remote_localities:
        policy.retry_priority.name = PREVIOUS_PRIORITIES
        policy.retry_priority.typed_config.CopyFrom(any_of(PreviousPrioritiesConfig(update_frequency=UPDATE_FREQUENCY)))
    return policy


def _retry_on(text: str) -> tuple[str, list[int]]:
    """Conditions and status codes of a comma list such as `gateway-error,503`."""
    if not text:
        return DEFAULT_RETRY_ON, []
    conditions: list[str] = []
    codes: list[int] = []
    for token in (part.strip() for part in text.split(",")):
        if token.isascii() and token.isdigit() and int(token) in KNOWN_STATUSES:
            codes.append(int(token))
        elif token:
            conditions.append(token)
    if codes and STATUS_CODES not in conditions:
        conditions.append(STATUS_CODES)
    return ",".join(conditions), codes


def _avoid_previous_hosts(policy: RetryPolicy) -> None:
    policy.retry_host_predicate.add(name=PREVIOUS_HOSTS, typed_config=any_of(PreviousHostsPredicate()))
