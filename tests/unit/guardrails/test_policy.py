from __future__ import annotations

import pytest

from guardrails.checks.base import CheckKind
from guardrails.checks.catalogue import BUILT_IN
from guardrails.checks.pattern_bounds import bounded_pattern
from guardrails.enforcement import activate
from guardrails.errors import InvalidPolicy, UnknownCheck
from guardrails.policies.shipped import Shipped, shipped_policy, shipped_text
from guardrails.policy import Failure, Mode, parse_policy
from guardrails.verdicts import Direction, Language, Verdict

HEAD = "schema: 1\nname: test\n"


def faults(text: str) -> list[str]:
    with pytest.raises(InvalidPolicy) as caught:
        parse_policy(text)
    return list(caught.value.faults)


def test_a_whole_policy_is_read() -> None:
    policy = parse_policy(
        HEAD
        + """
roles: [user, tool]
hold_back: {tokens: 24}
limits: {max_characters: 5000, beyond: fail_open, max_pending: 2}
checks:
  - name: numbers
    check: pii
    direction: output
    action: redact
    thresholds: {default: 0.5, zh: 0.7}
    mode: window
    hold_back: sentence
    on_error: fail_closed
    time_budget_ms: 80
    languages: [zh]
    options: {keep_last: 2}
"""
    )
    (rule,) = policy.checks
    assert (rule.check, rule.action, rule.mode, rule.on_error) == ("pii", Verdict.REDACT, Mode.WINDOW, Failure.CLOSED)
    assert (rule.threshold(Language.ZH), rule.threshold(Language.EN)) == (0.7, 0.5)
    assert rule.options["keep_last"] == 2
    assert policy.hold_back.stretch().max_tokens == 24


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is empty, not a mapping"),
        ("- 1", "it is a list, not a mapping"),
        ("schema: [", "not YAML that can be read"),
        ("schema: 1\nschema: 1\nname: a", "'schema' stands twice"),
        ("schema: 1\nname: &a x\ndescription: *a", "aliases are not allowed"),
        ("schema: 2\nname: a", "schema"),
        ("name: a", "schema"),
        (HEAD + "colour: red", "colour: there is no such key"),
        (HEAD + "checks: [{name: nope}]", "no check named 'nope'; there are banned-topics, banned-words, empty, http"),
        (HEAD + "checks: [{name: pii, thresholds: {zh: 1.5}}]", "checks[0] 'pii': thresholds.zh"),
        (HEAD + "checks: [{name: pii, thresholds: {fr: 0.5}}]", "checks[0] 'pii': thresholds"),
        (HEAD + "checks: [{name: pii, action: delete}]", "checks[0] 'pii': action"),
        (HEAD + "checks: [{name: pii, action: error}]", "checks[0] 'pii': action"),
        (HEAD + "checks: [{name: refusal, action: redact}]", "action redact is not possible"),
        (HEAD + "checks: [{name: refusal, direction: input}]", "direction input is not possible"),
        (HEAD + "checks: [{name: json, action: block}]", "use `mode: buffer_full`"),
        (HEAD + "checks: [{name: pii}, {name: pii}]", "the name stands twice"),
        (HEAD + "checks: [{name: pii, options: {keep: 2}}]", "options.keep: there is no such key"),
        (HEAD + "checks: [{name: pii, hold_back: {tokens: 24, characters: 90}}]", "give one of them"),
        (HEAD + "checks: [{name: patterns, options: {patterns: ['(a+)+']}}]", "without an upper bound"),
        (
            HEAD + "checks: [{name: guard, check: http, options: {url: 'ftp://x', model: m}}]",
            "not an http or https address",
        ),
        (
            HEAD + "checks: [{name: guard, check: http, options: {url: 'http://u:p@x', model: m}}]",
            "has a password in it",
        ),
        (HEAD + "checks: [{name: json, options: {json_schema: {type: nonsense}}}]", "not a JSON Schema"),
        (HEAD + "checks: [{name: json, options: {json_schema: {$ref: 'http://x/y'}}}]", "refers to another document"),
    ],
)
def test_a_fault_is_told_with_its_place_and_the_way_out(text: str, told: str) -> None:
    assert any(told in fault for fault in faults(text)), faults(text)


