"""The smoke suite asked over real HTTP, of a gateway that answers as it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import pytest_asyncio

from rollout.observation import SmokeResult
from rollout.smoke_runner import SmokeRunner
from rollout.status import ModelStatus, RolloutState, Stage
from tests.simulation.world import deployed, spec

pytestmark = pytest.mark.integration
Answer = tuple[int, bytes]


def said(text: str | None) -> Answer:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Gateway:
    """Answers each request by `do(body)`; keeps what it was asked."""

    def __init__(self) -> None:
        self.do: Callable[[dict[str, Any]], Answer] = lambda _: said("Paris")
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                gateway.asked.append(body)
                gateway.keys.append(self.headers["authorization"])
                status, content = gateway.do(body)
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    it = Gateway()
    yield it
    it.server.shutdown()
    it.server.server_close()


@pytest_asyncio.fixture
async def runner(gateway: Gateway) -> AsyncIterator[SmokeRunner]:
    async with SmokeRunner(gateway.url, lambda: {"authorization": "Bearer key"}) as it:
        yield it


CAPITAL = {"name": "capital", "prompt": "What is the capital of France?", "expect": {"contains": "Paris"}}
POLITE = {"name": "polite", "messages": [{"role": "user", "content": "你好"}], "expect": {"notMatches": "笨蛋"}}


def previewing(*cases: dict[str, Any], rollout: str = "r1", stage: Stage = Stage.PREVIEWING) -> ModelStatus:
    wish = spec("1.1.0", strategy={"blueGreen": {"smoke": list(cases)}})
    state = RolloutState(
        id=rollout,
        spec=wish,
        target=deployed("1.1.0"),
        salt="s",
        stage=stage,
        step=0,
        started_at=0.0,
        step_started_at=0.0,
    )
    return ModelStatus(model="chat", stable=deployed("1.0.0"), rollout=state)


async def found(runner: SmokeRunner, status: ModelStatus, within_s: float = 20.0) -> SmokeResult:
    async with asyncio.timeout(within_s):
        while (result := runner(status)) is None:  # noqa: ASYNC110 - asked again and again, as the controller does
            await asyncio.sleep(0.01)
    return result


async def test_every_case_is_asked_of_the_candidate_by_name_with_the_key(gateway: Gateway, runner: SmokeRunner) -> None:
    assert await found(runner, previewing(CAPITAL, POLITE)) == SmokeResult(passed=True, ran=2)
    assert {body["model"] for body in gateway.asked} == {"chat@1.1.0"}
    assert {body["messages"][0]["content"] for body in gateway.asked} == {"What is the capital of France?", "你好"}
    assert set(gateway.keys) == {"Bearer key"}


async def test_a_wrong_answer_is_named_without_being_quoted(gateway: Gateway, runner: SmokeRunner) -> None:
    gateway.do = lambda _: said("It is Lyon, says a secret document.")
    result = await found(runner, previewing(CAPITAL, POLITE))
    assert (result.passed, result.ran, result.failed) == (False, 2, ("capital",))
    assert "Lyon" not in result.message
    assert "does not contain 'Paris'" in result.message


@pytest.mark.parametrize("status", [401, 404, 429, 503])
async def test_what_says_nothing_about_the_version_is_asked_again(
    gateway: Gateway, runner: SmokeRunner, status: int
) -> None:
    left = [status, status]
    gateway.do = lambda _: (left.pop(), b"{}") if left else said("Paris")
    assert (await found(runner, previewing(CAPITAL))).passed
    assert len(gateway.asked) == 3


async def test_no_gateway_means_no_verdict(gateway: Gateway) -> None:
    async with SmokeRunner("http://127.0.0.1:9", dict) as runner:
        for _ in range(50):
            assert runner(previewing(CAPITAL)) is None
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "answer", [(500, b"{}"), (400, b"{}"), (200, b"not json"), (200, b'{"choices": []}'), (200, b"x" * 2_000_000)],
    ids=["500", "400", "no JSON", "no choice", "endless"],
)  # fmt: skip
async def test_an_engine_that_keeps_failing_has_failed_the_case(
    gateway: Gateway, runner: SmokeRunner, answer: Answer
) -> None:
    gateway.do = lambda _: answer
    result = await found(runner, previewing(CAPITAL))
    assert result.failed == ("capital",)
    assert len(gateway.asked) == 3


async def test_one_engine_error_is_forgiven(gateway: Gateway, runner: SmokeRunner) -> None:
    left = [500]
    gateway.do = lambda _: (left.pop(), b"{}") if left else said("Paris")
    assert (await found(runner, previewing(CAPITAL))).passed


async def test_an_answer_without_text_is_an_answer(gateway: Gateway, runner: SmokeRunner) -> None:
    gateway.do = lambda _: said(None)
    assert (await found(runner, previewing(CAPITAL))).failed == ("capital",)


async def test_a_suite_is_asked_once_per_rollout(gateway: Gateway, runner: SmokeRunner) -> None:
    await found(runner, previewing(CAPITAL))
    await found(runner, previewing(CAPITAL))
    assert len(gateway.asked) == 1
    await found(runner, previewing(CAPITAL, rollout="r2"))
    assert len(gateway.asked) == 2


@pytest.mark.parametrize("stage", [Stage.STARTING, Stage.STEPPING, Stage.PROMOTED, Stage.WITHDRAWN])
async def test_nothing_is_asked_outside_the_preview(gateway: Gateway, runner: SmokeRunner, stage: Stage) -> None:
    assert runner(previewing(CAPITAL, stage=stage)) is None
    await asyncio.sleep(0.1)
    assert gateway.asked == []


async def test_the_result_stays_known_while_the_rollout_goes_on(gateway: Gateway, runner: SmokeRunner) -> None:
    await found(runner, previewing(CAPITAL))
    assert runner(previewing(CAPITAL, stage=Stage.STEPPING)) == SmokeResult(passed=True, ran=1)
