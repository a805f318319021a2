"""How finished requests travel from the gateway to the process that writes the log: through a pipe, never a file. Pure.

A frame is three lengths (little endian, 4 bytes each), then the facts as JSON, the prompt's body and the answer's
bytes. The last two are empty unless their text, or what it says of token probabilities, may be kept; the writer redacts
them before anything reaches a disk.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

_LENGTHS = struct.Struct("<III")
MOST_BYTES = 64 * 1024 * 1024
"""Of one frame. Beyond it the other end is no gateway."""


class BrokenFrame(ValueError):
    """What came through the pipe is no frame."""


class Frame(NamedTuple):
    """One finished request, or one vote."""

    facts: dict[str, Any]
    prompt: bytes
    answer: bytes


def pack(facts: Mapping[str, Any], prompt: bytes = b"", answer: bytes = b"") -> bytes:
    """A frame as bytes."""
    said = orjson.dumps(facts)
    return b"%b%b%b%b" % (_LENGTHS.pack(len(said), len(prompt), len(answer)), said, prompt, answer)


class Unpacker:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with these bytes.

        Raises:
            BrokenFrame: this is no stream of frames.
        """
        held = self._held
        held += data
        found: list[Frame] = []
        at = 0
        while len(held) - at >= _LENGTHS.size:
            lengths = _LENGTHS.unpack_from(held, at)
            if sum(lengths) > MOST_BYTES:
                raise BrokenFrame(f"a frame of {sum(lengths)} bytes, more than {MOST_BYTES}")
            end = at + _LENGTHS.size + sum(lengths)
            if end > len(held):
                break
            start = at + _LENGTHS.size
            facts_end, prompt_end = start + lengths[0], start + lengths[0] + lengths[1]
            try:
                facts = orjson.loads(held[start:facts_end])
            except ValueError as error:
                raise BrokenFrame(f"facts that are no JSON: {error}") from None
            found.append(Frame(facts, bytes(held[facts_end:prompt_end]), bytes(held[prompt_end:end])))
            at = end
        del held[:at]
        return found
