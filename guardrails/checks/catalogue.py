"""The kinds of checks that come with Tidegate. Pure; plug-ins are added by `guardrails.plugins`."""

from __future__ import annotations

from guardrails.checks.answers import EMPTY, JSON, LANGUAGE, LENGTH, REFUSAL, REPETITION
from guardrails.checks.base import Catalogue, CheckKind
from guardrails.checks.credentials import CREDENTIALS
from guardrails.checks.http_check import HTTP
from guardrails.checks.injection import INJECTION
from guardrails.checks.learned import LEARNED
from guardrails.checks.pii import PII
from guardrails.checks.word_lists import BANNED_WORDS, PATTERNS

_KINDS: tuple[CheckKind, ...] = (
    PII,
    CREDENTIALS,
    INJECTION,
    BANNED_WORDS,
    PATTERNS,
    REPETITION,
    REFUSAL,
    EMPTY,
    LENGTH,
    LANGUAGE,
    JSON,
    HTTP,
    *LEARNED,
)

BUILT_IN: Catalogue = {kind.name: kind for kind in _KINDS}
