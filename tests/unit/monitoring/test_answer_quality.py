"""What an answer's text and probabilities say of its quality: the rules, by examples that must come out right."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.drift.features import MAX_CHARACTERS, Cheap, cheap_features
from monitoring.languages import is_other_language, script_of
from monitoring.likelihood import WORST_NATS, likelihood
from monitoring.refusals import is_refusal
from monitoring.semantic_entropy import clusters, semantic_entropy

SCRIPTS = [Cheap.LATIN, Cheap.HAN, Cheap.KANA, Cheap.HANGUL, Cheap.CYRILLIC, Cheap.ARABIC, Cheap.OTHER_LETTERS]
REFUSALS = [
    "I'm sorry, but I can't assist with that request.",
    "I’m really sorry, but I cannot help you with this.",
    "Sorry, I am not able to provide that information.",
    "I cannot provide instructions for that.",
    "I won't help write malware.",
    "As an AI language model, I don't have personal opinions.",
    "Unfortunately, I can't share that.",
    "I must respectfully decline to answer.",
    "I am unable to open links.",
    "**I'm sorry**, but I can’t do that.",
    "很抱歉，我无法提供这类信息。",
    "对不起，我不能帮助你完成这个请求。",
    "作为一个人工智能语言模型，我无法浏览网页。",
    "我不能提供医疗建议，请咨询医生。",
    "抱歉，这个问题我没办法回答。",
]
ANSWERS = [
    "Paris is the capital of France.",
    "I can't believe it's already Friday! Here is the plan.",
    "Sorry for the delay. The answer is 42.",
    "I cannot stress enough how important testing is: write tests first.",
    "You can't divide by zero, so the result is undefined.",
    "The function raises ValueError when it can't parse the input.",
    "I'm afraid of spiders, wrote the girl in her diary.",
    "抱歉让您久等了，您的订单已经发货。",
    "我不能说这部电影很好，但它的配乐不错。",
    "无法连接数据库时，请先检查网络。",
    "人工智能是一门研究如何让机器模拟人类智能的学科。",
    "",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_who_declines_is_seen(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_who_answers_does_not_decline(text: str) -> None:
    assert not is_refusal(text)


@given(st.text(max_size=400))
def test_any_text_is_looked_at_in_bounded_time(text: str) -> None:
    is_refusal(text)
    script_of(text)
    is_refusal("I'm sorry " * 1000 + text)


def counted_one_by_one(text: str) -> Cheap | None:
    """The script of a text by definition: shares of its letters, ideographs twice."""
    prose = re.sub(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", " ", text, flags=re.DOTALL)
    shares = dict(zip(Cheap, cheap_features(prose), strict=True))
    letters = {name: round(float(shares[name]) * min(len(prose), MAX_CHARACTERS)) for name in SCRIPTS}
    for dense in (Cheap.HAN, Cheap.KANA, Cheap.HANGUL):
        letters[dense] *= 2
    if letters[Cheap.KANA]:
        letters[Cheap.KANA] += letters.pop(Cheap.HAN)
    script = max(letters, key=lambda name: letters[name])
    total = sum(letters.values())
    return script if total >= 8 and letters[script] >= 0.7 * total else None


PIECES = st.sampled_from(
    ["word ", "Ünï", "法国的首都", "とても", "한국어", "Столица", "مرحبا", "ไทย", "é", "42", "`code` ",
     "```py\nx = 1\n", "```", "`", "http://a.b/c ", "ftp://a ", "\n", "\ud800", "𠮷𠮷"]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=20).map("".join)


@given(TEXTS, st.lists(PIECES, max_size=10).map("".join), st.sampled_from([1, 200]))
def test_a_script_counted_fast_is_the_one_counted_slowly(beginning: str, answer: str, times: int) -> None:
    text = beginning + answer * times
    assert script_of(text) is counted_one_by_one(text)
    written = counted_one_by_one(answer)
    other = written is not None and counted_one_by_one(text) not in (None, written)
    assert is_other_language(text, answer) is other


@pytest.mark.parametrize(
    ("prompt", "answer", "other"),
    [
        ("What is the capital of France?", "法国的首都是巴黎，位于塞纳河畔。", True),
        ("法国的首都是哪个城市？", "The capital of France is Paris.", True),
        ("法国的首都是哪个城市？", "法国的首都是巴黎。", False),
        ("写一个快速排序函数给我看看", "```python\ndef quick_sort(items): return sorted(items)\n```", False),
        ("写一个快速排序函数给我看看", "好的，这是快速排序：\n```python\ndef quick_sort(items): ...\n```", False),
        ("東京はどんなところですか？", "東京は日本の首都で、とても大きな都市です。", False),
        ("東京はどんなところですか？", "Tokyo is the capital of Japan.", True),
        ("Who wrote it?", "42", False),
        ("12 * 12 = ?", "它等于一百四十四，也就是十二的平方。", False),
        ("Какая столица Франции?", "Столица Франции — Париж.", False),
    ],
)
def test_an_answer_in_another_script_is_told(prompt: str, answer: str, *, other: bool) -> None:
    assert is_other_language(prompt, answer) is other


def test_unlikely_tokens_count_and_impossible_ones_at_most_so_much() -> None:
    assert likelihood([]) is None
    assert likelihood([math.nan]) is None
    found = likelihood([-0.5, -9999.0, 0.0, -math.inf])
    assert found is not None
    assert found == ((0.5 + 2 * WORST_NATS) / 4, WORST_NATS)


def test_answers_that_mean_the_same_have_no_entropy() -> None:
    import numpy as np

    assert clusters(np.array([[1.0, 0], [0.9, 0.43], [0, 1.0]])) == (2, 1)
    assert 0.0 < semantic_entropy(np.array([[1.0, 0], [0.9, 0.43], [0, 1.0]])) < 1.0
    with pytest.raises(ValueError, match="at least 2"):
        semantic_entropy(np.ones((1, 2)))
