r"""A text as a reader sees it, under whatever it is dressed up in; every position leads back to the original. Pure.

    original -> plain      NFKC, and without invisible characters: digits, addresses and keys are looked for here
             -> folded     lower case, look-alike letters and accents to ASCII, leetspeak, `k i l l`: words are
             looked for here -> more       the same text with 1 read as l; what base64, hex, percent, HTML, \\u
             escapes or ROT13 hide

Every step takes time and room in proportion to the text. Decoding goes `MAX_DEPTH` deep and stops after `MAX_DECODED`
characters. Not covered: base64 with spaces put between its letters, ciphers with a key, words written backwards.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from urllib.parse import unquote

from guardrails.confusables import INVISIBLE, LATIN_LOOKALIKE
from guardrails.text_units import CJK

MAX_DEPTH = 2
MAX_DECODED = 16_384
"""Characters decoded from one text in all."""
LONGEST_CODED = 512
"""Characters of an unfinished run of code at the end of a stream's text that are waited for."""

_INVISIBLE = re.compile("[" + "".join(sorted(INVISIBLE)) + "]")
_HAS_MARK = re.compile(
    r"[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe20-\ufe2f\u1100-\u11ff]"
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One reading of the original. `starts[i]` and `ends[i]` say which original characters character i stands for.

    None for both: the reading has the original's characters one by one, from `base` on.
    """

    text: str
    starts: Sequence[int] | None = None
    ends: Sequence[int] | None = None
    base: int = 0

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where a stretch of this reading lies in the original."""
        if self.starts is None or self.ends is None:
            return start + self.base, end + self.base
        if end <= start:
            at = self.starts[start] if start < len(self.starts) else (self.ends[-1] if self.ends else 0)
            return at, at
        return self.starts[start], self.ends[end - 1]

    def changed(self, text: str, starts: Sequence[int], ends: Sequence[int]) -> Layer:
        """A reading of this reading; positions are this one's and become the original's."""
        if self.starts is None or self.ends is None:
            if not self.base:
                return Layer(text, starts, ends)
            return Layer(text, [at + self.base for at in starts], [at + self.base for at in ends])
        own_starts, own_ends = self.starts, self.ends
        return Layer(text, [own_starts[at] for at in starts], [own_ends[at - 1] for at in ends])


@lru_cache(maxsize=16_384)
def _nfkc(char: str) -> str:
    return "" if char in INVISIBLE else unicodedata.normalize("NFKC", char)


@lru_cache(maxsize=16_384)
def _fold(char: str) -> str:
    """A character as the plain lower-case letters it looks like."""
    lower = char.lower()
    if lower.isascii():
        return lower
    found = LATIN_LOOKALIKE.get(char) or LATIN_LOOKALIKE.get(lower)
    if found:
        return found
    if unicodedata.category(char) in ("Mn", "Me"):
        return ""
    bare = unicodedata.normalize("NFKD", lower)
    if len(bare) > 1 and bare[0].isascii():
        return "".join(c for c in bare if not unicodedata.combining(c))
    return LATIN_LOOKALIKE.get(bare[:1], lower)


def _per_character(layer: Layer, change: Callable[[str], str]) -> Layer:
    """A reading with every character changed for itself."""
    pieces = list(map(change, layer.text))
    text = "".join(pieces)
    if len(text) == len(pieces) and all(pieces):
        return Layer(text, layer.starts, layer.ends, layer.base)
    counts = [len(piece) for piece in pieces]
    starts = list(itertools.chain.from_iterable(map(itertools.repeat, range(len(pieces)), counts)))
    return layer.changed(text, starts, [at + 1 for at in starts])


def _clusters(text: str) -> Iterator[tuple[int, int]]:
    """Base characters with the marks that combine with them (at most 32 each)."""
    start = 0
    for at in range(1, len(text)):
        char = text[at]
        joins = char >= "\u0300" and (unicodedata.combining(char) or "\u1160" <= char <= "\u11ff")
        if not joins or at - start >= 32:
            yield start, at
            start = at
    if text:
        yield start, len(text)


def plain(text: str) -> Layer:
    """NFKC without invisible characters.

    >>> layer = plain("ｐａｓｓ\u200bword")
    >>> layer.text, layer.span(4, 8)
    ('password', (5, 9))
    """
    if text.isascii():
        return Layer(text)
    if not _HAS_MARK.search(text):
        return _per_character(Layer(text), _nfkc)
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for start, end in _clusters(text):
        piece = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text[start:end]))
        pieces.append(piece)
        starts += [start] * len(piece)
        ends += [end] * len(piece)
    return Layer("".join(pieces), starts, ends)


