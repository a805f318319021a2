"""Names of OpenTelemetry's conventions for generative AI, in one place: upstream they are still in development. Pure.

Ours begin with `tidegate.`; they are promises like the names of metrics (docs/monitoring.md, "Traces").
"""

from __future__ import annotations

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
FINISH_REASONS = "gen_ai.response.finish_reasons"
CONVERSATION = "gen_ai.conversation.id"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
REQUEST_PARAMETERS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}
"""A body's number to the attribute that tells it."""

EVALUATION = "gen_ai.evaluation.result"
EVALUATION_NAME = "gen_ai.evaluation.name"
EVALUATION_LABEL = "gen_ai.evaluation.score.label"

ERROR_TYPE = "error.type"
STATUS = "http.response.status_code"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
SERVICE_NAME = "service.name"
SERVICE_INSTANCE = "service.instance.id"
SERVICE_VERSION = "service.version"

VERSION = "tidegate.version"
REVISION = "tidegate.revision"
ROLE = "tidegate.role"
ROLLOUT = "tidegate.rollout"
WEIGHT = "tidegate.weight"
REQUEST_ID = "tidegate.request.id"
OUTCOME = "tidegate.outcome"
STREAM = "tidegate.stream"
KEY = "tidegate.key.id"
ATTEMPT = "tidegate.attempt"
ANSWERED_BY = "tidegate.answered_by"
KEPT_BECAUSE = "tidegate.sampling.reason"
FIRST_TOKEN_S = "tidegate.time_to_first_token"  # noqa: S105 - a token of text
POLICY = "tidegate.guardrail.policy"
CHECK = "tidegate.guardrail.check"
DIRECTION = "tidegate.guardrail.direction"
VERDICT = "tidegate.guardrail.verdict"

FIRST_TOKEN = "first_token"  # noqa: S105 - the name of an event
QUEUE_SPAN = "queue"
ATTEMPT_SPAN = "attempt"
GUARDRAIL_SPAN = "guardrail"
FEEDBACK_SPAN = "feedback"
