"""OpenAI's wire: what a request says, and the shape of errors and model lists. Pure.

The body of a request is parsed once and only looked at; what is forwarded is the client's own bytes. Errors have
exactly OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`, so that the official SDKs raise their
own exceptions. No message ever quotes the prompt.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pydantic_core import from_json

from serving.admission import Reason, Rejection

SESSION_FIELDS: Final = ("prompt_cache_key", "safety_identifier", "user")
"""Fields of a body that name a session, the first that is there wins."""

SURELY_SHALLOW: Final = 190
"""A body with no more brackets than this can't be nested deeper than the 200 levels that are allowed."""

MAX_SESSION_CHARS: Final = 512
"""A longer session name is cut: it is only hashed."""


class Operation(enum.StrEnum):
    """What is asked of the engine; the values are OpenTelemetry's `gen_ai.operation.name`."""

    CHAT = "chat"
    COMPLETIONS = "text_completion"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    OTHER = "other"


_OPERATIONS: Final = {
    "/v1/chat/completions": Operation.CHAT,
    "/v1/completions": Operation.COMPLETIONS,
    "/v1/responses": Operation.RESPONSES,
    "/v1/embeddings": Operation.EMBEDDINGS,
}


def operation_of(path: str) -> Operation | None:
    """The operation of a path, `OTHER` for anything else below /v1/, None elsewhere.

    >>> operation_of("/v1/chat/completions")
    <Operation.CHAT: 'chat'>
    >>> operation_of("/v1/rerank"), operation_of("/metrics")
    (<Operation.OTHER: 'other'>, None)
    """
    known = _OPERATIONS.get(path)
    if known is not None:
        return known
    return Operation.OTHER if path.startswith("/v1/") else None


class Request:
    """What the gateway needs to know of a body."""

    __slots__ = ("fields", "model", "session", "stream", "version")

    def __init__(
        self, model: str, version: str | None, stream: bool, session: str | None, fields: Mapping[str, Any]
    ) -> None:
        self.model = model
        """The registered model's name, without a version."""
        self.version = version
        """The pinned semantic version of `model@version`, or None. Nothing behind the @ is no version that there is."""
        self.stream = stream
        self.session = session
        """The session named in the body, or None."""
        self.fields = fields


def parse_request(body: bytes) -> Request | Rejection:
    """Read a request's body.

    Args:
        body: The client's bytes, already bounded in length.

    Returns:
        What it says, or why it can't be served: not JSON (NaN, bad UTF-8 and endless nesting are none), not an
        object, or without a `model`.
    """
    try:
        # orjson is the fastest, but goes 1,024 levels deep, further than the engines' own parsers do.
        deep = body.count(b"{") + body.count(b"[") > SURELY_SHALLOW
        fields = from_json(body, allow_inf_nan=False) if deep else orjson.loads(body)
    except ValueError:
        return Rejection(
            Reason.INVALID_JSON,
            f"We could not parse the JSON body of your request ({len(body)} bytes). The expected payload is one JSON "
            "object in UTF-8; send it with `Content-Type: application/json`.",
        )
    if not isinstance(fields, dict):
        return Rejection(
            Reason.INVALID_JSON, f"The body is a JSON {_json_type(fields)}, not an object; send one JSON object."
        )
    named = fields.get("model")
    if not isinstance(named, str) or not named:
        return Rejection(Reason.INVALID_REQUEST, "you must provide a model parameter (a string)", param="model")
    model, version = named, None
    if "@" in named:
        model, _, version = named.partition("@")
    return Request(model, version, fields.get("stream") is True, _session(fields), fields)


def _session(fields: Mapping[str, Any]) -> str | None:
    for name in SESSION_FIELDS:
        value = fields.get(name)
        if isinstance(value, str) and value:
            return value[:MAX_SESSION_CHARS]
    return None


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case _:
            return "array"


BYTES_PER_TOKEN: Final = 4
"""Of a prompt, roughly, for reserving a limit before the engine has counted."""

_LIMIT_FIELDS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")


def cost_tokens(request: Request, body_bytes: int) -> int:
    """An estimate of a request's tokens: its body's length over 4, and the answer's limit where it states one."""
    for name in _LIMIT_FIELDS:
        limit = request.fields.get(name)
        if type(limit) is int and limit > 0:
            return body_bytes // BYTES_PER_TOKEN + limit
    return body_bytes // BYTES_PER_TOKEN


def unpinned_body(request: Request) -> bytes:
    """The body of a pinned request with the bare model name, as the engine knows it."""
    fields = {**request.fields, "model": request.model}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


_USAGE_ASKED: Final = b',"stream_options":{"include_usage":true}}'


