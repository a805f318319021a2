"""`tidegate log` against a gateway's log and a control plane: who may read it, and that replays ask the same."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.models import Bump, RegisterRequest
from registry.stores.memory import MemoryStore
from serving.request_log.settings import RequestLogSettings
from tests.integration import control_rig
from tests.integration.gateway_fakes import rig, table, until
from tests.integration.test_request_log import LOGGED, chat, logged, with_policy
from tidegate.cli.main import run
from tidegate.request_log import HomesRequestLog
from tidegate.settings import Settings

pytestmark = pytest.mark.integration


async def test_requests_are_read_replayed_exported_and_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    first = with_policy(table(1, 50), LOGGED)
    settings = {"request_log": RequestLogSettings(ratio=1.0)}
    async with (
        rig(home, first=first, **settings) as r,
        control_rig.running(logged=HomesRequestLog(Settings(home=home))) as control,
        httpx.AsyncClient(base_url=r.url) as http,
    ):
        for name, value in {
            "TIDEGATE_HOME": home, "TIDEGATE_KEY": control_rig.TOKEN, "TIDEGATE_GATEWAY_PORT": r.gateway.port,
            "TIDEGATE_CONTROL_PORT": control.url.rpartition(":")[2],
        }.items():  # fmt: skip
            monkeypatch.setenv(name, str(value))

        async def tidegate(*argv: str) -> tuple[int, str, str]:
            code = await asyncio.to_thread(run, ["log", *argv])
            told = capsys.readouterr()
            return code, told.out, told.err

        prompts = [f"{q}，我的卡号是 4111 1111 1111 1111" for q in ("北京的天气怎么样？", "question 2", "𠮷野家 🍚")]
        r.stable.do = lambda body: {"text": "今天晴。"}
        for prompt in prompts:
            asked = await http.post("/v1/chat/completions", json=chat(prompt, user="jane", temperature=0.5))
        request_id = asked.headers["x-request-id"]
        await http.post("/v1/feedback", json={"request_id": request_id, "rating": "down"})
        kept = [line["prompt"]["messages"] for line in await logged(r, 3)]
        await until(lambda: bool(HomesRequestLog(Settings(home=home)).search({"rating": "down"}, 1)), within_s=20)

        code, out, _ = await tidegate("show", request_id, "--json")
        assert (code, json.loads(out)["request_id"]) == (0, request_id)
        code, out, _ = await tidegate("list", "--rating", "down", "-o", "name")
        assert (code, out.split()) == (0, [request_id])
        registry = MemoryStore(tmp_path / "registry")
        for _ in range(2):
            registry.register(RegisterRequest(model="chat", source="sim:?seed=1", bump=Bump.MINOR))
        monkeypatch.setattr("tidegate.composition.build_registry", lambda settings: registry)
        code, out, _ = await tidegate("export", str(tmp_path / "cases.jsonl"), "--rating", "down", "--to-registry")
        (case,) = map(json.loads, (tmp_path / "cases.jsonl").read_text().splitlines())
        assert (case["rating"], case["request_id"], len(case["outputs"])) == ("down", request_id, 1)

        code, out, _ = await tidegate("export", str(tmp_path / "shadow.jsonl"), "--bodies")
        bodies = [json.loads(line) for line in (tmp_path / "shadow.jsonl").read_text().splitlines()]
        assert [body["messages"] for body in bodies] == kept
        assert {"model", "temperature"} <= bodies[0].keys()
        rated = registry.get("chat", case["version"])
        assert rated.metrics == {"feedback.up": 0.0, "feedback.down": 1.0}
        assert request_id in registry.cases[rated.reference, "feedback"]

        r.canary.requests.clear()
        code, out, err = await tidegate("replay", "--to", "chat@1.1.0", "--at-once", "1", "-f", str(tmp_path / "both"))
        assert (code, "3 requests asked of chat@1.1.0: 3 answered" in out) == (0, True), err
        again: list[dict[str, Any]] = [body for _, _, body in r.canary.requests]
        assert [body["messages"] for body in again] == kept, "the same prompts, as they were kept"
        asked_again = "".join(body["messages"][0]["content"] for body in again)
        assert all(part in asked_again for part in ("北京的天气怎么样？，我的卡号是", "𠮷野家 🍚"))
        assert [body["temperature"] for body in again] == [0.5] * 3
        assert all("4111" not in json.dumps(body) for body in again)
        assert len((tmp_path / "both").read_text().splitlines()) == 3
        code, out, err = await tidegate("replay", "--to", "chat@9.9.9")
        assert (code, "none of them was answered" in err) == (1, True)

        code, out, err = await tidegate("erase", "--user", "jane", "-y")
        assert (code, out) == (0, "4 lines and vectors erased\n"), err
        code, _, err = await tidegate("show", request_id)
        assert (code, "is not in the log" in err) == (1, True)

        keys = {
            role: (await control.post("/api/v1/keys", {"name": role, "roles": [role]})).json()["key"]
            for role in ("data-reader", "operator")
        }
        assert (await control.get("/api/v1/requests", keys["data-reader"])).status_code == 200
        assert (await control.post("/api/v1/requests/erase", {"user": "x"}, keys["data-reader"])).status_code == 403
        assert (await control.get("/api/v1/requests", keys["operator"])).status_code == 403
