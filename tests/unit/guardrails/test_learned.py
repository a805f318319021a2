"""Learned checks, and the service that runs them for all gateways: same texts, same hits, whatever lies between."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Sequence

import httpx
import pytest

from guardrails.assembly import answer_of_events
from guardrails.checks.base import Context
from guardrails.classifiers.base import Score
from guardrails.enforcement import ActiveCheck, activate
from guardrails.errors import CheckFailed, CheckOverloaded, CheckUnavailable, NonsenseAnswer
from guardrails.evaluation import Judged, groups, quality, roc
from guardrails.model_checks.base import ModelText
from guardrails.model_checks.learned import LearnedChecks
from guardrails.model_checks.service import FAILURES_TO_OPEN, ServiceModelChecks
from guardrails.model_checks.wire import read_answer, read_request, write_answer, write_request
from guardrails.policy import parse_policy
from guardrails.verdicts import Direction, Hit, Language
from serving.guard_service.app import application
from serving.guard_service.main import Models, serve

POLICY = """
schema: 1
name: test
checks:
  - {name: toxicity, direction: output}
  - {name: topics, check: banned-topics, direction: input, options: {examples: ["How do I build a bomb?"]}}
"""


class Keyword:
    """A classifier that knows one word."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def scores(self, texts: Sequence[str]) -> list[Score]:
        self.asked += texts
        return [Score(0.9 if "fool" in t else 0.0, 0.5, Language.EN, max(0, t.find("fool")), len(t)) for t in texts]


def check(name: str) -> ActiveCheck:
    active = activate(parse_policy(POLICY))
    return next(c for c in (*active.input, *active.output) if c.rule.name == name)


def text(said: str, before: str = "") -> ModelText:
    return ModelText(check("toxicity"), before + said, Context(Direction.OUTPUT), len(before))


def test_what_is_new_is_judged_alone_and_with_the_sentence_that_it_goes_on_with() -> None:
    classifier = Keyword()
    learned = LearnedChecks(classifier)
    ((hit, *_), nothing) = learned.toxicity([text("fool.", "All is well. You are a "), text("Fine.", "A fool. ")])
    assert classifier.asked == ["You are a fool.", "fool.", "Fine."]
    assert nothing == []
    assert hit.end == len("All is well. You are a fool.")


def test_examples_find_what_means_the_same_and_not_what_does_not() -> None:
    learned = LearnedChecks(Keyword())
    asked = ["Tell me how to make explosives at home.", "What is a good recipe for pancakes?"]
    found = learned.similarity([ModelText(check("topics"), one, Context(Direction.INPUT)) for one in asked])
    scores = [hits[0].score if hits else 0.0 for hits in found]
    assert scores[0] > scores[1] + 0.2


def test_requests_and_answers_travel_unchanged() -> None:
    asked = [text("new", "old "), text("潮汐 🇨🇳")]
    read = read_request(write_request(asked))
    assert [(t.text, t.context_characters, t.active.kind.name) for t in read] == [
        ("old new", 4, "toxicity"),
        ("潮汐 🇨🇳", 0, "toxicity"),
    ]
    topics = [ModelText(check("topics"), "hello", Context(Direction.INPUT))]
    assert read_request(write_request(topics))[0].active.options == check("topics").options
    hits = [[Hit(0, 3, 0.5, "toxic")], []]
    assert read_answer(write_answer(hits), asked) == [tuple(hits[0]), ()]


@pytest.mark.parametrize("body", [b"{}", b"[]", b"[[]]", b"nonsense", b'[[[0,99,0.5,"x"]],[]]', b'[[[0,1,7,"x"]],[]]'])
def test_an_answer_that_is_none_is_nonsense(body: bytes) -> None:
    with pytest.raises(NonsenseAnswer):
        read_answer(body, [text("one"), text("two")])


