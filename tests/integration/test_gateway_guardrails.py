"""Guardrails on the wire: the real gateway between OpenAI's client and engines that say what they shall not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvloop

from guardrails.chat_streams import ChatStreamGuard
from guardrails.checks.base import Catalogue
from guardrails.enforcement import ActivePolicy, activate
from guardrails.errors import CheckUnavailable
from guardrails.model_checks.base import ModelText
from guardrails.policy import Policy
from guardrails.verdicts import Hit
from serving.gateway.guard_models import GuardModels
from serving.gateway.guard_settings import GuardSettings
from serving.mirroring import MirrorSettings
from serving.specs import digest_of_text
from serving.traffic import Role, TrafficTable
from tests.integration.gateway_fakes import Rig, rig, session_on, table, until

pytestmark = pytest.mark.integration

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
MAIL = "jane.doe@example.com"
MASKED = "j*******@e******.com"
POLICY = """
schema: 1
name: test
hold_back: {tokens: 24}
checks:
  - {name: pii, direction: both, action: redact, on_error: fail_closed}
  - {name: words, check: banned-words, action: block, options: {words: [damnation]}}
  - {name: loops, check: repetition, direction: output, action: flag, mode: observe}
"""
MODELS = """
schema: 1
name: models
checks:
  - {name: tox-in, check: toxicity, direction: input, action: block, on_error: %(on_error)s, time_budget_ms: %(ms)d}
  - {name: tox, check: toxicity, direction: output, action: block, on_error: %(on_error)s, time_budget_ms: %(ms)d}
"""


@pytest.fixture(scope="module")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture(autouse=True)
def _no_real_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ones take a second to load, and are tested with the classifiers."""
    monkeypatch.setattr(GuardModels, "needed", lambda *_: None)


def guarded(sequence: int = 1, *, stable: str = "", canary: str | None = None, weight: int = 50) -> TrafficTable:
    """A table whose revisions bring these policies."""
    texts = {digest_of_text(text): text for text in (stable, canary) if text}
    made = table(sequence, None if canary is None else weight)
    policies = {Role.STABLE: stable, Role.CANARY: canary or ""}
    named = {role: digest_of_text(text) if text else "" for role, text in policies.items()}
    (model,) = made.models
    revisions = tuple(r.model_copy(update={"policy": named[r.role]}) for r in model.revisions)
    return made.model_copy(
        update={"models": (model.model_copy(update={"revisions": revisions}),), "policies": texts}
    )  # fmt: skip


async def said(r: Rig, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=r.url, timeout=10) as http:
        return await http.post("/v1/chat/completions", json={**CHAT, **more})


async def streamed(r: Rig, **more: Any) -> tuple[str, str | None]:
    client = openai.AsyncOpenAI(base_url=r.url + "/v1", api_key="k", max_retries=0)
    text, finish = "", None
    stream = await client.chat.completions.create(stream=True, **{**CHAT, **more})  # type: ignore[call-overload]
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    await client.close()
    return text, finish


def pieces(*texts: str) -> dict[str, Any]:
    """A fake answer: these pieces as a stream, or joined."""
    return {"pieces": texts, "text": "".join(texts)}


async def metric(r: Rig, name: str) -> str:
    async with httpx.AsyncClient(base_url=r.admin_url) as http:
        text = (await http.get("/metrics")).text
    return "\n".join(line for line in text.splitlines() if line.startswith(name))


