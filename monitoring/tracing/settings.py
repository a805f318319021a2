"""What is traced, and where traces go. Pure; imports nothing heavy, since a gateway without traces must stay light."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Transport(enum.StrEnum):
    """How spans travel; the values are those of `OTEL_EXPORTER_OTLP_PROTOCOL`."""

    GRPC = "grpc"
    HTTP = "http/protobuf"


class Told(enum.StrEnum):
    """What an engine is told of a trace when the request is sent to it, before anybody knows how it will end."""

    HEAD = "head"
    """Whether it was sampled at the head: what is kept at the tail lacks the engine's span."""
    ALWAYS = "always"
    """That it is sampled: the engine sends a span of every request, and the collector must drop what nobody kept."""


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """One gateway's."""

    endpoint: str = ""
    """Of an OTLP collector: `http://collector:4317` for gRPC, `http://collector:4318` for HTTP. Empty: no traces."""
    transport: Transport = Transport.GRPC
    ratio: float = 0.01
    """The part of traces that begin here and are kept whatever comes; failures are always kept."""
    canaries_per_s: float = 10.0
    """So many requests of canaries a second are sampled at the head beyond the ratio, so that the traces of a version
    that is taken back are whole; a canary begins with a few requests a second."""
    engines: Told = Told.HEAD
    content: bool = False
    """Whether spans hold prompts and answers, redacted, of versions whose policy allows it."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise ValueError(f"tracing.ratio is {self.ratio}; give a part from 0 to 1")
        if self.canaries_per_s < 0:
            raise ValueError(f"tracing.canaries_per_s is {self.canaries_per_s}; give 0 (none) or more")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"tracing.endpoint is {self.endpoint!r}; give a URL, http://127.0.0.1:4317 for instance")
