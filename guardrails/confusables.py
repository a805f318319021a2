"""Letters of other scripts that look like Latin ones. Pure.

A subset of Unicode's confusables.txt (UTS 39): the Cyrillic, Greek, Armenian and Cherokee letters, and the Latin
letters outside ASCII, that a reader takes for one letter of ASCII. Full-width and mathematical letters are not here,
since NFKC turns them into ASCII; accents are taken off by decomposition.
"""

from __future__ import annotations

_LOOKALIKES = {
    "a": "аɑαⲁа",
    "b": "ЬьƄɓБвᏏ",
    "c": "сϲᴄⲥсС",
    "d": "ԁɗᏧժ",
    "e": "еєҽε℮ɛεЄ",
    "f": "ƒϝẝք",
    "g": "ɡգᶃցɢ",
    "h": "һհᏂнʜ",
    "i": "іıιɩΙІӏⅰỉɪ",
    "j": "јϳյЈ",
    "k": "кκĸƙКΚᴋ",
    "l": "ⅼӀǀʟłⵏ",
    "m": "мΜМⅿᴍ",
    "n": "пηոոИɴ",
    "o": "оοσօΟОჿᴏøδ",
    "p": "рρΡРⲣᴘ",
    "q": "ԛգզ",
    "r": "гᴦⲅяʀ",
    "s": "ѕꜱЅՏʂ",
    "t": "тτТΤᴛŧ",
    "u": "υսʋцᴜμ",
    "v": "ѵνᴠⅴ",
    "w": "ԝωшѡᴡ",
    "x": "хχХΧⅹ",
    "y": "уүγʏУΥỿ",
    "z": "ᴢʐΖζ",
}

LATIN_LOOKALIKE: dict[str, str] = {char: latin for latin, chars in _LOOKALIKES.items() for char in chars}
"""From a letter that looks like a Latin one to that letter, in lower case."""

INVISIBLE = frozenset(
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180e\u200b\u200c\u200d\u200e\u200f"
    "\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2062\u2063\u2064\u2066\u2067\u2068\u2069\u206a\u206b\u206c\u206d\u206e\u206f"
    "\u3164\ufeff\uffa0"
) | {chr(code) for span in ((0xFE00, 0xFE10), (0xE0000, 0xE0080), (0xE0100, 0xE01F0)) for code in range(*span)}
"""Characters that take no room: zero-width ones, direction marks, soft hyphens, variation selectors, tags."""