async def test_what_a_policy_masks_leaves_masked_whole_and_streamed(tmp_path: Path) -> None:
    async with rig(tmp_path, first=guarded(stable=POLICY)) as r:
        r.stable.do = lambda _: pieces("Write to jane.", "doe@exam", "ple.com today. ", "Bye.")
        whole = (await said(r)).json()["choices"][0]
        assert whole["message"]["content"] == f"Write to {MASKED} today. Bye."
        assert whole["finish_reason"] == "stop"
        assert await streamed(r) == (f"Write to {MASKED} today. Bye.", "stop")
        await said(r, messages=[{"role": "user", "content": f"I am {MAIL}"}])
        assert MAIL not in json.dumps(r.stable.requests[-1][2])  # nor does the engine see what is masked in a prompt
        counted = await metric(r, "tidegate_guardrail_verdicts_total")
        assert 'check="pii",direction="output",model="chat",verdict="redact",version="1.0.0"} 3.0' in counted
        assert 'check="words",direction="input",model="chat",verdict="allow",version="1.0.0"} 3.0' in counted


async def test_a_blocked_prompt_is_openais_content_filter_and_no_engine_is_asked(tmp_path: Path) -> None:
    async with rig(tmp_path, first=guarded(stable=POLICY)) as r:
        client = openai.AsyncOpenAI(base_url=r.url + "/v1", api_key="k", max_retries=0)
        asked: list[dict[str, Any]] = [{"role": "user", "content": "dam"}, {"role": "user", "content": "nation"}]
        for stream in (False, True):  # `stream: true` is no way around it, nor is splitting it over messages
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="chat", messages=asked, stream=stream)  # type: ignore[call-overload]
            assert (refused.value.code, refused.value.param) == ("content_filter", "prompt")
            assert "damnation" not in str(refused.value)
        assert not r.stable.requests
        assert 'reason="content_filtered"} 2.0' in await metric(r, "tidegate_rejections_total")
        await client.close()


async def test_a_blocked_stream_ends_as_sdks_know_it_and_the_engine_is_stopped(tmp_path: Path) -> None:
    async with rig(tmp_path, first=guarded(stable=POLICY)) as r:
        endless = [f"Sentence number {i} is fine. " for i in range(400)]
        endless[3] = "Now comes damnation itself. "
        r.stable.do = lambda _: {**pieces(*endless), "delay_s": 0.01}
        text, finish = await streamed(r)
        assert finish == "content_filter"
        assert text.startswith("Sentence number 0 is fine. ")
        assert "damnation" not in text
        await until(lambda: not r.stable.busy)  # cancelled long before its 400 sentences
        assert r.stable.sent_bytes < 60 * 200
        answer = (await said(r)).json()["choices"][0]
        assert (answer["finish_reason"], "damnation" in answer["message"]["content"]) == ("content_filter", False)
        await r.settled()
        assert not r.controller.events  # a block is no failure of the version
        assert 'outcome="blocked"' in await metric(r, "tidegate_requests_total")


async def test_a_check_that_raises_within_a_read_is_no_evidence_against_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: object) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(ChatStreamGuard, "feed", raises)
    async with rig(tmp_path, first=guarded(stable=POLICY)) as r:
        r.stable.do = lambda _: {**pieces(*["One. "] * 400), "delay_s": 0.01}
        with pytest.raises(openai.APIError, match="safety check"):
            await streamed(r)
        await until(lambda: not r.stable.busy)
        assert r.stable.sent_bytes < 20_000, "the engine was stopped"
        await r.settled()
        assert not r.controller.events
        assert 'outcome="error"' in await metric(r, "tidegate_requests_total")


async def test_numbers_that_json_has_and_64_bits_have_not_survive_a_masked_prompt(tmp_path: Path) -> None:
    async with rig(tmp_path, first=guarded(stable=POLICY)) as r:
        for more in ({"seed": 2**70}, {"metadata": {"x": [2**70] * 3}}, {"x": [[2**70]] * 200}):
            answer = await said(r, messages=[{"role": "user", "content": f"I am {MAIL}"}], **more)
            assert answer.status_code == 200, answer.text
            asked = r.stable.requests[-1][2]
            assert MAIL not in json.dumps(asked)
            assert {k: asked[k] for k in more} == more


