"""The drift watch's own port: metrics, health, and what it knows, for the controller and for people.

POST /erase {"user": MARK, "until": wall-clock seconds}  ->  {"erased": rows}, with the watch's key
POST /ack {"model", "scope" or null, "by", "reason"}     ->  {"taken_in": bool}, likewise
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monitoring.instruments import DriftInstruments
from monitoring.measurements import DriftMeasurement
from serving.drift.erasing import WatchSlow
from serving.gateway.exchange import Exchange
from serving.openai_protocol import Reply, json_reply

logger = logging.getLogger("tidegate.drift")

STALE_S = 10.0
"""A status older than this means that the watch's thread is stuck."""
AHEAD_S = 3600.0
"""How far the clock of whoever erases may be before ours: a note from the far future would keep a user out for ever."""

Erase = Callable[[str, float], int]
"""(mark, until) -> how many rows went; blocks."""


class EraseRequest(BaseModel):
    """Who is to go, as they stand in the archive, and until when."""

    model_config = ConfigDict(extra="forbid")

    user: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    until: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AckRequest(BaseModel):
    """Whose alarms somebody has seen."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=63)]
    scope: Annotated[str | None, Field(max_length=200)] = None
    by: Annotated[str, Field(min_length=1, max_length=200)]
    reason: Annotated[str, Field(max_length=1000)] = ""


Acknowledge = Callable[[dict[str, Any]], bool]
"""Hands an acknowledgement to the watch; False when it was not taken in yet. Blocks."""


class DriftApp:
    """The application. It holds ids and counts, and no text; nothing but `/erase` and `/ack` changes anything.

    Args:
        status: What the watch knows.
        key: Who asks for the status shows it; "" where only this machine can ask.
        erase: Takes a user's vectors out; only for who has the key. On one machine that is done by files.
        acknowledge: Takes note that somebody has seen alarms; likewise.

    """

    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        key: str = "",
        erase: Erase | None = None,
        acknowledge: Acknowledge | None = None,
    ) -> None:
        self._status = status
        self._authorization = f"Bearer {key}".encode() if key else b""
        self._erase = erase if key else None
        self._acknowledge = acknowledge if key else None
        self._instruments = DriftInstruments()

    def begin(self, exchange: Exchange) -> Reply | None:
        """Answer one request."""
        match (exchange.method, exchange.path):
            case ("GET" | "HEAD", "/metrics"):
                accept = exchange.fields.get(b"accept", b"").decode("latin-1")
                body, content_type = self._instruments.render(*measured(self._status()), accept)
                return Reply(200, body, ((b"content-type", content_type.encode()),))
            case ("GET" | "HEAD", "/healthz"):
                behind_s = time.time() - self._status()["written_at"]
                healthy = behind_s < STALE_S
                status = {"status": "ok" if healthy else "starting, or stuck", "behind_s": round(behind_s, 1)}
                return json_reply(200 if healthy else 503, status)
            case ("GET" | "HEAD", "/status"):
                return self._stranger(exchange) or json_reply(200, self._status())
            case ("POST", "/erase") if self._erase is not None:
                return self._stranger(exchange)
            case ("POST", "/ack") if self._acknowledge is not None:
                return self._stranger(exchange)
            case (method, path):
                message = f"{method} {path[:128]} is not served; try GET /metrics, /healthz or /status"
                return json_reply(404, {"error": message})

    async def serve(self, exchange: Exchange) -> None:
        """Take a user's vectors out, or an acknowledgement in: what `begin` leaves open."""
        work = self._erased if exchange.path == "/erase" else self._acknowledged
        reply = await work(exchange.body)
        exchange.respond(reply.status, list(reply.headers), reply.body)

    async def _acknowledged(self, body: bytes) -> Reply:
        assert self._acknowledge is not None
        try:
            asked = AckRequest.model_validate_json(body)
        except ValidationError as error:
            return _malformed(error)
        streams = {(one["model"], one["stream"]) for one in self._status()["streams"]}
        if not any(model == asked.model and asked.scope in (None, scope) for model, scope in streams):
            return json_reply(404, {"error": f"{asked.model} ({asked.scope or 'any stream'}) is not watched"})
        try:
            taken = await asyncio.to_thread(self._acknowledge, {**asked.model_dump(), "at": time.time()})
        except OSError as error:
            logger.error("an acknowledgement can't be written: %s", error.strerror)  # noqa: TRY400
            return json_reply(503, {"error": f"the acknowledgement can't be written: {error.strerror}"})
        return json_reply(200, {"taken_in": taken})

    async def _erased(self, body: bytes) -> Reply:
        assert self._erase is not None
        try:
            asked = EraseRequest.model_validate_json(body)
        except ValidationError as error:
            return _malformed(error)
        if asked.until > time.time() + AHEAD_S:
            return json_reply(
                400, {"error": "until is more than an hour after this watch's clock; set the clocks right"}
            )
        try:
            gone = await asyncio.to_thread(self._erase, asked.user, asked.until)
        except WatchSlow as error:
            return json_reply(503, {"error": str(error)})
        except OSError as error:
            logger.error("a user's vectors can't be taken out: %s", error.strerror)  # noqa: TRY400
            return json_reply(503, {"error": f"the archive can't be written: {error.strerror}"})
        return json_reply(200, {"erased": gone})

    def _stranger(self, exchange: Exchange) -> Reply | None:
        """The refusal of whoever has not the key."""
        shown = exchange.fields.get(b"authorization", b"")
        if self._authorization and not hmac.compare_digest(shown, self._authorization):
            return json_reply(401, {"error": f"{exchange.path} needs the drift watch's key, as a bearer token"})
        return None

    def refuse(self, status: int, message: str, exchange: Exchange | None = None) -> Reply:
        """The answer to what HTTP itself forbids."""
        return json_reply(status, {"error": message})


def _malformed(error: ValidationError) -> Reply:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the body"
    return json_reply(400, {"error": f"{where}: {first['msg']}"})


def measured(status: dict[str, Any]) -> tuple[list[DriftMeasurement], dict[tuple[str, str], int], int]:
    """A status as metrics take it: detectors, requests by (model, result), dropped sightings."""
    detectors = [
        DriftMeasurement(stream["model"], stream["stream"], name, one["statistic"], one["threshold"],
                         active=one["active"], alarms=one["alarms"])
        for stream in status["streams"] for name, one in stream["detectors"].items()
    ]  # fmt: skip
    requests = {(row["model"], row["result"]): row["count"] for row in status["requests"]}
    return detectors, requests, status["dropped"]
