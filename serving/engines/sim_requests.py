"""What a request to a simulated engine wants, read from OpenAI's four routes into one form. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from serving.engines.sim_text import EMBEDDING_SIZE, MARK, count_tokens
from serving.openai_requests import (
    AssistantMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    FunctionCallItem,
    FunctionOutputItem,
    InputMessage,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    ResponsesJsonSchemaFormat,
    ResponsesNamedTool,
    ResponsesRequest,
    TextPart,
    UserMessage,
)

Json = dict[str, Any]
CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
)
COMPLETION_DEFAULT_MAX_TOKENS = 16
"""OpenAI's and vLLM's default for /v1/completions."""


class BadRequest(ValueError):
    """A request that the engine refuses: status, and OpenAI's `param`."""

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants, whichever route it came by."""

    route: str
    prompts: tuple[str, ...]
    n: int = 1
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    base64: bool = False
    """Whether embeddings are wanted as base64, which the SDK asks for by itself."""
    dimensions: int = EMBEDDING_SIZE
    """Length of an embedding."""
    echo: bool = False
    """Whether the prompt is wanted before the answer."""
    top_logprobs: int | None = None
    """How many alternatives are wanted with each token's probability; None: no probabilities."""
    calls: tuple[Tool, ...] = ()
    """The tools that are to be called instead of an answer in words."""
    forced: bool = False
    """Whether the request named the tool: then the answer ends with `stop`."""
    form: Mapping[str, Any] | None = None
    """The JSON Schema that the answer must have; None for plain text."""
    cached_tokens: int | None = None
    """Prompt tokens that came from the prefix cache; None for an engine without one."""

    @property
    def mark(self) -> str:
        """The mark that the prompt carries, if any."""
        return self.mark_of(self.prompts[-1]) if self.prompts else ""

    @staticmethod
    def mark_of(prompt: str) -> str:
        """The first mark in a prompt, "" for none."""
        found = MARK.search(prompt)
        return found.group() if found else ""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(count_tokens, self.prompts))