def test_all_faults_are_told_at_once() -> None:
    found = faults(HEAD + "colour: red\nchecks: [{name: nope, thresholds: 7}, {name: pii, mode: fast}]")
    assert len(found) == 4


def test_a_policy_that_is_too_long_is_refused() -> None:
    assert "shorten its lists" in faults(HEAD + "#" * 300_000)[0]


def test_the_digest_is_of_the_meaning() -> None:
    one = parse_policy(HEAD + "checks: [{name: pii, thresholds: 0.5, languages: [zh, en]}]")
    same = parse_policy(
        "# other words\nname: test\nschema: 1\nchecks:\n- languages: [en, zh]\n  check: pii\n  name: pii\n"
    )
    other = parse_policy(HEAD + "checks: [{name: pii, thresholds: 0.6, languages: [zh, en]}]")
    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 64


def test_options_count_for_the_digest_as_what_they_mean() -> None:
    default = parse_policy(HEAD + "checks: [{name: pii}]")
    spelled = parse_policy(HEAD + "checks: [{name: pii, options: {keep_last: 4}}]")
    other = parse_policy(HEAD + "checks: [{name: pii, options: {keep_last: 3}}]")
    assert default.digest == spelled.digest != other.digest


@pytest.mark.parametrize("name", list(Shipped))
def test_the_policies_that_come_with_it_are_valid(name: Shipped) -> None:
    policy = shipped_policy(name)
    assert policy.name == name.value
    assert parse_policy(shipped_text(name)).digest == policy.digest
    assert activate(policy).policy is policy


def test_the_judge_only_observes() -> None:
    assert all(rule.mode is Mode.OBSERVE and not rule.holds for rule in shipped_policy(Shipped.JUDGE).checks)


def test_a_direction_that_is_not_given_is_the_check_s_own() -> None:
    refusal, pii = parse_policy(HEAD + "checks: [{name: refusal}, {name: pii}]").checks
    assert (refusal.direction, pii.direction) == (Direction.OUTPUT, Direction.BOTH)


def test_a_policy_read_with_more_checks_than_are_here_is_told() -> None:
    mine = CheckKind(name="mine", summary="", build=BUILT_IN["pii"].build, options=BUILT_IN["pii"].options)
    policy = parse_policy(HEAD + "checks: [{name: mine}]", {**BUILT_IN, "mine": mine})
    with pytest.raises(UnknownCheck, match="install its plug-in here too"):
        activate(policy)


@pytest.mark.parametrize(
    "pattern", [r"PRJ-[0-9]{4,8}", r"(?:foo|bar)-\d{3}", r"[A-Z]{2,3}[0-9]{1,6}", r"\bsecret\b", r"项目[0-9]{1,4}号"]
)
def test_patterns_of_bounded_cost_are_taken(pattern: str) -> None:
    assert bounded_pattern(pattern) == pattern


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (r"a*b", "upper bound"),
        (r"a+", "upper bound"),
        (r"a{2,}", "upper bound"),
        (r"(a{1,9}){1,9}b", "ways at one place"),
        (r"[a-z]{1,90}[a-z]{1,90}x", "ways at one place"),
        (r"(a|a|a|a){1,20}", "ways at one place"),
        (r"(a)\1", "backreference"),
        (r"(?=a)b", "lookaround"),
        (r"a{0,3}", "empty text"),
        (r"(", "not a regular expression"),
        (r"a{1,5000}", "the limit is 1000"),
    ],
)
def test_patterns_of_unbounded_cost_are_refused(pattern: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        bounded_pattern(pattern)


def test_sets_among_options_have_one_order_so_that_every_process_has_the_same_digest() -> None:
    (rule,) = parse_policy(HEAD + "checks: [{name: pii, direction: output}]").checks
    assert rule.options["entities"] == sorted(rule.options["entities"])
    again = parse_policy(HEAD + "checks: [{name: pii, direction: output, options: {entities: [phone, card]}}]")
    other = parse_policy(HEAD + "checks: [{name: pii, direction: output, options: {entities: [card, phone]}}]")
    assert again.digest == other.digest
