"""The OpenAPI document of the data plane: what a gateway answers at `GET /openapi.json`. Pure.

It describes the common subset of OpenAI's API that every engine behind a gateway understands. Bodies are passed on as
they came, so an engine may take more fields than these and answer with more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.openai_requests import ChatRequest, CompletionRequest, EmbeddingRequest, ResponsesRequest

Json = dict[str, Any]
_REQUESTS: tuple[type[BaseModel], ...] = (ChatRequest, CompletionRequest, EmbeddingRequest, ResponsesRequest)

_STRING: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_NUMBER: Json = {"type": "number"}


def _object(required: Mapping[str, Json], **optional: Json) -> Json:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _constant(value: str) -> Json:
    return {"const": value}


_USAGE = _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}, completion_tokens=_COUNT)
_CALL = _object(
    {"id": _STRING, "type": _constant("function"), "function": _object({"name": _STRING, "arguments": _STRING})}
)
_LIKELY = _object({"token": _STRING, "logprob": _NUMBER}, bytes=_or_null(_list(_INTEGER)))
_CHANCE = _object({"token": _STRING, "logprob": _NUMBER, "top_logprobs": _list(_LIKELY)})
_FINISH: Json = {"enum": ["stop", "length", "tool_calls", "content_filter", "function_call"]}
_MESSAGE = _object(
    {"role": _constant("assistant"), "content": _or_null(_STRING)},
    refusal=_or_null(_STRING),
    tool_calls=_or_null(_list(_CALL)),
)
_CHAT_CHOICE = _object(
    {"index": _COUNT, "message": _MESSAGE, "finish_reason": _FINISH},
    logprobs=_or_null(_object({"content": _or_null(_list(_CHANCE))})),
)
_TEXT_CHOICE = _object({"index": _COUNT, "text": _STRING, "finish_reason": _FINISH}, logprobs=_or_null(_object({})))
_ERROR_FIELDS = _object(
    {
        "message": {"type": "string", "description": "what is wrong, the limit and the way out; never the prompt"},
        "type": _STRING,
        "param": {**_or_null(_STRING), "description": "the field of the body that is wrong"},
        "code": {"anyOf": [_STRING, _INTEGER, {"type": "null"}], "description": "of a gateway a word, of an engine "
                 "the status"},
    }
)  # fmt: skip

_ANSWERS: dict[str, Json] = {
    "Error": _object({"error": _ERROR_FIELDS}),
    "Health": _object({"status": _constant("ok")}),
    "ModelObject": _object({"id": _STRING, "object": _constant("model"), "created": _COUNT, "owned_by": _STRING}),
    "ModelList": _object({"object": _constant("list"), "data": _list(_ref("ModelObject"))}),
    "ChatCompletion": _object(
        {
            "id": _STRING,
            "object": _constant("chat.completion"),
            "created": _COUNT,
            "model": _STRING,
            "choices": {**_list(_CHAT_CHOICE), "minItems": 1},
            "usage": _USAGE,
        }
    ),
    "Completion": _object(
        {
            "id": _STRING,
            "object": _constant("text_completion"),
            "created": _COUNT,
            "model": _STRING,
            "choices": {**_list(_TEXT_CHOICE), "minItems": 1},
            "usage": _USAGE,
        }
    ),
    "Embeddings": _object(
        {
            "object": _constant("list"),
            "model": _STRING,
            "usage": _USAGE,
            "data": _list(
                _object(
                    {
                        "object": _constant("embedding"),
                        "index": _COUNT,
                        "embedding": {
                            "anyOf": [
                                _list(_NUMBER),
                                {"type": "string", "description": "little-endian float32, base64"},
                            ]
                        },
                    }
                )
            ),
        }
    ),
    "Response": _object(
        {
            "id": _STRING,
            "object": _constant("response"),
            "created_at": _NUMBER,
            "model": _STRING,
            "status": {"enum": ["completed", "incomplete", "failed", "in_progress", "queued", "cancelled"]},
            "output": _list(_object({"type": _STRING})),
        },
        usage=_or_null(_object({"input_tokens": _COUNT, "output_tokens": _COUNT, "total_tokens": _COUNT})),
    ),
}

_RATED: Json = {
    "type": "object",
    "properties": {
        "request_id": {**_STRING, "minLength": 1, "maxLength": 512, "description": "the answer's `x-request-id`"},
        "rating": {"enum": ["up", "down"]},
        "comment": {"anyOf": [{**_STRING, "maxLength": 2000}, {"type": "null"}]},
    },
    "required": ["request_id", "rating"],
    "additionalProperties": False,
}

_EVENT = {
    **_object({"data": {"type": "string", "description": "JSON, or [DONE] as the last one"}}, event=_STRING),
    "description": "one event of the stream",
}

_MEANINGS = {
    "400": "malformed, or a field the model can't serve",
    "401": "no API key, or one that is not accepted",
    "403": "the key may not do this",
    "404": "no such model",
    "405": "the path takes another method",
    "409": "the request was rated otherwise before",
    "413": "the body is too large",
    "415": "the body is compressed, or not JSON",
    "429": "a limit of the key is reached; `retry-after` says when to come back",
    "502": "the engine was lost before its answer was complete",
    "503": "no engine is ready, or all are busy; `retry-after` says when to come back",
    "504": "the request's time is up",
}

_HEADERS: Json = {"x-request-id": {"schema": _STRING, "required": True, "description": "signed; name it in feedback"}}


def _failures(*statuses: str) -> Json:
    body = {"application/json": {"schema": _ref("Error")}}
    return {s: {"description": _MEANINGS[s], "content": body, "headers": _HEADERS} for s in statuses}


_ASKING = _failures("400", "401", "403", "404", "413", "415", "429", "502", "503", "504")

_REQUEST_HEADERS: list[Json] = [
    {
        "name": "x-session-id",
        "in": "header",
        "description": "requests of one session stay on one side of a rollout",
        "schema": _STRING,
    },
    {
        "name": "x-request-timeout",
        "in": "header",
        "description": "seconds until the answer is of no use any more",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
    },
]


def _asking(summary: str, request: type[BaseModel], answer: str, *, streams: bool = True) -> Json:
    content: Json = {"application/json": {"schema": _ref(answer)}}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    return {
        "post": {
            "operationId": request.__name__.removesuffix("Request").lower(),
            "summary": summary,
            "parameters": _REQUEST_HEADERS,
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request.__name__)}}},
            "responses": {
                "200": {"description": "the answer", "content": content, "headers": _HEADERS},
                **_ASKING,
            },
            "security": [{"key": []}, {}],
        }
    }


def _reading(name: str, summary: str, answer: str, *failures: str, parameters: list[Json] | None = None) -> Json:
    body = {"application/json": {"schema": _ref(answer)}}
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            **({"parameters": parameters} if parameters else {}),
            "responses": {"200": {"description": "the answer", "content": body}, **_failures(*failures)},
            "security": [{"key": []}, {}] if failures else [],
        }
    }


def _feedback() -> Json:
    told = _object(
        {"object": _constant("feedback"), "request_id": _STRING, "rating": _STRING, "counted": {"type": "boolean"}}
    )
    return {
        "post": {
            "operationId": "feedback",
            "summary": "Rate an answer, once, with the key that asked",
            "requestBody": {"required": True, "content": {"application/json": {"schema": _RATED}}},
            "responses": {
                "200": {"description": "the vote", "content": {"application/json": {"schema": told}}},
                **_failures("400", "401", "403", "404", "409", "413", "415", "503"),
            },
            "security": [{"key": []}, {}],
        }
    }


def document() -> Json:
    """The document, OpenAPI 3.1.

    >>> document()["paths"]["/v1/models"]["get"]["operationId"]
    'models'
    """
    _, requests = models_json_schema(
        [(model, "validation") for model in _REQUESTS], ref_template="#/components/schemas/{model}"
    )
    name: Json = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidegate data plane",
            "version": "1",
            "description": "OpenAI's API. Further fields of a request reach the engine as they are.",
        },
        "paths": {
            "/v1/chat/completions": _asking("Answer a conversation", ChatRequest, "ChatCompletion"),
            "/v1/completions": _asking("Continue a text", CompletionRequest, "Completion"),
            "/v1/embeddings": _asking("Turn texts into vectors", EmbeddingRequest, "Embeddings", streams=False),
            "/v1/responses": _asking("Answer, in the newer form", ResponsesRequest, "Response"),
            "/v1/feedback": _feedback(),
            "/v1/models": _reading("models", "List the models that the key may ask", "ModelList", "401", "503"),
            "/v1/models/{model}": _reading(
                "model", "One model", "ModelObject", "400", "401", "404", "503", parameters=[name]
            ),
            "/healthz": _reading("health", "Whether the process is alive", "Health"),
        },
        "components": {
            "schemas": {**requests["$defs"], **_ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "an API key, `tg-...`"}},
        },
    }
