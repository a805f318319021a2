"""Traces and the request log of one gateway, put together: nothing at all of them where neither is on."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import orjson

from monitoring.tracing import names
from monitoring.tracing.records import Said
from monitoring.tracing.settings import Told
from serving.gateway.config import GatewayConfig
from serving.gateway.observing import Observer
from serving.openai_protocol import Operation
from serving.request_log.sink import LogSink
from serving.request_log.tool_calls import tool_calls_in
from serving.streaming import read_body, read_stream
from serving.traffic import RevisionTraffic

if TYPE_CHECKING:
    from monitoring.tracing.exporting import SpanSender


class Telemetry:
    """One gateway's. Made inside a running event loop; `start`, then `stop`."""

    def __init__(self, config: GatewayConfig, may_tell: Callable[[RevisionTraffic], bool]) -> None:
        """Make one that sends nothing yet.

        Args:
            config: the gateway's.
            may_tell: whether a revision's policy lets prompts and answers be kept, redacted.
        """
        assert config.request_log_dir is not None
        assert config.secret_file is not None
        tracing, logging = config.tracing, config.request_log
        self.sender: SpanSender | None = _sender(config) if tracing.endpoint else None
        folder, secret_file = config.request_log_dir / config.name, config.secret_file
        self.sink = (
            LogSink(lambda: logging.for_writer(folder, secret_file, secrets.token_hex(4))) if logging.ratio else None
        )
        self.observer: Observer | None = None
        if self.sender is not None or self.sink is not None:
            self.observer = Observer(
                self.sender,
                self.sink,
                trace_ratio=tracing.ratio,
                log_ratio=logging.ratio,
                may_tell=may_tell,
                trace_content=tracing.content,
                canaries_per_s=tracing.canaries_per_s,
                tell_engines=tracing.engines is Told.ALWAYS,
            )

    async def start(self) -> None:
        """Begin to send and to write.

        Raises:
            OSError: the log's writer can't be started.
        """
        if self.sink is not None:
            await self.sink.start()
        if self.sender is not None:
            self.sender.start()

    async def stop(self) -> None:
        """Send and write what waits."""
        if self.sender is not None:
            await asyncio.to_thread(self.sender.stop)
        if self.sink is not None:
            await self.sink.stop()

    def dropped(self) -> Mapping[str, int]:
        """Finished requests that were not told of, by whom."""
        found = {"traces": self.sender, "request-log": self.sink}
        return {name: part.dropped for name, part in found.items() if part is not None}

    def unkept(self) -> int:
        """Refused requests that were neither traced nor logged, since there were too many of their kind."""
        return self.observer.unkept if self.observer is not None else 0


def _sender(config: GatewayConfig) -> SpanSender:
    from monitoring.tracing.exporting import SpanSender, Whose, otlp_exporter
    from monitoring.tracing.spans import no_content

    tracing = config.tracing
    whose = Whose("tidegate-gateway", config.name, version("tidegate"))
    content = _redacted_content() if tracing.content else no_content
    return SpanSender(otlp_exporter(tracing.endpoint, tracing.transport), whose, content=content)


def _redacted_content() -> Callable[[Said], Mapping[str, str]]:
    """Makes the attributes that tell prompt and answers, in the sending thread."""
    from serving.request_log.redacting import Redactor

    redactor = Redactor()

    def content(said: Said) -> Mapping[str, str]:
        prompt = redactor.body(orjson.loads(said.prompt))
        asked = prompt.get("messages") or prompt.get("input") or prompt.get("prompt")
        operation, data = Operation(said.operation), said.answer
        read = (read_stream if said.event_stream else read_body)(operation, data)
        answers: list[dict[str, object]] = [
            {"role": "assistant", "content": redactor.text(text)} for text in read.texts if text
        ]
        calls = tool_calls_in(operation, data, event_stream=said.event_stream)
        if calls:
            told = [redactor.call(call.name, call.arguments) for call in calls]
            answers.append({"role": "assistant", "tool_calls": told})
        return {
            names.INPUT_MESSAGES: orjson.dumps(asked).decode(),
            names.OUTPUT_MESSAGES: orjson.dumps(answers).decode(),
        }

    return content
