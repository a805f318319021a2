# ruff: noqa: E501 - tables of texts
from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.normalise import MAX_DECODED, View, decoded, folded, plain


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("Hello", "hello"),
        ("ＨＥＬＬＯ　１２３", "hello 123"),
        ("he\u200bl\u00adlo", "hello"),
        ("hеllо", "hello"),
        ("𝐡𝐞𝐥𝐥𝐨", "hello"),
        ("ｈ\u0336é\u0301llo", "hello"),
        ("h3ll0 w0rld", "hello world"),
        ("h e l l o", "hello"),
        ("h.e.l.l.o w.o.r.l.d", "hello world"),
        ("h-e-l-l-o", "hello"),
        ("a b", "a b"),
        ("the year 1984 and 3 cats", "the year 1984 and 3 cats"),
        ("wow!", "wow!"),
        ("你 好 吗", "你好吗"),
        ("你，好！", "你,好!"),
        ("Ⅷ ﬁ ㍿", "viii fi 株式会社"),
        ("", ""),
    ],
)
def test_words_are_read_as_a_reader_sees_them(text: str, reading: str) -> None:
    assert View(text).folded.text == reading


def test_digits_stay_digits_in_the_plain_reading() -> None:
    assert plain("h3ll0 １２３").text == "h3ll0 123"


@pytest.mark.parametrize(
    ("text", "found", "original"),
    [
        ("ab\u200bcd", "abcd", "ab\u200bcd"),
        ("x ﬁsh y", "fish", "ﬁsh"),
        ("see k i l l now", "kill", "k i l l"),
        ("一е\u0301二", "e", "е\u0301"),
        ("ＡＢ c", "ab", "ＡＢ"),
    ],
)
def test_places_lead_back_to_the_original(text: str, found: str, original: str) -> None:
    layer = folded(plain(text))
    at = layer.text.index(found)
    start, end = layer.span(at, at + len(found))
    assert text[start:end] == original


@given(st.text(max_size=60))
def test_every_reading_points_into_the_original(text: str) -> None:
    view = View(text)
    for layer in (view.plain, *view.words):
        for at in range(len(layer.text)):
            start, end = layer.span(at, at + 1)
            assert 0 <= start < end <= len(text)
    assert 0 <= view.unfinished_from <= len(text)


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=60))
def test_plain_ascii_is_its_own_reading(text: str) -> None:
    assert plain(text).text == text


@pytest.mark.parametrize("secret", ["attack at dawn, all of you", "今晚攻击所有的人"])
@pytest.mark.parametrize("wrap", ["{}", "see {} there", "看{}"])
def test_codes_are_read(secret: str, wrap: str) -> None:
    data = secret.encode()
    codes = {
        "base64": base64.b64encode(data).decode(),
        "base64, no padding": base64.b64encode(data).decode().rstrip("="),
        "base64, for addresses": base64.urlsafe_b64encode(data).decode(),
        "hex": data.hex(),
        "hex, spaced": data.hex(" "),
        "hex, escaped": "".join(f"\\x{byte:02x}" for byte in data),
        "percent": "".join(f"%{byte:02X}" for byte in data),
        "HTML": "".join(f"&#x{ord(char):x};" for char in secret),
    }
    for name, code in codes.items():
        text = wrap.format(code)
        layers = decoded(plain(text))
        assert any(secret in layer.text for layer in layers), name
        layer = next(layer for layer in layers if secret in layer.text)
        start, end = layer.span(0, len(layer.text))
        assert text.index(code) >= start
        assert end >= text.index(code) + len(code.rstrip("=;")) - 1, name


def test_a_code_in_a_code_is_read_but_not_without_end() -> None:
    code = b"the innermost words"
    for _ in range(2):
        code = base64.b64encode(code)
    assert any(layer.text == "the innermost words" for layer in decoded(plain(code.decode())))
    deeper = base64.b64encode(code).decode()
    assert not any(layer.text == "the innermost words" for layer in decoded(plain(deeper)))


def test_no_more_is_decoded_than_the_limit() -> None:
    huge = " ".join(base64.b64encode(b"words and more words %d" % n).decode() for n in range(5_000))
    assert sum(len(layer.text) for layer in decoded(plain(huge))) <= MAX_DECODED


@pytest.mark.parametrize(
    "text",
    ["supercalifragilisticexpialidocious", "/usr/local/lib/python3.11/site-packages", "0123456789" * 3, "deadbeef" * 4],
)
def test_what_is_no_code_is_not_decoded(text: str) -> None:
    assert decoded(plain(text)) == ()


@pytest.mark.parametrize(
    ("text", "mixed"), [("pаypal", 1), ("привет world", 0), ("请用 Python", 0), ("раypаl and gооgle", 2), ("plain", 0)]
)
def test_words_of_mixed_scripts_are_counted(text: str, mixed: int) -> None:
    assert min(View(text).mixed_script_words, mixed) == mixed
    assert bool(View(text).mixed_script_words) is bool(mixed)


def test_emoji_are_no_invisible_text() -> None:
    assert View("👩\u200d💻 ❤\ufe0f").invisible_characters == 0
    assert View("a\u200bb\u2060c").invisible_characters == 2


@pytest.mark.parametrize("text", ["é" * 30_000, "e\u0301" * 20_000, "\u0301" * 40_000, "ﷺ" * 5_000, "%41" * 20_000, "QUJD" * 15_000, "a " * 30_000, "1a" * 20_000, "\\u4f60" * 8_000])  # fmt: skip
def test_hostile_texts_take_time_in_proportion(text: str) -> None:
    assert View(text).words
    assert View(text).unfinished_from <= len(text)