_LEET = str.maketrans("013457$@!|+€£", "oieastsaiitel")
_LEET_L = str.maketrans("1|!", "lll")
_ONES = re.compile(r"11+|(?<![a-z])1(?=[aeou])")
"""`a11` and `1eak`: here a 1 is an l, elsewhere an i; the reading with every 1 as an l comes beside it."""
_LEET_PAIR = re.compile(r"[a-z][013457$@!|€£]|[013457$@!|€£][a-z]")
_ONE_IN_WORD = re.compile(r"[1|!][a-z]|[a-z][1|]")
_LEET_TOKEN = re.compile(r"(?<![a-z0-9$@!|+€£])[a-z0-9$@!|+€£]{2,64}")
_SPACED = re.compile(
    r"(?<![a-z0-9])[a-z0-9$@!|]([ ._*\-/\\~])[a-z0-9$@!|](?:\1[a-z0-9$@!|])+(?![a-z0-9])"
    f"|(?<=[{CJK}])[ ._*\\-/\\\\~·]{{1,2}}(?=[{CJK}])"
)
_SEPARATORS = " ._*-/\\~·"


def _unspaced(layer: Layer) -> Layer:
    """`k i l l`, `k.i.l.l` and `忽 略` without what stands between; two spaces still part words."""
    if not _SPACED.search(layer.text):
        return layer
    keep: list[int] = []
    at = 0
    for found in _SPACED.finditer(layer.text):
        keep += range(at, found.start())
        keep += (place for place in range(*found.span()) if layer.text[place] not in _SEPARATORS)
        at = found.end()
    keep += range(at, len(layer.text))
    return layer.changed("".join(layer.text[place] for place in keep), keep, [place + 1 for place in keep])


def _unleet(layer: Layer, table: dict[int, int] | None = None) -> Layer:
    """Digits and signs inside words as the letters they stand for; numbers by themselves stay."""

    def letters(found: re.Match[str]) -> str:
        word = found[0]
        if not _LEET_PAIR.search(word):
            return word
        trailing = len(word) - len(word.rstrip("!|+"))  # an exclamation mark after a word is one
        body = word[: len(word) - trailing] if trailing else word
        body = body.translate(table) if table else _ONES.sub(lambda ones: "l" * len(ones[0]), body)
        return body.translate(_LEET) + word[len(body) :]

    if not _LEET_PAIR.search(layer.text):
        return layer
    text = _LEET_TOKEN.sub(letters, layer.text)
    return layer if text == layer.text else Layer(text, layer.starts, layer.ends, layer.base)


def folded(layer: Layer) -> Layer:
    """The reading in which words are looked for.

    >>> folded(plain("Ignоre prev1ous; k i l l")).text  # the o is Cyrillic
    'ignore previous; kill'
    """
    return _unleet(_lowered(layer))


def _lowered(layer: Layer) -> Layer:
    if layer.text.isascii():
        lower = Layer(layer.text.lower(), layer.starts, layer.ends, layer.base)
    else:
        lower = _per_character(layer, _fold)
    return _unspaced(lower)


# --- what codes hide -------------------------------------------------------------------------------------------------

