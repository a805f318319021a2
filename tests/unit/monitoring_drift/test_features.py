from __future__ import annotations

import pytest

from monitoring.drift.features import MAX_CHARACTERS, NAMES, Cheap, cheap_features


def of(text: str) -> dict[str, float]:
    return dict(zip(NAMES, cheap_features(text).tolist(), strict=True))


@pytest.mark.parametrize(
    ("text", "feature", "share"),
    [
        ("hello", Cheap.LATIN, 1.0),
        ("今天天气", Cheap.HAN, 1.0),
        ("𠀀𠀁", Cheap.HAN, 1.0),
        ("ひらカナ", Cheap.KANA, 1.0),
        ("안녕하세요", Cheap.HANGUL, 1.0),
        ("привет", Cheap.CYRILLIC, 1.0),
        ("مرحبا", Cheap.ARABIC, 1.0),
        ("שלום", Cheap.OTHER_LETTERS, 1.0),
        ("12ab", Cheap.DIGITS, 0.5),
        ("。!ab", Cheap.PUNCTUATION, 0.5),
        ("a b\n", Cheap.SPACES, 0.5),
        ("+=😀a", Cheap.SYMBOLS, 0.75),
        ("ABcd今天", Cheap.UPPER_CASE, 0.5),
        ("今天", Cheap.UPPER_CASE, 0.0),
        ("\x00\x01ab", Cheap.SYMBOLS, 0.5),
    ],
)
def test_a_share_counts_its_characters(text: str, feature: Cheap, share: float) -> None:
    assert of(text)[feature] == pytest.approx(share)


def test_an_empty_text_is_all_zeros() -> None:
    assert set(of("").values()) == {0.0}


def test_the_length_counts_what_is_not_looked_at() -> None:
    assert of("a" * 8191)[Cheap.LOG_LENGTH] == 13.0


def test_the_end_of_a_long_text_is_looked_at() -> None:
    assert of("a" * 100_000 + "今" * (MAX_CHARACTERS // 2))[Cheap.HAN] == pytest.approx(0.5)


def test_a_lone_surrogate_does_no_harm() -> None:
    assert sum(of("\ud800").values()) > 0.0
