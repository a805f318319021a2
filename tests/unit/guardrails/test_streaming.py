# ruff: noqa: E501 - tables of texts
from __future__ import annotations

import pytest

from guardrails.checks.base import CheckKind, Context, NoOptions, RuleCheck
from guardrails.checks.catalogue import BUILT_IN
from guardrails.enforcement import activate
from guardrails.policies.shipped import Shipped, shipped_policy
from guardrails.policy import parse_policy
from guardrails.streaming import Ending, Step, StreamGuard
from guardrails.verdicts import Direction, Finding, Hit, Verdict

EN = "The tide turns twice a day and the water comes back to the old stones of the harbour. " * 20
ZH = "潮水每天涨落两次，海水又回到港口的旧石头上，渔船也跟着起伏。" * 30


class Broken(RuleCheck):
    """Raises on a word, as somebody's plug-in might."""

    def examine(self, view, context):
        if "boom" in view.original:
            raise RuntimeError("the text would be in here")
        return []


CATALOGUE = {**BUILT_IN, "broken": CheckKind("broken", "", lambda _: Broken(), NoOptions)}


def guard(checks: str, extra: str = "") -> StreamGuard:
    active = activate(parse_policy(f"schema: 1\nname: test\n{extra}\nchecks:\n{checks}", CATALOGUE), CATALOGUE)
    return StreamGuard(active.policy, active.output, Context(Direction.OUTPUT))


def run(engine: StreamGuard, text: str, size: int = 4) -> tuple[str, list[Finding]]:
    steps = [engine.feed(text[at : at + size], 0.0) for at in range(0, len(text), size)] + [engine.finish(0.0)]
    return "".join(step.text for step in steps), [finding for step in steps for finding in step.findings]


PII = "- {name: pii, direction: output, action: redact}"
WORDS = "- {name: words, check: banned-words, action: block, options: {words: [damnation]}}"
MODEL = "- {name: judge, check: http, direction: output, action: block, on_error: %s, time_budget_ms: 200, options: {url: 'http://g:1', model: m}}"


@pytest.mark.parametrize(("text", "most"), [(EN, 24 * 4), (ZH, 24)], ids=["English", "Chinese"])
@pytest.mark.parametrize("size", [1, 4, 13])
def test_clean_text_is_held_back_by_no_more_than_24_tokens(text: str, most: int, size: int) -> None:
    active = activate(shipped_policy(Shipped.STANDARD))
    rules = [check for check in active.output if not check.is_model]
    engine = StreamGuard(active.policy, rules, Context(Direction.OUTPUT))
    for at in range(0, len(text), size):
        engine.feed(text[at : at + size], 0.0)
        assert engine.held_characters <= most + size


@pytest.mark.parametrize("text", [EN, ZH], ids=["English", "Chinese"])
def test_clean_text_is_held_back_by_no_more_than_a_sentence(text: str) -> None:
    engine = guard(PII, "hold_back: sentence")
    longest = 90
    for char in text:
        engine.feed(char, 0.0)
        assert engine.held_characters <= longest + 1


def test_a_policy_that_only_observes_holds_nothing() -> None:
    active = activate(shipped_policy(Shipped.JUDGE))
    engine = StreamGuard(active.policy, active.output, Context(Direction.OUTPUT))
    text = "call 13800138000 now. " * 5
    assert [engine.feed(char, 0.0).text for char in text] == list(text)
    findings = engine.finish(0.0).findings
    assert engine.ending is Ending.FINISHED
    assert all(finding.verdict is Verdict.FLAG for finding in findings)


def test_what_an_observer_finds_is_told_and_changes_nothing() -> None:
    engine = guard("- {name: pii, direction: output, action: redact, mode: observe}")
    text, findings = run(engine, "call 13800138000 now")
    assert text == "call 13800138000 now"
    assert [(f.check, f.verdict, f.start, f.end) for f in findings] == [("pii", Verdict.REDACT, 5, 16)]


def test_a_block_ends_the_stream_before_its_stretch() -> None:
    engine = guard(WORDS, "hold_back: sentence")
    text, findings = run(engine, "All is well. Then damnation came. More follows.")
    assert (text, engine.ending) == ("All is well. ", Ending.BLOCKED)
    assert [f.verdict for f in findings] == [Verdict.BLOCK]