_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}={0,2}(?:\r?\n[A-Za-z0-9+/_-]{16,}={0,2}){0,64}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:(?:\\x|0x)?[0-9A-Fa-f]{2}[ :,]?){8,}")
_ESCAPED = re.compile(
    r"[^\s%&\\]{0,64}(?:(?:%[0-9A-Fa-f]{2}|&#x?[0-9A-Fa-f]{2,6};|\\u[0-9A-Fa-f]{4})[^\s%&\\]{0,8}){2,}"
)
_ROT13_WORDS = re.compile(
    r"\b(?:vtaber|cerivbhf|vafgehpgvbaf?|flfgrz|cebzcg|lbhe?|gur|naq|nyy|ubj|xvyy|erirny|cergraq)\b"
)
_CODE_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_=%&#;:,\\-"
_UNFINISHED_HEX = re.compile(r"(?<![0-9A-Za-z])(?:(?:\\x|0x)?[0-9A-Fa-f]{2}[ :,]){1,170}(?:\\x|0x)?[0-9A-Fa-f]{0,2}$")
_HEX_END = re.compile(r"(?<![0-9A-Za-z])(?:\\x|0x)?[0-9A-Fa-f]{2}[ :,](?:\\x|0x)?[0-9A-Fa-f]{0,2}$")
_SPACED_END = re.compile(rf"(?<![A-Za-z0-9])\w[ ._*\-/\\~·]{{1,2}}\w?$|[{CJK}][ ._*\-/\\~·]{{1,2}}$")
_UNFINISHED_SPACED = re.compile(
    rf"(?<![A-Za-z0-9])(?:\w[ ._*\-/\\~·]{{1,2}}){{1,64}}\w?$|(?:[{CJK}][ ._*\-/\\~·]{{1,2}}){{1,64}}$"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")


def _readable(data: bytes) -> str | None:
    """Bytes as text, if people could read it."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if len(text) < 6 or _CONTROL.search(text):
        return None
    sensible = sum(char.isalnum() or char.isspace() or char in ".,;:!?'\"()-_/，。！？、：" for char in text)
    return text if sensible >= 0.9 * len(text) else None


def _from_base64(run: str, *, cut_off: bool) -> str | None:
    bare = re.sub(r"[\r\n=]", "", run).replace("-", "+").replace("_", "/")
    if bare.isalpha() and (bare.islower() or bare.isupper()):  # a long word
        return None
    for skipped in range(4 if cut_off else 1):  # its beginning may lie before what is seen
        part = bare[skipped:]
        part = part[:-1] if len(part) % 4 == 1 else part
        try:
            data = base64.b64decode(part + "=" * (-len(part) % 4))
        except (binascii.Error, ValueError):
            continue
        for trim_front, trim_back in ((0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1), (2, 2)):  # characters cut in two
            text = _readable(data[trim_front : len(data) - trim_back])
            if text is not None:
                return text
            if not cut_off and not trim_front and not trim_back and len(data) < 12:
                break
    return None


def _from_hex(run: str) -> str | None:
    digits = re.sub(r"\\x|0x|[ :,]", "", run)
    return None if digits.isdigit() and len(digits) < 24 else _readable(bytes.fromhex(digits[: len(digits) // 2 * 2]))


def _from_escapes(run: str) -> str | None:
    text = unquote(run, errors="strict") if "%" in run else run
    text = html.unescape(text) if "&" in text else text
    if "\\u" in text:
        text = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda found: chr(int(found[1], 16)), text)
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return None if text == run or _CONTROL.search(text) else text


def _code_runs(text: str) -> Iterator[tuple[int, int, str]]:
    for found in _BASE64.finditer(text):
        decoded = _from_base64(found[0], cut_off=found.start() == 0)
        if decoded:
            yield (*found.span(), decoded)
    for found in _HEX.finditer(text):
        decoded = _from_hex(found[0])
        if decoded:
            yield (*found.span(), decoded)
    if "%" in text or "&#" in text or "\\u" in text:
        for found in _ESCAPED.finditer(text):
            try:
                decoded = _from_escapes(found[0])
            except (UnicodeDecodeError, ValueError, OverflowError):
                continue
            if decoded:
                yield (*found.span(), decoded)


def decoded(layer: Layer) -> tuple[Layer, ...]:
    """What codes in a reading hide: one reading for each run, all of whose characters stand for the whole run."""
    found: list[Layer] = []
    room = MAX_DECODED
    waiting = [layer]
    for _ in range(MAX_DEPTH):
        inner: list[Layer] = []
        for outer in waiting:
            for start, end, text in _code_runs(outer.text):
                if len(text) > room:
                    return tuple(found)
                room -= len(text)
                first, last = outer.span(start, end)
                inner.append(Layer(text, [first] * len(text), [last] * len(text)))
        found += inner
        waiting = inner
        if not inner:
            break
    if len(set(_ROT13_WORDS.findall(layer.text.lower()))) >= 2 or "rot13" in layer.text.lower():
        found.append(Layer(codecs.encode(layer.text, "rot13"), layer.starts, layer.ends, layer.base))
    return tuple(found)


_OTHER_ALPHABETS = re.compile(r"[\u0370-\u03ff\u0400-\u052f\u13a0-\u13ff]")
_MIXED = re.compile(
    r"[A-Za-z]+[\u0370-\u03ff\u0400-\u052f\u13a0-\u13ff]|[\u0370-\u03ff\u0400-\u052f\u13a0-\u13ff]+[A-Za-z]"
)


class View:
    """A text and its readings, each made when it is first asked for."""

    def __init__(self, original: str) -> None:
        self.original = original

    @cached_property
    def plain(self) -> Layer:
        """For digits, addresses and keys."""
        return plain(self.original)

    @cached_property
    def _lower(self) -> Layer:
        return _lowered(self.plain)

    @cached_property
    def folded(self) -> Layer:
        """For words."""
        return _unleet(self._lower)

    @cached_property
    def hidden(self) -> tuple[Layer, ...]:
        """What codes hide, as it is written there."""
        return decoded(self.plain)

    @cached_property
    def words(self) -> tuple[Layer, ...]:
        """Every reading in which words are looked for; the folded one comes first."""
        readings = [self.folded]
        if _ONE_IN_WORD.search(self._lower.text):
            other = _unleet(self._lower, _LEET_L)
            if other.text != self.folded.text:
                readings.append(other)
        readings += (folded(plain_of(layer)) for layer in self.hidden)
        return tuple(readings)

    @cached_property
    def mixed_script_words(self) -> int:
        """Words in which Latin letters stand beside Greek, Cyrillic or Cherokee ones."""
        if self.original.isascii() or not _OTHER_ALPHABETS.search(self.plain.text):
            return 0
        return len(_MIXED.findall(self.plain.text))

    @cached_property
    def invisible_characters(self) -> int:
        """Characters that take no room, emoji's joiners and selectors aside."""
        if self.original.isascii() or INVISIBLE.isdisjoint(self.original):
            return 0
        return sum(1 for found in _INVISIBLE.findall(self.original) if found not in "\u200d\ufe0f\ufe0e\u00ad\ufeff")

    @cached_property
    def unfinished_from(self) -> int:
        """Where an unfinished run of code or of spaced-out letters at the end begins, in the original; else its end."""
        text = self.original
        tail = text[-LONGEST_CODED:]
        first = len(tail.rstrip(_CODE_CHARACTERS))
        for at_end, whole in ((_HEX_END, _UNFINISHED_HEX), (_SPACED_END, _UNFINISHED_SPACED)):
            if at_end.search(tail, max(0, len(tail) - 10)) and (found := whole.search(tail)):
                first = min(first, found.start())
        first += len(text) - len(tail)
        while first > 0 and text[first - 1] in INVISIBLE and len(text) - first < LONGEST_CODED:
            first -= 1
        return first


def plain_of(layer: Layer) -> Layer:
    """The plain reading of a decoded one."""
    if layer.text.isascii():
        return layer
    inner = plain(layer.text)
    if inner.starts is None or inner.ends is None:
        return Layer(inner.text, layer.starts, layer.ends, layer.base)
    return layer.changed(inner.text, inner.starts, inner.ends)
