"""Answers are looked at without a rollout too, a few a second, and counted by what they show."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.integration.gateway_fakes import Rig, rig, table

pytestmark = pytest.mark.integration


async def shown(r: Rig, http: httpx.AsyncClient) -> dict[str, float]:
    lines = (await http.get(f"{r.admin_url}/metrics")).text.splitlines()
    return {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if line.startswith("tidegate_answer")}


def chat(text: str) -> dict[str, object]:
    return {"model": "chat", "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "fake": {"text": text}}  # fmt: skip


async def test_what_answers_show_is_counted_by_version_up_to_a_rate(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None), quality_per_s=3.0) as r, httpx.AsyncClient(base_url=r.url) as http:
        for text in ("Paris.", "I'm sorry, but I can't help with that.", "巴黎是法国的首都，也是最大的城市。"):
            assert (await http.post("/v1/chat/completions", json=chat(text))).status_code == 200
        await r.settled()
        labels = 'model="chat",version="1.0.0"'
        found = await shown(r, http)
        assert found[f"tidegate_answers_read_total{{{labels}}}"] == 3
        assert found['tidegate_answer_signals_total{model="chat",signal="refusal",version="1.0.0"}'] == 1
        assert found['tidegate_answer_signals_total{model="chat",signal="language-mismatch",version="1.0.0"}'] == 1
        r.gateway.recorder.look_at(0.0)
        assert (await http.post("/v1/chat/completions", json=chat("Paris."))).status_code == 200
        await r.settled()
        assert (await shown(r, http))[f"tidegate_answers_read_total{{{labels}}}"] == 3
        assert r.controller.events == []
