"""What at the end of a text may still grow into something. Pure; all positions are in the text given."""

from __future__ import annotations

ASCII_LETTERS_AND_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def token_from(text: str, characters: str, longest: int) -> int:
    """Where the last run of these characters begins, looked for in the last `longest` characters.

    >>> token_from("write to john@exam", "abcdefghijklmnopqrstuvwxyz@", 320)
    9
    """
    tail = text[-longest:]
    return len(text) - len(tail) + len(tail.rstrip(characters))


def number_from(text: str, longest: int = 48) -> int:
    """Where the number that a text ends with begins: digits, one separator between them, two if one is a bracket.

    >>> number_from("call (415) 555-"), number_from("it was 1999. "), number_from("no digits")
    (5, 13, 9)
    """
    first = len(text)
    between = ""
    for at in range(len(text) - 1, max(-1, len(text) - 1 - longest), -1):
        char = text[at]
        if "0" <= char <= "9" or char == "+":
            between = ""
            first = at
        elif char in " .-()/":
            between += char
            if char == "(" and (first < len(text) or at == len(text) - 1) and len(between) == 1:
                first = at
            if len(between) > 2 or (len(between) == 2 and "(" not in between and ")" not in between):
                break
        else:
            break
    return first


def phrase_from(text: str, beginnings: frozenset[str], longest: int) -> int:
    """Where the text ends with the beginning of a phrase; the earliest such place, or the text's length."""
    for start in range(max(0, len(text) - longest), len(text)):
        if text[start:] in beginnings:
            return start
    return len(text)
