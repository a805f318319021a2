# ruff: noqa: E501 - texts as models write them
"""Degenerate texts are caught; prose, code, lists, tables and Chinese are not."""

from __future__ import annotations

import pytest

from monitoring.quality import is_empty, is_repetitive

DEGENERATE = {
    "sentence": "I am a helpful assistant. " * 10,
    "word": "the " * 40,
    "exclamation marks": "!" * 120,
    "two words": "yes no " * 30,
    "phrase after a good beginning": "Paris is the capital of France and lies on the Seine, where it has been since "
    "Roman times, when the town was named Lutetia. " + "It is a city of lights, " * 12,
    "long paragraph": "The quick brown fox jumps over the lazy dog while seven wizards make toxic brew for a jovial "
    "queen of Persia. " * 5,
    "numbered loop": "".join(f"{i}. The answer is yes\n" for i in range(1, 30)),
    "code loop": "def add(a, b):\n    return a + b\n\n" * 10,
    "chinese sentence": "我是一个人工智能助手。" * 10,
    "chinese character": "的" * 60,
    "chinese phrase after prose": "北京是中国的首都，也是全国的政治和文化中心，有三千多年的历史。"
    + "非常好非常好" * 20,
    "token soup loop": "xq zt " * 50,
    "no spaces": "abcabcabc" * 20,
    "digits": "0" * 300,
    "broken json": '{"a": {"a": ' * 30,
    "newlines and dashes": "- \n" * 80,
}

ORDINARY = {
    "short": "Paris.",
    "short repetition": "No, no, no, no! Never, never, never.",
    "prose": "The capital of France is Paris. It lies on the river Seine in the north of the country, and it has been "
    "one of the largest cities of Europe since the seventeenth century. The city is known for its museums, for its "
    "architecture and for its food; the river divides it into two halves, each with a character of its own.",
    "list": "Here are some fruits:\n- apples\n- bananas\n- cherries\n- dates\n- elderberries\n- figs\n- grapes\n- honeydew",
    "numbered list": "1. Open the door.\n2. Walk into the room.\n3. Find the lamp.\n4. Turn on the light.\n5. Sit down at "
    "the table.\n6. Read the letter twice.\n7. Write an answer.\n8. Close the envelope and send it.",
    "table": "| name | age | city |\n|------|-----|------|\n| Ann | 31 | Oslo |\n| Bob | 28 | Rome |\n| Cid | 45 | Lima |\n"
    "| Dee | 19 | Cairo |\n| Eve | 52 | Delhi |\n|------|-----|------|",
    "code": "def quicksort(values):\n    if len(values) <= 1:\n        return values\n    pivot = values[len(values) // 2]\n"
    "    left = [v for v in values if v < pivot]\n    middle = [v for v in values if v == pivot]\n"
    "    right = [v for v in values if v > pivot]\n    return quicksort(left) + middle + quicksort(right)\n",
    "class": "class User:\n    def __init__(self, name, email, age):\n        self.name = name\n        self.email = email\n"
    "        self.age = age\n\n    def greet(self):\n        return f'Hello, {self.name}!'\n\n    def is_adult(self):\n"
    "        return self.age >= 18\n",
    "json": '[{"id": 1, "name": "Ann", "role": "admin"}, {"id": 2, "name": "Bob", "role": "user"}, '
    '{"id": 3, "name": "Cid", "role": "user"}, {"id": 4, "name": "Dee", "role": "guest"}]',
    "numbers": ", ".join(map(str, range(1, 101))),
    "refrain": "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream. "
    "Row, row, row your boat, gently up the creek. If you see a little mouse, don't forget to squeak.",
    "chinese": "北京是中华人民共和国的首都，位于华北平原的北部，是全国的政治、文化和国际交往中心。这座城市有三千多年的建城史和"
    "八百多年的建都史，拥有故宫、天坛、颐和园等世界文化遗产，每年吸引着来自世界各地的游客。",
    "chinese list": "学习编程的步骤如下：\n1. 选择一门语言，例如Python。\n2. 学习基本语法。\n3. 多写代码，多做练习。\n4. 阅读别人的项目。\n"
    "5. 参加社区讨论，向他人请教。\n6. 坚持下去，不断进步。",
    "heading": "Results\n=======\n\nThe first run took four seconds and the second one three.\n\n" + "-" * 80,
    "mixed": "The word 你好 means hello. 谢谢 means thank you. 再见 means goodbye. 对不起 means sorry. 请 means please.",
}


@pytest.mark.parametrize("text", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_degenerate_text_is_caught(text: str) -> None:
    assert is_repetitive(text)


@pytest.mark.parametrize("text", ORDINARY.values(), ids=ORDINARY.keys())
def test_ordinary_text_is_not(text: str) -> None:
    assert not is_repetitive(text)
    assert not is_empty(text)


def test_cost_is_bounded() -> None:
    assert is_repetitive("ab " * 1_000_000)
    assert not is_repetitive("".join(chr(0x4E00 + (i * 7919) % 20_000) for i in range(100_000)))


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u3000"])
def test_empty(text: str) -> None:
    assert is_empty(text)
