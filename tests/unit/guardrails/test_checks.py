"""The smaller checks, and how one's own is made."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from guardrails.checks.base import CheckKind, Context, Options, Part, RuleCheck
from guardrails.checks.catalogue import BUILT_IN
from guardrails.circuit import Circuit, State
from guardrails.enforcement import activate
from guardrails.errors import UnknownCheck
from guardrails.normalise import View
from guardrails.plugins import GROUP, installed_catalogue
from guardrails.policy import parse_policy
from guardrails.verdicts import Direction, Edit, Finding, Hit, Language, Verdict, apply_edits, edits_of, worst


def hits(kind: str, text: str, options: dict | None = None, **context) -> list[Hit]:
    made = BUILT_IN[kind]
    check = made.build(made.options.model_validate(options or {}))
    return list(check.examine(View(text), Context(Direction.OUTPUT, **context)))


WORDS = {"words": ["kill yourself", "Damnation", "傻逼"], "except_in": ["damnation island"]}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("go and KILL  yourself", ["KILL  yourself"]),
        ("k1ll y0urself", ["k1ll y0urself"]),
        ("dаmnаtion!", ["dаmnаtion"]),
        ("d a m n a t i o n", ["d a m n a t i o n"]),
        ("你这个傻逼", ["傻逼"]),
        ("傻\u200b逼和傻 逼", ["傻\u200b逼", "傻 逼"]),
        ("请damnation掉", ["damnation"]),
        ("damnations are not listed", []),
        ("skill yourselves", []),
        ("we went to Damnation Island", []),
        ("kill a process yourself", []),
    ],
)
def test_listed_words_are_found_as_words(text: str, found: list[str]) -> None:
    assert [text[hit.start : hit.end] for hit in hits("banned-words", text, WORDS)] == found


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "As an AI language model, I can't do that.",
        "Unfortunately, I am unable to provide that information.",
        "很抱歉，我无法回答这个问题。",
        "对不起，作为一个人工智能，我不能提供这类内容。",
        "我无法为您提供相关信息。",
    ],
)
def test_refusals_are_noticed(text: str) -> None:
    assert hits("refusal", text)


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here is how to do it.",
        "The capital of France is Paris.",
        "If the server can't help, restart it.",
        "当然可以，下面是步骤。",
        "这台机器无法启动，可能是电源的问题。",
        "Here is a story. " * 30 + "I'm sorry, but I can't go on, she said.",
    ],
)
def test_other_answers_are_no_refusals(text: str) -> None:
    assert not hits("refusal", text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("and then it went on " * 8, True),
        ("我不知道。" * 30, True),
        ("Fine text. " + "la " * 60, True),
        ("Every sentence here is another one. It goes on and says something new each time, as texts do.", False),
        ("-" * 80, False),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n", False),
        ("ha ha ha", False),
        ("=" * 500, True),
    ],
)
def test_loops_are_noticed(text: str, found: bool) -> None:
    assert bool(hits("repetition", text)) is found


@pytest.mark.parametrize(("text", "found"), [("", True), (" \n\u200b", True), ("a", False), ("。", False)])
def test_an_answer_that_shows_nothing_is_empty(text: str, found: bool) -> None:
    assert bool(hits("empty", text)) is found


def test_arguments_may_be_empty() -> None:
    assert not hits("empty", "", part=Part.ARGUMENTS)


@pytest.mark.parametrize(
    ("text", "asked", "found"),
    [
        ("这是一个很长的中文回答，说了很多很多的话。", Language.EN, True),
        ("This is quite a long English answer.", Language.ZH, True),
        ("This is quite a long English answer.", Language.EN, False),
        (
            "好的，代码如下：```python\nprint('hello world, this is long')\n```这样就可以了，请试一试吧朋友。",
            Language.ZH,
            False,
        ),
        ("OK", Language.ZH, False),
        ("Ceci est 2 + 2 = 4 ........", None, False),
    ],
)
def test_an_answer_in_another_language_is_noticed(text: str, asked: Language | None, found: bool) -> None:
    assert bool(hits("language", text, prompt_language=asked)) is found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name": "潮"}', None),
        ('```json\n{"name": "潮"}\n```', None),
        ("not json", "not JSON"),
        ('{"name": 5}', "breaks the schema's type (item -)"),
        ("{}", "breaks the schema's required (item -)"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_the_form_asked_for_is_checked(text: str, reason: str | None) -> None:
    schema = {"json_schema": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}}
    assert [hit.reason for hit in hits("json", text, schema)] == ([reason] if reason else [])


@pytest.mark.parametrize(("text", "found"), [("12345", False), ("1234", True), ("1" * 11, True)])
def test_length_has_two_ends(text: str, found: bool) -> None:
    assert bool(hits("length", text, {"least": 5, "most": 10})) is found


# --- one's own check -------------------------------------------------------------------------------------------------


class ShoutingOptions(Options):
    share: float = 0.7


@dataclass(frozen=True)
class Shouting(RuleCheck):
    options: ShoutingOptions

    def examine(self, view, context):
        letters = [char for char in view.original if char.isalpha()]
        share = sum(map(str.isupper, letters)) / max(1, len(letters))
        return [Hit(0, len(view.original), share, "capitals")] if share > self.options.share else []


NO_SHOUTING = CheckKind("no-shouting", "answers in capitals", Shouting, ShoutingOptions)
ENTRY = EntryPoint("no-shouting", f"{__name__}:NO_SHOUTING", GROUP)


def test_one_s_own_check_is_found_by_its_entry_point_and_named_in_a_policy() -> None:
    catalogue = installed_catalogue(
        (EntryPoint("no-shouting", "tests.unit.guardrails.test_checks:NO_SHOUTING", GROUP),)
    )
    policy = parse_policy(
        "schema: 1\nname: a\nchecks: [{name: no-shouting, action: flag, options: {share: 0.5}}]", catalogue
    )
    (active,) = activate(policy, catalogue).output
    assert active.check.examine(View("STOP IT now"), Context(Direction.OUTPUT))[0].reason == "capitals"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("tests.unit.guardrails.nowhere:X", "can't be loaded"),
        ("tests.unit.guardrails.texts:PERSONAL", "not a CheckKind"),
        ("guardrails.checks.pii:PII", "takes a name that is taken"),
    ],
)
def test_a_plug_in_that_is_none_is_told(value: str, told: str) -> None:
    with pytest.raises(UnknownCheck, match=told):
        installed_catalogue((EntryPoint("x", value, GROUP),))


# --- verdicts and the breaker ----------------------------------------------------------------------------------------


def finding(verdict: Verdict, start: int = 0, end: int = 1, replacement: str | None = None) -> Finding:
    return Finding("c", verdict, start, end, 1.0, Language.EN, "r", replacement)


def test_verdicts_have_a_strict_order() -> None:
    assert [v.value for v in sorted(Verdict, key=lambda v: v.severity)] == ["allow", "flag", "redact", "block", "error"]
    assert worst([]) is Verdict.ALLOW
    assert worst([finding(Verdict.FLAG), finding(Verdict.BLOCK), finding(Verdict.REDACT)]) is Verdict.BLOCK


def test_redactions_that_overlap_become_one() -> None:
    inner, outer = finding(Verdict.REDACT, 2, 4, "--"), finding(Verdict.REDACT, 0, 6, "******")
    assert edits_of([inner, outer]) == (Edit(0, 6, "******"),)
    assert (
        apply_edits("abcdefgh", edits_of([finding(Verdict.REDACT, 0, 3, "x"), finding(Verdict.REDACT, 2, 5, "y")]))
        == "[redacted]fgh"
    )


def test_a_record_for_the_log_has_no_text() -> None:
    record = finding(Verdict.REDACT, replacement="j***").record()
    assert "replacement" not in record
    assert "j***" not in str(record)


def test_the_breaker_opens_tries_once_and_closes() -> None:
    circuit = Circuit(failures_to_open=2, open_s=10)
    circuit.failed(0.0)
    assert circuit.admits(0.0)
    circuit.failed(0.0)
    assert (circuit.state, circuit.admits(9.9), circuit.wait_s(4.0)) == (State.OPEN, False, 6.0)
    assert circuit.admits(10.0)
    assert not circuit.admits(10.1), "one call at a time while it is half open"
    circuit.failed(10.2)
    assert not circuit.admits(29.0), "twice as long after a failed try"
    assert circuit.admits(30.3)
    circuit.succeeded()
    assert circuit.state is State.CLOSED
    assert circuit.admits(30.4)


def test_success_between_failures_keeps_the_breaker_closed() -> None:
    circuit = Circuit(failures_to_open=2, open_s=10)
    for _ in range(5):
        circuit.failed(0.0)
        circuit.succeeded()
    assert circuit.state is State.CLOSED


def test_a_try_whose_outcome_is_never_told_does_not_shut_it_for_ever() -> None:
    circuit = Circuit(failures_to_open=1, open_s=10)
    circuit.failed(0.0)
    assert circuit.admits(10.0)
    assert circuit.admits(20.0)
