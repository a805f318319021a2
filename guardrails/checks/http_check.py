"""A check that another service does: what it is asked, and how its answer is read. Pure; calls are made elsewhere.

classify   vLLM's /classify with a sequence classifier (toxic-bert and the like): many texts in one call
chat       a guard model behind /v1/chat/completions (Llama Guard, Qwen3Guard): one text a call; may be served by this
           very platform
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from guardrails.checks.base import CheckKind, Cost, Options
from guardrails.errors import NonsenseAnswer


class Api(enum.StrEnum):
    """How the service is spoken to."""

    CLASSIFY = "classify"
    CHAT = "chat"


class Reader(enum.StrEnum):
    """How a guard model's answer is read."""

    LABELS = "labels"
    """Classify: the probabilities of the labels that count as unsafe."""
    LLAMA_GUARD = "llama_guard"
    """`safe`, or `unsafe` and a line of categories."""
    QWEN3_GUARD = "qwen3_guard"
    """`Safety: Safe|Controversial|Unsafe` and `Categories: ...`."""


def _http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("it is not an http or https address without a query; write for instance http://guard:8000")
    if parts.username or parts.password:
        raise ValueError("it has a password in it; name the environment variable that holds the key in key_variable")
    return url.rstrip("/")


class HttpOptions(Options):
    """Options of the check `http`."""

    url: Annotated[str, AfterValidator(_http_url)]
    """Where the service is, without the path: `http://guard:8000`."""
    api: Api = Api.CLASSIFY
    model: Annotated[str, Field(min_length=1, max_length=200)]
    reader: Reader = Reader.LABELS
    unsafe_labels: tuple[str, ...] = ()
    """Classify: labels that count. Empty: all but those that say `safe`, `neutral`, `non-toxic`, `not_toxic`,
    `LABEL_0`."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    """The environment variable that holds the bearer key."""
    batch_texts: Annotated[int, Field(ge=1, le=256)] = 16
    """Texts in one call at most; with `chat`, calls at once."""
    batch_wait_ms: Annotated[int, Field(ge=0, le=100)] = 3
    waiting_texts: Annotated[int, Field(ge=1, le=10_000)] = 512
    """More texts than this do not wait: their verdict is error at once."""
    failures_to_open: Annotated[int, Field(ge=1, le=100)] = 5
    """Failures in a row after which the service is left alone."""
    open_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    """For how long; then one call tries whether it is back."""

    @model_validator(mode="after")
    def _fits(self) -> HttpOptions:
        if (self.api is Api.CLASSIFY) is not (self.reader is Reader.LABELS):
            raise ValueError("api classify goes with reader labels, api chat with llama_guard or qwen3_guard")
        return self


_SAFE_LABELS = frozenset(
    {"safe", "neutral", "non-toxic", "non_toxic", "not_toxic", "not-toxic", "nontoxic", "label_0", "benign"}
)
_QWEN = re.compile(r"safety:\s*(safe|controversial|unsafe)\b", re.IGNORECASE)
_CATEGORY = re.compile(r"\bS\d{1,2}\b")


def classify_body(options: HttpOptions, texts: Sequence[str]) -> dict[str, Any]:
    """The body of a call of /classify."""
    return {"model": options.model, "input": list(texts)}


def chat_body(options: HttpOptions, text: str, *, is_answer: bool) -> dict[str, Any]:
    """The body of a call of /v1/chat/completions; an answer is shown as the assistant's turn after a mere dot."""
    message = {"role": "assistant" if is_answer else "user", "content": text}
    messages = [{"role": "user", "content": "."}, message] if is_answer else [message]
    return {"model": options.model, "messages": messages, "max_tokens": 64, "temperature": 0}


def read_classify(options: HttpOptions, answer: object, count: int) -> list[tuple[float, str]]:
    """A score in [0, 1] and a label for each text of a call.

    Raises:
        NonsenseAnswer: another number of verdicts than texts, or no probabilities.
    """
    data = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(data, list) or len(data) != count:
        raise NonsenseAnswer(
            f"the classifier gave {len(data) if isinstance(data, list) else 'no'} verdicts for {count} texts"
        )
    by_index: dict[int, tuple[float, str]] = {}
    for place, entry in enumerate(data):
        index = entry.get("index", place) if isinstance(entry, Mapping) else None
        if not isinstance(index, int) or not 0 <= index < count or index in by_index:
            raise NonsenseAnswer("the classifier's verdicts do not belong to the texts it was given")
        by_index[index] = _label_score(options, entry)
    return [by_index[index] for index in range(count)]


def _label_score(options: HttpOptions, entry: Mapping[str, Any]) -> tuple[float, str]:
    label, probabilities = entry.get("label"), entry.get("probs")
    if not isinstance(label, str) or not isinstance(probabilities, list) or not probabilities:
        raise NonsenseAnswer("the classifier gave no label or no probabilities")
    if not all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1 for p in probabilities):
        raise NonsenseAnswer("the classifier's probabilities are not numbers from 0 to 1")
    top = max(probabilities)
    unsafe = label in options.unsafe_labels if options.unsafe_labels else label.lower() not in _SAFE_LABELS
    score = top if unsafe else 1.0 - top  # vLLM names the most likely label alone
    return (score, label[:64]) if math.isfinite(score) else (1.0, label[:64])


def read_chat(options: HttpOptions, answer: object) -> tuple[float, str]:
    """A score in [0, 1] and a reason from a guard model's answer.

    Raises:
        NonsenseAnswer: it says neither safe nor unsafe.
    """
    try:
        text = answer["choices"][0]["message"]["content"]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        raise NonsenseAnswer("the guard model's answer has no message") from None
    if not isinstance(text, str):
        raise NonsenseAnswer("the guard model's answer has no text")
    if options.reader is Reader.QWEN3_GUARD:
        found = _QWEN.search(text)
        if found:
            return {"safe": 0.0, "controversial": 0.5, "unsafe": 1.0}[found[1].lower()], found[1].lower()
    else:
        words = text.strip().lower().split()
        if words and words[0] in ("safe", "unsafe"):
            categories = "+".join(_CATEGORY.findall(text)[:8])
            return (1.0, categories or "unsafe") if words[0] == "unsafe" else (0.0, "safe")
    raise NonsenseAnswer("the guard model said neither safe nor unsafe")


HTTP = CheckKind(
    name="http",
    summary="a classifier or guard model behind HTTP",
    build=None,
    options=HttpOptions,
    cost=Cost.MODEL,
)