async def test_a_blocked_answer_is_not_retried_on_stable(tmp_path: Path) -> None:
    async with rig(tmp_path, first=guarded(stable=POLICY, canary=POLICY)) as r:
        r.canary.do = lambda _: pieces("damnation")
        async with httpx.AsyncClient(base_url=r.url) as http:
            headers = {"x-session-id": session_on(Role.CANARY, 50)}
            answer = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert answer.json()["choices"][0]["finish_reason"] == "content_filter"
        assert (answer.headers["x-tidegate-role"], len(r.stable.requests)) == ("canary", 0)


async def test_stable_answers_for_a_failed_canary_under_its_own_policy(tmp_path: Path) -> None:
    async with rig(tmp_path, first=guarded(stable=POLICY, canary="schema: 1\nname: none\n")) as r:
        r.canary.do = lambda _: {"do": "die"}
        r.stable.do = lambda _: pieces(f"It is {MAIL}.")
        async with httpx.AsyncClient(base_url=r.url) as http:
            headers = {"x-session-id": session_on(Role.CANARY, 50)}
            saved = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
            body = {**CHAT, "messages": [{"role": "user", "content": "damnation"}]}
            refused = await http.post("/v1/chat/completions", json=body, headers=headers)
        assert saved.json()["choices"][0]["message"]["content"] == f"It is {MASKED}."
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")


async def test_an_answer_under_way_keeps_its_policy_when_its_version_leaves_the_table(tmp_path: Path) -> None:
    async with rig(tmp_path, first=guarded(stable=POLICY)) as r:
        r.stable.do = lambda _: {**pieces(f"It is {MAIL}."), "before_s": 0.2}
        asked = asyncio.create_task(said(r))
        await until(lambda: bool(r.stable.busy))
        await r.apply(guarded(2, stable=POLICY).model_copy(update={"models": ()}))
        assert (await asked).json()["choices"][0]["message"]["content"] == f"It is {MASKED}."


async def test_stable_does_not_answer_for_a_canary_where_its_own_policy_is_not_in_force(tmp_path: Path) -> None:
    broken = guarded(stable="schema: 1\nname: x\nchecks: [{name: nobody-has-this}]\n", canary=POLICY)
    async with rig(tmp_path, first=broken) as r:
        r.canary.do = lambda _: {"do": "die"}
        r.stable.do = lambda _: pieces(f"It is {MAIL}.")
        answer = await said(r)
        assert (answer.status_code, MAIL in answer.text, len(r.stable.requests)) == (503, False, 0)


async def test_a_stream_whose_prompt_was_masked_is_metered_all_the_same(tmp_path: Path) -> None:
    async with rig(tmp_path, first=guarded(stable=POLICY)) as r:
        await streamed(r, messages=[{"role": "user", "content": f"I am {MAIL}"}])
        (_, _, body) = r.stable.requests[-1]
        assert (MAIL in json.dumps(body), body.get("stream_options")) == (False, {"include_usage": True})


async def test_a_stream_that_begins_with_an_error_is_checked_all_the_same(tmp_path: Path) -> None:
    async with rig(tmp_path, first=guarded(stable=POLICY)) as r:
        spoken = r.stable._chunk

        async def error_first(writer: asyncio.StreamWriter, data: bytes) -> None:
            await spoken(writer, b'data: {"error": {"message": "no", "code": 500}}\n\n')
            await asyncio.sleep(0.02)
            await spoken(writer, data)

        r.stable._chunk = error_first  # type: ignore[method-assign]
        r.stable.do = lambda _: pieces(f"It is {MAIL}.")
        answer = await said(r, stream=True)
        assert ('"code":500' in answer.text.replace(" ", ""), MAIL in answer.text) == (True, False)
        await r.settled()
        assert 'outcome="error"' in await metric(r, "tidegate_requests_total")


