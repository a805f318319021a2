"""The arithmetic of picking an endpoint: what a request demands, how loaded a replica is, what follows. Pure.

Unit of work is the token that an engine generates. A prompt token counts 1/8 of one, since engines read prompts in
parallel and write answers one step at a time; the outstanding work of an endpoint is the sum over its requests of

    uncached prompt tokens / 8 + answer tokens still expected

Every scorer gives a number in [0, 1], and an endpoint's score is their weighted sum (filter, scorer, picker: the words
and the shape are llm-d's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pydantic import ConfigDict

from serving.affinity import BLOCK_BYTES, hash_chain, head_of, prompt_start
from serving.errors import ServingError
from serving.openai_protocol import Operation

BYTES_PER_TOKEN = 4
"""Of a prompt in JSON. English has about 4 to 5 characters to a token; Chinese 3 bytes to a character, most of one
token each. It need not be exact: it is compared with other guesses of the same kind."""

PREFILL_WEIGHT = 8
"""Prompt tokens that cost as much as one generated token."""

MOST_PROMPT_TOKENS = 32 * 1024
"""A longer guess is cut: the body then holds an image or a sound in base64, which costs a few hundred tokens."""

TYPICAL_ANSWER_TOKENS = 256
"""What is expected of an answer before an endpoint has given any."""

STREAMING_TOKENS = 16
"""A request that has used up what was expected of it still counts so much until it ends."""

SLOW_FACTOR = 3.0
"""A time to first token this many times the median of the others' is that of a slow outlier."""

LEAST_WEIGHT = 0.1
"""A fresh or slow endpoint's weight is never lower (Envoy's default for slow start)."""


class InvalidPicking(ServingError, ValueError):
    """Endpoints can't be picked like this."""


@dataclass(frozen=True, slots=True)
class Picking:
    """How endpoints are picked. The defaults suit engines with prefix caches; all of it may be set.

    With both weights 0 and `imbalance_percent` None it is round robin; with `prefix_weight` 0 least outstanding work.

    Raises:
        InvalidPicking: a number is out of range.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    load_weight: float = 1.0
    """Of the load scorer: 1 for an idle endpoint, 0 at the bound."""
    prefix_weight: float = 2.0
    """Of the prefix scorer: the matched part of the prompt. At 2 a whole match wins up to the bound, and one of a
    quarter when the load differs by less than half the bound. Set 0 for engines without a prefix cache: there affinity
    gains nothing and costs a quarter to a half more time to first token under load."""
    imbalance_percent: float | None = 25.0
    """An endpoint is a candidate while its work is at most this much above the mean (plus the slack); None: always.
    The epsilon of consistent hashing with bounded loads."""
    slack_tokens: int = 512
    """Work above the mean that never matters: a few requests more cost a continuous batch little. In the replay of
    `benchmarks.prefix_workload` 512 is best or near it; 2048 costs two hot prompts a third of their gain."""
    slow_start_s: float = 30.0
    """A fresh endpoint's weight grows from 10 % to 100 % in this time."""
    slow_start_requests: int = 50
    """Or with so many requests served, whichever comes first."""
    failures_to_eject: int = 5
    """Bad answers in a row, a 5xx or one that was cut, after which an endpoint is ejected (Envoy's default)."""
    max_ejection_percent: float = 50.0
    """Ejections for bad answers stop here, and always before the last endpoint."""

    def __post_init__(self) -> None:
        ranges: tuple[tuple[str, float | None, float, float], ...] = (
            ("load_weight", self.load_weight, 0, 1000),
            ("prefix_weight", self.prefix_weight, 0, 1000),
            ("imbalance_percent", self.imbalance_percent, 0, 10_000),
            ("slack_tokens", self.slack_tokens, 0, 10**9),
            ("slow_start_s", self.slow_start_s, 0, 86_400),
            ("slow_start_requests", self.slow_start_requests, 0, 10**6),
            ("failures_to_eject", self.failures_to_eject, 1, 10_000),
            ("max_ejection_percent", self.max_ejection_percent, 0, 100),
        )
        for name, value, least, most in ranges:
            if value is not None and not least <= value <= most:
                raise InvalidPicking(f"picking: {name} is {value}; give a number from {least} to {most}")


LEAST_WORK = Picking(prefix_weight=0)
ROUND_ROBIN = Picking(load_weight=0, prefix_weight=0, imbalance_percent=None, slow_start_s=0)


@dataclass(slots=True)
class Demand:
    """What one request asks of an engine. One per attempt under way: it keeps what is counted for it where it runs."""

    prompt_tokens: int = 0
    """A guess, from the length of the body."""
    most_answer_tokens: int | None = None
    """The request's own limit, over all its choices."""
    chain: tuple[int, ...] = ()
    head: int = 0
    prompt_work: int = 0
    """Counted for the prompt at the endpoint it is at, in generated tokens."""
    answer_work: int = 0
    """Counted for the answer there."""
    answered_tokens: int = 0
    """Tokens that have come so far."""
    probe: bool = False
    """Whether this is the one request that may probe a half-open endpoint."""

    def again(self) -> Demand:
        """The same for another attempt beside this one, as for a mirrored request."""
        return Demand(self.prompt_tokens, self.most_answer_tokens, self.chain, self.head)


