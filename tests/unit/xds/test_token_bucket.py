"""Token buckets: a burst, a rate, and nothing saved beyond the burst."""

from __future__ import annotations

import random

from xdsbpf.xds.log_budget import LogBudget
from xdsbpf.xds.token_bucket import TokenBucket


def test_a_bucket_refills_with_time_and_no_further_than_its_size() -> None:
    bucket = TokenBucket(3, 1.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(2.0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_time_that_passes_over_a_full_bucket_is_not_saved() -> None:
    bucket = TokenBucket(3, 1.0)
    assert bucket.take(0.0)
    assert [bucket.take(100.0) for _ in range(5)] == [True, True, True, False, False]


def test_what_is_refused_costs_nothing_and_what_is_refunded_comes_back() -> None:
    bucket = TokenBucket(3, 1.0)
    assert not bucket.take(0.0, cost=4.0)
    assert bucket.take(0.0, cost=3.0)
    bucket.refund()
    assert [bucket.take(0.0), bucket.take(0.0)] == [True, False]
    for _ in range(9):
        bucket.refund()
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]


def test_a_token_can_be_taken_at_the_time_that_was_said() -> None:
    """Whatever the fractions: at most a rounding later."""
    draw = random.Random(7)
    for _ in range(1_000):
        bucket, now = TokenBucket(2, draw.uniform(0.01, 900.0)), draw.uniform(0.0, 1e6)
        while bucket.take(now):
            pass
        ready_at = bucket.ready_at(now)
        assert ready_at > now
        later = bucket.ready_at(ready_at)
        assert later - ready_at < 1e-6
        assert bucket.take(later)


def test_a_bucket_is_full_once_all_that_was_taken_has_come_back() -> None:
    bucket = TokenBucket(2, 1.0)
    assert bucket.is_full(5.0)
    assert bucket.take(5.0)
    assert [bucket.is_full(5.5), bucket.is_full(6.0)] == [False, True]


def test_a_log_line_says_how_many_were_left_out_before_it() -> None:
    budget = LogBudget()
    assert [budget.take(7.0) for _ in range(23)] == [0] + [None] * 22
    assert [budget.take(8.0), budget.take(8.0), budget.take(9.0)] == [22, None, 1]
