"""What a `sim:` source says: the behaviour of a simulated engine. Pure.

    sim:?ttft_ms=50&itl_ms=5&tokens=64&error_rate=0.1&seed=1

Rates are probabilities per request, in [0, 1]. At most one of the faults that replace an answer happens to a request;
they are drawn in the order `client_error`, `error`, `stall`, `truncate`, and their rates may not add up to more than 1.

    sim:?ttft_ms=20&prefill_us_per_token=300&cache_blocks=2048

reads prompts like a real engine does: the time to first token is `ttft_ms` plus 300 us for each prompt token that is
not in its prefix cache, and one prompt waits for the other.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, ValidationError, model_validator

from serving.specs import Frozen

Rate = Annotated[float, Field(ge=0, le=1)]


class InvalidSimUri(ValueError):
    """A `sim:` URI with an unknown or impossible parameter."""


class SimSpec(Frozen):
    """How a simulated engine behaves. The defaults are those of a small, faultless model."""

    ttft_ms: float = Field(default=50, ge=0, description="time to first token")
    prefill_us_per_token: float = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="time to read one prompt token that is not cached, on top of ttft_ms; prompts are read one by one",
    )
    cache_blocks: int = Field(
        default=0, ge=0, le=1_000_000, description="size of the prefix cache in blocks of 16 tokens; 0: none"
    )
    itl_ms: float = Field(default=5, ge=0, description="time between tokens")
    tokens: int = Field(
        default=64, ge=0, le=100_000, description="tokens of an answer when the request sets no lower limit"
    )
    error_rate: Rate = Field(default=0, description="503 before the first byte")
    client_error_rate: Rate = Field(default=0, description="400, as an engine refuses what it can't handle")
    stall_rate: Rate = Field(default=0, description="hangs before the first byte, until the client gives up")
    truncate_rate: Rate = Field(default=0, description="the stream is cut half-way (unary: the connection is)")
    toxic_rate: Rate = Field(default=0, description="an insulting answer")
    pii_rate: Rate = Field(default=0, description="an answer with invented personal data")
    gibberish_rate: Rate = Field(default=0, description="an answer of random letters, each token unlikely")
    refusal_rate: Rate = Field(default=0, description="an answer that declines to answer")
    repeat_rate: Rate = Field(default=0, description="an answer that repeats one phrase")
    length_rate: Rate = Field(default=0, description="finish_reason length although the answer was complete")
    load_s: float = Field(default=0, ge=0, description="seconds from start until ready")
    fail_load: bool = Field(default=False, description="the engine exits with an error instead of becoming ready")
    die_after: int = Field(
        default=0, ge=0, description="the engine exits when it has begun this many requests; 0: never"
    )
    seed: int = Field(default=1, description="seed of every draw")

    @model_validator(mode="after")
    def _exclusive_faults_fit(self) -> SimSpec:
        total = self.client_error_rate + self.error_rate + self.stall_rate + self.truncate_rate
        if total > 1 + 1e-9:
            raise ValueError(
                f"client_error_rate + error_rate + stall_rate + truncate_rate is {total:g}, over 1; lower one"
            )
        return self


def parse_sim_uri(uri: str) -> SimSpec:
    """Read a `sim:` URI.

    >>> parse_sim_uri("sim:?ttft_ms=20&error_rate=0.5").error_rate
    0.5

    Raises:
        InvalidSimUri: it is not one, names an unknown parameter, or a value is out of range.
    """
    parts = urlsplit(uri)
    if parts.scheme != "sim" or parts.netloc or parts.path:
        raise InvalidSimUri(f"{uri!r} is not a simulated engine; write sim:?ttft_ms=50&tokens=64")
    given: dict[str, str] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in SimSpec.model_fields:
            raise InvalidSimUri(
                f"{uri!r}: unknown parameter {key!r}; known are {', '.join(sorted(SimSpec.model_fields))}"
            )
        if key in given:
            raise InvalidSimUri(f"{uri!r}: {key!r} is given twice; keep one")
        given[key] = value
    try:
        return SimSpec.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = str(first["msg"]).removeprefix("Value error, ")
        detail = f"{where}={given.get(where)!r}: {what}" if where else what
        raise InvalidSimUri(f"{uri!r}: {detail}") from error
