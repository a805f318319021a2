"""Ask an engine some of its requests several times more, to see whether it knows what it says. Pure.

The further answers are of the version that gave the first one, at a temperature that shows what else it might have
said; how far they disagree is the score `semantic-entropy`. They cost: each sampled request is read once more (mostly
from the prefix cache) and answered `samples` times, each of at most `most_tokens`. At the defaults and answers of 256
tokens that is 0.05 * 4 * 128 / 256 = 10 % more generated tokens on both arms, while a rollout watches the score and
only then.

As with mirrors, whether a request is sampled is decided by chance and by what is under way over all versions, never by
its answer; and what would have an effect outside is not asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ConfigDict

from serving.answer_form import wants_json
from serving.errors import ServingError
from serving.mirroring import mirrored_body
from serving.openai_protocol import Operation

LEAST_TEMPERATURE = 0.7
"""Below it a model says the same again whether it knows or not; far above it a small one babbles even where it knows:
at 1.0 the score told true answers from false ones less well (docs/benchmarks/monitoring.md)."""

_LEFT_OUT = ("stream", "stream_options", "logprobs", "top_logprobs", "seed", "n", "best_of", "max_completion_tokens",
             "store", "echo")  # fmt: skip
MOST_SAMPLES = 8
OPERATIONS = (Operation.CHAT, Operation.COMPLETIONS)


class InvalidResampling(ServingError, ValueError):
    """Requests can't be sampled like this."""


@dataclass(frozen=True, slots=True)
class ResampleSettings:
    """How much is asked again at one gateway, while a rollout watches `score/semantic-entropy`.

    Raises:
        InvalidResampling: a number is out of range.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    rate: float = 0.05
    """Of the requests that are evidence."""
    samples: int = 4
    """Further answers to each, in one request (`n`), so that its prompt is read once."""
    most_tokens: int = 128
    """Of each; what comes after says little more."""
    most_in_flight: int = 4
    """Over all models and versions; 0 switches it off."""
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not (0 <= self.rate <= 1 and 1 <= self.samples <= MOST_SAMPLES and self.most_tokens >= 1):
            raise InvalidResampling(
                f"{self}: rate is in 0 to 1, samples in 1 to {MOST_SAMPLES}, most_tokens at least 1"
            )
        if self.most_in_flight < 0 or self.timeout_s <= 0:
            raise InvalidResampling(f"{self}: most_in_flight is at least 0, timeout_s above 0")


def sampling_body(operation: Operation, fields: Mapping[str, Any], settings: ResampleSettings) -> bytes | None:
    """The body that asks for further answers; None for a request that is not asked again.

    Those are requests with tools (their answers are calls, not statements), for JSON, for several answers, and what
    `serving.mirroring` does not copy.

    >>> sampling_body(Operation.CHAT, {"model": "m", "messages": [], "stream": True}, ResampleSettings())
    b'{"model":"m","messages":[],"n":4,"max_tokens":128,"temperature":0.7}'

    Args:
        operation: What was asked for.
        fields: The client's body, parsed.
        settings: How many and how long.
    """
    several = fields.get("n") not in (None, 1) or isinstance(fields.get("prompt"), list)
    if operation not in OPERATIONS or fields.get("tools") or several or wants_json(fields):
        return None
    if mirrored_body(operation, b"", {**fields, "store": None}) is None:
        return None
    asked = fields.get("max_completion_tokens") or fields.get("max_tokens")
    most = min(asked, settings.most_tokens) if isinstance(asked, int) else settings.most_tokens
    own = fields.get("temperature")
    temperature = own if isinstance(own, int | float) and own >= LEAST_TEMPERATURE else LEAST_TEMPERATURE
    body = {name: value for name, value in fields.items() if name not in _LEFT_OUT}
    try:
        return orjson.dumps({**body, "n": settings.samples, "max_tokens": most, "temperature": temperature})
    except TypeError:  # an integer that JSON allows and orjson does not
        return None
