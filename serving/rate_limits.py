"""Limits of a key or of a namespace: requests and tokens per minute, and requests under way. Pure.

Times are arguments, in seconds. Each limit per minute is a token bucket (Turner 1986) that holds one minute's worth
and refills evenly. So a key that was idle may use its whole minute at once, as OpenAI's `x-ratelimit-*` headers have
it, and over any stretch of t seconds no more than `limit * (1 + t / 60)` is let in.

What an answer will cost is known only at its end. An upper estimate is taken when the request enters and trued up when
it is over: too much taken is given back, too little leaves a debt that is refilled before anything else enters.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

MINUTE_S: Final = 60.0

Header = tuple[bytes, bytes]


class Bucket:
    """What is left of one limit per minute.

    >>> bucket = Bucket(60, now=0.0)
    >>> bucket.take(60, now=0.0)
    >>> bucket.left(now=0.5), bucket.wait_s(1, now=0.5)
    (0.5, 0.5)
    """

    __slots__ = ("_at", "_left", "_lines", "_lines_of", "_per_s", "limit")

    def __init__(self, limit: float, now: float) -> None:
        self.limit = limit
        """Per minute, and at once."""
        self._per_s = limit / MINUTE_S
        self._left = float(limit)
        self._at = now
        self._lines_of = -1.0
        self._lines = b""

    def lines(self, kind: bytes, now: float) -> bytes:
        """OpenAI's three headers for this limit, as they are written."""
        left, limit = self.left(now), self.limit
        if self._lines_of != limit:
            self._lines_of = limit
            self._lines = b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: " % (kind, limit, kind)
        reset = b"0s" if left >= limit else _written_millis(_millis((limit - left) / self._per_s))
        remaining = str(int(left)).encode() if left > 0 else b"0"  # %d of a float costs five times as much
        return b"%b%b\r\nx-ratelimit-reset-%b: %b\r\n" % (self._lines, remaining, kind, reset)

    def left(self, now: float) -> float:
        """What may be taken now; below zero after an answer cost more than was taken for it."""
        if now > self._at:  # a clock that stands or goes back refills nothing
            left = self._left + (now - self._at) * self._per_s
            self._left = left if left < self.limit else self.limit
            self._at = now
        return self._left

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there: 0 when it is, infinite when it is more than the bucket ever holds."""
        if amount > self.limit:
            return math.inf
        return max(0.0, amount - self.left(now)) / self._per_s

    def full_in_s(self, now: float) -> float:
        """Seconds until nothing is missing."""
        return (self.limit - self.left(now)) / self._per_s

    def take(self, amount: float, now: float) -> None:
        """Take this much, into debt if need be."""
        self._left = self.left(now) - amount

    def give(self, amount: float, now: float) -> None:
        """Give back what was taken and not used."""
        self._left = min(self.limit, self.left(now) + amount)

    def relimit(self, limit: float, now: float) -> None:
        """Change the limit; what is used of the old one stays used of the new one."""
        used = self.limit - self.left(now)
        self.limit, self._per_s, self._left = limit, limit / MINUTE_S, limit - used


class Limit(enum.StrEnum):
    """Which limit stands in the way."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a request can't enter now."""

    limit: Limit
    allowed: int
    """The limit itself."""
    used: int
    requested: int
    wait_s: float | None
    """When to come back; None when waiting won't help, or nobody knows how long."""
    namespace: str = ""
    """Whose quota it is; "" when it is the key's own limit."""


