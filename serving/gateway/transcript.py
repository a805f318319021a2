"""What is kept of an answer while it passes: references to its chunks, times, a count. Nothing is parsed here."""

from __future__ import annotations

from typing import Final

KEPT_BYTES: Final = 256 * 1024
"""Of a longer answer the beginning is kept, and the last pieces."""
LEAST_TAIL_BYTES: Final = 64
"""Of the end; more than the mark takes by which a stream says that it is complete."""


class Transcript:
    """One answer. Times are monotonic seconds, 0.0 when there was nothing."""

    __slots__ = ("before_last", "bodies", "compressed", "event_stream", "first_at", "last", "last_at", "parts",
                 "size_bytes")  # fmt: skip

    def __init__(
        self,
        event_stream: bool = False,
        compressed: bool = False,
        parts: list[bytes] | None = None,
        size_bytes: int = 0,
        before_last: bytes = b"",
        last: bytes = b"",
        bodies: int = 0,
        first_at: float = 0.0,
        last_at: float = 0.0,
    ) -> None:
        self.event_stream = event_stream
        self.compressed = compressed
        """The engine compressed it, so it can't be read."""
        self.parts: list[bytes] = parts if parts is not None else []
        self.size_bytes = size_bytes
        self.before_last = before_last
        self.last = last
        self.bodies = bodies
        """Pieces of the body as the engine framed them: one for each event, as engines send them."""
        self.first_at = first_at
        self.last_at = last_at

    def add(self, data: bytes) -> None:
        """Keep one piece."""
        if self.size_bytes < KEPT_BYTES:
            self.parts.append(data)
        self.size_bytes += len(data)
        if len(self.last) < LEAST_TAIL_BYTES:  # however finely an engine, or what stands before it, cuts its answer
            self.last += data
        else:
            self.before_last = self.last
            self.last = data

    @property
    def whole(self) -> bool:
        """Whether all of it was kept."""
        return self.size_bytes <= KEPT_BYTES or sum(map(len, self.parts)) == self.size_bytes

    @property
    def tail(self) -> bytes:
        """Its last bytes: the last piece, and before it `LEAST_TAIL_BYTES` at least."""
        return self.before_last + self.last

    @property
    def text(self) -> bytes:
        """What was kept."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
