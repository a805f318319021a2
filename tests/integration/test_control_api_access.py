"""The control plane's door over real sockets: who gets in, who is told what, and what is written down about it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import httpx
import pytest
import websockets
from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import Route

from rollout.access import ROUTES, WEBSOCKET, Right
from rollout.control_api.authentication import ADDRESSES, FAILURES_PER_MINUTE, FailureLimit
from rollout.event_log.base import Kind
from serving.keys import write_key
from tests.integration.control_rig import TOKEN, Rig, follow_as_gateway, running, until

pytestmark = pytest.mark.integration


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    assert set(answer.json()) == {"error"}, answer.text
    told = answer.json()["error"]
    assert set(told) == {"code", "message"}
    return answer.status_code, told["code"], told["message"]


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for route in app.routes:
        if isinstance(route, APIWebSocketRoute):
            found.add((WEBSOCKET, route.path))
        else:
            assert isinstance(route, APIRoute | Route), f"a route of a kind that nobody has thought of: {route}"
            found |= {(method, route.path) for method in (route.methods or set()) - {"HEAD"}}
    return found


async def test_only_the_leader_is_ready_and_everybody_may_ask() -> None:
    for lead, status in ((True, 200), (False, 503)):
        async with running(lead=lead) as rig:
            answer = await rig.http.get("/readyz")
            assert (answer.status_code, answer.json()["ready"]) == (status, lead)
            assert (await rig.http.get("/healthz")).status_code == 200


async def test_every_route_is_in_the_table_and_the_table_names_no_others() -> None:
    async with running(lead=False) as rig:
        listed = await rig.get("/openapi.json")
        assert routes_of(rig.app) == set(ROUTES)
        described = {(m.upper(), p) for p, methods in listed.json()["paths"].items() for m in methods}
        assert described <= set(ROUTES)


async def test_without_a_key_only_what_is_open_answers() -> None:
    async with running() as rig:
        for method, path in ROUTES:
            if method == WEBSOCKET:
                continue
            url = path.format(
                model="chat", verb="pause", key_id="abcdefghijkl", request_id="req_x", namespace="x", version="1"
            )
            answer = await rig.http.request(method, url, json={} if method == "POST" else None)
            if ROUTES[(method, path)] is Right.OPEN:
                assert answer.status_code == 200, url
            else:
                assert error_of(answer)[:2] == (401, "unauthorized"), url
                assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "authorization",
    ["Basic dXNlcjpwYXNz", "Bearer", "bearer-ish x", "", TOKEN],
    ids=["basic", "no key", "another scheme", "empty", "no scheme"],
)
async def test_what_is_no_bearer_key_is_401(authorization: str) -> None:
    async with running(lead=False) as rig:
        answer = await rig.http.get("/api/v1/status", headers={"Authorization": authorization})
        assert error_of(answer)[:2] == (401, "unauthorized")


ASKS: list[tuple[str, str, Any]] = [
    ("GET", "/api/v1/rollouts", None),
    ("GET", "/api/v1/usage", None),
    ("POST", "/api/v1/rollouts/chat/pause", {"reason": "look"}),
    ("POST", "/api/v1/keys", {"name": "another"}),
]
ALLOWED = {
    "viewer": (200, 200, 403, 403),
    "operator": (200, 200, 202, 403),
    "admin": (200, 200, 202, 201),
    "data-reader": (403, 403, 403, 403),
    "gateway": (403, 403, 403, 403),
}


@pytest.mark.parametrize("role", ALLOWED)
async def test_a_key_may_do_what_its_role_says_and_a_refusal_names_the_role(role: str) -> None:
    async with running() as rig:
        await rig.serve_canary()
        key, key_id = await rig.make_key("tester", role)
        for (method, path, body), expected in zip(ASKS, ALLOWED[role], strict=True):
            answer = await rig.http.request(method, path, json=body, headers=rig.as_key(key))
            assert answer.status_code == expected, (path, answer.text)
            if expected == 403:
                needed = "admin" if "keys" in path else "operator" if method == "POST" else "viewer"
                message = error_of(answer)[2]
                assert f"needs the role {needed}" in message
                assert f"tester ({key_id}) has {role}" in message


async def test_a_data_plane_key_opens_nothing_here() -> None:
    async with running() as rig:
        made = await rig.post("/api/v1/keys", {"name": "app"})
        assert made.json()["record"]["scopes"] == ["inference"]
        assert error_of(await rig.get("/api/v1/rollouts", key=made.json()["key"]))[:2] == (403, "forbidden")


async def test_a_revoked_key_is_refused_at_once_and_told_so_only_to_its_holder() -> None:
    async with running() as rig:
        key, key_id = await rig.make_key("ops", "viewer")
        assert (await rig.get("/api/v1/rollouts", key=key)).status_code == 200
        assert (await rig.post(f"/api/v1/keys/{key_id}/revoke")).status_code == 200
        status, code, message = error_of(await rig.get("/api/v1/rollouts", key=key))
        assert (status, code) == (401, "revoked_key")
        assert "ops" in message
        guessed = write_key(key_id, "x" * 43)
        assert error_of(await rig.get("/api/v1/rollouts", key=guessed))[1] == "unknown_key"


async def test_a_key_expires_when_it_said() -> None:
    async with running() as rig:
        key, _ = await rig.make_key("guest", "viewer", expires_in="30d")
        rig.clock[0] = 30 * 86400 - 60
        assert (await rig.get("/api/v1/rollouts", key=key)).status_code == 200
        rig.clock[0] = 30 * 86400 + 1
        assert error_of(await rig.get("/api/v1/rollouts", key=key))[:2] == (401, "expired_key")


async def test_a_controller_that_has_not_read_the_keys_does_not_call_one_unknown() -> None:
    async with running(lead=False) as rig:
        assert error_of(await rig.get("/api/v1/rollouts", key=write_key("abcdefghijkl", "s")))[:2] == (
            503,
            "not_leading",
        )
        assert (await rig.get("/api/v1/status")).status_code == 200  # the bootstrap token needs no log


async def test_wrong_keys_are_answered_429_after_a_while_and_a_right_one_never_is() -> None:
    async with running() as rig:
        codes = [(await rig.get("/api/v1/models", key=f"guess-{i}")).status_code for i in range(15)]
        assert codes == [401] * FAILURES_PER_MINUTE + [429] * 5
        refused = await rig.get("/api/v1/models", key="guess")
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert error_of(refused)[1] == "too_many_failures"
        assert (await rig.get("/api/v1/models")).status_code == 200
        rig.clock[0] = 61.0
        assert (await rig.get("/api/v1/models", key="guess")).status_code == 401


def test_failures_are_counted_by_address_in_bounded_memory() -> None:
    now = [0.0]
    limit = FailureLimit(lambda: now[0], limit=2)
    assert [limit.failed("198.51.100.1") is None for _ in range(3)] == [True, True, False]
    assert limit.failed("198.51.100.2") is None
    assert [limit.failed(f"2001:db8::{i}") is None for i in range(1, 4)] == [True, True, False]  # one customer's /64
    for i in range(2 * ADDRESSES):
        limit.failed(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
    assert len(limit._seen) <= ADDRESSES
    assert limit.failed("198.51.100.1") is None  # long forgotten


# --------------------------------------------------------------------------------------------------------------- audit


async def test_a_command_is_logged_with_the_keys_name_and_where_it_came_from() -> None:
    async with running(trusted=("127.0.0.1",)) as rig:
        await rig.serve_canary()
        key, key_id = await rig.make_key("ops-laptop", "operator")
        headers = {"X-Tidegate-Actor": "somebody else", "X-Forwarded-For": "203.0.113.7"}
        await rig.post("/api/v1/rollouts/chat/pause", {"reason": "pager"}, key=key, **headers)
        told = (await rig.get("/api/v1/rollouts/chat/history")).json()["entries"][-1]
        command = told["payload"]["command"]
        assert (told["kind"], told["actor"]) == ("command", f"ops-laptop ({key_id})")
        assert (command["source"], command["reason"], command["verb"]) == ("203.0.113.7", "pager", "pause")


async def test_nobody_can_make_up_a_source_or_with_a_key_an_actor() -> None:
    async with running() as rig:
        await rig.serve_canary()
        await rig.post("/api/v1/rollouts/chat/pause", **{"X-Forwarded-For": "6.6.6.6", "X-Tidegate-Actor": "ada"})
        entry = next(e for e in reversed(list(rig.log.read())) if e.kind is Kind.COMMAND)
        assert (entry.actor, entry.payload["command"]["source"]) == ("ada", "127.0.0.1")  # the bootstrap token's word


async def test_refusals_are_one_json_line_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as rig:
        await rig.serve_first()
        viewer, key_id = await rig.make_key("dashboards", "viewer")
        caplog.set_level(logging.INFO)
        await rig.post("/api/v1/rollouts/chat/pause", {"reason": "do not log me"}, key=viewer)
        await rig.post("/api/v1/rollouts/chat/pause", {"reason": "do not log me"})
        await rig.get("/api/v1/rollouts", key="tg-abcdefghijkl-veryverysecret")
        lines = [json.loads(r.getMessage()) for r in caplog.records if '"refused"' in r.getMessage()]
        assert [(x["status"], x["actor"], x["source"]) for x in lines] == [
            (403, f"dashboards ({key_id})", "127.0.0.1"),
            (409, "operator", "127.0.0.1"),
            (401, "", "127.0.0.1"),
        ]
        for secret in (viewer, "do not log me", "veryverysecret", TOKEN):
            assert secret not in caplog.text


async def test_a_line_cannot_be_forged_through_the_path(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as rig:
        await rig.http.get("/api/v1/rollouts/x%0a%7B%22event%22:%22promoted%22%7D")
        line = next(r.getMessage() for r in caplog.records if '"refused"' in r.getMessage())
        assert "\n" not in line


# ------------------------------------------------------------------------------------------------------------ gateways


async def test_a_gateway_dials_with_a_gateways_key_and_nobody_else_may() -> None:
    async with running(gateways=0) as rig:
        viewer, _ = await rig.make_key("dashboards", "viewer")
        for key in (viewer, "nonsense"):
            with pytest.raises(websockets.InvalidStatus):
                await follow_as_gateway(rig, "impostor", key)
        key, _ = await rig.make_key("gateway-a", "gateway")
        task = asyncio.create_task(follow_as_gateway(rig, "gateway-a", key))
        await until(lambda: len(rig.router.connections) == 1)
        task.cancel()


async def test_a_gateway_whose_key_is_revoked_is_cut_off() -> None:
    async with running(gateways=0) as rig:
        key, key_id = await rig.make_key("gateway-a", "gateway")
        task = asyncio.create_task(follow_as_gateway(rig, "gateway-a", key))
        await until(lambda: len(rig.router.connections) == 1)
        began = time.monotonic()
        await rig.post(f"/api/v1/keys/{key_id}/revoke")
        await until(lambda: not rig.router.connections)
        await asyncio.gather(task, return_exceptions=True)
        assert time.monotonic() - began < 10


# ---------------------------------------------------------------------------------------------------- bounds and shape


@pytest.mark.parametrize("told", [True, False], ids=["with a length", "chunked"])
async def test_a_body_above_the_bound_is_413(told: bool) -> None:
    async with running(lead=False) as rig:
        body = json.dumps({"spec": {}, "reason": "x" * 300_000}).encode()

        async def chunks() -> Any:
            for i in range(0, len(body), 10_000):
                yield body[i : i + 10_000]

        headers = rig.as_key(TOKEN, **{"content-type": "application/json"})
        try:
            answer = await rig.http.post("/api/v1/rollouts", content=body if told else chunks(), headers=headers)
        except httpx.WriteError:  # the connection may be closed while the rest is still being sent
            return
        assert error_of(answer)[:2] == (413, "too_large")
        assert "262144" in error_of(answer)[2]


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/api/v1/nothing", None, (404, "unknown_route")),
        ("DELETE", "/api/v1/rollouts", None, (405, "wrong_method")),
        ("GET", "/api/v1/rollouts/nobody", None, (404, "unknown_rollout")),
        ("POST", "/api/v1/rollouts", b"{", (400, "invalid_request")),
        ("POST", "/api/v1/rollouts", b"[]", (400, "invalid_request")),
        ("POST", "/api/v1/rollouts", b'{"spec": {}, "specs": {}}', (400, "invalid_request")),
        ("POST", "/api/v1/rollouts", b'{"spec": {"model": "chat"}}', (400, "invalid_spec")),
        ("POST", "/api/v1/rollouts", b'{"spec": {"model": "chat", "version": "9.9.9"}}', (404, "unknown_version")),
        ("POST", "/api/v1/rollouts/chat/fly", b"{}", (400, "invalid_request")),
        ("POST", "/api/v1/rollouts/chat/deploy", b"{}", (409, "refused")),
        ("POST", "/api/v1/rollouts/chat/pause", b'{"reson": "typo"}', (400, "invalid_request")),
        ("POST", "/api/v1/rollouts/chat/resume", b"{}", (409, "refused")),
        ("POST", "/api/v1/rollouts/chat/rollback", b'{"wait_s": 1e9}', (400, "invalid_request")),
        ("GET", "/api/v1/usage?since=yesterday", None, (400, "invalid_request")),
        ("GET", "/api/v1/usage?key=nobody", None, (404, "no_such_key")),
        ("POST", "/api/v1/keys/zzzzzzzzzzzz/revoke", b"{}", (404, "no_such_key")),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
async def test_every_error_has_one_shape(method: str, path: str, body: bytes | None, expected: tuple[int, str]) -> None:
    async with running() as rig:
        await rig.serve_first()
        headers = rig.as_key(TOKEN, **{"content-type": "application/json"})
        answer = await rig.http.request(method, path, content=body, headers=headers)
        assert error_of(answer)[:2] == expected, answer.text


async def test_a_complaint_names_the_field_and_never_shows_what_was_sent() -> None:
    async with running() as rig:
        answer = await rig.post("/api/v1/keys", {"name": "x", "secret": "hunter2", "requests_per_minute": "hunter2"})
        message = error_of(answer)[2]
        assert "secret: unknown field" in message
        assert "requests_per_minute" in message
        assert "hunter2" not in message


async def test_a_defect_is_500_in_the_same_shape(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as rig:

        def broken(_: Rig) -> Any:
            raise ZeroDivisionError

        type(rig.controller).statuses, kept = property(broken), type(rig.controller).statuses  # type: ignore[misc]
        try:
            answer = await rig.get("/api/v1/models")
        finally:
            type(rig.controller).statuses = kept  # type: ignore[misc]
        assert error_of(answer)[:2] == (500, "internal")
