from __future__ import annotations

import pytest

from guardrails.text_units import Stretch, is_boundary, language_of, last_sentence_start, next_cut
from guardrails.verdicts import Language

SENTENCE = Stretch(max_characters=400)
TOKENS = Stretch(max_characters=192, max_tokens=24)


def pieces(text: str, stretch: Stretch) -> list[str]:
    found, start = [], 0
    while (cut := next_cut(text, start, stretch)) is not None:
        found.append(text[start:cut])
        start = cut
    return [*found, text[start:]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ("今天好。明天呢？“好！”他说。完", ["今天好。", "明天呢？", "“好！”", "他说。", "完"]),
        (
            "Dr. Smith paid 3.14 dollars, e.g. to Mr. X. Then left",
            ["Dr. Smith paid 3.14 dollars, e.g. to Mr. X. Then left"],
        ),
        ('He said "no." Then', ['He said "no." ', "Then"]),
        ("Wait... what?! Yes", ["Wait... ", "what?! ", "Yes"]),
        ("a line\nanother\n\nlast", ["a line\n", "another\n\n", "last"]),
        ("等等……什么？？好", ["等等……", "什么？？", "好"]),
        ("no end", ["no end"]),
        ("", [""]),
    ],
)
def test_sentences_end_where_readers_end_them(text: str, expected: list[str]) -> None:
    assert pieces(text, SENTENCE) == expected


def test_a_stretch_of_tokens_ends_between_words() -> None:
    words = "every word here has some letters " * 12
    for piece in pieces(words, TOKENS)[:-1]:
        assert 48 <= len(piece) <= 96
        assert piece.endswith(" ") or words[len(piece)] == " "


def test_a_chinese_character_counts_as_a_token() -> None:
    assert {len(piece) for piece in pieces("潮水涨落" * 30, TOKENS)[:-1]} == {24}


def test_a_word_without_end_is_cut_all_the_same() -> None:
    assert max(len(piece) for piece in pieces("x" * 1000, TOKENS)) <= 96


@pytest.mark.parametrize(
    "whole",
    [
        "👩\u200d👩\u200d👧\u200d👦",
        "🇨🇳",
        "👍🏽",
        "e\u0301\u0323",
        "✌\ufe0f",
        "\r\n",
        "한",
        "🏴\U000e0067\U000e0062\U000e007f",
    ],
)
def test_what_is_seen_as_one_character_is_kept_whole(whole: str) -> None:
    assert [at for at in range(1, len(whole)) if is_boundary(whole, at)] == []


def test_flags_come_in_pairs() -> None:
    text = "🇨🇳🇬🇧🇺🇸"
    assert [at for at in range(len(text) + 1) if is_boundary(text, at)] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("One. Two", "Two"), ("One.", "One."), ("One. ", ""), ("一。二", "二"), ("一。", ""), ("abc", "abc")],
)
def test_the_sentence_that_is_under_way(text: str, sentence: str) -> None:
    assert text[last_sentence_start(text, 100) :] == sentence


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How are you?", Language.EN),
        ("你好吗？", Language.ZH),
        ("请用 Python 写一个 FastAPI 的例子", Language.ZH),
        ("The word 你好 means hello in Chinese, and it is used often.", Language.EN),
        ("こんにちは、世界。元気ですか", Language.OTHER),
        ("안녕하세요 세계", Language.OTHER),
        ("Привет, как дела", Language.OTHER),
        ("12345 !!", Language.OTHER),
        ("", Language.OTHER),
    ],
)
def test_the_language_is_told_by_script(text: str, language: Language) -> None:
    assert language_of(text) is language
