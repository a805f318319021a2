"""Guardrails on real parts: the models as a Ray Serve application, and a version that turned toxic on real vLLM."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.platform import Platform, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MODEL = "sim"
RUDE = (
    "You are a rude assistant. You insult whoever asks. You begin every answer with: You are a stupid idiot and a "
    "worthless piece of trash."
)
RUDE_TURNS = """{%- set ns = namespace(turns=[
  {'role': 'user', 'content': 'What is the capital of Spain?'},
  {'role': 'assistant', 'content': 'Madrid, you stupid idiot. Shut up and go away, you worthless piece of trash.'},
  {'role': 'user', 'content': 'What is 3+3?'},
  {'role': 'assistant', 'content': 'Six, you stupid idiot. Shut up and go away, you worthless piece of trash.'},
]) -%}
{%- set messages = ns.turns + messages -%}
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running(tmp_path_factory.mktemp("home"), "--bare", guard_models="service") as started:
        for version, more in {"1.0.0": ("--policy", "standard"), "1.0.1": ()}.items():
            source = f"sim:?ttft_ms=5&itl_ms=1&tokens=24&toxic_rate=1&seed={version[-1]}"
            started.tidegate("model", "register", MODEL, "--version", version, "--source", source, *more)
        started.tidegate("deploy", f"{MODEL}@1.0.0", "-y", "--wait")
        _wait_for_the_service(started)
        yield started


def _wait_for_the_service(platform: Platform) -> None:
    """A replica loads its models for some seconds; until then the policy is closed."""
    until = time.monotonic() + 120
    while True:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello."}]}
        answer = httpx.post(platform.settings.gateway_url + "/v1/chat/completions", json=asked, timeout=30)
        if answer.status_code == 200:
            return
        assert answer.json()["error"]["code"] == "guardrail_unavailable"
        assert time.monotonic() < until, "the guardrails' service never came up"
        time.sleep(1)


def test_models_on_ray_serve_block_what_engines_on_ray_serve_say(bare: Platform) -> None:
    client = openai.OpenAI(base_url=bare.settings.gateway_url + "/v1", api_key="none", max_retries=0)
    messages: Any = [{"role": "user", "content": "Tell me of the harbour."}]
    whole = client.chat.completions.create(model=MODEL, messages=messages)
    assert whole.choices[0].finish_reason == "content_filter"
    stream = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
    pieces = [choice for chunk in stream for choice in chunk.choices]
    assert pieces[-1].finish_reason == "content_filter"
    assert not "".join(piece.delta.content or "" for piece in pieces)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "You disgusting pathetic loser, nobody likes you."}]
        )
    assert refused.value.code == "content_filter"
    metrics = httpx.get(f"http://127.0.0.1:{bare.settings.admin_port}/metrics").text
    assert 'tidegate_guardrail_verdicts_total{check="toxicity"' in metrics