def metered_body(body: bytes, fields: Mapping[str, Any]) -> bytes | None:
    """The body of a streamed request that asks the engine for the stream's usage; None where the client asks already.

    >>> metered_body(b'{"stream": true}', {"stream": True})
    b'{"stream": true,"stream_options":{"include_usage":true}}'

    Args:
        body: One JSON object.
        fields: The same, parsed.
    """
    if "stream_options" not in fields:
        return body[: body.rindex(b"}")] + _USAGE_ASKED  # nearly always, and without writing the prompt anew
    options = fields["stream_options"]
    if options is None:
        options = {}
    if not isinstance(options, dict) or options.get("include_usage") not in (None, False):
        return None  # asked for; or nonsense, which the engine refuses
    changed = {**fields, "stream_options": {**options, "include_usage": True}}
    return json.dumps(changed, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer of the gateway's own. Its headers are without framing (length, connection)."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


_JSON: Final = ((b"content-type", b"application/json"),)


def seconds_header(seconds: int) -> tuple[bytes, bytes]:
    """`retry-after`."""
    return b"retry-after", b"%d" % seconds


def error_json(message: str, *, kind: str, code: str | None, param: str | None = None) -> bytes:
    """The JSON of an error in OpenAI's shape; `kind` becomes its `type`."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return orjson.dumps({"error": error})


def error_event(message: str, *, kind: str, code: str) -> bytes:
    """The server-sent event that ends a stream which can't be finished."""
    return b"data: " + error_json(message, kind=kind, code=code) + b"\n\n"


_REJECTIONS: Final[Mapping[Reason, tuple[int, str, str | None]]] = {
    Reason.BODY_TOO_LARGE: (413, "invalid_request_error", "request_too_large"),
    Reason.INVALID_JSON: (400, "invalid_request_error", "invalid_json"),
    Reason.INVALID_REQUEST: (400, "invalid_request_error", "invalid_request"),
    Reason.UNSUPPORTED_ENCODING: (415, "invalid_request_error", "unsupported_content_encoding"),
    Reason.MODEL_NOT_FOUND: (404, "invalid_request_error", "model_not_found"),
    Reason.MODEL_NOT_READY: (503, "server_error", "model_not_ready"),
    Reason.PROMPT_REFUSED: (400, "invalid_request_error", "prompt_refused"),
    Reason.UNKNOWN_URL: (404, "invalid_request_error", "unknown_url"),
    Reason.MALFORMED_HTTP: (400, "invalid_request_error", "malformed_request"),
    Reason.TOO_MANY_CONNECTIONS: (503, "server_error", "too_many_connections"),
    Reason.INTERNAL_ERROR: (500, "server_error", "internal_error"),
    Reason.METHOD_NOT_ALLOWED: (405, "invalid_request_error", "method_not_supported"),
    Reason.INVALID_API_KEY: (401, "invalid_request_error", "invalid_api_key"),
    Reason.UNKNOWN_REQUEST: (404, "invalid_request_error", "request_not_found"),
    Reason.ALREADY_RATED: (409, "invalid_request_error", "already_rated"),
    Reason.NOT_PERMITTED: (403, "invalid_request_error", "insufficient_permissions"),
    Reason.RATE_LIMITED: (429, "requests", "rate_limit_exceeded"),
    Reason.TOKEN_RATE_LIMITED: (429, "tokens", "rate_limit_exceeded"),
    Reason.CONCURRENCY_LIMITED: (429, "requests", "rate_limit_exceeded"),
    Reason.NAMESPACE_RATE_LIMITED: (429, "requests", "rate_limit_exceeded"),
    Reason.NAMESPACE_TOKEN_RATE_LIMITED: (429, "tokens", "rate_limit_exceeded"),
    Reason.NAMESPACE_CONCURRENCY_LIMITED: (429, "requests", "rate_limit_exceeded"),
    Reason.KEYS_UNAVAILABLE: (503, "server_error", "keys_unavailable"),
    Reason.QUEUE_FULL: (503, "server_error", "overloaded"),
    Reason.OVERLOADED: (503, "server_error", "overloaded"),
    Reason.DEADLINE_UNREACHABLE: (503, "server_error", "deadline_unreachable"),
    Reason.CONTENT_FILTERED: (400, "invalid_request_error", "content_filter"),
    Reason.GUARDRAIL_UNAVAILABLE: (503, "server_error", "guardrail_unavailable"),
    Reason.GUARDRAIL_OVERLOADED: (503, "server_error", "overloaded"),
}


def rejection_reply(rejection: Rejection) -> Reply:
    """The answer to a rejected request.

    >>> rejection_reply(Rejection(Reason.MODEL_NOT_FOUND, "no such model")).status
    404
    """
    status, kind, code = _REJECTIONS[rejection.reason]
    body = error_json(rejection.message, kind=kind, code=code, param=rejection.param)
    retry_after = () if rejection.retry_after_s is None else (seconds_header(rejection.retry_after_s),)
    return Reply(status, body, (*_JSON, *retry_after, *rejection.headers))


def failure_reply(status: int, message: str, code: str, *, retry_after_s: int | None = None) -> Reply:
    """The answer when no engine could give one: 502, 503 or 504."""
    body = error_json(message, kind="server_error", code=code)
    return Reply(status, body, _JSON if retry_after_s is None else (*_JSON, seconds_header(retry_after_s)))


def json_reply(status: int, value: object) -> Reply:
    """A JSON answer."""
    body = orjson.dumps(value)
    return Reply(status, body, _JSON)


def model_object(name: str, created: int) -> dict[str, object]:
    """One entry of `/v1/models`; `created` is in whole seconds since the epoch."""
    return {"id": name, "object": "model", "created": created, "owned_by": "tidegate"}


def model_list(names: Iterable[str], created: int) -> dict[str, object]:
    """The answer of `GET /v1/models`."""
    return {"object": "list", "data": [model_object(name, created) for name in names]}
