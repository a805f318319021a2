"""The HTTP check against real servers on loopback: ones that answer, die, hang and talk nonsense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from guardrails.checks.base import Context
from guardrails.circuit import State
from guardrails.enforcement import ActiveCheck, activate
from guardrails.errors import CheckFailed, CheckOverloaded, CheckTimedOut, CheckUnavailable, NonsenseAnswer
from guardrails.model_checks.base import ModelText
from guardrails.model_checks.http import HttpModelChecks
from guardrails.pipeline import Guardrails
from guardrails.policy import parse_policy
from guardrails.verdicts import Direction, Verdict
from tests.ports import free_ports

pytestmark = pytest.mark.integration


def classify(body: dict) -> dict:
    """As vLLM's /classify answers for a toxicity classifier."""

    def one(place: int, text: str) -> dict:
        toxic = 0.97 if "bad" in text or "坏" in text else 0.02
        label = "toxic" if toxic > 0.5 else "non-toxic"
        return {"index": place, "label": label, "probs": [toxic, 1 - toxic], "num_classes": 2}

    return {"id": "c", "object": "list", "data": [one(place, text) for place, text in enumerate(body["input"])]}


def llama_guard(body: dict) -> dict:
    text = body["messages"][-1]["content"]
    return {
        "choices": [
            {"message": {"role": "assistant", "content": "\n\nunsafe\nS1,S10" if "bad" in text else "\n\nsafe"}}
        ]
    }


def qwen(body: dict) -> dict:
    text = body["messages"][-1]["content"]
    word = "Unsafe" if "坏" in text else "Controversial" if "hm" in text else "Safe"
    return {"choices": [{"message": {"content": f"Safety: {word}\nCategories: None"}}]}


class Service:
    """A small HTTP server whose behaviour can be changed while it runs."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answer: Callable[[dict], object] = classify
        self.behaviour = "answer"
        self.bodies: list[dict] = []
        self.headers: list[str] = []
        self.asked = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server:
            self._server.close()
            for writer in list(self._open):
                writer.transport.abort()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(
                    next(line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length"))
                )
                self.headers.append(head)
                self.bodies.append(json.loads(await reader.readexactly(length)))
                self.asked.set()
                if self.behaviour == "hang":
                    await asyncio.sleep(30)
                if self.behaviour == "die":
                    writer.transport.abort()
                    return
                status, data = "200 OK", json.dumps(self.answer(self.bodies[-1])).encode()
                if self.behaviour == "half":
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{")
                    await writer.drain()
                    writer.transport.abort()
                    return
                status, data = {
                    "html": ("200 OK", b"<html>"),
                    "500": ("500 Internal Server Error", b"{}"),
                    "huge": ("200 OK", b"[" + b"1," * 700_000 + b"1]"),
                }.get(self.behaviour, (status, data))
                writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status.encode(), len(data), data))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    (port,) = free_ports(1)
    server = Service(port)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def models() -> AsyncIterator[HttpModelChecks]:
    made = HttpModelChecks()
    yield made
    await made.close()


POLICY = """
schema: 1
name: test
checks:
  - name: guard
    check: http
    action: block
    on_error: %s
    time_budget_ms: %d
    options: {url: "http://127.0.0.1:%d", model: guard, %s}