def read_ask(route: str, body: bytes, served_model: str) -> Ask:
    """Read a request.

    Raises:
        BadRequest: it is malformed, or for another model.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not JSON") from error
    if not isinstance(data, dict):
        raise BadRequest("the body is not a JSON object")
    if data.setdefault("model", served_model) != served_model:
        raise BadRequest(f"The model `{str(data['model'])[:128]}` does not exist.", 404, "model")
    try:
        match route:
            case "/v1/chat/completions":
                return _chat(ChatRequest.model_validate(data))
            case "/v1/completions":
                return _completion(CompletionRequest.model_validate(data))
            case "/v1/embeddings":
                return _embedding(EmbeddingRequest.model_validate(data))
            case _:
                return _responses(ResponsesRequest.model_validate(data))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRequest(f"{where}: {first['msg']}", param=str(first["loc"][0]) if first["loc"] else None) from None


def _chat(request: ChatRequest) -> Ask:
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    last = request.messages[-1]
    choice = request.tool_choice
    calls, forced = _calls(
        [Tool(t.function.name, t.function.parameters or {}) for t in request.tools or ()],
        choice.function.name if isinstance(choice, NamedTool) else choice,
        _content(last.content) if isinstance(last, UserMessage) else None,
        parallel=request.parallel_tool_calls is not False,
    )
    form: Mapping[str, Any] | None = None
    if isinstance(request.response_format, JsonSchemaFormat):
        form = request.response_format.json_schema.schema_ or {"type": "object"}
    elif isinstance(request.response_format, JsonObjectFormat):
        form = JSON_OBJECT
    return Ask(
        CHAT,
        ("\n".join(_message(m) for m in request.messages),),
        n=request.n or 1,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        stops=_stops(request.stop),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        top_logprobs=request.top_logprobs or 0 if request.logprobs else None,
        calls=calls,
        forced=forced,
        form=form,
    )


JSON_OBJECT: Mapping[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string"}, "items": {"type": "array", "items": {"type": "string"}}},
}
"""What comes where any JSON object will do."""


def _completion(request: CompletionRequest) -> Ask:
    return Ask(
        COMPLETIONS,
        _texts(request.prompt),
        n=request.n or 1,
        max_tokens=request.max_tokens or COMPLETION_DEFAULT_MAX_TOKENS,
        stops=_stops(request.stop),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        echo=bool(request.echo),
        top_logprobs=request.logprobs,
    )


def _embedding(request: EmbeddingRequest) -> Ask:
    dimensions = request.dimensions or EMBEDDING_SIZE
    if dimensions > EMBEDDING_SIZE:
        raise BadRequest(f"dimensions is {dimensions}; the model has {EMBEDDING_SIZE}", param="dimensions")
    texts = _texts(request.input)
    return Ask(EMBEDDINGS, texts, base64=request.encoding_format == "base64", dimensions=dimensions)


def _responses(request: ResponsesRequest) -> Ask:
    choice = request.tool_choice
    items: Sequence[InputMessage | FunctionCallItem | FunctionOutputItem] = (
        [InputMessage(role="user", content=request.input)] if isinstance(request.input, str) else request.input
    )
    last = items[-1]
    calls, forced = _calls(
        [Tool(t.name, t.parameters or {}) for t in request.tools or ()],
        choice.name if isinstance(choice, ResponsesNamedTool) else choice,
        _item(last) if isinstance(last, InputMessage) and last.role == "user" else None,
        parallel=request.parallel_tool_calls is not False,
    )
    form: Mapping[str, Any] | None = None
    wanted = request.text.format if request.text else None
    if isinstance(wanted, ResponsesJsonSchemaFormat):
        form = wanted.schema_
    elif isinstance(wanted, JsonObjectFormat):
        form = JSON_OBJECT
    told = [request.instructions] if request.instructions else []
    return Ask(
        RESPONSES,
        ("\n".join([*told, *map(_item, items)]),),
        max_tokens=request.max_output_tokens,
        stream=bool(request.stream),
        calls=calls,
        forced=forced,
        form=form,
    )


def _calls(
    tools: Sequence[Tool], choice: str | None, question: str | None, *, parallel: bool
) -> tuple[tuple[Tool, ...], bool]:
    """Which tools are called, and whether the request named one.

    A model decides by what it understands; this one calls the tools whose names stand in the user's question, at
    `required` the first if none does, and speaks once the last word was not the user's: then a tool has answered.
    """
    if choice in (None, "auto", "none") and not tools:
        return (), False
    if not tools:
        raise BadRequest("tool_choice needs tools", param="tool_choice")
    if choice == "none":
        return (), False
    if choice not in (None, "auto", "required"):
        named = [t for t in tools if t.name == choice]
        if not named:
            raise BadRequest(f"tool_choice names {choice!r}, which is not among the tools", param="tool_choice")
        return (named[0],), True
    found = tuple(t for t in tools if question is not None and t.name in question)
    if choice == "required":
        found = found or tuple(tools[:1])
    return (found if parallel else found[:1]), False


def _message(message: BaseModel) -> str:
    content = getattr(message, "content", None)
    called = [f"{c.function.name} {c.function.arguments}" for c in message.tool_calls or ()] if (
        isinstance(message, AssistantMessage)
    ) else []  # fmt: skip
    return "\n".join([_content(content), *called])


def _content(content: str | Sequence[BaseModel] | None) -> str:
    """The text of a message.

    Raises:
        BadRequest: it holds images or recordings, which this model can't read.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        text = part.text if isinstance(part, TextPart) else getattr(part, "refusal", None)
        if text is None:
            raise BadRequest(f"The model reads text alone, not {getattr(part, 'type', '')}.", param="messages")
        texts.append(str(text))
    return " ".join(texts)


def _item(item: InputMessage | FunctionCallItem | FunctionOutputItem) -> str:
    match item:
        case InputMessage():
            return item.content if isinstance(item.content, str) else " ".join(p.text for p in item.content)
        case FunctionCallItem():
            return f"{item.name} {item.arguments}"
        case FunctionOutputItem():
            return item.output


def _texts(given: str | Sequence[str | int | Sequence[int]]) -> tuple[str, ...]:
    """One text for each prompt; token ids are written as numbers."""
    if isinstance(given, str):
        return (given,)
    if isinstance(given[0], int):
        return (" ".join(map(str, given)),)
    return tuple(one if isinstance(one, str) else " ".join(map(str, one)) for one in given)  # type: ignore[arg-type]


def _stops(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())
