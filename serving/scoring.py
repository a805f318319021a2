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
from typing import Any, Final

from serving.affinity import BLOCK_BYTES, hash_chain, head_of, prompt_start
from serving.knobs import Picking
from serving.openai_protocol import Operation

BYTES_PER_TOKEN: Final = 4
"""Of a prompt in JSON. English has about 4 to 5 characters to a token; Chinese 3 bytes to a character, most of one
token each. It need not be exact: it is compared with other guesses of the same kind."""

PREFILL_WEIGHT: Final = 8
"""Prompt tokens that cost as much as one generated token."""

MOST_PROMPT_TOKENS: Final = 32 * 1024
"""A longer guess is cut: the body then holds an image or a sound in base64, which costs a few hundred tokens."""

TYPICAL_ANSWER_TOKENS: Final = 256
"""What is expected of an answer before an endpoint has given any."""

STREAMING_TOKENS: Final = 16
"""A request that has used up what was expected of it still counts so much until it ends."""

SLOW_FACTOR: Final = 3.0
"""A time to first token this many times the median of the others' is that of a slow outlier."""

LEAST_WEIGHT: Final = 0.1
"""A fresh or slow endpoint's weight is never lower (Envoy's default for slow start)."""


@dataclass(slots=True, init=False)
class Demand:
    """What one request asks of an engine. One per attempt under way: it keeps what is counted for it where it runs."""

    prompt_tokens: int
    """A guess, from the length of the body."""
    most_answer_tokens: int | None
    """The request's own limit, over all its choices."""
    chain: tuple[int, ...]
    head: int
    prompt_work: int
    """Counted for the prompt at the endpoint it is at, in generated tokens."""
    answer_work: int
    """Counted for the answer there."""
    answered_tokens: int
    """Tokens that have come so far."""
    probe: bool
    """Whether this is the one request that may probe a half-open endpoint."""

    def __init__(
        self,
        prompt_tokens: int = 0,
        most_answer_tokens: int | None = None,
        chain: tuple[int, ...] = (),
        head: int = 0,
        prompt_work: int = 0,
        answer_work: int = 0,
        answered_tokens: int = 0,
        probe: bool = False,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.most_answer_tokens = most_answer_tokens
        self.chain = chain
        self.head = head
        self.prompt_work = prompt_work
        self.answer_work = answer_work
        self.answered_tokens = answered_tokens
        self.probe = probe

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
