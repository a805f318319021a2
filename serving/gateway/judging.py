"""What a finished answer shows: the one rule by which every answer is judged, whoever gave it and whoever asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from monitoring.languages import is_other_language
from monitoring.likelihood import likelihood
from monitoring.quality import is_repetitive
from monitoring.refusals import is_refusal
from serving.answer_form import is_json, logprobs_in, wants_json, wants_logprobs
from serving.gateway.transcript import Transcript
from serving.openai_protocol import Operation
from serving.outcomes import Signal
from serving.sightings import asked_text
from serving.streaming import Answer, read_body, read_stream

GENERATING: Final = (Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES)
"""Operations whose answers are judged by their text."""

NLL, WORST_NLL, LENGTH, BREVITY = "nll", "nll-max", "length", "brevity"
ANSWER_SCORES = (NLL, WORST_NLL, LENGTH, BREVITY)
"""Scores that are read off an answer itself, after `score/`."""


_OTHER: Final = Operation.OTHER


def read_transcript(operation: Operation, transcript: Transcript, *, usage_only: bool = False) -> Answer:
    """Read what was kept of an answer.

    Args:
        operation: What was asked for.
        transcript: What was answered.
        usage_only: Whether the end of a stream is enough.
    """
    if transcript.compressed or operation is _OTHER:
        return Answer()
    if not transcript.event_stream:
        return read_body(operation, transcript.text) if transcript.whole else Answer(ended=True)
    if usage_only:
        return read_stream(operation, transcript.tail)
    answer = read_stream(operation, transcript.text)
    if not transcript.whole:
        end = read_stream(operation, transcript.tail)
        answer.finish_reasons += end.finish_reasons
        answer.input_tokens, answer.output_tokens = end.input_tokens, end.output_tokens
        answer.error_code = answer.error_code or end.error_code
    return answer


def signals_in(
    operation: Operation,
    transcript: Transcript,
    answer: Answer,
    *,
    texts: bool,
    fields: Mapping[str, Any] | None = None,
) -> tuple[Signal, ...]:
    """The signals that a complete answer shows: an error alone, or what its text shows. Latency is not among them.

    Args:
        operation: What was asked for; only generating ones are judged.
        transcript: A complete answer with a status below 400.
        answer: The same, read.
        texts: Whether to look at its text, which takes longest.
        fields: The request's body, for what depends on the question; None where it isn't known.
    """
    if operation not in GENERATING or transcript.compressed:
        return ()
    if answer.error_code is not None:
        client_error = answer.error_code[:1] == "4" or answer.error_code == "BadRequestError"
        return (Signal.ENGINE_4XX if client_error else Signal.ERROR,)
    if not transcript.event_stream and not answer.ended:  # no JSON: cut, or garbage
        return (Signal.ERROR,)
    return tuple(_in_text(transcript, answer, fields or {})) if texts else ()


def _in_text(transcript: Transcript, answer: Answer, fields: Mapping[str, Any]) -> list[Signal]:
    found: list[Signal] = []
    texts = answer.texts
    if answer.length_stop:
        found.append(Signal.LENGTH_STOP)
    if transcript.whole and not answer.has_content:
        found.append(Signal.EMPTY)
    if any(is_repetitive(text) for text in texts):
        found.append(Signal.REPETITION)
    if answer.refused or any(is_refusal(text) for text in texts):
        found.append(Signal.REFUSAL)
        return found  # whoever declines need not do so in JSON, nor in the language of the question
    written = [text for text in texts if text.strip()]
    # A cut answer can't be JSON, and is told as a length stop already; one with tool calls alone has no text.
    if written and wants_json(fields):
        if transcript.whole and not answer.length_stop and not all(is_json(text) for text in written):
            found.append(Signal.INVALID_JSON)
    elif written and fields:
        prompt = asked_text(fields)
        if prompt and any(is_other_language(prompt, text) for text in written):
            found.append(Signal.LANGUAGE_MISMATCH)
    return found


def scores_in(
    operation: Operation,
    transcript: Transcript,
    answer: Answer,
    fields: Mapping[str, Any],
    wanted: Collection[str],
) -> dict[str, float]:
    """The scores of a good answer that somebody watches; higher is worse. What it has no measure for is left out.

    Args:
        operation: What was asked for.
        transcript: What was answered.
        answer: The same, read with its texts.
        fields: The request's body.
        wanted: Names, after `score/`.
    """
    found: dict[str, float] = {}
    if operation not in GENERATING or transcript.compressed or not wanted:
        return found
    if answer.output_tokens and answer.has_content:
        found |= {LENGTH: float(answer.output_tokens), BREVITY: -float(answer.output_tokens)}
    if (NLL in wanted or WORST_NLL in wanted) and transcript.whole and wants_logprobs(operation, fields):
        sure = likelihood(logprobs_in(transcript.text, event_stream=transcript.event_stream))
        if sure is not None:
            found |= {NLL: sure.mean, WORST_NLL: sure.worst}
    return {name: score for name, score in found.items() if name in wanted}