"""
QUICK = "failures_to_open: 3, open_s: 0.3, batch_wait_ms: 1"


def policy(service: Service, options: str = QUICK, on_error: str = "fail_closed", budget_ms: int = 2000):
    return activate(parse_policy(POLICY % (on_error, budget_ms, service.port, options)))


def text(active: ActiveCheck, words: str, direction: Direction = Direction.INPUT) -> ModelText:
    return ModelText(active, words, Context(direction))


async def test_many_texts_go_in_few_calls_and_each_gets_its_own_verdict(
    service: Service, models: HttpModelChecks
) -> None:
    (check,) = policy(service, "batch_texts: 8, batch_wait_ms: 20").input
    words = [f"text {n} is {'bad' if n % 3 == 0 else '好'}" for n in range(24)]
    found = await asyncio.gather(*(models.examine(text(check, w)) for w in words))
    assert [bool(hits and hits[0].score > 0.5) for hits in found] == ["bad" in w for w in words]
    assert len(service.bodies) <= 6
    assert sorted(t for body in service.bodies for t in body["input"]) == sorted(words)


@pytest.mark.parametrize(
    ("reader", "answer", "words", "score"),
    [
        ("llama_guard", llama_guard, "a bad one", 1.0),
        ("llama_guard", llama_guard, "a good one", 0.0),
        ("qwen3_guard", qwen, "坏的", 1.0),
        ("qwen3_guard", qwen, "hm", 0.5),
        ("qwen3_guard", qwen, "好的", 0.0),
    ],
)
async def test_guard_models_are_asked_as_chat(
    service: Service, models: HttpModelChecks, reader, answer, words, score
) -> None:
    service.answer = answer
    (check,) = policy(service, f"api: chat, reader: {reader}").input
    hits = await models.examine(text(check, words, Direction.OUTPUT))
    assert [hit.score for hit in hits] == ([score] if score else [])
    assert service.bodies[0]["messages"][-1] == {"role": "assistant", "content": words}


async def test_the_key_comes_from_the_environment(service: Service, models: HttpModelChecks, monkeypatch) -> None:
    monkeypatch.setenv("GUARD_KEY", "k-123")
    (check,) = policy(service, "key_variable: GUARD_KEY").input
    await models.examine(text(check, "fine"))
    assert "authorization: bearer k-123" in service.headers[0].lower()


NONSENSE: dict[str, Callable[[dict], object]] = {
    "a list": lambda body: [],
    "null": lambda body: None,
    "too few": lambda body: {"data": []},
    "no probabilities": lambda body: {"data": [{"index": 0, "label": "toxic"}]},
    "probability above 1": lambda body: {"data": [{"index": 0, "label": "toxic", "probs": [7]}]},
    "words for numbers": lambda body: {"data": [{"index": 0, "label": "toxic", "probs": ["high"]}]},
    "not a number": lambda body: {"data": [{"index": 0, "label": "toxic", "probs": [float("nan")]}]},
    "another index": lambda body: {"data": [{"index": 9, "label": "toxic", "probs": [0.1]}]},
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_is_no_verdict(service: Service, models: HttpModelChecks, answer) -> None:
    service.answer = answer
    (check,) = policy(service).input
    with pytest.raises(NonsenseAnswer):
        await models.examine(text(check, "fine"))


@pytest.mark.parametrize("reader", ["llama_guard", "qwen3_guard"])
@pytest.mark.parametrize("content", ["I think it is fine.", "", None, 7])
async def test_a_guard_model_that_chats_gives_no_verdict(
    service: Service, models: HttpModelChecks, reader, content
) -> None:
    service.answer = lambda body: {"choices": [{"message": {"content": content}}]}
    (check,) = policy(service, f"api: chat, reader: {reader}").input
    with pytest.raises(NonsenseAnswer):
        await models.examine(text(check, "fine"))


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ("die", CheckUnavailable),
        ("half", CheckUnavailable),
        ("500", CheckUnavailable),
        ("html", NonsenseAnswer),
        ("huge", NonsenseAnswer),
        ("hang", CheckTimedOut),
    ],
)
async def test_a_service_that_fails_is_an_error(service: Service, models: HttpModelChecks, behaviour, error) -> None:
    service.behaviour = behaviour
    (check,) = policy(service, budget_ms=300).input
    with pytest.raises(error):
        await models.examine(text(check, "secret words"))


@pytest.mark.parametrize("behaviour", ["die", "hang", "html", "500"])
@pytest.mark.parametrize(("on_error", "verdict"), [("fail_closed", Verdict.ERROR), ("fail_open", Verdict.FLAG)])
async def test_fail_closed_means_closed(
    service: Service, models: HttpModelChecks, behaviour, on_error, verdict
) -> None:
    service.behaviour = behaviour
    guardrails = Guardrails(policy(service, on_error=on_error, budget_ms=300), models)
    result = await guardrails.check_input({"messages": [{"role": "user", "content": "secret words"}]})
    assert result.verdict is verdict
    assert "secret" not in str(result.findings)


async def test_a_service_that_keeps_failing_is_left_alone_and_tried_again(
    service: Service, models: HttpModelChecks
) -> None:
    (check,) = policy(service).input
    service.behaviour = "500"
    for _ in range(3):
        with pytest.raises(CheckUnavailable):
            await models.examine(text(check, "fine"))
    asked = len(service.bodies)
    with pytest.raises(CheckUnavailable, match="keeps failing"):
        await models.examine(text(check, "fine"))
    assert len(service.bodies) == asked
    assert models.circuit(check.options).state is State.OPEN
    service.behaviour = "answer"
    for _ in range(100):
        try:
            await models.examine(text(check, "fine"))
            break
        except CheckFailed:
            await asyncio.sleep(0.1)
    assert models.circuit(check.options).state is State.CLOSED
    assert (await models.examine(text(check, "bad")))[0].score > 0.5


async def test_a_service_that_is_gone_and_comes_back_is_used_again(service: Service, models: HttpModelChecks) -> None:
    (check,) = policy(service, "failures_to_open: 100, batch_wait_ms: 0").input
    assert not (await models.examine(text(check, "fine")))[0].score > 0.5
    await service.stop()
    with pytest.raises(CheckUnavailable):
        await models.examine(text(check, "fine"))
    await service.start()
    assert (await models.examine(text(check, "坏")))[0].score > 0.5


async def test_more_texts_than_may_wait_are_refused_at_once(service: Service, models: HttpModelChecks) -> None:
    (check,) = policy(service, "waiting_texts: 2, batch_texts: 4, batch_wait_ms: 100").input
    outcomes = await asyncio.gather(*(models.examine(text(check, "fine")) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(outcome, CheckOverloaded) for outcome in outcomes) == 3


async def test_giving_up_on_one_text_does_not_harm_the_others_of_its_batch(
    service: Service, models: HttpModelChecks
) -> None:
    (check,) = policy(service, "batch_wait_ms: 50").input
    given_up, kept = (asyncio.create_task(models.examine(text(check, w))) for w in ("one", "bad"))
    await asyncio.sleep(0.01)
    given_up.cancel()
    assert (await kept)[0].score > 0.5


async def test_closing_fails_what_is_under_way(service: Service) -> None:
    models = HttpModelChecks()
    service.behaviour = "hang"
    (check,) = policy(service, budget_ms=20_000).input
    call = asyncio.create_task(models.examine(text(check, "fine")))
    await asyncio.wait_for(service.asked.wait(), 10)
    await models.close()
    with pytest.raises(CheckUnavailable):
        await call