async def test_endpoints_that_cannot_be_checked_are_closed_under_a_policy_that_holds(tmp_path: Path) -> None:
    async with rig(tmp_path, first=guarded(stable=POLICY)) as r, httpx.AsyncClient(base_url=r.url) as http:
        refused = await http.post("/v1/messages", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")
        ids = await http.post("/v1/completions", json={"model": "chat", "prompt": [1, 2, 3]})
        assert (ids.status_code, ids.json()["error"]["code"]) == (400, "content_filter")
        vectors = await http.post("/v1/completions", json={"model": "chat", "prompt": "hi", "prompt_embeds": "AAAA"})
        assert (vectors.status_code, vectors.json()["error"]["code"]) == (400, "content_filter")
        before = {"previous_input_messages": [{"role": "user", "content": [{"type": "text", "text": "damnation"}]}]}
        earlier = await http.post("/v1/responses", json={"model": "chat", "input": "hi", **before})
        assert (earlier.status_code, earlier.json()["error"]["code"]) == (400, "content_filter")
        assert not r.stable.requests


class Model:
    """Stands in the place of the gateway's models."""

    def __init__(self, answer: Callable[[ModelText], Any]) -> None:
        self.answer = answer
        self.asked = 0

    async def examine(self, text: ModelText) -> Sequence[Hit]:
        self.asked += 1
        found = self.answer(text)
        return await found if asyncio.iscoroutine(found) else found


async def _hangs() -> Sequence[Hit]:
    await asyncio.sleep(60)
    return ()


def _dies(_: ModelText) -> Sequence[Hit]:
    raise CheckUnavailable("gone")


def _raises(_: ModelText) -> Sequence[Hit]:
    raise ZeroDivisionError


FAULTS: dict[str, Callable[[ModelText], Any]] = {
    "dies": _dies,
    "hangs": lambda _: _hangs(),
    "raises": _raises,
    "nonsense": lambda _: ["toxic"],
}


def use(r: Rig, answer: Callable[[ModelText], Any]) -> Model:
    model = Model(answer)
    r.gateway.guard_models.examine = model.examine  # type: ignore[method-assign]
    return model


def only_outputs(answer: Callable[[ModelText], Any]) -> Callable[[ModelText], Any]:
    return lambda text: answer(text) if text.context.direction == "output" else []


@pytest.mark.parametrize("fault", FAULTS)
async def test_fail_closed_means_closed_for_every_fault_of_a_model(tmp_path: Path, fault: str) -> None:
    policy = MODELS % {"on_error": "fail_closed", "ms": 80}
    async with rig(tmp_path, first=guarded(stable=policy)) as r:
        r.stable.do = lambda _: pieces("You are a fool. ", "More of it.")
        use(r, FAULTS[fault])
        refused = await said(r)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "guardrail_unavailable"
        assert not r.stable.requests  # before any GPU time is spent
        use(r, only_outputs(FAULTS[fault]))
        late = await said(r)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "guardrail_unavailable")
        with pytest.raises(openai.APIError) as broken:
            await streamed(r)
        assert broken.value.code == "guardrail_unavailable"
        await r.settled()
        assert not r.controller.events  # that a check could not run is no signal about the version


async def test_fail_open_lets_pass_and_reports(tmp_path: Path) -> None:
    policy = MODELS % {"on_error": "fail_open", "ms": 80}
    async with rig(tmp_path, first=guarded(stable=policy)) as r:
        r.stable.do = lambda _: pieces("You are a fool. ", "More of it.")
        use(r, _dies)
        assert (await said(r)).status_code == 200
        assert await streamed(r) == ("You are a fool. More of it.", "stop")
        assert 'check="tox",direction="output",model="chat",verdict="error",version="1.0.0"} 2.0' in await metric(
            r, "tidegate_guardrail_verdicts_total"
        )


