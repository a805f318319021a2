"""Mirrored requests through a whole gateway: pairs are judged, and no client notices anything."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitoring.tracing.settings import TracingSettings, Transport
from rollout.analysis.ledger import EvidenceIncrement, Ledger
from rollout.observation import Verdict
from rollout.specs import parse_spec
from serving.gateway.observing import Over
from serving.knobs import QueueSettings
from serving.mirroring import PAIRED_WEIGHT, MirrorSettings
from serving.outcomes import Cause, Signal, Total
from serving.traffic import ModelTraffic, Role, Tester, TrafficTable
from tests.integration.gateway_fakes import (
    CANARY_DIGEST,
    SALT,
    STABLE_DIGEST,
    FakeEngine,
    Rig,
    revision,
    rig,
    table,
    until,
)

pytestmark = pytest.mark.integration

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
PAIRS = MirrorSettings(baseline_share=0)
AGAIN = MirrorSettings(baseline_share=1)
MARK = "x-tidegate-mirror"


def shadow(sequence: int, percent: int = 100, rollout: str | None = "r1", weight: int = 0, **more: Any) -> TrafficTable:
    model = ModelTraffic(
        model="chat", salt=SALT, rollout=rollout, mirror_percent=percent,
        revisions=(revision(Role.STABLE, 100 - weight), revision(Role.CANARY, weight)), **more,
    )  # fmt: skip
    return TrafficTable(fence=1, sequence=sequence, issued_at=time.time(), models=(model,))


async def ask(http: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={**CHAT, **more})


def copies(engine: FakeEngine) -> list[dict[str, Any]]:
    return [body for _, headers, body in engine.requests if headers.get(MARK) == "1"]


def is_copy(engine: FakeEngine, body: dict[str, Any]) -> bool:
    """By the mark of the body: each request of a test has its own."""
    return any(b.get("mark") == body["mark"] for b in copies(engine))


async def over(r: Rig) -> None:
    """Wait until every pair has ended and was told."""

    def told() -> bool:
        counts = [c.total() for c in r.gateway.recorder.ledger._counts.values()]
        return r.controller.totals == {(t.model, t.rollout, t.digest, t.weight): t for t in counts}

    await until(lambda: r.gateway.mirroring.in_flight == 0, within_s=10)
    await r.settled()
    await until(told)


def paired(r: Rig, digest: str, rollout: str = "r1") -> Total:
    return r.controller.totals[("chat", rollout, digest, PAIRED_WEIGHT)]


async def results(r: Rig, http: httpx.AsyncClient) -> dict[tuple[str, str], int]:
    """By (version, result)."""
    text = (await http.get(r.admin_url + "/metrics")).text
    found = {}
    for line in text.splitlines():
        if line.startswith("tidegate_mirrored_requests_total{"):
            labels = dict(pair.split("=") for pair in line[line.index("{") + 1 : line.index("}")].split(","))
            found[(labels["version"].strip('"'), labels["result"].strip('"'))] = int(float(line.split()[-1]))
    return found


async def test_clients_see_stable_only_and_pairs_are_counted_on_both(tmp_path: Path) -> None:
    async with rig(tmp_path, first=shadow(1), mirror=PAIRS) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.canary.do = lambda body: {"text": "shadow", "piece": "shadow "}
        for i in range(6):
            answer = await http.post(
                "/v1/chat/completions?x=1",
                json={**CHAT, "stream": i % 2 == 0, "mark": i},
                headers={"x-request-id": f"mine-{i}", "authorization": "Bearer secret"},
            )
            assert answer.status_code == 200
            assert "shadow" not in answer.text
            assert answer.text.count(f"hello {i}") == (5 if i % 2 == 0 else 1)
            assert answer.headers["x-tidegate-role"] == "stable"
        await over(r)
        assert [b["mark"] for b in copies(r.canary)] == list(range(6))
        assert copies(r.stable) == []
        ids = [h["x-request-id"] for _, h, _ in (*r.stable.requests, *r.canary.requests)]
        assert len(set(ids)) == 12
        for target, headers, body in r.canary.requests:
            assert target == "/v1/chat/completions?x=1"
            assert "authorization" not in headers
            assert "x-client-request-id" not in headers
            stream = body["mark"] % 2 == 0
            metered = {"stream_options": {"include_usage": True}} if stream else {}
            assert body == {**CHAT, "stream": stream, "mark": body["mark"], **metered}
        assert r.controller.events == []
        for digest in (STABLE_DIGEST, CANARY_DIGEST):
            total = paired(r, digest)
            assert (total.admitted, total.settled, total.forced, total.settled_events) == (6, 6, 0, {})
        canary = paired(r, CANARY_DIGEST)
        assert canary.similarity_n == 6
        assert canary.similarity_sum < 1.0
        assert r.controller.settled_through["chat"] == 6
        assert r.controller.totals[("chat", "r1", STABLE_DIGEST, 0)].forced == 6


class Hears:
    """An observer that only remembers."""

    def __init__(self, seen: list[Over]) -> None:
        self.seen = seen

    def over(self, over: Over) -> None:
        self.seen.append(over)


async def test_a_copy_is_no_attempt_of_its_requests_trace(tmp_path: Path) -> None:
    tracing = TracingSettings(endpoint="http://127.0.0.1:9", transport=Transport.HTTP)
    async with (
        rig(tmp_path, first=shadow(1), mirror=PAIRS, tracing=tracing) as r,
        httpx.AsyncClient(base_url=r.url) as http,
    ):
        seen: list[Over] = []
        r.gateway.recorder.observer = Hears(seen)
        r.stable.do = lambda _: {"before_s": 0.05}
        await ask(http)
        await over(r)
        (found,) = seen
        assert [t.version for t in found.trail.tries] == ["1.0.0"]
        assert "traceparent" not in r.canary.requests[-1][1]


@pytest.mark.parametrize(("mirror", "version"), [(PAIRS, "1.1.0"), (AGAIN, "1.0.0")], ids=["canary", "stable"])
async def test_a_mirror_is_in_no_clients_metrics_and_in_nobodys_usage(
    tmp_path: Path, mirror: MirrorSettings, version: str
) -> None:
    async with rig(tmp_path, first=shadow(1), mirror=mirror) as r, httpx.AsyncClient(base_url=r.url) as http:
        for i in range(3):
            assert (await ask(http, mark=i)).status_code == 200
        await over(r)
        metrics = (await http.get(r.admin_url + "/metrics")).text
        assert 'tidegate_requests_total{model="chat",outcome="ok",version="1.0.0"} 3.0' in metrics
        assert 'outcome="ok",version="1.1.0"' not in metrics
        assert await results(r, http) == {(version, "sent"): 3}
        used = r.gateway.protection.usage.book.snapshot()
        assert [(model, of, requests, tokens) for _, _, model, of, requests, tokens, *_ in used] == [
            ("chat", "1.0.0", 3, 21)
        ]


FAULTS = {
    "5xx": ({"status": 503}, Signal.ERROR, Cause.VERSION),
    "4xx": ({"status": 400}, Signal.ENGINE_4XX, Cause.VERSION),
    "dies": ({"do": "die"}, Signal.ERROR, Cause.VERSION),
    "dies in the answer": ({"do": "die-mid", "chunks": 6}, Signal.ERROR, Cause.VERSION),
    "is gone": ({"do": "die", "gone": True}, Signal.ERROR, Cause.ENDPOINT_LOST),
    "says nothing": ({"text": "", "piece": ""}, Signal.EMPTY, Cause.VERSION),
    "is cut by its limit": ({"finish": "length"}, Signal.LENGTH_STOP, Cause.VERSION),
    "loops": ({"text": "no more no more " * 20, "piece": "no more no more " * 8}, Signal.REPETITION, Cause.VERSION),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("fake", "signal", "cause"), FAULTS.values(), ids=FAULTS.keys())
async def test_both_halves_are_judged_alike(
    tmp_path: Path, fake: dict[str, Any], signal: Signal, cause: Cause, stream: bool
) -> None:
    async with rig(tmp_path, first=shadow(1), mirror=PAIRS) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.canary.do = r.stable.do = lambda body: fake
        if not fake.get("gone"):
            await ask(http, stream=stream)
            await over(r)
            assert r.controller.events == [], "both show it"
            assert paired(r, STABLE_DIGEST).settled_events == paired(r, CANARY_DIGEST).settled_events == {signal: 1}
        both = int(not fake.get("gone"))
        r.stable.do = lambda body: {}
        answer = await ask(http, stream=stream)
        assert answer.status_code == 200
        assert "hello" in answer.text
        await over(r)
        assert paired(r, CANARY_DIGEST).settled_events == {signal: both + 1}
        assert paired(r, STABLE_DIGEST).settled_events == ({signal: 1} if both else {})
        if fake.get("gone"):
            await r.canary.start(r.canary.port)
            for endpoint in r.gateway.book.of("canary-app"):
                endpoint.ejected_until = 0.0
        r.canary.do, r.stable.do = r.stable.do, lambda body: fake
        await ask(http, stream=stream)
        await over(r)
        assert [(e.arm, e.signal, e.cause) for e in r.controller.events] == [
            (Role.CANARY, signal, cause), (Role.STABLE, signal, cause)]  # fmt: skip
        assert [e.digest for e in r.controller.events] == [CANARY_DIGEST, STABLE_DIGEST]
        for event in r.controller.events:
            assert (event.paired, event.weight, event.session, event.rollout) == (True, PAIRED_WEIGHT, None, "r1")
        assert [e.admission for e in r.controller.events] == [both + 1, both + 2]
        assert r.controller.settled_through["chat"] == both + 2


async def test_a_hanging_shadow_delays_nobody_and_is_a_time_out(tmp_path: Path) -> None:
    mirror = MirrorSettings(baseline_share=0, timeout_s=0.5)
    async with rig(tmp_path, first=shadow(1), mirror=mirror) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.canary.do = lambda body: {"do": "hang"} if body["mark"] == 0 else {"chunks": 1000, "delay_s": 0.02}
        for mark in (0, 1):
            assert (await ask(http, mark=mark, stream=mark == 1)).status_code == 200
            assert r.canary.busy, "the copy is still under way"
        await over(r)
        await until(lambda: r.canary.aborted == 2)
        assert [(e.arm, e.signal, e.cause) for e in r.controller.events] == [
            (Role.CANARY, Signal.ERROR, Cause.TIMEOUT)] * 2  # fmt: skip
        assert await results(r, http) == {("1.1.0", "failed"): 2}
        r.canary.do = r.stable.do = lambda body: {"before_s": 0.8}
        assert (await ask(http, mark=2)).status_code == 200
        await over(r)
        assert len(r.controller.events) == 2, "stable took longer than the limit too"
        assert paired(r, STABLE_DIGEST).settled_events == {"error": 1}


async def test_a_pair_whose_client_left_is_nobodys(tmp_path: Path) -> None:
    async with rig(tmp_path, first=shadow(1), mirror=PAIRS) as r, httpx.AsyncClient(base_url=r.url) as http:
        for mark, canary in enumerate(({"chunks": 1000, "delay_s": 0.01}, {"status": 500})):
            r.stable.do = lambda body: {"chunks": 1000, "delay_s": 0.01}
            r.canary.do = lambda body, canary=canary: canary
            body = {**CHAT, "stream": True, "mark": mark}
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for _ in answer.aiter_bytes():
                    if len(r.canary.requests) > mark:
                        break
            await over(r)
        await until(lambda: r.canary.aborted == 1)
        assert r.controller.events == []
        for digest in (STABLE_DIGEST, CANARY_DIGEST):
            total = paired(r, digest)
            assert (total.admitted, total.settled, total.forced, total.settled_events) == (0, 0, 2, {})
        assert r.controller.settled_through["chat"] == 2, "they hold nothing up"
        assert sum((await results(r, http)).values()) == 2


async def test_mirrors_beyond_the_budget_are_dropped(tmp_path: Path) -> None:
    mirror = MirrorSettings(baseline_share=0, most_in_flight=2, timeout_s=1.0)
    async with rig(tmp_path, first=shadow(1), mirror=mirror) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.canary.do = lambda body: {"do": "hang"}
        for mark in range(6):
            assert (await ask(http, mark=mark)).status_code == 200
        await over(r)
        assert [b["mark"] for b in copies(r.canary)] == [0, 1]
        assert await results(r, http) == {("1.1.0", "dropped"): 4, ("1.1.0", "failed"): 2}
        assert paired(r, CANARY_DIGEST).admitted == 2


async def test_a_busy_shadow_gets_no_more(tmp_path: Path) -> None:
    queue = QueueSettings(endpoint_concurrency=4)
    async with (
        rig(tmp_path, first=shadow(1), mirror=PAIRS, queue=queue) as r,
        httpx.AsyncClient(base_url=r.url) as http,
    ):
        r.canary.do = lambda body: {"do": "hang"}
        for mark in range(4):
            assert (await ask(http, mark=mark)).status_code == 200
        assert len(copies(r.canary)) == 2, "half of its places"
        assert (await results(r, http))[("1.1.0", "dropped")] == 2


async def test_a_rollback_cancels_mirrors_under_way_and_no_client(tmp_path: Path) -> None:
    async with rig(tmp_path, first=shadow(1), mirror=PAIRS) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.stable.do = lambda body: {"chunks": 20, "delay_s": 0.05}
        r.canary.do = lambda body: {"do": "hang"}
        asked = [asyncio.create_task(ask(http, stream=True, mark=i)) for i in range(3)]
        await until(lambda: len(r.canary.busy) == 3)
        await r.apply(table(2, None))
        await until(lambda: r.canary.aborted == 3)
        for i, answer in enumerate(await asyncio.gather(*asked)):
            assert answer.text.count(f"hello {i}") == 20
        await over(r)
        assert r.controller.events == []
        total = paired(r, CANARY_DIGEST)
        assert (total.admitted, total.forced, total.in_flight) == (0, 3, 0)
        assert r.controller.settled_through["chat"] == 3
        assert r.controller.in_flight.get(CANARY_DIGEST, 0) == 0
        assert len(r.canary.requests) == 3


async def test_a_new_step_with_the_same_shadow_disturbs_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path, first=shadow(1), mirror=PAIRS) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.canary.do = lambda body: {"before_s": 0.5}
        await ask(http)
        await r.apply(shadow(2, percent=1))
        await over(r)
        assert paired(r, CANARY_DIGEST).settled == 1


async def test_the_baseline_asks_stable_again_and_is_no_evidence(tmp_path: Path) -> None:
    async with rig(tmp_path, first=shadow(1), mirror=AGAIN) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.stable.do = lambda body: {"status": 500} if is_copy(r.stable, body) and body["mark"] == 0 else {}
        for mark in range(3):
            assert (await ask(http, mark=mark)).status_code == 200
            await until(lambda: r.gateway.mirroring.in_flight == 0)
        await over(r)
        assert r.canary.requests == []
        assert len(copies(r.stable)) == 3
        total = paired(r, STABLE_DIGEST)
        assert total.baseline_sum == 2.0
        assert (total.admitted, total.settled, total.forced, total.in_flight) == (0, 0, 0, 0)
        assert r.controller.events == []
        assert r.controller.settled_through.get("chat", 0) == 0
        assert await results(r, http) == {("1.0.0", "sent"): 2, ("1.0.0", "failed"): 1}


async def test_a_copy_to_stable_makes_room_for_clients(tmp_path: Path) -> None:
    queue = QueueSettings(endpoint_concurrency=4)
    async with (
        rig(tmp_path, first=shadow(1), mirror=AGAIN, queue=queue) as r,
        httpx.AsyncClient(base_url=r.url, timeout=20) as http,
    ):
        r.stable.do = lambda body: {"do": "hang"} if body["mark"] == 0 and len(r.stable.requests) > 1 else {}
        assert (await ask(http, mark=0)).status_code == 200
        await until(lambda: len(copies(r.stable)) == 1)
        release = asyncio.Event()
        r.stable.do = lambda body: {"chunks": 1 if release.is_set() else 400, "delay_s": 0.01}
        # Four clients fill all places; the copy has to go before the fourth of them would wait.
        asked = [asyncio.create_task(ask(http, mark=i, stream=True)) for i in range(1, 5)]
        await until(lambda: r.stable.aborted == 1)
        await until(lambda: sum(b["mark"] > 0 for _, _, b in r.stable.requests) >= 4, within_s=3)
        assert (await results(r, http))[("1.0.0", "abandoned")] >= 1
        release.set()
        assert [a.status_code for a in await asyncio.gather(*asked)] == [200] * 4


async def test_stopping_abandons_mirrors_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path, first=shadow(1), mirror=PAIRS, drain_s=20.0) as r:
        async with httpx.AsyncClient(base_url=r.url) as http:
            r.canary.do = lambda body: {"do": "hang"}
            assert (await ask(http)).status_code == 200
            await until(lambda: len(r.canary.busy) == 1)
        begun = time.monotonic()
        await r.gateway.stop()
        assert time.monotonic() - begun < 10.0, "not the drain window"
        await until(lambda: r.canary.aborted == 1)
        assert r.controller.events == []
        assert paired(r, CANARY_DIGEST).forced == 1


async def test_what_has_effects_is_stripped_or_not_copied(tmp_path: Path) -> None:
    async with rig(tmp_path, first=shadow(1), mirror=PAIRS) as r, httpx.AsyncClient(base_url=r.url) as http:
        assert (await ask(http, store=True, user="ann", mark=0)).status_code == 200
        for more in (
            {"input": "你好"},
            {"input": "hi", "background": True},
            {"input": "hi", "previous_response_id": "resp_1"},
            {"input": "hi", "tools": [{"type": "web_search"}]},
        ):
            await http.post("/v1/responses", json={"model": "chat", "mark": 1, **more})
        await http.post("/v1/embeddings", json={"model": "chat", "input": "hi"})
        await until(lambda: len(copies(r.canary)) == 2)
        await until(lambda: r.gateway.mirroring.in_flight == 0)
        assert copies(r.canary) == [
            {**CHAT, "user": "ann", "mark": 0},
            {"model": "chat", "mark": 1, "input": "你好", "store": False},
        ]
        assert r.stable.requests[0][2]["store"] is True, "the client's own request is as it was"
        assert len(r.stable.requests) == 6
        assert (await results(r, http))[("1.1.0", "skipped")] == 3


LEFT_ALONE: dict[str, tuple[TrafficTable, Callable[[Rig], object], dict[str, Any], dict[str, str]]] = {
    "nothing is to be mirrored": (shadow(1, percent=0), lambda r: None, {}, {}),
    "nothing is judged": (shadow(1, rollout=None), lambda r: None, {}, {}),
    "the canary has weight": (shadow(1, weight=1), lambda r: None, {}, {}),
    "no canary": (table(1, None), lambda r: None, {}, {}),
    "the version is pinned": (shadow(1), lambda r: None, {"model": "chat@1.0.0"}, {}),
    "a tester's request": (
        shadow(1, testers=(Tester(header="x-tester", value="1"),)), lambda r: None, {}, {"x-tester": "1"}),
    "the shadow is not ready": (
        shadow(1), lambda r: r.source.set({"stable-app": [r.stable.url]}), {}, {}),
    "the body is too long": (shadow(1), lambda r: None, {"user": "x" * 2000}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("first", "prepare", "more", "headers"), LEFT_ALONE.values(), ids=LEFT_ALONE.keys())
async def test_what_is_not_to_be_mirrored_is_left_alone(
    tmp_path: Path, first: TrafficTable, prepare: Callable[[Rig], object], more: dict[str, Any], headers: dict[str, str]
) -> None:
    mirror = MirrorSettings(baseline_share=0.5, most_body_bytes=1000)
    async with rig(tmp_path, first=first, mirror=mirror) as r, httpx.AsyncClient(base_url=r.url) as http:
        prepare(r)
        for _ in range(5):
            answer = await http.post("/v1/chat/completions", json={**CHAT, **more}, headers=headers)
            assert answer.status_code == 200
        await r.settled()
        assert copies(r.stable) == copies(r.canary) == []
        assert all(weight != PAIRED_WEIGHT for _, _, _, weight in r.controller.totals)


async def test_without_the_controllers_lease_nothing_is_mirrored(tmp_path: Path) -> None:
    async with (
        rig(tmp_path, first=shadow(1), mirror=PAIRS, lease_s=0.3) as r,
        httpx.AsyncClient(base_url=r.url) as http,
    ):
        r.controller.beating = False
        await until(lambda: not r.gateway.state.lease_valid(time.monotonic()))
        assert (await ask(http)).status_code == 200
        await r.settled()
        assert copies(r.canary) == []
        r.controller.beating = True
        await until(lambda: r.gateway.state.lease_valid(time.monotonic()))
        assert (await ask(http)).status_code == 200
        await until(lambda: len(copies(r.canary)) == 1)


async def test_the_controller_takes_a_bad_shadow_back_and_not_a_good_one(tmp_path: Path) -> None:
    """What the gateway tells, read by the controller's own ledger."""
    async with rig(tmp_path, first=shadow(1), mirror=PAIRS) as r, httpx.AsyncClient(base_url=r.url) as http:
        spec = parse_spec({"model": "chat", "version": "1.1.0", "strategy": {"shadow": {}}})
        for rollout, bad in (("r1", False), ("r2", True)):
            await r.apply(shadow(2 + bad, rollout=rollout))
            r.canary.do = lambda body, bad=bad: {"status": 500} if bad and body["mark"] % 2 else {}
            for mark in range(40):
                await ask(http, mark=mark)
            await over(r)
            ledger = Ledger(rollout, spec, canary=CANARY_DIGEST, stable=STABLE_DIGEST)
            ledger.add(
                EvidenceIncrement(
                    rollout=rollout, gateway="g", boot="b",
                    events=tuple(e for e in r.controller.events if e.rollout == rollout),
                    totals=tuple(t for t in r.controller.totals.values() if t.rollout == rollout),
                    settled_through=r.controller.settled_through["chat"],
                )
            )  # fmt: skip
            (error,) = (reading for reading in ledger.readings() if reading.name == Signal.ERROR)
            assert (error.verdict is Verdict.FAILED) is bad
            assert ledger.pairs == 40
            assert error.canary.events == (20 if bad else 0)
            alike = ledger.similarity()
            assert alike is not None
            assert (alike.pairs, alike.to_stable) == (20 if bad else 40, 1.0)


