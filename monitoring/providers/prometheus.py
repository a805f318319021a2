"""Prometheus, or whatever speaks its HTTP API (Thanos, Mimir, VictoriaMetrics): instant queries.

All four queries of a reading are asked for one moment, that of the first answer, so that the counters belong
together as well as scraping allows. `GET /api/v1/query` as documented at
https://prometheus.io/docs/prometheus/latest/querying/api/, sent as a form so that long queries fit.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

from monitoring.providers.base import (
    BadAnswer,
    Counters,
    Measured,
    NoData,
    QueryRefused,
    RevisionQuery,
    SeveralSeries,
    SignalQuery,
    StoreUnavailable,
)

MAX_ANSWER_BYTES = 256 * 1024
"""One number is asked for; an answer with thousands of series is refused before it is read to its end."""

SHOWN_CHARS = 120
"""Of a query or of the store's own words, in a message."""

_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class PrometheusAddress:
    """Where a Prometheus is and how to ask it. Secrets are left out of its text form.

    Attributes:
        url: without `/api/v1`, for instance `http://prometheus:9090`.
        bearer_token: sent as `Authorization: Bearer`; None for none.
        username: for basic authentication, with `password`; None for none.
        password: of `username`.
        timeout_s: for connecting and for each answer.
        attempts: how often a query is tried while the store is unavailable.

    """

    url: str
    bearer_token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_s: float = 5.0
    attempts: int = 3

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the address of Prometheus is {self.url!r}; give one with http:// or https://")
        if self.bearer_token is not None and self.username is not None:
            raise ValueError("both a bearer token and a user name are given for Prometheus; give one of the two")


class PrometheusProvider:
    """Reads counters from one Prometheus.

    Args:
        address: where it is.
        transport: of httpx, for tests; None for real connections.
        retry_wait_s: the first wait between two tries; it doubles, with jitter.

    """

    def __init__(
        self,
        address: PrometheusAddress,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        retry_wait_s: float = 0.2,
    ) -> None:
        self._address = address
        self._retry_wait_s = retry_wait_s
        headers = {"accept": "application/json"}
        if address.bearer_token is not None:
            headers["authorization"] = f"Bearer {address.bearer_token}"
        auth = None if address.username is None else httpx.BasicAuth(address.username, address.password or "")
        self._client = httpx.AsyncClient(
            base_url=address.url.rstrip("/"),
            headers=headers,
            auth=auth,
            timeout=address.timeout_s,
            transport=transport,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=8),
        )

    async def read(self, query: SignalQuery) -> Measured:
        """Read both revisions' counters, as of one moment.

        Raises:
            ProviderError: see monitoring/providers/base.py.

        """
        at, canary_events = await self._value(query.canary.events, None)
        _, canary_total = await self._value(query.canary.total, at)
        stable = None if query.stable is None else await self._counters(query.stable, at)
        return Measured(at=at, canary=Counters(events=canary_events, total=canary_total), stable=stable)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _counters(self, query: RevisionQuery, at: float) -> Counters:
        _, events = await self._value(query.events, at)
        _, total = await self._value(query.total, at)
        return Counters(events=events, total=total)

    async def _value(self, query: str, at: float | None) -> tuple[float, int]:
        """One query's moment and value; asked again while the store is unavailable."""
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(self._address.attempts),
            wait=wait_exponential(multiplier=self._retry_wait_s, max=2.0) + wait_random(0.0, self._retry_wait_s),
            retry=retry_if_exception_type(StoreUnavailable),
            reraise=True,
        ):
            with attempt:
                return _one_number(query, await self._ask(query, at))
        raise AssertionError("tenacity either returns or raises")

    async def _ask(self, query: str, at: float | None) -> bytes:
        form = {"query": query, "timeout": f"{self._address.timeout_s:g}s"}
        if at is not None:
            form["time"] = f"{at:.3f}"
        try:
            async with self._client.stream("POST", "/api/v1/query", data=form) as answer:
                body = bytearray()
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > MAX_ANSWER_BYTES:
                        raise SeveralSeries(
                            f"{_shown(query)} finds more than {MAX_ANSWER_BYTES} bytes where one number is needed; "
                            "sum the series up"
                        )
        except httpx.HTTPError as error:
            raise StoreUnavailable(
                f"Prometheus at {self._address.url} can't be reached: {type(error).__name__} within "
                f"{self._address.timeout_s:g} s"
            ) from None
        if answer.status_code in _TRY_AGAIN:
            raise StoreUnavailable(f"Prometheus at {self._address.url} answers {answer.status_code}: {_words(body)}")
        if answer.status_code != httpx.codes.OK:
            raise QueryRefused(
                f"Prometheus at {self._address.url} answers {answer.status_code} to {_shown(query)}: {_words(body)}"
            )
        return bytes(body)


def _one_number(query: str, body: bytes) -> tuple[float, int]:
    """The only sample of an instant query's answer, a vector of one series or a scalar."""
    try:
        data = json.loads(body)["data"]
        kind, result = data["resultType"], data["result"]
        wanted = kind in ("vector", "scalar")
        samples = [result] if kind == "scalar" else [series["value"] for series in result if wanted]
    except (ValueError, KeyError, TypeError):
        raise BadAnswer(f"what answers {_shown(query)} is no instant query's answer: {_words(body)}") from None
    if not wanted:
        raise BadAnswer(f"{_shown(query)} gives a {kind}; a counter of one series is needed")
    if not samples:
        raise NoData(
            f"{_shown(query)} finds nothing; check its labels, and append `or vector(0)` where nothing means none"
        )
    if len(samples) > 1:
        raise SeveralSeries(f"{_shown(query)} finds {len(samples)} series where one is needed; sum them up")
    return _sample(query, samples[0])


def _sample(query: str, sample: Any) -> tuple[float, int]:  # noqa: ANN401 - JSON of any shape
    try:
        at, value = float(sample[0]), float(sample[1])
    except (TypeError, ValueError, LookupError):
        raise BadAnswer(f"a sample of {_shown(query)} is {str(sample)[:SHOWN_CHARS]}, not [time, number]") from None
    if not math.isfinite(value):
        raise NoData(f"{_shown(query)} is {value}, no number")
    if value < 0.0:
        raise BadAnswer(f"{_shown(query)} is {value:g}; a counter is not negative (is it a gauge?)")
    return at, int(value)


def _shown(query: str) -> str:
    return repr(query if len(query) <= SHOWN_CHARS else query[: SHOWN_CHARS - 1] + "…")


def _words(body: bytes | bytearray) -> str:
    """What the store says for itself, shortened."""
    try:
        said = str(json.loads(bytes(body)).get("error", ""))
    except (ValueError, AttributeError):
        said = bytes(body).decode("utf-8", "replace")
    return " ".join(said.split())[:SHOWN_CHARS] or "without a word"