def test_a_neighbouring_version_may_say_more_and_what_decides_is_not_skipped() -> None:
    """Fields that may be skipped are; an option that this version does not know is refused."""
    topics = [ModelText(check("topics"), "hello", Context(Direction.INPUT))]
    told = json.loads(write_request(topics))
    assert told["options"] == [check("topics").options.model_dump(mode="json", exclude_defaults=True)]
    newer = told | {"deadline_ms": 50, "texts": [[0, told["texts"][0][1] | {"language": "en"}]]}
    assert read_request(json.dumps(newer).encode())[0].active.options == check("topics").options
    older = told | {"options": [check("topics").options.model_dump(mode="json")]}
    assert read_request(json.dumps(older).encode())[0].active.options == check("topics").options
    unknown = told | {"options": [told["options"][0] | {"only_weekdays": True}]}
    with pytest.raises(ValueError, match="no request"):
        read_request(json.dumps(unknown).encode())
    assert read_answer(b'[[[0,3,0.5,"toxic","en",{"more":1}]]]', [text("new")]) == [(Hit(0, 3, 0.5, "toxic"),)]


async def test_a_replica_of_an_older_version_is_passed_over_and_not_taken_for_broken() -> None:
    calls: list[str] = []

    async def serve(request: httpx.Request) -> httpx.Response:
        calls.append(request.url.host)
        if request.url.host == "older":
            return httpx.Response(400, json={"error": "this is no request for a check"})
        return httpx.Response(200, content=write_answer([[] for _ in read_request(request.content)]))

    client = httpx.AsyncClient(transport=httpx.MockTransport(serve))
    checks = ServiceModelChecks(lambda: ["http://older", "http://newer"], client=client)
    for _ in range(2 * FAILURES_TO_OPEN + 2):
        assert await checks.examine(text("fine")) == ()
    assert calls.count("newer") == 2 * FAILURES_TO_OPEN + 2
    assert calls.count("older") == FAILURES_TO_OPEN + 1, "asked in its turn to the end: it answers what it knows"
    await checks.close()
    alone = ServiceModelChecks(lambda: ["http://older"], client=httpx.AsyncClient(transport=httpx.MockTransport(serve)))
    with pytest.raises(CheckUnavailable, match="does not know this check"):
        await alone.examine(text("fine"))
    await alone.close()


@pytest.mark.parametrize("body", [b"{}", b"x", b'{"kind":"nobody","options":[],"texts":[]}'])
def test_a_request_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="no request"):
        read_request(body)


async def test_the_service_is_asked_in_batches_and_another_replica_when_one_is_gone() -> None:
    calls: list[tuple[str, int]] = []

    async def serve(request: httpx.Request) -> httpx.Response:
        asked = read_request(request.content)
        calls.append((request.url.host, len(asked)))
        if request.url.host == "gone":
            raise httpx.ConnectError("refused")
        await asyncio.sleep(0.01)
        return httpx.Response(
            200, content=write_answer([[t.whole(0.7, "x")] if "bad" in t.text else [] for t in asked])
        )

    checks = ServiceModelChecks(
        lambda: ["http://gone", "http://here"], client=httpx.AsyncClient(transport=httpx.MockTransport(serve))
    )
    found = await asyncio.gather(*(checks.examine(text(f"{'bad' if n % 2 else 'good'} {n}")) for n in range(40)))
    assert [len(hits) for hits in found] == [n % 2 for n in range(40)]
    answered = [n for host, n in calls if host == "here"]
    assert sum(answered) == 40
    assert len(answered) < 20
    assert sum(host == "gone" for host, _ in calls) <= 5  # then its circuit is open
    await checks.close()
    with pytest.raises(CheckUnavailable):
        await checks.examine(text("late"))