def demand_of(operation: Operation, body: bytes, fields: Mapping[str, Any]) -> Demand:
    """What a request demands.

    >>> demand_of(Operation.CHAT, b'{"messages": [' + b"x" * 986, {"max_tokens": 30, "n": 2}).prompt_tokens
    249

    Args:
        operation: What is asked for; embeddings have no answer to generate and nothing to find in a cache.
        body: The body as the client sent it.
        fields: The same, parsed; only the limits of the answer's length are read, and nonsense in them is passed over.

    Cost: about 10 us for 16 KiB and more, 1 us for a short body.
    """
    start = prompt_start(operation, body)
    prompt_tokens = min((len(body) - start) // BYTES_PER_TOKEN, MOST_PROMPT_TOKENS)
    if operation is Operation.EMBEDDINGS:
        return Demand(prompt_tokens, 0)
    chain = hash_chain(body, start)
    return Demand(prompt_tokens, _most_answer_tokens(fields), chain, head_of(body, start) if chain else 0)


def _most_answer_tokens(fields: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        limit = fields.get(name)
        if type(limit) is int and limit > 0:
            choices = fields.get("n")
            return limit * choices if type(choices) is int and 0 < choices <= 128 else limit
    return None


def prompt_work(demand: Demand, matched_blocks: int) -> int:
    """Work of a prompt of which so many blocks are cached.

    >>> prompt_work(Demand(prompt_tokens=1024), 4)
    64
    """
    return max(0, demand.prompt_tokens - matched_blocks * BLOCK_BYTES // BYTES_PER_TOKEN) // PREFILL_WEIGHT


def answer_work(demand: Demand, typical_tokens: float) -> int:
    """Work of the answer: what is typical there, or the request's own limit when that is lower."""
    expected = round(typical_tokens)
    return expected if demand.most_answer_tokens is None else min(expected, demand.most_answer_tokens)


def load_of(work: int, ramp: float, slow: float) -> float:
    """The load that an endpoint is taken to have, in tokens: `(work / ramp + T) / slow - T`, T = 256 tokens.

    A fresh endpoint's work counts up to ten times, so that it gets up to a tenth of the others' at first; idle, it is
    as idle as any. A slow one's counts more too, and it looks busy even when idle.

    >>> load_of(100, 1.0, 1.0), load_of(100, 0.1, 1.0), load_of(0, 1.0, 0.5)
    (100.0, 1000.0, 256.0)

    Args:
        work: Outstanding work, in tokens.
        ramp: In [0.1, 1], of `ramp_of`.
        slow: In [0.1, 1], of `slowness`.
    """
    return (work / ramp + TYPICAL_ANSWER_TOKENS) / slow - TYPICAL_ANSWER_TOKENS


def bound_of(loads: Sequence[float], picking: Picking) -> float:
    """The highest load a candidate may have: `(1 + imbalance) x mean + slack`. The least loaded is always below it.

    That is the rule of consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016: no bin above
    1 + epsilon times the mean), with work in place of requests and a slack where the mean is small.

    >>> bound_of([0, 0, 0, 4000], Picking(imbalance_percent=20, slack_tokens=1000))
    2200.0
    """
    if picking.imbalance_percent is None:
        return float("inf")
    bound = (1 + picking.imbalance_percent / 100) * sum(loads) / len(loads) + picking.slack_tokens
    return max(bound, min(loads))  # equal loads have a mean that is their own but for rounding


def ramp_of(known_for_s: float, served: int, picking: Picking) -> float:
    """Slow start: a fresh endpoint's weight, from 0.1 to 1 with time or with requests, whichever is further.

    Linear, as Envoy's slow start with aggression 1. Its first requests compile kernels and fill caches.

    >>> ramp_of(3, 0, Picking()), ramp_of(15, 40, Picking()), ramp_of(60, 0, Picking())
    (0.1, 0.8, 1.0)
    """
    if known_for_s >= picking.slow_start_s or served >= picking.slow_start_requests:
        return 1.0
    return max(LEAST_WEIGHT, known_for_s / picking.slow_start_s, served / picking.slow_start_requests)


def slowness(first_token_s: float, others_s: Sequence[float]) -> float:
    """The weight of an endpoint by its time to first token: 1 up to 3 times the others' median, then falling as 1/x.

    >>> slowness(0.2, [0.1, 0.1]), slowness(0.6, [0.1, 0.1]), slowness(60, [0.1, 0.1])
    (1.0, 0.5, 0.1)

    Args:
        first_token_s: Its mean.
        others_s: Those of its peers; with none there is nothing to be slower than.
    """
    if not others_s or first_token_s <= 0:
        return 1.0
    return round(min(1.0, max(LEAST_WEIGHT, SLOW_FACTOR * median(others_s) / first_token_s)), 3)