def test_nothing_comes_after_the_end() -> None:
    engine = guard(WORDS)
    run(engine, "damnation. ")
    assert engine.feed("more text. ", 0.0) == Step()


def test_buffer_full_lets_nothing_go_before_the_end() -> None:
    engine = guard("- {name: pii, direction: output, action: redact, mode: buffer_full}")
    assert "".join(engine.feed(char, 0.0).text for char in EN) == ""
    assert engine.finish(0.0).text == EN


def test_buffer_full_lets_nothing_go_when_the_end_is_bad() -> None:
    engine = guard(WORDS.replace("action: block", "action: block, mode: buffer_full"))
    assert run(engine, EN + "damnation")[0] == ""
    assert engine.ending is Ending.BLOCKED


def test_the_form_of_an_answer_is_checked_at_its_end() -> None:
    check = "- {name: json, action: block, mode: buffer_full, options: {json_schema: {type: object, required: [潮]}}}"
    good, bad = guard(check), guard(check)
    assert run(good, '{"潮": 1}')[0] == '{"潮": 1}'
    assert (run(bad, '{"x": 1}')[0], bad.ending) == ("", Ending.BLOCKED)


@pytest.mark.parametrize("ending", ["fail_open", "fail_closed"])
def test_a_check_that_raises_is_an_error_and_the_policy_decides(ending: str) -> None:
    engine = guard(f"- {{name: broken, action: block, on_error: {ending}}}", "hold_back: sentence")
    text, findings = run(engine, "All is well. Then boom. The end.")
    assert {(f.verdict, f.reason) for f in findings} == {(Verdict.ERROR, "raised RuntimeError")}
    if ending == "fail_open":
        assert (text, engine.ending) == ("All is well. Then boom. The end.", Ending.FINISHED)
    else:
        assert (text, engine.ending) == ("All is well. ", Ending.FAILED)


def test_a_check_that_only_observes_stops_nothing_when_it_fails() -> None:
    engine = guard("- {name: broken, action: block, mode: observe, on_error: fail_closed}")
    assert (run(engine, "boom. boom.")[0], engine.ending) == ("boom. boom.", Ending.FINISHED)


def test_text_waits_for_the_model_and_goes_with_its_verdict() -> None:
    engine = guard(MODEL % "fail_closed", "hold_back: sentence")
    step = engine.feed("One is here. Two is", 10.0)
    (pending,) = step.work
    assert (step.text, pending.text, pending.deadline) == ("", "One is here. ", 10.2)
    assert engine.resolve(pending.id, [], 10.1).text == "One is here. "
    (second,) = engine.finish(10.1).work
    assert second.text == "One is here. Two is"
    assert second.text[second.context_characters :] == "Two is"
    step = engine.resolve(second.id, [Hit(13, 19, 0.9, "bad")], 10.2)
    assert (step.text, step.ending) == ("", Ending.BLOCKED)


def test_a_hit_in_the_context_alone_is_no_news() -> None:
    engine = guard(MODEL % "fail_closed", "hold_back: sentence")
    (first,) = engine.feed("One is here. Two", 0.0).work
    engine.resolve(first.id, [], 0.0)
    (second,) = engine.finish(0.0).work
    assert engine.resolve(second.id, [Hit(0, 5, 1.0, "old")], 0.0).ending is Ending.FINISHED


def test_a_verdict_in_the_wrong_order_waits_for_the_earlier_one() -> None:
    engine = guard(MODEL % "fail_closed", "hold_back: sentence")
    first, second = engine.feed("One. Two. Three", 0.0).work
    late = engine.resolve(second.id, [Hit(second.context_characters, len(second.text), 1.0, "bad")], 0.0)
    assert (late.text, late.ending, late.doomed) == ("", None, True)
    early = engine.resolve(first.id, [], 0.0)
    assert (early.text, early.ending) == ("One. ", Ending.BLOCKED)


