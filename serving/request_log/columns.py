"""A closed segment as Parquet: `python -m serving.request_log.columns SEGMENT.jsonl`.

A program of its own, so that nobody waits for it. What is no scalar (prompts, attempts, verdicts) is one column of JSON
text each. The file takes its place in one step and keeps the time of the one it came from; only then does that go.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.request_log.segments import MODE, PARQUET, lines_of

ROWS_PER_GROUP = 10_000

_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int64()
SCHEMA = pa.schema(
    [
        ("kind", _TEXT), ("at", _NUMBER), ("request_id", _TEXT), ("engine_request_id", _TEXT), ("model", _TEXT),
        ("version", _TEXT), ("revision", _TEXT), ("role", _TEXT), ("rollout", _TEXT), ("weight", _COUNT),
        ("answered_by", _TEXT), ("operation", _TEXT), ("stream", pa.bool_()), ("outcome", _TEXT),
        ("duration_s", _NUMBER), ("queue_s", _NUMBER), ("first_token_s", _NUMBER), ("per_token_s", _NUMBER),
        ("input_tokens", _COUNT), ("output_tokens", _COUNT), ("finish_reasons", pa.list_(_TEXT)),
        ("signals", pa.list_(_TEXT)), ("key", _TEXT), ("user", _TEXT), ("session", _TEXT), ("trace_id", _TEXT),
        ("rating", _TEXT), ("comment", _TEXT), ("logprobs", pa.list_(pa.float32())), ("answers", pa.list_(_TEXT)),
        ("attempts", _TEXT), ("verdicts", _TEXT), ("prompt", _TEXT), ("v", _COUNT), ("event_stream", pa.bool_()),
        ("tool_calls", _TEXT), ("reason", _TEXT), ("status", _COUNT),
    ]
)  # fmt: skip
_AS_JSON = ("attempts", "verdicts", "prompt", "tool_calls")


def convert(path: Path) -> Path:
    """Turn a segment of JSON lines into Parquet.

    Raises:
        OSError: it could not be read or written; the segment is as it was.
    """
    target = path.with_suffix(PARQUET)
    temporary = path.with_name(f".{target.name}.new")
    stat = path.stat()
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, MODE))
    with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for line in lines_of(path):
            rows.append(_row(line))
            if len(rows) >= ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    os.utime(temporary, (stat.st_atime, stat.st_mtime))
    descriptor = os.open(temporary, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    os.replace(temporary, target)
    path.unlink(missing_ok=True)
    return target


def _row(line: dict[str, Any]) -> dict[str, Any]:
    row = {name: line.get(name) for name in SCHEMA.names}
    for name in _AS_JSON:
        if row[name] is not None:
            row[name] = orjson.dumps(row[name]).decode()
    return row


def rows_about(path: Path, request_id: str) -> list[dict[str, Any]]:
    """The lines that name a request. Only the rows that do are read whole. A file that has just gone has none."""
    named = (pc.field("request_id") == request_id) | (pc.field("engine_request_id") == request_id)
    try:
        return [_line(row) for row in pq.read_table(path, filters=named).to_pylist()]
    except FileNotFoundError:
        return []


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a Parquet segment, as they were. A file that has just gone has none."""
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        return
    with file:
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                yield _line(row)


def _line(row: dict[str, Any]) -> dict[str, Any]:
    line = {name: value for name, value in row.items() if value is not None}
    for name in _AS_JSON:
        if name in line:
            line[name] = orjson.loads(line[name])
    return line


def rewrite(path: Path, kept: Iterator[dict[str, Any]]) -> None:
    """Write a Parquet segment anew with these lines; a reader sees the old one or the new one.

    Raises:
        OSError: it could not be written.
    """
    rows = [_row(line) for line in kept]
    temporary = path.with_name(f".{path.name}.new")
    stat = path.stat()
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, MODE))
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")
    os.utime(temporary, (stat.st_atime, stat.st_mtime))
    os.replace(temporary, path)


def main(arguments: list[str]) -> int:
    """The program."""
    for name in arguments:
        convert(Path(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
