"""Limits, whatever is asked of them when: never more than the limit and one burst in any stretch of time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.rate_limits import KeyLimits, Limit

STEPS = st.lists(
    st.tuples(
        st.floats(-5, 40, allow_nan=False),  # seconds that pass; a clock may go back
        st.integers(0, 120),  # estimated tokens
        st.integers(0, 100),  # percent of the estimate that is used
        st.booleans(),  # whether the answer is over before the next request
    ),
    max_size=60,
)


def made(requests: int | None, tokens: int | None, concurrency: int | None) -> KeyLimits:
    limits = KeyLimits()
    limits.set(
        requests_per_minute=requests, tokens_per_minute=tokens, concurrency=concurrency, share=1.0, now=0.0
    )  # fmt: skip
    return limits


@settings(deadline=None)
@given(STEPS, st.integers(1, 100), st.integers(1, 200))
def test_no_stretch_of_time_lets_in_more_than_the_limit_and_a_burst(steps, requests: int, tokens: int) -> None:
    limits, now, latest = made(requests, tokens, None), 0.0, 0.0
    entered: list[tuple[float, int]] = []
    for passed_s, cost, _, _ in steps:
        now += passed_s
        latest = max(latest, now)
        if limits.enter(cost, now) is None:
            entered.append((latest, cost))
    for i, (start, _) in enumerate(entered):
        for j in range(i, len(entered)):
            minutes = (entered[j][0] - start) / 60
            assert j - i + 1 <= requests * (1 + minutes) + 1e-6
            assert sum(cost for _, cost in entered[i : j + 1]) <= tokens * (1 + minutes) + 1e-6


@settings(deadline=None)
@given(STEPS, st.integers(1, 200))
def test_what_answers_really_used_stays_within_the_limit_when_estimates_are_upper_ones(steps, tokens: int) -> None:
    limits, now, used_tokens = made(None, tokens, None), 0.0, 0
    for passed_s, cost, percent, _ in steps:
        now += max(0.0, passed_s)
        if limits.enter(cost, now) is None:
            used = cost * percent // 100
            limits.over(cost, used, now)
            used_tokens += used
    assert used_tokens <= tokens * (1 + now / 60) + 1e-6


@settings(deadline=None)
@given(STEPS, st.integers(1, 5))
def test_never_more_under_way_than_allowed_and_all_places_come_back(steps, concurrency: int) -> None:
    limits, under_way = made(None, None, concurrency), []
    for _, cost, percent, over in steps:
        shortage = limits.enter(cost, 0.0)
        assert (shortage is None) == (len(under_way) < concurrency)
        if shortage is None:
            under_way.append((cost, percent))
        else:
            assert shortage.limit is Limit.CONCURRENCY
        if over and under_way:
            cost, percent = under_way.pop()
            limits.over(cost, percent, 0.0)
        assert limits.in_flight == len(under_way)


@settings(deadline=None)
@given(STEPS, st.integers(1, 20), st.integers(1, 400), st.integers(1, 5))
def test_the_keys_of_a_namespace_never_have_more_together_than_its_quota(steps, requests, tokens, concurrency) -> None:
    shared = KeyLimits(namespace="shop")
    shared.set(requests_per_minute=requests, tokens_per_minute=tokens, concurrency=concurrency, share=1.0, now=0.0)
    keys = [KeyLimits(shared), KeyLimits(shared), KeyLimits(shared)]
    keys[0].set(requests_per_minute=5, tokens_per_minute=150, concurrency=2, share=1.0, now=0.0)
    now, under_way, let_in, own = 0.0, [], [], 0
    for i, (passed_s, cost, percent, over) in enumerate(steps):
        now += max(0.0, passed_s)
        key = keys[(cost + i) % 3]
        before = key.used(now), shared.used(now)
        shortage = key.enter(cost, now)
        if shortage is None:
            let_in.append((now, cost))
            under_way.append((key, cost, percent))
            own += key is keys[0]
        else:
            assert (key.used(now), shared.used(now)) == before  # a refusal takes nothing of either
        if over and under_way:
            key, cost, percent = under_way.pop(0)
            own -= key is keys[0]
            key.undo(cost, now) if percent == 0 else key.over(cost, cost, now)
            if percent == 0:  # no engine saw it, so it was as good as never let in
                let_in.remove(next(e for e in let_in if e[1] == cost))
        assert (shared.in_flight, keys[0].in_flight) == (len(under_way), own)
        assert shared.in_flight <= concurrency
        assert own <= 2
    assert len(let_in) <= requests * (1 + now / 60) + 1e-6
    assert sum(cost for _, cost in let_in) <= tokens * (1 + now / 60) + 1e-6


@settings(deadline=None)
@given(STEPS, st.integers(1, 100), st.integers(1, 200))
def test_who_waits_as_long_as_it_was_told_gets_in(steps, requests: int, tokens: int) -> None:
    limits, now = made(requests, tokens, None), 0.0
    for passed_s, cost, percent, over in steps:
        now += max(0.0, passed_s)
        shortage = limits.enter(cost, now)
        while shortage is not None and shortage.wait_s is not None:  # first for one limit, then for the other
            now += shortage.wait_s + 1e-6
            again = limits.enter(cost, now)
            assert again is None or again.limit is not shortage.limit
            shortage = again
        assert shortage is None or cost > tokens
        if shortage is None and over:
            limits.over(cost, cost * percent // 100, now)
