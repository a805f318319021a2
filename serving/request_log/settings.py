"""What is logged of requests, and how much of it is kept. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.request_log.segments import Bounds

MIB = 1024 * 1024


class WriterSettings(BaseModel):
    """What a writer is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path
    secret_file: Path
    boot: str
    format: Literal["jsonl", "parquet"] = "parquet"
    segment_bytes: int = Field(gt=0)
    segment_s: float = Field(gt=0)
    total_bytes: int = Field(gt=0)
    kept_s: float = Field(gt=0)

    @property
    def bounds(self) -> Bounds:
        """How much is kept."""
        return Bounds(self.segment_bytes, self.segment_s, self.total_bytes, self.kept_s)


@dataclass(frozen=True, slots=True)
class RequestLogSettings:
    """How much is logged, in which form, and how long it is kept."""

    ratio: float = 0.0
    """The part of requests that is logged; what failed is logged whatever it is, unless it is 0, which is off."""
    format: Literal["jsonl", "parquet"] = "parquet"
    """Of closed segments; the one being written is always JSON lines."""
    days: float = 7.0
    """How long a line is kept."""
    mib: int = 1024
    """How much of the disk all segments of one gateway may take; the oldest go first."""
    segment_mib: int = 32
    segment_s: float = 3600.0
    """The longest that one segment is written; a line lives at most so much longer than `days`."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise ValueError(f"request_log.ratio is {self.ratio}; give a part from 0 (off) to 1 (every request)")
        if self.days <= 0 or self.mib < 1 or self.segment_mib < 1 or self.segment_s <= 0:
            raise ValueError("request_log: days, mib, segment_mib and segment_s must be above 0")

    def for_writer(self, folder: Path, secret_file: Path, boot: str) -> WriterSettings:
        """The same as its writer is told."""
        return WriterSettings(
            folder=folder,
            secret_file=secret_file,
            boot=boot,
            format=self.format,
            segment_bytes=min(self.segment_mib, max(1, self.mib // 4)) * MIB,
            segment_s=self.segment_s,
            total_bytes=self.mib * MIB,
            kept_s=self.days * 86_400.0,
        )
