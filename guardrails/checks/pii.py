"""Personal data: addresses, telephone numbers, cards, accounts, identity numbers. English and Chinese. Pure.

Precision comes from checksums and prefixes first, then from the words before a number: an eleven-digit number after
"order" or 订单 is no mobile number, four small numbers after "version" are no address. A hit that the context speaks
against has a score of 0.4, one that it speaks for 0.95; the default threshold of 0.5 lies between.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from guardrails.checks import numbers, tails
from guardrails.checks.base import CheckKind, Context, Options, RuleCheck
from guardrails.checks.masks import mask_email, mask_number
from guardrails.normalise import View
from guardrails.verdicts import Hit

CONTEXT_CHARACTERS = 24
UNLIKELY, LIKELY, CERTAIN = 0.4, 0.8, 0.95


class Entity(enum.StrEnum):
    """What can be found."""

    EMAIL = "email"
    PHONE = "phone"
    CARD = "card"
    IBAN = "iban"
    IP = "ip"
    CN_IDENTITY = "cn_identity"
    US_SSN = "us_ssn"
    CN_PASSPORT = "cn_passport"
    CN_PLATE = "cn_plate"


USUAL = frozenset(Entity) - {Entity.CN_PLATE}


class PiiOptions(Options):
    """Options of the check `pii`."""

    entities: frozenset[Entity] = USUAL
    keep_last: Annotated[int, Field(ge=0, le=6)] = 4
    """Digits of a number that a redaction leaves."""


_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}[A-Za-z]{2,24}(?![A-Za-z0-9-]|\.[A-Za-z0-9])"
)
_FILE_ENDINGS = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "ico",
        "js",
        "mjs",
        "ts",
        "tsx",
        "jsx",
        "css",
        "py",
        "rb",
        "go",
        "rs",
        "md",
        "html",
        "json",
        "yaml",
        "yml",
        "zip",
    ]
)
_PHONE = re.compile(
    r"(?<![A-Za-z0-9+])(?<!\d[.-])(?:"
    r"(?P<intl>\+[1-9]\d{0,2}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{1,4}){2,6})"
    r"|(?P<cn>(?:0086[ -]?|86[ -]?)?1[3-9]\d(?:[ -]?)\d{4}(?:[ -]?)\d{4})"
    r"|(?P<us>(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4})"
    r"|(?P<land>0[1-9]\d{1,2}-[2-9]\d{6,7})"
    r"|(?P<bare>[2-9]\d{2}[2-9]\d{6})"
    r")(?![A-Za-z0-9]|[.-]\d)"
)
_CARD = re.compile(
    r"(?<![A-Za-z0-9])(?<!\d[.-])(?:\d{4}(?P<s>[ -]?)\d{4}(?P=s)\d{4}(?P=s)\d{1,4}(?:(?P=s)\d{1,3})?"
    r"|3[47]\d{2}(?P<t>[ -])\d{6}(?P=t)\d{5}|3\d{3}(?P<u>[ -])\d{6}(?P=u)\d{4}|62\d{4}(?P<v>[ -])\d{13})"
    r"(?![A-Za-z0-9]|[.-]\d)"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![A-Za-z0-9.])(?<![A-Za-z]/)(?:{_OCTET}\.){{3}}{_OCTET}(?![A-Za-z0-9]|\.\d)")
_IPV6 = re.compile(r"(?<![A-Za-z0-9:.])(?:[0-9A-Fa-f]{1,4}:{1,2}){2,7}[0-9A-Fa-f]{1,4}(?![A-Za-z0-9:])")
_IDENTITY = re.compile(r"(?<![A-Za-z0-9])[1-9]\d{5}( ?)(?:18|19|20)\d{6}\1\d{3}[\dXx](?![A-Za-z0-9])")
_SSN = re.compile(r"(?<![A-Za-z0-9])(?<!\d[.-])\d{3}-\d{2}-\d{4}(?![A-Za-z0-9]|[.-]\d)")
_PASSPORT = re.compile(r"(?<![A-Za-z0-9])(?:[EG]\d{8}|E[A-HJ-NP-Z]\d{7})(?![A-Za-z0-9])")
_PLATE = re.compile(
    r"[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-HJ-NP-Z][·.]?[A-HJ-NP-Z0-9]{5,6}(?![A-Za-z0-9])"
)
_NOT_A_PERSON = re.compile(
    r"(?:(?<![A-Za-z])(?:order|invoice|ticket|tracking|transaction|serial|sku|isbn|issn|ref(?:erence)?|commit|build|id|uid"
    r"|hash|timestamp)|订单|单号|流水|编号|序列|发票|快递|运单|时间戳|书号)(?:\s*(?:number|no\.?|num|code|号码?))?\s*[:#=是为]*\s*$",
    re.IGNORECASE,
)
_VERSION = re.compile(r"(?:\bv|version|release|build|section|chapter|clause|版本|章节|第)\s*[:=]?\s*$", re.IGNORECASE)
_TELEPHONE = re.compile(
    r"(?:phone|mobile|cell|call|tel|fax|whatsapp|sms|text(?:\s+me)?|number\s+is|电话|手机|致电|联系|座机|号码|微信)\D{0,12}$",
    re.IGNORECASE,
)
_PASSPORT_WORD = re.compile(r"(?:passport|护照)\D{0,16}$", re.IGNORECASE)
_IP_WORD = re.compile(r"(?:\bip|address|host|server|地址|服务器|网关|gateway)\D{0,8}$", re.IGNORECASE)
_DIGIT = re.compile(r"\d")
_NOT_DIGIT = re.compile(r"\D+")

_TOKEN_CHARACTERS = tails.ASCII_LETTERS_AND_DIGITS + "._%+@-:(·"
_UNFINISHED_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){0,7}(?: ?[A-Z0-9]{0,4})$")
_UNFINISHED_IDENTITY = re.compile(r"(?<!\d)\d{6} (?:\d{0,8}|\d{8} \d{0,3})$")
LONGEST_ADDRESS = 320
LONGEST_NUMBER = 48

_Found = Iterator[tuple[int, int, float]]


def _digits(text: str) -> str:
    return _NOT_DIGIT.sub("", text)


def _before(text: str, at: int) -> str:
    return text[max(0, at - CONTEXT_CHARACTERS) : at]


def _emails(text: str) -> _Found:
    for found in _EMAIL.finditer(text) if "@" in text else ():
        local, _, domain = found[0].rpartition("@")
        if domain.rpartition(".")[2].lower() not in _FILE_ENDINGS and (local, text[found.end() : found.end() + 1]) != (
            "git",
            ":",
        ):
            yield (*found.span(), CERTAIN)


def _phones(text: str) -> _Found:
    for found in _PHONE.finditer(text):
        digits, before = _digits(found[0]), _before(text, found.start())
        if found["cn"] is not None and not numbers.chinese_mobile(digits[-11:]):
            continue
        if found["intl"] is not None and not 8 <= len(digits) <= 15:
            continue
        if found["bare"] is not None and not _TELEPHONE.search(before):
            continue
        if _TELEPHONE.search(before):
            yield (*found.span(), CERTAIN)
        else:
            yield (*found.span(), UNLIKELY if _NOT_A_PERSON.search(before) else LIKELY)


def _cards(text: str) -> _Found:
    for found in _CARD.finditer(text):
        digits = _digits(found[0])
        if 13 <= len(digits) <= 19 and numbers.card_scheme(digits) and numbers.luhn(digits):
            yield (*found.span(), UNLIKELY if _NOT_A_PERSON.search(_before(text, found.start())) else CERTAIN)


def _ibans(text: str) -> _Found:
    for found in _IBAN.finditer(text):
        words = found[0].split(" ")  # the word after a number may look like another group of it
        for count in range(len(words), 0, -1):
            candidate = " ".join(words[:count])
            if numbers.iban(candidate.replace(" ", "")):
                yield found.start(), found.start() + len(candidate), CERTAIN
                break


def _addresses(text: str) -> _Found:
    for found in _IPV4.finditer(text):
        belongs, before = numbers.public_address(found[0]), _before(text, found.start())
        if belongs is None or _VERSION.search(before):
            continue
        small = all(int(part) < 20 for part in found[0].split("."))  # 1.2.3.4 is a section more often than a host
        doubtful = (not belongs or small) and not (small and belongs and _IP_WORD.search(before))
        yield (*found.span(), UNLIKELY if doubtful else LIKELY)
    for found in _IPV6.finditer(text) if ":" in text else ():
        if len(found[0]) >= 8 and _DIGIT.search(found[0]) and numbers.public_address(found[0]) is not None:
            yield (*found.span(), LIKELY if numbers.public_address(found[0]) else UNLIKELY)


def _identities(text: str) -> _Found:
    for found in _IDENTITY.finditer(text):
        if numbers.resident_identity(found[0].replace(" ", "")):
            yield (*found.span(), CERTAIN)


def _ssns(text: str) -> _Found:
    for found in _SSN.finditer(text):
        if numbers.social_security(_digits(found[0])):
            yield (*found.span(), UNLIKELY if _NOT_A_PERSON.search(_before(text, found.start())) else LIKELY)


def _passports(text: str) -> _Found:
    for found in _PASSPORT.finditer(text):
        if _PASSPORT_WORD.search(_before(text, found.start())):
            yield (*found.span(), LIKELY)


def _plates(text: str) -> _Found:
    for found in _PLATE.finditer(text):
        if _DIGIT.search(found[0]):
            yield (*found.span(), LIKELY)


_NUMBERS = frozenset({Entity.PHONE, Entity.CARD, Entity.IBAN, Entity.CN_IDENTITY, Entity.US_SSN, Entity.CN_PASSPORT})
_LONG_NUMBER = re.compile(r"\d(?:[ .()-]{0,2}\d){6}")
"""Seven digits with little between them are in every one of those."""

_FINDERS: dict[Entity, Callable[[str], _Found]] = {
    Entity.EMAIL: _emails,
    Entity.CN_IDENTITY: _identities,
    Entity.CARD: _cards,
    Entity.IBAN: _ibans,
    Entity.PHONE: _phones,
    Entity.US_SSN: _ssns,
    Entity.IP: _addresses,
    Entity.CN_PASSPORT: _passports,
    Entity.CN_PLATE: _plates,
}


@dataclass(frozen=True)
class PiiCheck(RuleCheck):
    """Finds personal data by its form."""

    options: PiiOptions

    def examine(self, view: View, context: Context) -> list[Hit]:
        """One hit for each thing found, its reason the entity; what lies inside another is left out."""
        text = view.plain.text
        if not _DIGIT.search(text) and "@" not in text:
            return []
        taken: list[tuple[int, int]] = []
        hits = []
        has_number = _LONG_NUMBER.search(text) is not None
        for entity, finder in _FINDERS.items():
            if entity not in self.options.entities or (entity in _NUMBERS and not has_number):
                continue
            for start, end, score in finder(text):
                if score > UNLIKELY and any(start < last and first < end for first, last in taken):
                    continue
                if score > UNLIKELY:
                    taken.append((start, end))
                masked = self._mask(entity, text[start:end])
                hits.append(Hit(*view.plain.span(start, end), score, entity.value, masked))
        return hits

    def _mask(self, entity: Entity, found: str) -> str:
        if entity is Entity.EMAIL:
            return mask_email(found)
        return mask_number(found, 0 if entity is Entity.IP else self.options.keep_last)

    def unfinished_from(self, view: View) -> int:
        """Addresses go on until a character that can't be in one, numbers until something else than a separator."""
        text = view.plain.text
        first = min(tails.token_from(text, _TOKEN_CHARACTERS, LONGEST_ADDRESS), tails.number_from(text, LONGEST_NUMBER))
        tail = text[-LONGEST_NUMBER:]
        for pattern in (_UNFINISHED_IBAN, _UNFINISHED_IDENTITY):
            if (found := pattern.search(tail)) is not None:
                first = min(first, len(text) - len(tail) + found.start())
        return len(view.original) if first >= len(text) else view.plain.span(first, first + 1)[0]


PII = CheckKind(
    name="pii",
    summary="e-mail, telephone, card, IBAN, IP address, identity and social security numbers, passports",
    build=PiiCheck,
    options=PiiOptions,
    yields_spans=True,
)