async def test_every_drawn_request_is_counted_once_whatever_happens(tmp_path: Path) -> None:
    rng = random.Random(11)
    mirror = MirrorSettings(baseline_share=0.3, most_in_flight=20, timeout_s=2.0)
    kinds = [{}, {}, {"status": 500}, {"status": 400}, {"do": "die"}, {"do": "die-mid"}, {"finish": "length"},
             {"chunks": 60, "delay_s": 0.02}, {"do": "hang"}]  # fmt: skip
    async with rig(tmp_path, first=shadow(1), mirror=mirror) as r:
        r.stable.do = lambda body: rng.choice(kinds[:-1])
        r.canary.do = lambda body: rng.choice(kinds)
        seen: Counter[int] = Counter()

        async def one(http: httpx.AsyncClient, mark: int) -> None:
            try:
                answer = await http.post(
                    "/v1/chat/completions", json={**CHAT, "stream": mark % 3 > 0, "mark": mark},
                    timeout=0.4 if mark % 5 == 0 else 20,
                )  # fmt: skip
                seen[answer.status_code] += 1
            except httpx.HTTPError:
                seen[0] += 1

        async with httpx.AsyncClient(base_url=r.url, limits=httpx.Limits(max_connections=30)) as http:
            for batch in range(6):
                await asyncio.gather(*(one(http, batch * 25 + i) for i in range(25)))
                if batch == 3:
                    await r.apply(shadow(2, percent=0))  # no more, and again under another rollout
                    await r.apply(shadow(3, rollout="r2"))
            await over(r)
            counted = await results(r, http)
        assert sum(seen.values()) == 150
        to_canary = sum(n for (version, result), n in counted.items() if version == "1.1.0" and result != "dropped")
        pairs = {rollout: paired(r, CANARY_DIGEST, rollout) for rollout in ("r1", "r2")}
        assert sum(t.admitted + t.forced for t in pairs.values()) == to_canary > 0
        assert r.controller.settled_through["chat"] == to_canary
        for rollout, canary in pairs.items():
            stable = paired(r, STABLE_DIGEST, rollout)
            assert canary.settled == canary.admitted == stable.admitted == stable.settled
            assert (canary.in_flight, stable.in_flight) == (0, 0)
            for signal in (Signal.ERROR, Signal.ENGINE_4XX):
                mine = [e for e in r.controller.events if (e.rollout, e.signal) == (rollout, signal)]
                on_canary = sum(e.arm is Role.CANARY for e in mine)
                # Concordant pairs cancel out: what one arm has more of is what it alone shows more often.
                more = canary.settled_events.get(signal, 0) - stable.settled_events.get(signal, 0)
                assert on_canary - (len(mine) - on_canary) == more
        admissions = [e.admission for e in r.controller.events if e.signal is Signal.ERROR]
        assert len(set(admissions)) == len(admissions)
        assert r.gateway.recorder.in_flight[STABLE_DIGEST] == r.gateway.recorder.in_flight[CANARY_DIGEST] == 0
        assert all(e.outstanding == 0 for a in ("stable-app", "canary-app") for e in r.gateway.book.of(a))


