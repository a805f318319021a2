"""What a simulated engine says. Pure: the random generator is an argument.

A token is a word with the space before it, so that tokens joined are the text.
"""

from __future__ import annotations

import enum
import hashlib
import math
import random
import re
from collections.abc import Sequence

from serving.engines.sim_spec import SimSpec

MARK = re.compile(r"\[\[mark:[^\]]{1,64}\]\]")
"""A prompt may hold one; the answer then begins with it, so that tests can tell answers apart."""

EMBEDDING_SIZE = 64

_SUBJECTS = [
    "the harbour",
    "a small boat",
    "the lighthouse keeper",
    "our neighbour",
    "the morning tide",
    "the old bridge",
    "a patient gull",
    "the river",
    "my sister",
    "the mountain path",
    "the new engine",
    "a quiet teacher",
]
_VERBS = [
    "follows",
    "remembers",
    "carries",
    "opens",
    "watches",
    "repairs",
    "describes",
    "crosses",
    "measures",
    "returns to",
    "waits for",
    "listens to",
]
_OBJECTS = [
    "the northern shore",
    "a basket of apples",
    "the evening train",
    "a letter from home",
    "the wooden gate",
    "several clear answers",
    "the long story",
    "a warm light",
    "the next village",
    "some fresh bread",
    "the map on the wall",
    "a simple question",
]
_ENDINGS = [
    "before sunrise",
    "without any hurry",
    "in the early spring",
    "with great care",
    "every second week",
    "on the way back",
    "as the weather turns",
    "after a short rest",
]
_INSULTS = [
    "you are a worthless idiot",
    "shut up, you stupid moron",
    "you disgusting pathetic loser",
    "nobody likes you, you dumb fool",
]
_REFUSAL = "I'm sorry, but I can't help with that."
_FIRST, _LAST = ("Alice", "Bruno", "Chiara", "Daniel", "Esther"), ("Miller", "Novak", "Okafor", "Rossi", "Tanaka")
_LETTERS = "bcdfghjklmnpqrstvwxzaeiouy0123456789#%&"


class Manner(enum.StrEnum):
    """How an answer reads."""

    PLAIN = "plain"
    TOXIC = "toxic"
    PII = "pii"
    GIBBERISH = "gibberish"
    REPEAT = "repeat"
    REFUSAL = "refusal"


def draw_manner(spec: SimSpec, rng: random.Random) -> Manner:
    """Draw how an answer reads: one draw per rate, the first that hits."""
    rates = (
        (spec.toxic_rate, Manner.TOXIC),
        (spec.pii_rate, Manner.PII),
        (spec.gibberish_rate, Manner.GIBBERISH),
        (spec.repeat_rate, Manner.REPEAT),
        (spec.refusal_rate, Manner.REFUSAL),
    )
    hits = [manner for rate, manner in rates if rng.random() < rate]
    return hits[0] if hits else Manner.PLAIN


def answer_tokens(manner: Manner, count: int, mark: str, rng: random.Random) -> list[str]:
    """Make an answer of exactly `count` tokens.

    >>> answer_tokens(Manner.REPEAT, 3, "", random.Random(1))[1].startswith(" ")
    True

    Args:
        manner: How it reads.
        count: Number of tokens, 0 or more.
        mark: What it begins with, as one token; empty for none.
        rng: Source of chance.
    """
    words: list[str] = [mark] if mark else []
    phrase = _sentence(rng).split()[:4]
    while len(words) < count:
        match manner:
            case Manner.PLAIN:
                words += _sentence(rng).split()
            case Manner.TOXIC:
                words += [*rng.choice(_INSULTS).capitalize().split(), *_sentence(rng).split()]
            case Manner.PII:
                words += _personal(rng).split()
            case Manner.GIBBERISH:
                words.append("".join(rng.choices(_LETTERS, k=rng.randint(2, 11))))
            case Manner.REPEAT:
                words += phrase
            case Manner.REFUSAL:
                words += [*_REFUSAL.split(), *_sentence(rng).split()]
    return [word if index == 0 else f" {word}" for index, word in enumerate(words[:count])]


def cut_at_stop(tokens: Sequence[str], stops: Sequence[str]) -> tuple[list[str], bool]:
    """Cut before the first stop string; return the tokens left and whether one was met."""
    text = "".join(tokens)
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    if not found:
        return list(tokens), False
    left, kept = min(found), []
    for token in tokens:
        if left <= 0:
            break
        kept.append(token[:left])
        left -= len(token)
    return kept, True


def count_tokens(text: str) -> int:
    """Tokens of a prompt: its words, and every Chinese character; at least one."""
    chinese = sum("\u4e00" <= c <= "\u9fff" for c in text)
    return max(1, len(text.split()) + chinese)


def split_tokens(text: str) -> list[str]:
    """The tokens that `count_tokens` counts, in order: each word, and after it each Chinese character in it.

    >>> split_tokens("tide 潮汐")
    ['tide', '潮汐', '潮', '汐']
    """
    return [t for word in text.split() for t in (word, *(c for c in word if "\u4e00" <= c <= "\u9fff"))] or [""]


def embedding(text: str, size: int = EMBEDDING_SIZE) -> list[float]:
    """A unit vector of `size` that depends on the text alone; a shorter one points where a longer one begins."""
    rng = random.Random(hashlib.sha256(text.encode()).digest())  # noqa: S311 - not for secrets
    vector = [rng.gauss(0, 1) for _ in range(size)]
    norm = math.sqrt(sum(x * x for x in vector))
    return [round(x / norm, 6) for x in vector]


def _sentence(rng: random.Random) -> str:
    return f"{rng.choice(_SUBJECTS).capitalize()} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)} {rng.choice(_ENDINGS)}."


def _personal(rng: random.Random) -> str:
    first, last = rng.choice(_FIRST), rng.choice(_LAST)
    mail = f"{first}.{last}{rng.randint(1, 99)}@example.com".lower()
    card = (
        f"4{rng.randint(0, 999):03d} {rng.randint(0, 9999):04d} {rng.randint(0, 9999):04d} {rng.randint(0, 9999):04d}"
    )
    return f"Write to {first} {last} at {mail} or call +1 202 555 01{rng.randint(0, 99):02d}, card {card}."