class KeyLimits:
    """The three limits of one key, or those that all keys of a namespace share; None means unlimited.

    A request enters its key's and its namespace's or neither. What is counted of a namespace is counted whether or not
    it has a quota, so that one which is set or taken away while requests are under way finds the right number.
    """

    __slots__ = ("_concurrency", "_namespace", "_requests", "_shared", "_tokens", "in_flight")

    def __init__(self, shared: KeyLimits | None = None, namespace: str = "") -> None:
        """Make limits that limit nothing yet.

        Args:
            shared: A key's: those of its namespace.
            namespace: A namespace's: its name, for who is refused.
        """
        self._shared = shared
        self._namespace = namespace
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._concurrency: int | None = None
        self.in_flight = 0
        """Requests that wait or are under way."""

    def set(
        self,
        *,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        concurrency: int | None,
        share: float,
        now: float,
    ) -> None:
        """Set or change the limits.

        Args:
            requests_per_minute: For the key as a whole.
            tokens_per_minute: The same, input and output together.
            concurrency: Requests under way at once.
            share: This gateway's part of each, above 0 and at most 1; at least 1 of everything is left.
            now: Seconds.
        """
        self._requests = _bucket(self._requests, _part(requests_per_minute, share), now)
        self._tokens = _bucket(self._tokens, _part(tokens_per_minute, share), now)
        self._concurrency = _part(concurrency, share)

    @property
    def unlimited(self) -> bool:
        """Whether nothing is limited."""
        return self._requests is None and self._tokens is None and self._concurrency is None

    def enter(self, cost_tokens: int, now: float) -> Shortage | None:
        """Take one request and its estimated tokens, or say what is short and take nothing."""
        if self._concurrency is not None and self.in_flight >= self._concurrency:
            return Shortage(Limit.CONCURRENCY, self._concurrency, self.in_flight, 1, None, self._namespace)
        requests, tokens = self._requests, self._tokens
        if requests is not None and requests.left(now) < 1:
            return _short(Limit.REQUESTS, requests, 1, now, self._namespace)
        if tokens is not None and tokens.left(now) < cost_tokens:
            return _short(Limit.TOKENS, tokens, cost_tokens, now, self._namespace)
        if self._shared is not None:  # last, since it takes where it has enough
            shortage = self._shared.enter(cost_tokens, now)
            if shortage is not None:
                return shortage
        if tokens is not None:
            tokens.take(cost_tokens, now)
        if requests is not None:
            requests.take(1, now)
        self.in_flight += 1
        return None

    def over(self, cost_tokens: int, used_tokens: int | None, now: float) -> None:
        """A request that entered at `cost_tokens` has ended; None: what it used is unknown, so the estimate stands."""
        self.in_flight -= 1
        if self._tokens is not None and used_tokens is not None:
            if used_tokens > cost_tokens:
                self._tokens.take(used_tokens - cost_tokens, now)
            else:
                self._tokens.give(cost_tokens - used_tokens, now)
        if self._shared is not None:
            self._shared.over(cost_tokens, used_tokens, now)

    def undo(self, cost_tokens: int, now: float) -> None:
        """A request that entered was never sent to an engine: it costs nothing."""
        self.in_flight -= 1
        if self._requests is not None:
            self._requests.give(1, now)
        if self._tokens is not None:
            self._tokens.give(cost_tokens, now)
        if self._shared is not None:
            self._shared.undo(cost_tokens, now)

    def headers(self, now: float) -> list[Header]:
        """OpenAI's `x-ratelimit-*` headers; none where nothing is limited per minute."""
        found = (line.partition(b": ") for line in self.lines(now).split(b"\r\n")[:-1])
        return [(name, value) for name, _, value in found]

    def lines(self, now: float) -> bytes:
        """The same as they are written, each with its CR LF. They go out with every answer.

        Of the key's limit and the namespace's the one is told of which less is left.
        """
        requests, tokens = self._requests, self._tokens
        if self._shared is not None:
            requests = _scarcer(requests, self._shared._requests, now)
            tokens = _scarcer(tokens, self._shared._tokens, now)
        lines = requests.lines(b"requests", now) if requests is not None else b""
        return lines + tokens.lines(b"tokens", now) if tokens is not None else lines

    def used(self, now: float) -> list[tuple[Limit, int, int]]:
        """Of each limit that is set: what it allows, and how much of that is taken now (more, where there is debt)."""
        found = [
            (limit, int(bucket.limit), math.ceil(bucket.limit - bucket.left(now)))
            for limit, bucket in ((Limit.REQUESTS, self._requests), (Limit.TOKENS, self._tokens))
            if bucket is not None
        ]
        if self._concurrency is not None:
            found.append((Limit.CONCURRENCY, self._concurrency, self.in_flight))
        return found


def _scarcer(own: Bucket | None, shared: Bucket | None, now: float) -> Bucket | None:
    if own is None or shared is None:
        return shared if own is None else own
    return own if own.left(now) <= shared.left(now) else shared


def _short(limit: Limit, bucket: Bucket, amount: int, now: float, namespace: str) -> Shortage:
    wait_s = bucket.wait_s(amount, now)
    used = math.ceil(bucket.limit - bucket.left(now))
    return Shortage(limit, int(bucket.limit), used, amount, wait_s if math.isfinite(wait_s) else None, namespace)


def _part(limit: int | None, share: float) -> int | None:
    return None if limit is None else max(1, math.floor(limit * share))


def _bucket(old: Bucket | None, limit: int | None, now: float) -> Bucket | None:
    if limit is None:
        return None
    if old is None:
        return Bucket(limit, now)
    if old.limit != limit:
        old.relimit(limit, now)
    return old


def written_duration(seconds: float) -> str:
    """A duration as OpenAI writes it in headers, rounded up to a millisecond.

    >>> [written_duration(s) for s in (0, 0.0121, 1, 59.9921, 360, 3723.5)]
    ['0s', '13ms', '1s', '59.993s', '6m0s', '1h2m3.5s']
    """
    return _written_millis(_millis(seconds)).decode()


def _millis(seconds: float) -> int:
    """Rounded up, but for what is less than a nanosecond."""
    exact = seconds * 1000
    whole = int(exact)
    return whole + 1 if exact - whole > 1e-6 else whole


@lru_cache(maxsize=4096)
def _written_millis(millis: int) -> bytes:
    if 0 < millis < 1000:
        return b"%dms" % millis
    minutes, rest = divmod(max(0, millis), 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}".encode()
    return (f"{minutes}m{text}" if minutes else text).encode()
