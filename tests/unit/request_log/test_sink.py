"""The gateway's end of the request log: a writer that can't begin must not take the machine's time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from serving.request_log import sink as module
from serving.request_log.sink import LogSink
from serving.request_log.writer import main


class Failing(LogSink):
    """Its writers end as soon as they begin."""

    begun = 0

    async def _spawn(self) -> None:
        self.begun += 1

        async def wait() -> int:
            return 1

        self._process = cast(Any, SimpleNamespace(wait=wait, stdin=None))


def test_a_writer_that_does_not_last_is_started_more_and_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            raise asyncio.CancelledError

    async def keep() -> None:
        sink = Failing(lambda: cast(Any, None))
        await sink._spawn()
        await sink._keep()

    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(keep())
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_folder_that_can_not_be_had_is_told_in_one_line(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("serving.request_log.writer.configure", lambda: None)
    monkeypatch.setattr("serving.request_log.writer.sys.stdin", SimpleNamespace(fileno=lambda: 0))
    monkeypatch.setattr("serving.request_log.writer.os.umask", lambda _: 0)
    monkeypatch.setattr("serving.request_log.writer.signal.signal", lambda *_: None)
    monkeypatch.setattr("serving.request_log.writer.logger.error", lambda text, *values: told.append(text % values))
    (tmp_path / "requests").write_text("no folder")
    settings = (
        f'{{"folder": "{tmp_path}/requests/g", "secret_file": "{tmp_path}/secret", "boot": "b", "format": "jsonl", '
        '"segment_bytes": 1, "segment_s": 1, "total_bytes": 1, "kept_s": 1}'
    )
    assert main([settings]) == 1
    assert len(told) == 1
    assert "can't be kept: [Errno 20]" in told[0]
