"""Fault injection per route (istio-translation.md 2.12)."""

from __future__ import annotations

from typing import Final

from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault

from xdsbpf.compile.envoy.codes import NO_EFFECT, VALUE_INVALID, Report, at, ignored, note, warn
from xdsbpf.compile.envoy.encoding import duration, fraction, fraction_of_hundred
from xdsbpf.diagnostics import Origin
from xdsbpf.model.grpc_status import GRPC_STATUSES
from xdsbpf.model.virtual_service import FaultAbort, FaultDelay, HTTPFaultInjection

SET_PERCENTAGE: Final = "set percentage.value"


def http_fault(fault: HTTPFaultInjection, where: Origin, report: Report) -> HTTPFault | None:
    """The route's configuration of the fault filter, or None if nothing of it can be injected.

    `where` is the `fault` field. Without a percentage nothing is injected, as in Istio.
    """
    result = HTTPFault()
    delays = fault.delay is not None and _set_delay(result, fault.delay, at(where, "delay"), report)
    aborts = fault.abort is not None and _set_abort(result, fault.abort, at(where, "abort"), report)
    return result if delays or aborts else None


def _set_delay(result: HTTPFault, delay: FaultDelay, where: Origin, report: Report) -> bool:
    if delay.exponential_delay is not None:
        ignored(report, where, "exponentialDelay")
    if not delay.fixed_delay:
        return False
    result.delay.fixed_delay.CopyFrom(duration(delay.fixed_delay))
    if delay.percentage is not None:
        result.delay.percentage.CopyFrom(fraction(delay.percentage.value))
    else:
        if not delay.percent:
            note(report, NO_EFFECT, where, "without a percentage no request is delayed", SET_PERCENTAGE)
        result.delay.percentage.CopyFrom(fraction_of_hundred(delay.percent or 0))
    return True


def _set_abort(result: HTTPFault, abort: FaultAbort, where: Origin, report: Report) -> bool:
    if abort.http2_error is not None:
        ignored(report, where, "http2Error")
    if abort.http_status is not None:
        if not 200 <= abort.http_status <= 599:
            warn(report, VALUE_INVALID, at(where, "httpStatus"), "an abort needs a status from 200 to 599")
            return False
        result.abort.http_status = abort.http_status
    elif abort.grpc_status is not None:
        name = abort.grpc_status.upper()
        if name not in GRPC_STATUSES:
            warn(report, VALUE_INVALID, at(where, "grpcStatus"), f"{abort.grpc_status!r} is no gRPC status")
            return False
        result.abort.grpc_status = GRPC_STATUSES.index(name)
    else:
        return False
    if abort.percentage is not None:
        result.abort.percentage.CopyFrom(fraction(abort.percentage.value))
    else:
        note(report, NO_EFFECT, where, "without a percentage no request is aborted", SET_PERCENTAGE)
    return True
