"""Limits of a key: what is left, what is short, and what headers say."""

from __future__ import annotations

import math

import pytest

from serving.rate_limits import Bucket, KeyLimits, Limit, Shortage, written_duration


def limits(
    requests: int | None = None, tokens: int | None = None, concurrency: int | None = None, share: float = 1.0
) -> KeyLimits:
    made = KeyLimits()
    made.set(requests_per_minute=requests, tokens_per_minute=tokens, concurrency=concurrency, share=share, now=0.0)
    return made


def test_an_idle_key_may_use_its_minute_at_once_and_then_at_the_even_rate() -> None:
    key = limits(requests=60)
    assert [key.enter(1, 0.0) for _ in range(60)] == [None] * 60
    assert key.enter(1, 0.0) == Shortage(Limit.REQUESTS, allowed=60, used=60, requested=1, wait_s=1.0)
    assert key.enter(1, 0.999) is not None
    assert key.enter(1, 1.0) is None


# (limits, requests that entered before, cost) -> which limit is short, and the wait in seconds
SHORT = {
    "requests": ({"requests": 6}, 6, 1, Limit.REQUESTS, 10.0),
    "tokens": ({"tokens": 60}, 1, 40, Limit.TOKENS, 20.0),
    "tokens that no wait brings": ({"tokens": 60}, 0, 61, Limit.TOKENS, None),
    "concurrency": ({"concurrency": 2}, 2, 1, Limit.CONCURRENCY, None),
    "concurrency goes before rates": ({"concurrency": 1, "requests": 1}, 1, 1, Limit.CONCURRENCY, None),
}


@pytest.mark.parametrize(("given", "before", "cost", "short", "wait_s"), SHORT.values(), ids=SHORT)
def test_the_limit_that_is_short_is_named(given, before, cost, short, wait_s) -> None:
    key = limits(**given)
    for _ in range(before):
        assert key.enter(cost, 0.0) is None
    shortage = key.enter(cost, 0.0)
    assert shortage is not None
    assert (shortage.limit, shortage.wait_s) == (short, wait_s)
    assert key.in_flight == before


def test_what_is_refused_takes_nothing() -> None:
    key = limits(requests=60, tokens=100)
    assert key.enter(80, 0.0) is None
    assert key.enter(80, 0.0) is not None
    headers = dict(key.headers(0.0))
    assert headers[b"x-ratelimit-remaining-requests"] == b"59"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"20"


# what was estimated, what was used -> what is left of 1000
TRUE_UPS = {
    "less than estimated": (400, 100, 900),
    "more than estimated": (400, 700, 300),
    "into debt": (400, 1500, -500),
    "nobody knows": (400, None, 600),
    "exact": (400, 400, 600),
}


@pytest.mark.parametrize(("cost", "used", "left"), TRUE_UPS.values(), ids=TRUE_UPS)
def test_the_estimate_is_trued_up_when_the_answer_is_over(cost, used, left) -> None:
    key = limits(tokens=1000)
    assert key.enter(cost, 0.0) is None
    key.over(cost, used, 0.0)
    shortage = key.enter(1000, 0.0)
    assert key.in_flight == 0
    assert (1000 - shortage.used if shortage else 1000) == left


def test_a_debt_is_paid_before_anything_enters() -> None:
    key = limits(tokens=60)
    key.enter(10, 0.0)
    key.over(10, 90, 0.0)  # 30 below zero
    assert key.enter(1, 30.9) is not None
    assert key.enter(1, 31.0) is None


def test_a_request_that_no_engine_saw_costs_nothing() -> None:
    key = limits(requests=1, tokens=10, concurrency=1)
    assert key.enter(10, 0.0) is None
    key.undo(10, 0.0)
    assert key.enter(10, 0.0) is None


def test_changed_limits_keep_what_was_used() -> None:
    key = limits(requests=10)
    for _ in range(8):
        key.enter(1, 0.0)
    key.set(requests_per_minute=20, tokens_per_minute=None, concurrency=None, share=1.0, now=0.0)
    assert dict(key.headers(0.0))[b"x-ratelimit-remaining-requests"] == b"12"
    key.set(requests_per_minute=5, tokens_per_minute=None, concurrency=None, share=1.0, now=0.0)
    assert key.enter(1, 0.0) is not None
    key.set(requests_per_minute=None, tokens_per_minute=None, concurrency=None, share=1.0, now=0.0)
    assert key.unlimited
    assert key.enter(1, 0.0) is None


def test_a_gateway_enforces_its_share_and_leaves_at_least_one() -> None:
    headers = dict(limits(requests=10, tokens=3, share=0.25).headers(0.0))
    assert headers[b"x-ratelimit-limit-requests"] == b"2"
    assert headers[b"x-ratelimit-limit-tokens"] == b"1"


def test_headers_are_openais() -> None:
    key = limits(requests=60, tokens=150_000)
    key.enter(900_00, 0.0)
    assert key.headers(0.0) == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"1s"),
        (b"x-ratelimit-limit-tokens", b"150000"),
        (b"x-ratelimit-remaining-tokens", b"60000"),
        (b"x-ratelimit-reset-tokens", b"36s"),
    ]
    assert limits(concurrency=3).headers(0.0) == []


def test_a_clock_that_goes_back_refills_nothing_and_breaks_nothing() -> None:
    bucket = Bucket(60, now=1000.0)
    bucket.take(60, 1000.0)
    assert bucket.left(10.0) == 0
    assert bucket.left(1000.5) == pytest.approx(0.5)


def test_more_than_the_limit_never_fits() -> None:
    assert Bucket(60, now=0.0).wait_s(61, now=1e9) == math.inf


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (0.0001, "1ms"), (0.9999, "1s"), (60, "1m0s"), (3600, "1h0m0s")]
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert written_duration(seconds) == text
