"""OpenAI's requests as models: the common subset that engines understand, for documents and for the simulated engine.

The gateway itself passes bodies on as they came and looks at few of their fields (`openai_protocol`), so that what an
engine offers beyond reaches it: unknown fields are allowed everywhere. Known ones have OpenAI's types and bounds. Pure.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class Wire(BaseModel):
    """Base of what comes over the wire: JSON's own types, nothing coerced, unknown fields kept."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


Model = Annotated[str, Field(min_length=1, description="a registered model's name; `name@1.2.0` pins a version")]
Count = Annotated[int, Field(ge=1, le=2**31)]
Choices = Annotated[int, Field(ge=1, le=128)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Stop = str | Annotated[list[str], Field(max_length=16)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Texts = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=2048)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=2048)]
)
JsonSchema = dict[str, Any]


class TextPart(Wire):
    """A piece of text of a message."""

    type: Literal["text"]
    text: str


class RefusalPart(Wire):
    """A refusal that the model gave before."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Wire):
    """Where an image is, or the image itself as a `data:` URL."""

    url: str


class ImagePart(Wire):
    """An image, for models that see."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Audio(Wire):
    """A recording in base64."""

    data: str
    format: str


class AudioPart(Wire):
    """A recording, for models that hear."""

    type: Literal["input_audio"]
    input_audio: Audio


UserPart = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
TextContent = str | Annotated[list[TextPart], Field(min_length=1)]


class SystemMessage(Wire):
    """What the operator tells the model."""

    role: Literal["system", "developer"]
    content: TextContent


class UserMessage(Wire):
    """What the user says."""

    role: Literal["user"]
    content: str | Annotated[list[UserPart], Field(min_length=1)]


class CalledFunction(Wire):
    """A function's name and its arguments as JSON text."""

    name: str
    arguments: str


class CalledTool(Wire):
    """A tool call that the model made before."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Wire):
    """What the model said."""

    role: Literal["assistant"]
    content: str | Annotated[list[AssistantPart], Field(min_length=1)] | None = None
    tool_calls: list[CalledTool] | None = None


class ToolMessage(Wire):
    """What a tool answered."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionDefinition(Wire):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class FunctionTool(Wire):
    """A tool of chat completions."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Wire):
    """A function by its name."""

    name: str


class NamedTool(Wire):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"]


class TextFormat(Wire):
    """Plain text."""

    type: Literal["text"]


class JsonObjectFormat(Wire):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaDefinition(Wire):
    """A form by its JSON Schema."""

    name: ToolName
    description: str | None = None
    schema_: Annotated[JsonSchema | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaFormat(Wire):
    """JSON of a given form."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaDefinition


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(Wire):
    """How to stream."""

    include_usage: bool | None = None


class Sampling(Wire):
    """What chat and plain completions share."""

    model: Model
    n: Choices | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


class CompletionRequest(Sampling):
    """`POST /v1/completions`."""

    prompt: Texts
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class EmbeddingRequest(Wire):
    """`POST /v1/embeddings`."""

    model: Model
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None


class InputTextPart(Wire):
    """A piece of text of an item."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputMessage(Wire):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[InputTextPart], Field(min_length=1)]


class FunctionCallItem(Wire):
    """A call that the model made before."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionOutputItem(Wire):
    """What the called function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str


InputItem = InputMessage | FunctionCallItem | FunctionOutputItem


class ResponsesFunctionTool(Wire):
    """A tool of the Responses API."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class ResponsesNamedTool(Wire):
    """The tool that must be called."""

    type: Literal["function"]
    name: str


class ResponsesJsonSchemaFormat(Wire):
    """JSON of a given form."""

    type: Literal["json_schema"]
    name: ToolName
    schema_: Annotated[JsonSchema, Field(alias="schema")]
    strict: bool | None = None


class ResponsesText(Wire):
    """How the text of a response is to look."""

    format: Annotated[TextFormat | JsonObjectFormat | ResponsesJsonSchemaFormat, Field(discriminator="type")] | None = (
        None
    )


class ResponsesRequest(Wire):
    """`POST /v1/responses`."""

    model: Model
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    tools: Annotated[list[ResponsesFunctionTool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | ResponsesNamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: ResponsesText | None = None
    stream: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
