"""Send finished requests as spans over OTLP, from a thread, in batches; bounded, and never waited for.

The event loop only appends a plain record to a list. The thread makes spans of it and has OpenTelemetry's exporter send
them, over gRPC or HTTP. `OTEL_EXPORTER_OTLP_HEADERS` and its kin (certificates, compression, time-outs) are the
exporters' own and hold here too.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from monitoring.tracing import names
from monitoring.tracing.records import RefusalRecord, TraceRecord, VoteRecord
from monitoring.tracing.settings import Transport
from monitoring.tracing.spans import Content, SpanMaker, no_content

logger = logging.getLogger("tidegate.tracing")

EVERY_S = 0.5
BATCH_REQUESTS = 64
"""So few that the thread lets others have the interpreter often, so many that a call carries them well."""
MOST_WAITING = 2048
"""Finished requests that wait to be sent; further ones are dropped and counted."""
SWITCH_INTERVAL_S = 0.001
"""How long the thread may keep the event loop waiting for the interpreter; Python's own default is five times that."""
GIVE_UP_S = 5.0
"""The longest that one call may take, its repetitions included."""


MOST_CONTENT_BYTES = 64 * 1024 * 1024
"""Of prompts and answers that wait to be redacted and sent; beyond it a trace goes without its text."""

Record = TraceRecord | VoteRecord | RefusalRecord


class Exporter(Protocol):
    """What the thread needs of one."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them."""
        ...

    def shutdown(self) -> None:
        """Let go of what is held."""
        ...


@dataclass(frozen=True, slots=True)
class Whose:
    """What names the process that the spans come from."""

    service: str
    instance: str
    version: str

    def resource(self) -> Resource:
        """The same as OpenTelemetry has it, with what `OTEL_RESOURCE_ATTRIBUTES` adds."""
        return Resource.create(
            {
                names.SERVICE_NAME: self.service,
                names.SERVICE_INSTANCE: self.instance,
                names.SERVICE_VERSION: self.version,
            }
        )


def otlp_exporter(endpoint: str, protocol: Transport) -> Exporter:
    """The SDK's exporter for an endpoint: `http://collector:4317` for gRPC, `http://collector:4318` for HTTP."""
    if protocol is Transport.GRPC:
        return GrpcExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"), timeout=GIVE_UP_S)
    path = "" if endpoint.rstrip("/").endswith("/v1/traces") else "/v1/traces"
    return HttpExporter(endpoint=endpoint.rstrip("/") + path, timeout=GIVE_UP_S)


class SpanSender:
    """Takes records on one thread, sends spans from another."""

    def __init__(
        self, exporter: Exporter, whose: Whose, *, content: Content = no_content, most_waiting: int = MOST_WAITING
    ) -> None:
        self.dropped = 0
        """Requests whose spans were given up: too many waited, or they could not be sent."""
        self.sent = 0
        self._exporter = exporter
        self._maker = SpanMaker(whose.resource(), content)
        self._most_waiting = most_waiting
        self._waiting: deque[Record] = deque()
        self._content_in = 0
        """Bytes of text that were taken; only the event loop writes it, as only the thread writes what was sent."""
        self._content_out = 0
        self._stopping = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="span-sender", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        sys.setswitchinterval(min(SWITCH_INTERVAL_S, sys.getswitchinterval()))
        self._thread.start()

    def offer(self, record: Record) -> None:
        """Take one finished request; at once, whatever the collector does."""
        if len(self._waiting) >= self._most_waiting:
            self.dropped += 1
            return
        if isinstance(record, TraceRecord) and record.content is not None:
            size = record.content.size_bytes
            if self._content_in - self._content_out + size > MOST_CONTENT_BYTES:
                record.content = None
            else:
                self._content_in += size
        self._waiting.append(record)

    def stop(self, within_s: float = GIVE_UP_S) -> None:
        """Send what waits, and end. Blocks, at most for `within_s`."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(within_s)
        self._exporter.shutdown()

    def _run(self) -> None:
        while True:
            last = self._stopping.wait(EVERY_S)
            while self._waiting:
                self._send([self._waiting.popleft() for _ in range(min(BATCH_REQUESTS, len(self._waiting)))])
            if last:
                return

    def _spans(self, record: Record) -> list[ReadableSpan]:
        if not isinstance(record, TraceRecord) or record.content is None:
            return self._maker.spans(record)
        self._content_out += record.content.size_bytes
        try:
            return self._maker.spans(record)
        except Exception as error:  # what somebody wrote costs neither its trace nor those of others
            logger.error("a trace goes without its text, which can't be told: %s", type(error).__name__)  # noqa: TRY400
            record.content = None
            return self._maker.spans(record)

    def _send(self, batch: list[Record]) -> None:
        try:
            spans = [span for record in batch for span in self._spans(record)]
            sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:  # an exporter's own fault must not end the thread
            logger.exception("spans could not be sent")
            sent = False
        if sent:
            self.sent += len(batch)
            self._complained = False
            return
        self.dropped += len(batch)
        if not self._complained:
            self._complained = True
            logger.warning("spans are not taken by the OTLP endpoint; they are dropped and counted until they are")