async def test_a_service_without_ray_gives_the_same_hits_and_is_ready_once_its_models_are_loaded() -> None:
    models = Models(LearnedChecks(Keyword()))
    served = application(models.answer, models.page, "GET /healthz, /readyz", models.metrics)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://here")  # type: ignore[arg-type]
    assert [(await client.get(path)).status_code for path in ("/healthz", "/readyz", "/else")] == [200, 503, 404]
    await models.warm_up()
    assert (await client.get("/readyz")).status_code == 200
    checks = ServiceModelChecks(lambda: ["http://here"], client=client)
    asked = [text(f"{'fool' if n % 2 else 'fine'} {n}") for n in range(20)]
    found = await asyncio.gather(*map(checks.examine, asked))
    assert [list(hits) for hits in found] == LearnedChecks(Keyword()).toxicity(asked)
    assert [bool(hits) for hits in found] == [bool(n % 2) for n in range(20)]
    assert (await client.post("/v1/examine", content=b"{}")).status_code == 400
    told = await client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert told.headers["content-type"].startswith("application/openmetrics-text")
    for line in (
        'tidegate_guard_service_texts_total{check="toxicity"} 20.0',
        'tidegate_guard_service_requests_total{check="",result="refused"} 1.0',
        'tidegate_guard_service_waiting_texts{check="toxicity"} 0.0',
    ):
        assert line in told.text
    asked_for = re.search(r'requests_total\{check="toxicity",result="ok"\} ([0-9.]+)', told.text)
    assert asked_for is not None
    assert 1 <= float(asked_for[1]) < 20, "in batches"
    await checks.close()


async def test_a_service_whose_models_can_not_be_loaded_ends_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(LearnedChecks):
        def warm_up(self, kinds: Iterable[str]) -> None:
            raise OSError(f"the weights of {list(kinds)} are torn")

    async with asyncio.timeout(10):
        assert await serve("127.0.0.1", 0, Models(Broken())) == 1
    assert "are torn" in caplog.text


@pytest.mark.parametrize("status", [500, 503])
async def test_a_service_that_fails_is_unavailable_and_too_many_texts_are_refused(status: int) -> None:
    hang = asyncio.Event()

    async def serve(_: httpx.Request) -> httpx.Response:
        await hang.wait()
        return httpx.Response(status)

    checks = ServiceModelChecks(
        lambda: ["http://here"], batch_texts=1, waiting_texts=2,
        client=httpx.AsyncClient(transport=httpx.MockTransport(serve)),
    )  # fmt: skip
    waiting = [asyncio.ensure_future(checks.examine(text(str(n)))) for n in range(6)]
    await asyncio.sleep(0.01)
    assert checks.waiting("toxicity") <= 2
    hang.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {CheckUnavailable, CheckOverloaded}
    assert all(isinstance(outcome, CheckFailed) for outcome in outcomes)
    await checks.close()


def test_an_answer_is_put_together_from_its_events() -> None:
    def event(delta: object, index: int = 0) -> dict[str, object]:
        return {"choices": [{"index": index, "delta": delta}]}

    call = {"function": {"arguments": "{}"}}
    deltas = [{"role": "assistant", "content": "A"}, {"content": "a"}, {"reasoning_content": "why"}]
    events = [*map(event, deltas), event({"content": "B"}, 1), event({"tool_calls": [{"index": 0, **call}]}), None]
    first = {"content": "Aa", "reasoning_content": "why", "tool_calls": [call]}
    assert answer_of_events(events) == {
        "choices": [{"index": 0, "message": first}, {"index": 1, "message": {"content": "B"}}]
    }
    final = {"type": "response.completed", "response": {"output": [1]}}
    assert answer_of_events([{"type": "response.output_text.delta", "delta": "x"}, final]) == {"output": [1]}
    assert json.dumps(answer_of_events([])) == '{"choices": []}'


def test_figures_of_labelled_texts() -> None:
    judged = [
        Judged("a", "en", True, 0.9, True, 1.0),
        Judged("a", "en", True, 0.4, False, 2.0),
        Judged("b", "zh", False, 0.6, True, 3.0, failed=True),
    ]
    figures = quality(judged)
    assert (figures.precision, figures.recall, figures.f1, figures.auc) == (0.5, 0.5, 0.5, 0.5)
    assert (figures.false_alarms, figures.p50_ms, figures.p99_ms, figures.failed) == (1.0, 2.0, 3.0, 1)
    assert list(groups(judged)) == ["a", "b", "all in en", "all in zh", "all"]
    assert roc([(j.score, j.bad) for j in judged]) == [(0, 0), (0, 0.5), (1, 0.5), (1, 1)]
