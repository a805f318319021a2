"""Votes through a real gateway: counted once, for the version that answered, as evidence where chance had picked it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.admission import Reason, Rejection
from serving.gateway.seams import ANYBODY
from serving.outcomes import THUMBS_DOWN
from serving.traffic import Role
from tests.integration.gateway_fakes import CANARY_DIGEST, Rig, rig, session_on, table, until

pytestmark = pytest.mark.integration


async def ask(http: httpx.AsyncClient, **headers: str) -> str:
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
    answer = await http.post(
        "/v1/chat/completions", json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    assert answer.status_code == 200
    return answer.headers["x-request-id"]


async def vote(http: httpx.AsyncClient, request_id: str, rating: str = "down", **more: Any) -> httpx.Response:
    return await http.post("/v1/feedback", json={"request_id": request_id, "rating": rating, **more})


def told(r: Rig) -> list[Any]:
    return [e for e in r.controller.events if e.signal == THUMBS_DOWN]


async def test_a_thumb_down_is_an_event_of_the_arm_and_weight_at_admission(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        session = session_on(Role.CANARY, 10)
        ids = [await ask(http, x_session_id=session) for _ in range(3)]
        alone = await ask(http)
        await r.settled()
        await r.apply(table(2, 10))  # the weight changes before anybody votes
        for request_id in (*ids, alone):
            answer = await vote(http, request_id, comment="no")
            assert (answer.status_code, answer.json()["counted"]) == (200, True)
        await until(lambda: len(told(r)) == 4)
        events = told(r)
        assert {(e.arm, e.digest, e.weight, e.rollout) for e in events[:3]} == {(Role.CANARY, CANARY_DIGEST, 50, "r1")}
        assert len({e.session for e in events}) == 2, "one session is one unit, whatever it votes"
        assert all(e.admission <= r.gateway.recorder.ledger.settled_through()["chat"] for e in events)
        metrics = (await http.get(f"{r.admin_url}/metrics")).text
        assert 'tidegate_feedback_total{model="chat",rating="down",version="1.1.0"} ' in metrics


async def test_a_vote_counts_once_and_nobody_elses(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        request_id = await ask(http)
        assert (await vote(http, request_id)).json()["counted"] is True
        again = await vote(http, request_id)
        assert (again.status_code, again.json()["counted"]) == (200, False)
        changed = await vote(http, request_id, "up")
        assert (changed.status_code, changed.json()["error"]["code"]) == (409, "already_rated")
        forged = request_id[:-1] + ("A" if request_id[-1] != "A" else "B")
        assert (await vote(http, forged)).status_code == 404
        body = f'{{"request_id": "{request_id}", "rating": "down"}}'.encode()
        other = r.gateway.feedback.take(replace(ANYBODY, key_id="another0key0"), body, time.time())
        assert isinstance(other, Rejection)
        assert other.reason is Reason.UNKNOWN_REQUEST
        assert len(told(r)) <= 1


async def test_what_is_no_evidence_is_counted_and_told_nobody(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        pinned = {"model": "chat@1.1.0", "messages": []}
        forced = (await http.post("/v1/chat/completions", json=pinned)).headers["x-request-id"]
        r.canary.do = lambda body: {"status": 503}
        rescued = await ask(http, x_session_id=session_on(Role.CANARY, 50))
        happy = await ask(http, x_session_id=session_on(Role.STABLE, 50))
        earlier = await ask(http, x_session_id=session_on(Role.STABLE, 50, 100))
        for request_id, rating in ((forced, "down"), (rescued, "down"), (happy, "up")):
            assert (await vote(http, request_id, rating)).json()["counted"] is True
        await r.apply(table(2, None))  # the rollout is over
        assert (await vote(http, earlier)).json()["counted"] is True
        await r.settled()
        assert told(r) == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"request_id": "req_x", "rating": "meh"}', 400, "invalid_request"),
        (b'{"request_id": "req_x", "rating": "up", "user": "me"}', 400, "invalid_request"),
        (b'{"request_id": "req_x", "rating": "up"}', 404, "request_not_found"),
        (b'{"comment": "' + b"x" * 20_000 + b'"}', 413, "request_too_large"),
    ],
)
async def test_what_is_no_vote_is_refused(tmp_path: Path, body: bytes, status: int, code: str) -> None:
    async with rig(tmp_path, first=table(1, None)) as r, httpx.AsyncClient(base_url=r.url) as http:
        answer = await http.post("/v1/feedback", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert "x" * 200 not in answer.text
        assert (await http.get("/v1/feedback")).status_code == 405
