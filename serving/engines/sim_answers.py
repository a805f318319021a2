"""What a simulated engine answers to a request, before it is put into OpenAI's shapes. Pure."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass

from serving.engines.sim_requests import COMPLETIONS, Ask, BadRequest
from serving.engines.sim_schema import UnsupportedSchema, json_tokens, make_value
from serving.engines.sim_spec import SimSpec
from serving.engines.sim_text import Manner, answer_tokens, cut_at_stop, draw_manner

_OTHER_WORDS = (" the", " a", " and", " of", " in", " to", " with", " for", " on", " at")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; its tokens joined are the arguments as JSON."""

    id: str
    name: str
    tokens: tuple[str, ...]

    @property
    def arguments(self) -> str:
        """All of them."""
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class TokenChance:
    """How likely a token was, and what else was."""

    token: str
    logprob: float
    others: tuple[tuple[str, float], ...] = ()
    """The most likely tokens in order, the chosen one among them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: words or tool calls, and why it ended."""

    tokens: tuple[str, ...]
    finish_reason: str
    calls: tuple[ToolCall, ...] = ()
    chances: tuple[TokenChance, ...] | None = None
    """One for each token; None where they were not asked for."""
    echo: str = ""
    """The prompt, where it is wanted before the answer."""

    @property
    def text(self) -> str:
        """All that is said."""
        return self.echo + "".join(self.tokens)

    @property
    def count(self) -> int:
        """Tokens that were generated."""
        return len(self.tokens) + sum(len(c.tokens) for c in self.calls)

    def steps(self) -> Iterator[tuple[int | None, int, str]]:
        """The generated tokens in order: the number of the call that each belongs to, its place in it, its text."""
        for place, token in enumerate(self.tokens):
            yield None, place, token
        for number, call in enumerate(self.calls):
            for place, token in enumerate(call.tokens):
                yield number, place, token


def make_choice(ask: Ask, prompt: str, spec: SimSpec, rng: random.Random) -> Choice:
    """Make one answer to a prompt.

    Raises:
        BadRequest: a tool's or an answer's JSON Schema is beyond this engine.
    """
    mark = ask.mark_of(prompt)
    if ask.calls:
        return _tool_calls(ask, mark, rng)
    echo = prompt if ask.echo and ask.route == COMPLETIONS else ""
    if ask.form is not None:
        try:
            tokens = json_tokens(make_value(ask.form, rng, mark))
        except UnsupportedSchema as error:
            raise BadRequest(f"response_format: {error}", param="response_format") from error
        kept, short = tokens[: ask.max_tokens], ask.max_tokens is not None and ask.max_tokens < len(tokens)
        return Choice(tuple(kept), "length" if short else "stop", chances=_chances(ask, kept, rng), echo=echo)
    manner = draw_manner(spec, rng)
    tokens = answer_tokens(manner, spec.tokens, mark, rng)
    kept, stopped = cut_at_stop(tokens[: ask.max_tokens], ask.stops)
    short = not stopped and ask.max_tokens is not None and ask.max_tokens < spec.tokens
    length = short or rng.random() < spec.length_rate
    chances = _chances(ask, kept, rng, unlikely=manner is Manner.GIBBERISH)
    return Choice(tuple(kept), "length" if length else "stop", chances=chances, echo=echo)


def _tool_calls(ask: Ask, mark: str, rng: random.Random) -> Choice:
    left = ask.max_tokens
    calls: list[ToolCall] = []
    for tool in ask.calls:
        if left == 0:
            break
        try:
            schema = {"type": "object", **tool.parameters}
            tokens = json_tokens(make_value(schema, rng, mark))
        except UnsupportedSchema as error:
            raise BadRequest(f"tools: the parameters of {tool.name!r}: {error}", param="tools") from error
        kept = tokens if left is None else tokens[:left]
        left = None if left is None else left - len(kept)
        calls.append(ToolCall(f"call_{''.join(rng.choices(string.hexdigits, k=24))}", tool.name, tuple(kept)))
        if len(kept) < len(tokens):
            return Choice((), "length", tuple(calls))
    short = len(calls) < len(ask.calls)
    return Choice((), "length" if short else "stop" if ask.forced else "tool_calls", tuple(calls))


def _chances(
    ask: Ask, tokens: list[str], rng: random.Random, *, unlikely: bool = False
) -> tuple[TokenChance, ...] | None:
    """Made-up probabilities: each token was the most likely one or a near second; of babble each was a surprise."""
    if ask.top_logprobs is None:
        return None
    found = []
    for token in tokens:
        logprob = -round(rng.uniform(2.0, 8.0) if unlikely else rng.uniform(0.01, 0.7), 4)
        others = [(token, logprob)]
        for word in _OTHER_WORDS * 2:
            if len(others) >= ask.top_logprobs:
                break
            other = word if all(word != o for o, _ in others) else f"{word}s{len(others)}"
            others.append((other, round(others[-1][1] - rng.uniform(0.5, 1.5), 4)))
        found.append(TokenChance(token, logprob, tuple(others[: ask.top_logprobs])))
    return tuple(found)