@pytest.mark.parametrize(
    ("policy", "text", "ending"), [("fail_open", "One. Two", None), ("fail_closed", "", Ending.FAILED)]
)
def test_no_verdict_in_time_is_an_error(policy: str, text: str, ending: Ending | None) -> None:
    engine = guard(MODEL % policy, "hold_back: sentence")
    engine.feed("One. Two", 5.0)
    assert engine.expire(5.1) == Step()
    step = engine.expire(5.3)
    assert step.ending is ending
    assert step.text == ("One. " if policy == "fail_open" else "")
    assert [(f.check, f.verdict, f.reason) for f in step.findings] == [
        ("judge", Verdict.ERROR, "no verdict within 200 ms")
    ]


def test_a_verdict_that_comes_twice_or_late_is_ignored() -> None:
    engine = guard(MODEL % "fail_open", "hold_back: sentence")
    (pending,) = engine.feed("One. Two", 0.0).work
    engine.expire(9.0)
    assert engine.resolve(pending.id, [Hit(0, 4, 1.0, "late")], 9.0) == Step()


def test_a_score_that_is_no_number_counts_as_certain() -> None:
    engine = guard(MODEL % "fail_closed")
    (pending,) = [*engine.feed("One.", 0.0).work, *engine.finish(0.0).work]
    assert engine.resolve(pending.id, [Hit(0, 4, float("nan"), "?")], 0.0).ending is Ending.BLOCKED


def test_no_more_work_is_handed_out_than_the_policy_allows() -> None:
    engine = guard(MODEL % "fail_closed", "hold_back: sentence\nlimits: {max_pending: 2}")
    work = list(engine.feed("A b c. " * 6, 0.0).work)
    assert len(work) == 2
    assert len(engine.resolve(work[0].id, [], 0.0).work) == 1


@pytest.mark.parametrize("language", ["en", "zh"])
def test_thresholds_are_those_of_the_text_s_language(language: str) -> None:
    check = "- {name: pii, direction: output, action: redact, thresholds: {default: 0.5, zh: 0.99}}"
    text = {"en": "Please call 13800138000 today", "zh": "请打电话13800138000联系我们"}[language]
    released, _ = run(guard(check), text)
    assert (released == text) is (language == "zh")


@pytest.mark.parametrize(("beyond", "ending"), [("fail_open", Ending.FINISHED), ("fail_closed", Ending.FAILED)])
@pytest.mark.parametrize("size", [7, 3000])
def test_a_text_beyond_the_limit_is_treated_as_the_policy_says(beyond: str, ending: Ending, size: int) -> None:
    engine = guard(PII, f"limits: {{max_characters: 1000, beyond: {beyond}}}")
    text = "潮" * 1500 + "13800138000"
    released, findings = run(engine, text, size)
    assert engine.ending is ending
    assert released == (text if beyond == "fail_open" else "潮" * 1000)
    assert [(f.check, f.reason) for f in findings] == [("limits", "longer than 1000 characters")]


def test_memory_is_bounded_for_a_long_clean_stream() -> None:
    engine = guard(PII)
    for _ in range(400):
        engine.feed(EN[:500], 0.0)
    assert engine.remembered_characters < 10_000


def test_a_redaction_that_lays_another_thing_bare_covers_that_too() -> None:
    text = "AKIAIOSFODNN7ABCDEF2+44 20 7946 0958 end"
    released, _ = run(guard(PII + "\n- {name: secrets, direction: output, action: redact}"), text)
    assert "7946" not in released
    assert released.endswith(" end")


def test_two_streams_know_nothing_of_each_other() -> None:
    active = activate(shipped_policy(Shipped.STANDARD))
    rules = [check for check in active.output if not check.is_model]
    one, two = (StreamGuard(active.policy, rules, Context(Direction.OUTPUT)) for _ in range(2))
    out = {one: "", two: ""}
    for at in range(0, len(EN), 3):
        out[one] += one.feed(EN[at : at + 3], 0.0).text
        out[two] += two.feed(ZH[at : at + 3], 0.0).text
    out[one] += one.finish(0.0).text
    out[two] += two.finish(0.0).text
    assert (out[one], out[two]) == (EN, ZH)