async def test_a_model_that_blocks_in_mid_stream(tmp_path: Path) -> None:
    policy = MODELS % {"on_error": "fail_closed", "ms": 2000}
    async with rig(tmp_path, first=guarded(stable=policy)) as r:

        async def judged(text: ModelText) -> Sequence[Hit]:
            await asyncio.sleep(0.02)
            return [text.whole(0.99, "toxic")] if "fool" in text.text[text.context_characters :] else []

        r.stable.do = lambda _: {**pieces("All is well. ", "You are a fool. ", "Sorry."), "delay_s": 0.005}
        use(r, judged)
        assert await streamed(r) == ("All is well. ", "content_filter")
        answer = (await said(r)).json()["choices"][0]
        assert answer["finish_reason"] == "content_filter"


async def test_overload_is_refused_before_an_engine_is_asked(tmp_path: Path) -> None:
    policy = MODELS % {"on_error": "fail_closed", "ms": 500}
    async with rig(tmp_path, first=guarded(stable=policy)) as r:
        use(r, lambda _: [])
        r.gateway.guarding._crowded = lambda kind: kind == "toxicity"
        refused = await said(r)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert not r.stable.requests


async def test_a_revision_whose_policy_cannot_be_put_in_force_takes_no_requests(tmp_path: Path) -> None:
    broken = guarded(stable=POLICY, canary="schema: 1\nname: x\nchecks: [{name: nobody-has-this}]\n")
    async with rig(tmp_path, first=broken) as r:
        for start in range(3):
            async with httpx.AsyncClient(base_url=r.url) as http:
                headers = {"x-session-id": session_on(Role.CANARY, 50, start * 100)}
                answer = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert answer.headers["x-tidegate-role"] == "stable"
        await until(lambda: r.controller.endpoints_ready == {"stable-app": 1, "canary-app": 0})
        forged = guarded(2, stable=POLICY)
        digest = next(iter(forged.policies))
        await r.apply(forged.model_copy(update={"policies": {digest: "schema: 1\nname: empty\n"}}))
        await r.apply(guarded(3, stable=POLICY))
        assert (await said(r)).status_code == 200


async def test_a_policy_whose_plug_in_raises_takes_no_other_policy_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(policy: Policy, catalogue: Catalogue) -> ActivePolicy:
        return activate(policy, catalogue) if policy.name != "breaks" else 1 // 0  # type: ignore[return-value]

    monkeypatch.setattr("serving.gateway.guarding.activate", made)
    async with rig(tmp_path, first=guarded(stable="schema: 1\nname: breaks\n", canary=POLICY)) as r:
        r.canary.do = r.stable.do = lambda _: pieces(f"It is {MAIL}.")
        assert set(r.gateway.guarding.unusable) == {"stable-app"}
        assert (await said(r)).json()["choices"][0]["message"]["content"] == f"It is {MASKED}."
        assert not r.stable.requests


async def test_the_policy_survives_a_restart_without_a_controller(tmp_path: Path) -> None:
    async with rig(tmp_path, first=guarded(stable=POLICY)) as r:
        await until(lambda: bool(r.controller.acks))
    async with rig(tmp_path, control_url=None) as r:
        r.stable.do = lambda _: pieces(f"It is {MAIL}.")
        assert (await said(r)).json()["choices"][0]["message"]["content"] == f"It is {MASKED}."


async def test_the_default_policy_changes_nothing_and_counts_afterwards(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None), guard=GuardSettings(observe_share=1.0)) as r:
        r.stable.do = lambda _: pieces(f"It is {MAIL}.")
        assert (await said(r)).json()["choices"][0]["message"]["content"] == f"It is {MAIL}."
        assert (await streamed(r))[0] == f"It is {MAIL}."
        flagged = 'check="pii",direction="output",model="chat",verdict="flag",version="1.0.0"} 2.0'
        for _ in range(200):
            if flagged in (text := await metric(r, "tidegate_guardrail_verdicts_total")):
                break
            await asyncio.sleep(0.01)
        assert flagged in text
        assert 'check="prompt-injection",direction="input",model="chat",verdict="allow",version="1.0.0"} 2.0' in text


