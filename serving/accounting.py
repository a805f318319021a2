"""Who used how much: the rows that gateways count and the store adds up. Pure.

A row is cumulative for one (gateway, boot, hour, key, model, version). The store keeps the greatest row of each such
place and adds places up, so a report that arrives twice, late or out of order counts once, and a gateway that died
has lost what it had not yet written to its own disk, no more.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from serving.specs import Frozen

HOUR_S = 3600


def hour_of(now: float) -> int:
    """The start of the hour that a time lies in, in seconds since the epoch."""
    return int(now) // HOUR_S * HOUR_S


class UsageRow(Frozen):
    """What one key used of one version within one hour, as one start of one gateway counted it so far."""

    gateway: str
    boot: str
    hour: Annotated[int, Field(ge=0, multiple_of=HOUR_S)]
    """Its start, in seconds since the epoch."""
    key: str
    """The key's id; "" where no key is needed."""
    model: str
    version: str
    requests: Annotated[int, Field(ge=0)] = 0
    input_tokens: Annotated[int, Field(ge=0)] = 0
    output_tokens: Annotated[int, Field(ge=0)] = 0
    unmetered: Annotated[int, Field(ge=0)] = 0
    """Answers that told no token counts (a stream cut off, say): their tokens are in none of the two sums."""
