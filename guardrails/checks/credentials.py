"""Keys, tokens and passwords: by the forms that issuers gave them, and random values behind a telling name. Pure.

Forms are those the issuers document for secret scanning. A value assigned to a name such as `api_key` counts when it
looks like chance: its Shannon entropy per character is that of random letters and digits rather than of words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from guardrails.checks import tails
from guardrails.checks.base import CheckKind, Context, NoOptions, RuleCheck
from guardrails.checks.masks import mask_secret
from guardrails.normalise import View
from guardrails.verdicts import Hit

LONGEST_TOKEN = 2048
LEAST_ENTROPY_BITS = 2.5
"""A token of fewer bits a character is a placeholder: `sk-xxxxxxxxxxxx`."""
LONGEST_KEY_BLOCK = 8192
"""Characters of a PEM block: an RSA key of 8192 bits has 6,400."""

_KNOWN = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"(?P<aws_key>(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16})"
    r"|(?P<github_token>gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255})"
    r"|(?P<gitlab_token>gl(?:pat|dt|rt|ptt|cbt|soat|ft)-[A-Za-z0-9_-]{20,64})"
    r"|(?P<slack_token>xox[abeoprs]-[A-Za-z0-9-]{10,250}|xapp-\d-[A-Za-z0-9-]{20,250})"
    r"|(?P<stripe_key>(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,250}|whsec_[A-Za-z0-9+/=]{24,250})"
    r"|(?P<anthropic_key>sk-ant-[A-Za-z0-9_-]{24,250})"
    r"|(?P<openai_key>sk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{24,250}|sk-[A-Za-z0-9]{32,64})"
    r"|(?P<google_key>AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28}|ya29\.[A-Za-z0-9_-]{20,500})"
    r"|(?P<huggingface_token>hf_[A-Za-z]{34})"
    r"|(?P<npm_token>npm_[A-Za-z0-9]{36})"
    r"|(?P<pypi_token>pypi-[A-Za-z0-9_-]{50,250})"
    r"|(?P<sendgrid_key>SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43})"
    r"|(?P<aliyun_key>LTAI[A-Za-z0-9]{12,20})"
    r"|(?P<tencent_key>AKID[A-Za-z0-9]{32})"
    r"|(?P<jwt>eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{16,1000})"
    r")(?![A-Za-z0-9])"
)
_KNOWN_BEGINNINGS = re.compile(
    r"AKIA|ASIA|ABIA|ACCA|gh[pousr]_|github_pat|gl(?:pat|dt|rt|ptt|cbt|soat|ft)-|xox|xapp|_live_|_test_|whsec|sk-|AIza"
    r"|GOCSPX|ya29|hf_|npm_|pypi-|SG\.|LTAI|AKID|eyJ"
)
_PEM_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_BODY = re.compile(
    r"(?:[A-Za-z0-9+/=\s:,\\-]){0,8192}?-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
)
_PEM_LINES = re.compile(r"[A-Za-z0-9+/=\s:,\\-]{0,8192}")
_CONNECTION = re.compile(
    r"(?<![A-Za-z0-9+])(?:postgres(?:ql)?|mysql|mariadb|mongodb|redis|rediss|amqps?|mssql|clickhouse|https?|ftp|smtp)"
    r"(?:\+[a-z0-9]{1,16})?://[^\s:/@'\"<>]{0,64}:(?P<secret>[^\s@'\"<>]{3,128})@[^\s'\"<>/]{1,255}"
)
_ASSIGNED = re.compile(
    r"(?P<name>(?:api[_-]?key|secret(?:[_-]?(?:access)?[_-]?key)?|access[_-]?token|auth[_-]?token|client[_-]?secret|token"
    r"|passw(?:or)?d|passwd|private[_-]?key|bearer|密码|口令|密钥|令牌))[\"']?\s{0,3}(?:[:=]|是|为|\s)>?\s{0,3}[\"'`]?"
    r"(?P<secret>[A-Za-z0-9+/_.!@#$%^&*=~-]{8,200})",
    re.IGNORECASE,
)
_NAMES = re.compile(r"key|secret|token|passw|bearer|密码|口令|密钥|令牌", re.IGNORECASE)
_UNFINISHED_ASSIGNED = re.compile(
    r"(?:key|secret|token|passw(?:or)?d|passwd|bearer|密码|口令|密钥|令牌)[\"']?\s{0,3}(?:[:=]|是|为)?>?\s{0,3}[\"'`]?\S{0,200}$",
    re.IGNORECASE,
)
_UNFINISHED_PEM = re.compile(r"-{1,5}(?:BEGIN? ?(?:[A-Z0-9 ]{0,60}-{0,5})?)?$|-{1,5}B?E?G?I?N?$")
_PLACEHOLDER = re.compile(
    r"&#\d|x{4,}|\*{3,}|\.{3,}|<.*>|\$\{|\{\{|your[_-]|example|changeme|placeholder|redacted|dummy|getenv|environ|process\.env",
    re.IGNORECASE,
)
_TOKEN_CHARACTERS = tails.ASCII_LETTERS_AND_DIGITS + "._+/=~@:%&?!#$^*-,;|\\`{}[]<>()"


def entropy_bits(text: str) -> float:
    """Shannon entropy per character, in bits, of the characters' frequencies.

    >>> entropy_bits("aaaaaaaa"), entropy_bits("abcdefgh")
    (0.0, 3.0)
    """
    size = len(text)
    return sum(count / size * math.log2(size / count) for count in Counter(text).values()) if text else 0.0


def looks_random(value: str) -> bool:
    """Whether a value looks like a key or password rather than a word, a path or a placeholder."""
    if len(value) < 8 or _PLACEHOLDER.search(value):
        return False
    kinds = sum(
        (
            any(c.islower() for c in value),
            any(c.isupper() for c in value),
            any(c.isdigit() for c in value),
            any(not c.isalnum() for c in value),
        )
    )
    digits = sum(c.isdigit() for c in value)
    if value.replace(".", "").replace("_", "").isalpha() or kinds < 2 or not digits:
        return False
    return entropy_bits(value) >= (3.0 if len(value) >= 16 else 2.5)


@dataclass(frozen=True)
class CredentialsCheck(RuleCheck):
    """Finds secrets by form."""

    options: NoOptions

    def examine(self, view: View, context: Context) -> list[Hit]:
        """One hit for each secret; of a connection string and an assignment the secret part alone."""
        text = view.plain.text
        found: list[tuple[int, int, float, str]] = []
        if _KNOWN_BEGINNINGS.search(text):
            found += (
                (*m.span(), 0.97, (m.lastgroup or "token").replace("_", " "))
                for m in _KNOWN.finditer(text)
                if entropy_bits(m[0]) > LEAST_ENTROPY_BITS
            )
        if "-----BEGIN " in text:
            found += self._key_blocks(text)
        if "://" in text:
            found += (
                (*m.span("secret"), 0.9, "password in a connection string")
                for m in _CONNECTION.finditer(text)
                if not _PLACEHOLDER.search(m["secret"])
            )
        if _NAMES.search(text):
            for match in _ASSIGNED.finditer(text):
                if looks_random(match["secret"].rstrip(".,!")):
                    found.append((*match.span("secret"), 0.75, "random value of a key-like name"))
        return [Hit(*view.plain.span(s, e), score, why, mask_secret(text[s:e])) for s, e, score, why in found]

    @staticmethod
    def _key_blocks(text: str) -> list[tuple[int, int, float, str]]:
        blocks = []
        for begin in _PEM_BEGIN.finditer(text):
            body = _PEM_BODY.match(text, begin.end()) or _PEM_LINES.match(text, begin.end())
            blocks.append((begin.start(), body.end() if body else begin.end(), 0.99, "private key"))
        return blocks

    def unfinished_from(self, view: View) -> int:
        """Tokens go on until a space, key blocks until their end mark, assignments until their value is over."""
        text = view.plain.text
        first = tails.token_from(text, _TOKEN_CHARACTERS, LONGEST_TOKEN)
        tail = text[-280:]
        for pattern in (_UNFINISHED_ASSIGNED, _UNFINISHED_PEM):
            if (found := pattern.search(tail)) is not None:
                first = min(first, len(text) - len(tail) + found.start() - _name_before(tail, found.start()))
        if "-----BEGIN " in text:
            for begin in _PEM_BEGIN.finditer(text, max(0, len(text) - LONGEST_KEY_BLOCK - 100)):
                lines = _PEM_LINES.match(text, begin.end())
                if lines and lines.end() == len(text) and not _PEM_BODY.match(text, begin.end()):
                    first = min(first, begin.start())
        return len(view.original) if first >= len(text) else view.plain.span(first, first + 1)[0]


def _name_before(text: str, at: int) -> int:
    """How many characters of the name (`aws_secret_access_`) stand before the word that was recognised."""
    name = text[:at].rstrip(tails.ASCII_LETTERS_AND_DIGITS + "_-")
    return at - len(name)


CREDENTIALS = CheckKind(
    name="secrets",
    summary="keys and tokens of well-known issuers, private keys, passwords in connection strings and assignments",
    build=CredentialsCheck,
    yields_spans=True,
)