JUDGE = """
schema: 1
name: judge
checks:
  - {name: pii, direction: output, action: flag, mode: observe}
  - {name: toxicity, direction: output, action: flag, mode: observe, time_budget_ms: 200}
"""


def judged_table(sequence: int, stable: str = "", canary: str = "") -> TrafficTable:
    made = guarded(sequence, stable=stable, canary=canary)
    (model,) = made.models
    digest = digest_of_text(JUDGE)
    return made.model_copy(
        update={
            "models": (model.model_copy(update={"judge": digest}),),
            "policies": {**made.policies, digest: JUDGE},
        }
    )  # fmt: skip


async def _both(r: Rig) -> AsyncIterator[None]:
    async with httpx.AsyncClient(base_url=r.url) as http:
        for role in Role:
            headers = {"x-session-id": session_on(role, 50)}
            assert (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
            yield


async def test_one_judge_scores_both_arms_whatever_their_own_policies_do(tmp_path: Path) -> None:
    """The canary's own policy masks what it says: for its clients it is the better one, for the judge it is not."""
    async with rig(tmp_path, first=judged_table(1, canary=POLICY)) as r:
        use(r, lambda _: [])
        r.stable.do = lambda _: pieces("All is well.")
        r.canary.do = lambda _: pieces(f"It is {MAIL}.")
        async for _ in _both(r):
            pass
        await r.settled()
        assert [(e.signal, e.arm) for e in r.controller.events] == [("guardrail/pii", Role.CANARY)]
        totals = {t.role: t.settled_events for t in r.controller.totals.values() if t.admitted}
        both = {"guardrail/pii:units": 1, "guardrail/toxicity:units": 1}
        assert totals == {Role.STABLE: both, Role.CANARY: {**both, "guardrail/pii": 1}}


async def test_a_judge_that_could_not_run_is_no_signal_and_holds_up_no_outcome(tmp_path: Path) -> None:
    async with rig(tmp_path, first=judged_table(1)) as r:
        use(r, _dies)
        r.canary.do = r.stable.do = lambda _: pieces("You are a fool.")
        async for _ in _both(r):
            pass
        await r.settled()
        assert not r.controller.events
        totals = [t.settled_events for t in r.controller.totals.values() if t.admitted]
        assert totals == [{"guardrail/pii:units": 1}, {"guardrail/pii:units": 1}]


async def test_a_shadow_is_judged_by_what_exactly_one_of_a_pair_says(tmp_path: Path) -> None:
    made = judged_table(1)
    (model,) = made.models
    weights = {Role.STABLE: 100, Role.CANARY: 0}
    revisions = tuple(r.model_copy(update={"weight": weights[r.role]}) for r in model.revisions)
    shadow = model.model_copy(update={"mirror_percent": 100, "revisions": revisions})
    mirror = MirrorSettings(baseline_share=0)
    async with rig(tmp_path, first=made.model_copy(update={"models": (shadow,)}), mirror=mirror) as r:
        use(r, lambda text: [text.whole(0.9, "toxic")] if "fool" in text.text else [])
        r.stable.do = lambda _: pieces("You are a fool.")
        r.canary.do = lambda _: pieces(f"You are a fool, {MAIL}.")
        assert (await said(r)).status_code == 200
        await until(lambda: r.gateway.mirroring.in_flight == 0)
        await r.settled()
        assert [(e.signal, e.arm, e.paired) for e in r.controller.events] == [("guardrail/pii", Role.CANARY, True)]
        events = {t.role: t.settled_events for t in r.controller.totals.values() if t.settled}
        units = {"guardrail/pii:units": 1, "guardrail/toxicity:units": 1, "guardrail/toxicity": 1}
        assert events == {Role.STABLE: units, Role.CANARY: {**units, "guardrail/pii": 1}}
