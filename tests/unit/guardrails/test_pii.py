from __future__ import annotations

import pytest

from guardrails.checks.base import Context
from guardrails.checks.pii import PII, Entity, PiiCheck, PiiOptions
from guardrails.enforcement import judge
from guardrails.normalise import View
from guardrails.policy import CheckRule
from guardrails.verdicts import Direction, Hit, apply_edits, edits_of
from tests.unit.guardrails.texts import PERSONAL

CHECK = PiiCheck(PiiOptions())
OUTPUT = Context(Direction.OUTPUT)


def counted(text: str, check: PiiCheck = CHECK) -> list[Hit]:
    return [hit for hit in check.examine(View(text), OUTPUT) if hit.score >= 0.5]


def redacted(text: str, check: PiiCheck = CHECK) -> str:
    rule = CheckRule.model_validate({"name": "pii", "action": "redact"})
    return apply_edits(text, edits_of(judge(rule, check.examine(View(text), OUTPUT), OUTPUT.language)))


@pytest.mark.parametrize(
    "sentence", ["{}", "Write or call: {}, please.", "请联系{}，谢谢。", "（{}）", "1. {}\n", "**{}**"]
)
@pytest.mark.parametrize("found", PERSONAL.values(), ids=PERSONAL)
def test_personal_data_is_found_where_it_stands(sentence: str, found: str) -> None:
    text = sentence.format(found)
    start = text.index(found)
    assert [(hit.start, hit.end) for hit in counted(text)] == [(start, start + len(found))]


NOT_PERSONAL = {
    "version": "Upgrade to version 1.2.3.4 or v10.20.30.40 today.",
    "browser version": "Chrome/120.0.6099.109 Safari/537.36",
    "semantic version with build": "1.3.0-rc.1+build.20240115",
    "package at a version": "npm install lodash@4.17.21 and react@18.2.0",
    "image for two densities": "logo@2x.png",
    "git remote": "git clone git@github.com:owner/repo.git",
    "timestamp in seconds": "created at 1700000000",
    "timestamp in milliseconds": "ts=1700000000000",
    "timestamp, ISO": "2024-01-15T12:30:45.123456+00:00",
    "date and time": "2024-01-15 12:30:45",
    "dates in a row": "1949-12-31, 2023.10.05, 10/05/2023",
    "order number": "Your order 13812345678 has shipped.",
    "order number, Chinese": "您的订单号13812345678已发货，快递单号：13912345678",
    "order with a card's length": "order #4111111111111111",
    "wrong card check digit": "4111 1111 1111 1112",
    "sixteen digits of no scheme": "1234567890123456",
    "wrong identity check digit": "110105194912310021",
    "identity with an impossible date": "110105194913310026",
    "wrong IBAN check digits": "GB83 WEST 1234 5698 7654 32",
    "prices": "costs $1,234,567.89 or 12.345.678 EUR",
    "pi": "3.14159265358979323846264338327950288",
    "UUID": "550e8400-e29b-41d4-a716-446655440000",
    "SHA-256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "ISBN": "ISBN 978-3-16-148410-0",
    "loopback": "listen on 127.0.0.1:8000 and 0.0.0.0, mask 255.255.255.0",
    "private network": "the pod has 10.244.1.17 behind 192.168.1.1",
    "MAC address": "aa:bb:cc:dd:ee:ff",
    "C++ names": "std::vector<a::b> c::d",
    "section": "see section 1.2.3.4",
    "numbers without meaning": "the 10-digit number 4155552671",
    "scientific": "6.02214076e23 and 1.602e-19",
    "Chinese counts": "共有13800个，比例为1:3.5，2023年10月",
    "phone-like inside a longer number": "99138001380009",
    "no at sign address": "user at example dot com",
    "handles": "follow @tidegate and @openai",
    "zip": "San Francisco, CA 94105-1234",
}


@pytest.mark.parametrize("text", NOT_PERSONAL.values(), ids=NOT_PERSONAL)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert counted(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("john@example.com", "j***@e******.com"),
        ("card 4111-1111-1111-1111.", "card ****-****-****-1111."),
        ("call +86 138-0013-8000", "call +** ***-****-8000"),
        ("身份证11010519491231002X。", "身份证**************002X。"),
        ("from 93.184.216.77", "from **.***.***.**"),
        ("GB82 WEST 1234 5698 7654 32", "**** **** **** **** **54 32"),
        ("a@b.com b@c.com", "a*@b.com b*@c.com"),
    ],
)
def test_redaction_keeps_the_form(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_how_many_digits_stay_is_the_policy_s_choice() -> None:
    assert redacted("4111 1111 1111 1111", PiiCheck(PiiOptions(keep_last=0))) == "**** **** **** ****"


def test_only_the_entities_asked_for_are_looked_for() -> None:
    only = PiiCheck(PiiOptions(entities=frozenset({Entity.EMAIL})))
    assert {hit.reason for hit in counted("a@b.com or 13800138000", only)} == {"email"}


def test_plates_are_looked_for_on_request() -> None:
    asked = PiiCheck(PiiOptions(entities=frozenset({Entity.CN_PLATE})))
    assert [hit.reason for hit in counted("车牌京A12345停在门口", asked)] == ["cn_plate"]
    assert counted("车牌京A12345停在门口") == []


def test_a_passport_needs_the_word_beside_it() -> None:
    assert [hit.reason for hit in counted("护照号码：E12345678")] == ["cn_passport"]
    assert counted("part number E12345678") == []


def test_invisible_characters_inside_a_number_hide_nothing() -> None:
    text = "138\u200b0013\u200b8000"
    assert [(hit.start, hit.end) for hit in counted(text)] == [(0, len(text))]
    assert redacted(f"tel {text}!") == "tel *******8000!"


def test_the_reason_never_has_the_number() -> None:
    for hit in CHECK.examine(View("write to john.smith@example.com, 13800138000"), OUTPUT):
        assert not any(char.isdigit() or char == "@" for char in hit.reason)
        assert "john" not in repr(hit)


@pytest.mark.parametrize(
    "text",
    [
        "1" * 50_000,
        "a@" * 25_000,
        "+1 " * 15_000,
        "1.2.3." * 8_000,
        "a" * 50_000 + "@",
        "GB82 " * 10_000,
        ":1" * 20_000,
    ],
)
def test_hostile_texts_take_time_in_proportion(text: str) -> None:
    CHECK.examine(View(text), OUTPUT)
    CHECK.unfinished_from(View(text))


def test_the_kind_says_that_it_can_redact() -> None:
    assert PII.yields_spans