async def test_scores_of_a_pair_are_told_of_both_answers_and_judged_by_their_difference(tmp_path: Path) -> None:
    async with (
        rig(tmp_path, first=shadow(1, scores=("length",)), mirror=PAIRS) as r,
        httpx.AsyncClient(base_url=r.url) as http,
    ):
        r.canary.do = lambda body: {"tokens": 50}
        for mark in range(40):
            assert (await ask(http, mark=mark)).status_code == 200
        await over(r)
        scores = [e for e in r.controller.events if e.signal == "score/length"]
        assert Counter((e.arm, e.score, e.paired) for e in scores) == {
            (Role.STABLE, 5.0, True): 40, (Role.CANARY, 50.0, True): 40,
        }  # fmt: skip
        assert all(len([e for e in scores if e.admission == n]) == 2 for n in {e.admission for e in scores})
        spec = parse_spec({"model": "chat", "version": "1.1.0", "strategy": {"shadow": {}},
                           "analysis": {"signals": [{"name": "score/length"}]}})  # fmt: skip
        ledger = Ledger("r1", spec, canary=CANARY_DIGEST, stable=STABLE_DIGEST)
        ledger.add(EvidenceIncrement(rollout="r1", gateway="g", boot="b", events=tuple(r.controller.events)))
        assert ledger.readings()[0].verdict is Verdict.FAILED
