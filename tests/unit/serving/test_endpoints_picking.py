"""Which endpoint gets a request: decision tables of the filters, the scorers and the picker."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from serving.affinity import home_rank
from serving.endpoints import (
    FORGIVEN_AFTER_S,
    PROBE_LEASE_S,
    SLOW_FOR_S,
    Address,
    Endpoint,
    EndpointBook,
    connect_failed,
    connected,
    dispatched,
    failed,
    finished,
    first_token_came,
    pick,
    progressed,
    succeeded,
)
from serving.knobs import LEAST_WORK, ROUND_ROBIN, InvalidPicking, Picking
from serving.scoring import Demand, bound_of, slowness

CHAIN = tuple(range(100, 110))


def warm(count: int) -> tuple[EndpointBook, Sequence[Endpoint]]:
    """Endpoints that have been there for long."""
    book = EndpointBook()
    book.replace({"a": [Address(f"http://h:{port}") for port in range(1, count + 1)]})
    for endpoint in book.of("a"):
        endpoint.served, endpoint.full, endpoint.well = 1000, True, True
    return book, book.of("a")


# work and matched blocks (of ten) of each endpoint -> which one is picked
PICKS: dict[str, tuple[list[tuple[int, int]], Picking, int]] = {
    "nothing known: the least work": ([(300, 0), (200, 0), (400, 0)], Picking(), 1),
    "a whole match beats less work": ([(700, 10), (0, 0), (0, 0)], Picking(), 0),
    "a whole match beyond the bound does not": ([(2000, 10), (0, 0), (0, 0)], Picking(), 1),
    "a longer match beats a shorter one": ([(0, 3), (100, 9), (0, 0)], Picking(), 1),
    "a little more match is not worth much more work": ([(1000, 4), (0, 3), (0, 0)], Picking(), 1),
    "equal matches: the least work": ([(300, 10), (200, 10), (400, 10)], Picking(), 1),
    "everybody is busy: the bound follows the mean": ([(5000, 10), (4900, 0), (4800, 0)], Picking(), 0),
    "without the prefix scorer": ([(900, 10), (800, 0), (850, 0)], LEAST_WORK, 1),
    "round robin sees neither": ([(900, 0), (0, 10), (0, 0)], ROUND_ROBIN, 0),
    "no slack": ([(130, 10), (100, 0), (100, 0)], Picking(imbalance_percent=0, slack_tokens=0), 1),
    "no bound": ([(10**6, 10), (0, 0), (0, 0)], Picking(imbalance_percent=None), 0),
}


@pytest.mark.parametrize(("state", "picking", "expected"), PICKS.values(), ids=PICKS)
def test_picks(state: list[tuple[int, int]], picking: Picking, expected: int) -> None:
    _, endpoints = warm(len(state))
    for i, (endpoint, (work, matched)) in enumerate(zip(endpoints, state, strict=True)):
        endpoint.work, endpoint.used_at = work, float(i)
        endpoint.memory.remember(CHAIN[:matched])
    assert pick(endpoints, 10.0, (), Demand(chain=CHAIN), picking) is endpoints[expected]


class TestPicker:
    def test_equals_take_turns(self) -> None:
        for picking in (Picking(), LEAST_WORK, ROUND_ROBIN):
            _, endpoints = warm(3)
            order = []
            for i in range(6):
                endpoint = pick(endpoints, float(i), (), Demand(), picking)
                assert endpoint is not None
                order.append(endpoint.port)
                demand = Demand()
                dispatched(endpoint, float(i), demand)
                finished(endpoint, demand)
            assert order == [1, 2, 3, 1, 2, 3]

    def test_a_newcomer_need_not_catch_up_with_years_of_requests(self) -> None:
        _, endpoints = warm(2)
        endpoints[0].served, endpoints[1].served = 10**6, 0
        picked = []
        for i in range(10):
            endpoint = pick(endpoints, float(i))
            assert endpoint is not None
            picked.append(endpoint.port)
            dispatched(endpoint, float(i))
            finished(endpoint)
        assert picked.count(1) == 5

    def test_two_gateways_that_know_nothing_agree_where_a_new_prompt_goes(self) -> None:
        homes = set()
        for head in range(40):
            picked = {pick(warm(4)[1], 1.0, (), Demand(chain=CHAIN, head=head)).url for _ in range(2)}  # type: ignore[union-attr]
            assert len(picked) == 1
            homes |= picked
        assert len(homes) == 4
        _, endpoints = warm(4)
        home = pick(endpoints, 1.0, (), Demand(chain=CHAIN, head=7))
        assert home is max(endpoints, key=lambda e: home_rank(7, e.seed))

    def test_a_conversation_stays_where_it_began(self) -> None:
        _, endpoints = warm(4)
        places = set()
        for turn in range(1, 10):
            demand = Demand(prompt_tokens=turn * 128, chain=CHAIN[:turn], head=3)
            endpoint = pick(endpoints, float(turn), (), demand)
            assert endpoint is not None
            places.add(endpoint.url)
            dispatched(endpoint, float(turn), demand)
            finished(endpoint, demand)
        assert len(places) == 1

    def test_among_many_two_and_the_holders_are_looked_at(self) -> None:
        _, endpoints = warm(64)
        rng = random.Random(1)
        for endpoint in endpoints:
            endpoint.work = rng.randrange(1000)
        endpoints[50].memory.remember(CHAIN)
        endpoints[50].work = 900
        for seed in range(50):
            assert pick(endpoints, 1.0, (), Demand(chain=CHAIN), chance=random.Random(seed)) is endpoints[50]
        blind = {pick(endpoints, 1.0, (), Demand(), chance=random.Random(seed)).port for seed in range(200)}  # type: ignore[union-attr]
        assert len(blind) > 20
        again = [pick(endpoints, 1.0, (), Demand(), chance=random.Random(5)) for _ in range(3)]
        assert len(set(map(id, again))) == 1

    def test_two_choices_keep_many_endpoints_even(self) -> None:
        _, endpoints = warm(64)
        rng = random.Random(1)
        for _ in range(64 * 20):
            endpoint = pick(endpoints, 1.0, (), Demand(), LEAST_WORK, rng)
            assert endpoint is not None
            dispatched(endpoint, 1.0)
        assert max(e.outstanding for e in endpoints) <= 24  # one choice at random gives about 33
        assert min(e.outstanding for e in endpoints) >= 15

    @pytest.mark.parametrize(
        ("name", "value"),
        [("load_weight", -1), ("imbalance_percent", -1), ("failures_to_eject", 0), ("max_ejection_percent", 101),
         ("slack_tokens", float("nan"))],
    )  # fmt: skip
    def test_impossible_settings_are_refused(self, name: str, value: float) -> None:
        with pytest.raises(InvalidPicking, match=name):
            Picking(**{name: value})  # type: ignore[arg-type]

    def test_the_least_loaded_is_always_within_the_bound(self) -> None:
        for loads in ([0.1] * 3, [1e9, 1e9], [0.0], [7.3, 7.3, 7.3]):
            assert bound_of(loads, Picking(imbalance_percent=0, slack_tokens=0)) >= min(loads)


class TestWork:
    def test_it_is_released_as_tokens_come(self) -> None:
        _, (endpoint,) = warm(1)
        demand = Demand(prompt_tokens=800, most_answer_tokens=100)
        dispatched(endpoint, 0.0, demand)
        assert endpoint.work == 200
        progressed(endpoint, demand, 1)
        assert endpoint.work == 99
        progressed(endpoint, demand, 50)
        assert endpoint.work == 49
        progressed(endpoint, demand, 1000)
        assert endpoint.work == 16  # it still runs
        finished(endpoint, demand)
        assert (endpoint.work, endpoint.outstanding) == (0, 0)

    def test_typical_answers_are_learned(self) -> None:
        _, (endpoint,) = warm(1)
        for _ in range(40):
            demand = Demand()
            dispatched(endpoint, 0.0, demand)
            progressed(endpoint, demand, 50)
            finished(endpoint, demand)
        assert endpoint.typical_tokens == pytest.approx(50, abs=1)
        demand = Demand()
        dispatched(endpoint, 0.0, demand)
        assert endpoint.work == 50

    def test_a_request_may_be_tried_elsewhere_with_the_same_demand(self) -> None:
        _, (one, two) = warm(2)
        demand = Demand(prompt_tokens=80, most_answer_tokens=50)
        dispatched(one, 0.0, demand)
        finished(one, demand)
        dispatched(two, 0.0, demand)
        assert (one.work, two.work) == (0, 60)


def answer_badly(endpoint: Endpoint, peers: Sequence[Endpoint], times: int, now: float = 0.0) -> list[bool]:
    return [failed(endpoint, peers, now) for _ in range(times)]


class TestEjection:
    def test_five_bad_answers_in_a_row_eject_an_outlier(self) -> None:
        _, endpoints = warm(4)
        assert answer_badly(endpoints[0], endpoints, 5) == [False] * 4 + [True]
        assert pick(endpoints, 0.5, {e.url for e in endpoints[1:]}) is endpoints[0]  # better than nothing
        assert all(pick(endpoints, 0.5) is not endpoints[0] for _ in range(4))

    def test_a_good_answer_between_them_starts_over(self) -> None:
        _, endpoints = warm(4)
        answer_badly(endpoints[0], endpoints, 4)
        succeeded(endpoints[0])
        assert not any(answer_badly(endpoints[0], endpoints, 4))

    def test_all_replicas_of_a_bad_version_stay_in(self) -> None:
        book, endpoints = warm(4)
        for _ in range(50):
            for endpoint in endpoints:
                assert not failed(endpoint, endpoints, 0.0)
        assert book.ready_counts(0.0) == {"a": 4}

    def test_peers_that_were_not_asked_prove_nothing(self) -> None:
        _, endpoints = warm(3)
        for endpoint in endpoints:
            endpoint.well = False
        assert not any(answer_badly(endpoints[0], endpoints, 20))
        succeeded(endpoints[1])
        succeeded(endpoints[2])
        assert failed(endpoints[0], endpoints, 0.0)

    def test_a_prompt_is_not_drawn_to_where_the_last_answer_was_bad(self) -> None:
        _, endpoints = warm(3)
        endpoints[0].memory.remember(CHAIN)
        assert pick(endpoints, 1.0, (), Demand(chain=CHAIN)) is endpoints[0]
        failed(endpoints[0], endpoints, 1.0)
        endpoints[0].used_at = 1.0
        assert pick(endpoints, 1.0, (), Demand(chain=CHAIN)) is not endpoints[0]
        succeeded(endpoints[0])
        assert pick(endpoints, 1.0, (), Demand(chain=CHAIN)) is endpoints[0]

    def test_a_second_attempt_probes_nobody_while_another_is_fine(self) -> None:
        _, endpoints = warm(3)
        answer_badly(endpoints[0], endpoints, 5)
        assert pick(endpoints, 2.0) is endpoints[0]
        assert pick(endpoints, 2.0, {endpoints[1].url}) is endpoints[2]
        assert pick(endpoints, 2.0, {endpoints[1].url, endpoints[2].url}) is endpoints[0]

    def test_a_version_that_fails_now_and_then_keeps_most_replicas(self) -> None:
        book, endpoints = warm(4)
        rng = random.Random(3)
        for i in range(5000):
            endpoint = endpoints[i % 4]
            if rng.random() < 0.5:
                failed(endpoint, endpoints, i * 0.01)
            else:
                succeeded(endpoint)
            assert book.ready("a", i * 0.01)
            assert sum(e.ejected_until > i * 0.01 for e in endpoints) <= 2

    @pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)])
    def test_at_most_half_are_ejected_for_answers(self, count: int, most: int) -> None:
        _, endpoints = warm(count)
        for endpoint in endpoints:
            answer_badly(endpoint, endpoints, 10)
        assert sum(e.ejected_until > 0 for e in endpoints) == most

    def test_when_the_good_ones_go_the_ejected_serve_and_the_application_stays_ready(self) -> None:
        book, endpoints = warm(2)
        answer_badly(endpoints[0], endpoints, 5)
        connect_failed(endpoints[1], 0.0)
        assert book.ready("a", 0.5)
        assert book.ready_counts(0.5) == {"a": 1}
        assert pick(endpoints, 0.5) is endpoints[0]
        book.replace({"a": [Address("http://h:1")]})
        assert book.ready("a", 0.5)

    def test_one_probe_at_a_time_and_a_failed_one_doubles_the_time(self) -> None:
        _, endpoints = warm(4)
        bad = endpoints[0]
        answer_badly(bad, endpoints, 5)
        now = 0.0
        for length in (1, 2, 4, 8, 16, 30, 30):
            assert bad.ejected_until == now + length
            now += length
            others = {e.url for e in endpoints[1:]}
            assert pick(endpoints, now, others) is bad
            probe = Demand()
            dispatched(bad, now, probe)
            assert probe.probe
            assert bad not in [pick(endpoints, now) for _ in range(8)]
            connected(bad)  # it listens, which was never in doubt
            assert bad.probing
            failed(bad, endpoints, now)
            finished(bad, probe)
        now += 30
        probe = Demand()
        dispatched(bad, now, probe)
        succeeded(bad)
        finished(bad, probe)
        assert bad.ejected_until == 0

    def test_an_old_request_that_ends_does_not_end_the_probe(self) -> None:
        _, endpoints = warm(4)
        bad, old, probe = endpoints[0], Demand(), Demand()
        dispatched(bad, 0.0, old)
        answer_badly(bad, endpoints, 5)
        dispatched(bad, 1.0, probe)
        finished(bad, old)
        assert bad.probing
        finished(bad, probe)
        assert not bad.probing

    def test_a_probe_that_hangs_makes_room(self) -> None:
        book, endpoints = warm(1)
        connect_failed(endpoints[0], 0.0)
        dispatched(endpoints[0], 1.0, Demand())
        assert not book.ready("a", 1.0 + PROBE_LEASE_S - 0.1)
        assert book.ready("a", 1.0 + PROBE_LEASE_S)

    def test_who_fails_again_soon_stays_away_longer(self) -> None:
        _, endpoints = warm(4)
        bad = endpoints[0]
        lengths = []
        now = 0.0
        for pause in (5.0, 5.0, FORGIVEN_AFTER_S * 2):
            answer_badly(bad, endpoints, 5, now)
            lengths.append(bad.ejected_until - now)
            now = bad.ejected_until
            succeeded(bad)
            now += pause
        answer_badly(bad, endpoints, 5, now)
        assert [*lengths, bad.ejected_until - now] == [1, 2, 4, 1]

    def test_what_comes_back_after_a_refusal_has_an_empty_cache_and_starts_slowly(self) -> None:
        _, endpoints = warm(2)
        endpoints[0].memory.remember(CHAIN)
        connect_failed(endpoints[0], 0.0)
        connected(endpoints[0])
        assert endpoints[0].memory.matched(CHAIN) == 0
        endpoints[0].work, endpoints[1].work = 100, 900
        assert pick(endpoints, 1.0) is endpoints[1]
        assert pick(endpoints, 32.0) is endpoints[0]

    def test_a_refusal_outranks_bad_answers(self) -> None:
        book, endpoints = warm(2)
        answer_badly(endpoints[0], endpoints, 5)
        connect_failed(endpoints[0], 0.5)
        connect_failed(endpoints[1], 0.5)
        assert not book.ready("a", 1.0)
        connected(endpoints[0])
        assert book.ready("a", 1.0)


class TestSlowStart:
    def share_of_newcomer(self, now: float) -> float:
        book, _ = warm(3)
        pick(book.of("a"), 0.0)
        book.replace({"a": [Address(f"http://h:{port}") for port in range(1, 5)]})
        endpoints = book.of("a")
        pick(endpoints, 0.0)
        for _ in range(400):
            endpoint = pick(endpoints, now, (), None, Picking(slow_start_requests=10**6))
            assert endpoint is not None
            dispatched(endpoint, now)
        return endpoints[3].outstanding / 400

    def test_a_fresh_endpoint_gets_a_tenth_of_a_share_then_all_of_it(self) -> None:
        shares = [self.share_of_newcomer(now) for now in (0.0, 10.0, 20.0, 31.0)]
        assert shares == sorted(shares)
        assert 0.01 < shares[0] < 0.06
        assert shares[3] == pytest.approx(0.25, abs=0.01)

    def test_requests_end_it_too(self) -> None:
        book, _ = warm(1)
        book.replace({"a": [Address("http://h:1"), Address("http://h:2")]})
        fresh = book.of("a")[1]
        for i in range(200):
            endpoint = pick(book.of("a"), i * 0.001)
            assert endpoint is not None
            dispatched(endpoint, i * 0.001)
            finished(endpoint)
        assert fresh.full

    def test_an_idle_newcomer_is_used_so_that_its_warm_up_ends(self) -> None:
        book, _ = warm(1)
        book.replace({"a": [Address("http://h:1"), Address("http://h:2")]})
        warming = []
        for i in range(10):
            endpoint = pick(book.of("a"), i * 0.1)
            assert endpoint is not None
            warming.append(dispatched(endpoint, i * 0.1))
            finished(endpoint)
        assert sum(warming) == 3

    def test_who_was_alone_is_not_fresh_when_others_join(self) -> None:
        book = EndpointBook()
        book.replace({"a": [Address("http://h:1")]})
        for i in range(100):
            endpoint = pick(book.of("a"), float(i))
            assert endpoint is not None
            dispatched(endpoint, float(i))
            finished(endpoint)
        pick(book.of("a"), 100.0)
        assert book.of("a")[0].full


class TestSlowOutliers:
    def feed(self, endpoints: Sequence[Endpoint], seconds: Sequence[float], times: int = 40) -> None:
        for _ in range(times):
            for endpoint, value in zip(endpoints, seconds, strict=True):
                first_token_came(endpoint, value, endpoints, 0.0)

    def test_one_far_above_its_peers_gets_less_but_is_not_ejected(self) -> None:
        book, endpoints = warm(4)
        self.feed(endpoints, (2.0, 0.1, 0.1, 0.1))
        assert endpoints[0].slow == slowness(2.0, [0.1] * 3) == 0.15
        assert book.ready_counts(0.0) == {"a": 4}
        assert endpoints[0] not in [pick(endpoints, 1.0) for _ in range(8)]
        for _ in range(200):
            endpoint = pick(endpoints, 1.0)
            assert endpoint is not None
            dispatched(endpoint, 1.0)
        assert 0 < endpoints[0].outstanding < 20

    def test_it_gets_another_chance(self) -> None:
        _, endpoints = warm(2)
        self.feed(endpoints, (2.0, 0.1))
        endpoints[1].used_at = 5.0
        assert pick(endpoints, SLOW_FOR_S - 1) is endpoints[1]
        assert pick(endpoints, SLOW_FOR_S + 1) is endpoints[0]

    def test_a_slow_version_is_nobodys_fault(self) -> None:
        _, endpoints = warm(4)
        self.feed(endpoints, (20.0, 22.0, 25.0, 19.0))
        assert all(e.slow == 1 for e in endpoints)

    def test_the_first_answers_are_not_held_against_it(self) -> None:
        _, endpoints = warm(2)
        self.feed(endpoints[1:], (0.1,))
        for _ in range(3):
            first_token_came(endpoints[0], 60.0, endpoints, 0.0)
        for _ in range(8):
            first_token_came(endpoints[0], 0.1, endpoints, 0.0)
        assert endpoints[0].slow == 1


class TestDraining:
    def test_it_gets_nothing_new_and_keeps_what_is_known(self) -> None:
        book, endpoints = warm(2)
        endpoints[0].memory.remember(CHAIN)
        assert book.replace({"a": [Address("http://h:1", draining=True), Address("http://h:2")]})
        assert not book.replace({"a": [Address("http://h:1", draining=True), Address("http://h:2")]})
        one, two = book.of("a")
        assert pick(book.of("a"), 1.0, (), Demand(chain=CHAIN)) is two
        assert pick(book.of("a"), 1.0, {two.url}) is None
        assert book.ready_counts(1.0) == {"a": 1}
        assert book.replace({"a": [Address("http://h:1"), Address("http://h:2")]})
        assert pick(book.of("a"), 1.0, (), Demand(chain=CHAIN)) is one

    def test_an_application_that_only_drains_is_not_ready(self) -> None:
        book, endpoints = warm(1)
        answer_badly(endpoints[0], endpoints, 9)
        book.replace({"a": [Address("http://h:1", draining=True)]})
        assert not book.ready("a", 1.0)

    def test_an_address_that_is_told_twice_is_one_endpoint(self) -> None:
        book = EndpointBook()
        book.replace({"a": [Address("http://h:1"), Address("http://h:1")]})
        assert len(book.of("a")) == 1
        assert not book.replace({"a": [Address("http://h:1"), Address("http://h:1")]})
