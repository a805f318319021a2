"""What a finished answer shows: the one rule by which every answer is judged, whoever gave it and whoever asked."""

from __future__ import annotations

from typing import Final

from monitoring.quality import is_repetitive
from serving.gateway.transcript import Transcript
from serving.openai_protocol import Operation
from serving.outcomes import Signal
from serving.streaming import Answer, read_body, read_stream

GENERATING: Final = (Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES)
"""Operations whose answers are judged by their text."""


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


def signals_in(operation: Operation, transcript: Transcript, answer: Answer, *, texts: bool) -> tuple[Signal, ...]:
    """The signals that a complete answer shows: an error alone, or what its text shows. Latency is not among them.

    Args:
        operation: What was asked for; only generating ones are judged.
        transcript: A complete answer with a status below 400.
        answer: The same, read.
        texts: Whether to look at its text, which takes longest.
    """
    if operation not in GENERATING or transcript.compressed:
        return ()
    if answer.error_code is not None:
        client_error = answer.error_code[:1] == "4" or answer.error_code == "BadRequestError"
        return (Signal.ENGINE_4XX if client_error else Signal.ERROR,)
    if not transcript.event_stream and not answer.ended:  # no JSON: cut, or garbage
        return (Signal.ERROR,)
    found: list[Signal] = []
    if texts:
        if answer.length_stop:
            found.append(Signal.LENGTH_STOP)
        if transcript.whole and not answer.has_content:
            found.append(Signal.EMPTY)
        if any(map(is_repetitive, answer.texts)):
            found.append(Signal.REPETITION)
    return tuple(found)
