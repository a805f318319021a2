"""Files: bounded in size and time, whole after a crash at any point, and empty of who was erased."""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.request_log import writer as writing_process
from serving.request_log.columns import convert, rows_of
from serving.request_log.frames import pack
from serving.request_log.reading import RequestLog, Wanted, clear_up_after_others
from serving.request_log.segments import (
    ERASED,
    Bounds,
    Erasure,
    Writing,
    compact_erasures,
    erasures,
    lines_of,
    note_erasure,
    segments,
)
from serving.request_log.settings import WriterSettings
from serving.request_log.writer import LINES_HELD_S, TIDY_EVERY_S, Writer, take_folder

NOW = 1_764_000_000.0


def written(at: float, number: int, **facts: Any) -> bytes:
    line = {"kind": "request", "at": at, "request_id": f"req_{number}", "model": "chat", "operation": "chat",
            "outcome": "ok", "duration_s": 0.5, **facts}  # fmt: skip
    return json.dumps(line).encode() + b"\n"


def writing(folder: Path, boot: str = "aaaa", **changes: float) -> Writing:
    bounds = {"segment_bytes": 1000, "segment_s": 60.0, "total_bytes": 10_000, "kept_s": 3600.0} | changes
    return Writing(folder / "g", boot, Bounds(**bounds))  # type: ignore[arg-type]


def ids(folder: Path) -> list[str]:
    return [line["request_id"] for line in RequestLog(folder).search(Wanted(), 10_000)]


def test_segments_are_closed_by_size_and_by_age_and_all_are_read_in_order(tmp_path: Path) -> None:
    log = writing(tmp_path)
    for i in range(30):
        log.append(written(NOW + i, i), NOW + i)
    assert not log.due(NOW + 31)
    assert log.due(NOW + 300)
    sizes = [p.stat().st_size for p in segments(tmp_path / "g")]
    assert len(sizes) > 3
    assert max(sizes) <= 1000
    assert ids(tmp_path) == [f"req_{i}" for i in range(30)]
    assert [line["request_id"] for line in RequestLog(tmp_path).search(Wanted(since=NOW + 25), 3)] == [
        "req_27", "req_28", "req_29",
    ]  # fmt: skip


def test_the_oldest_go_when_there_is_too_much_or_they_are_too_old(tmp_path: Path) -> None:
    log = writing(tmp_path, total_bytes=3000)
    for i in range(60):
        log.append(written(NOW + i, i), NOW + i)
        for path in segments(tmp_path / "g"):
            os.utime(path, (NOW + i, NOW + i))
    log.prune(NOW + 60)
    left = segments(tmp_path / "g")
    assert sum(p.stat().st_size for p in left) <= 3000
    assert ids(tmp_path)[-1] == "req_59"
    log.rotate()
    for path in segments(tmp_path / "g"):
        os.utime(path, (NOW, NOW))
    log.prune(NOW + 3601)
    assert segments(tmp_path / "g") == []


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_torn_line_is_never_read_and_nothing_is_written_behind_it(tmp_path: Path, cut: int) -> None:
    log = writing(tmp_path, segment_bytes=10**6)
    log.append(written(NOW, 1) + written(NOW, 2)[:-cut], NOW)
    again = writing(tmp_path, "bbbb")
    (closed,) = again.adopt()
    again.append(written(NOW + 1, 3), NOW + 1)
    assert ids(tmp_path) == ["req_1", "req_3"]
    assert [line["request_id"] for line in rows_of(convert(closed))] == ["req_1"]


def test_columns_hold_the_same_lines_and_a_crash_between_the_two_files_doubles_none(tmp_path: Path) -> None:
    log = writing(tmp_path, segment_bytes=10**6)
    facts = {"prompt": {"messages": [{"role": "user", "content": "你好"}]}, "answers": ["hi"], "logprobs": [-0.5],
             "attempts": [{"host": "h", "port": 1, "version": "1", "failure": None}], "signals": ["error"],
             "verdicts": [], "stream": True, "weight": 5}  # fmt: skip
    log.append(written(NOW, 1, **facts) + written(NOW, 2), NOW)
    (path,) = log.rotate()
    before, content, stamp = list(lines_of(path)), path.read_bytes(), path.stat().st_mtime
    converted = convert(path)
    assert list(rows_of(converted)) == before
    assert converted.stat().st_mtime == pytest.approx(stamp)
    assert converted.stat().st_mode & 0o777 == 0o600
    path.write_bytes(content)  # as if it had been killed before it removed this one
    assert ids(tmp_path) == ["req_1", "req_2"]


def test_erasing_reaches_lines_columns_and_votes_and_nothing_else(tmp_path: Path) -> None:
    log = writing(tmp_path, segment_bytes=10**6)
    log.append(written(NOW, 1, user="jane") + written(NOW, 2, user="joe"), NOW)
    (first,) = log.rotate()
    convert(first)
    vote = {"kind": "feedback", "at": NOW + 9, "request_id": "req_1", "rating": "down", "comment": "jane's words"}
    log.append(written(NOW + 5, 3, user="jane") + json.dumps(vote).encode() + b"\n", NOW + 5)
    log.append(written(NOW + 50, 4, user="jane"), NOW + 50)
    log.rotate()
    reader = RequestLog(tmp_path)
    assert reader.find("req_1")["feedback"][0]["rating"] == "down"  # type: ignore[index]
    assert reader.erase("jane", NOW + 20) == 3
    assert ids(tmp_path) == ["req_2", "req_4"]
    everything = b"".join(p.read_bytes() for p in segments(tmp_path / "g") if p.suffix == ".jsonl")
    assert b"jane's words" not in everything
    (columns,) = (p for p in segments(tmp_path / "g") if p.suffix == ".parquet")
    assert [row["user"] for row in rows_of(columns)] == ["joe"]
    assert reader.erase("jane", NOW + 20) == 0


def test_an_erasure_is_forgotten_when_no_file_can_hold_its_lines_and_none_that_came_meanwhile(tmp_path: Path) -> None:
    folder, day = tmp_path / "g", 86_400.0
    log = writing(tmp_path, segment_bytes=10**6)
    log.append(written(NOW - 5, 1, user="jane"), NOW - 5)
    log.rotate()
    for number, user in enumerate(("jane", "joe", "ann")):
        note_erasure(folder, Erasure(user, NOW + number * day, ("req_9",)))
    file = folder / ERASED

    def left(now: float, size: int | None = None) -> list[str] | None:
        found = compact_erasures(folder, now, file.stat().st_size if size is None else size)
        assert found is None or found == (erasures(folder), file.stat().st_size)
        return None if found is None else [e.user for e in found[0]]

    assert left(NOW + 99 * day) == ["jane", "joe", "ann"], "a segment from before is still there"
    for path in segments(folder):
        path.unlink()
    later = writing(tmp_path, "bbbb", segment_bytes=10**6)
    later.append(written(NOW + 1.5 * day, 2), NOW + 1.5 * day)
    assert left(NOW + 99 * day, size=1) is None, "somebody has added one that was not obeyed yet"
    assert left(NOW + 99 * day) == ["joe", "ann"], "a request of joe's may still have been under way then"
    assert file.stat().st_mode & 0o777 == 0o600
    for path in segments(folder):
        path.unlink()
    assert left(NOW + 2.5 * day) == ["ann"]
    assert left(NOW + 4 * day) == []
    assert file.read_bytes() == b""


def test_requests_are_found_by_what_they_were(tmp_path: Path) -> None:
    log = writing(tmp_path, segment_bytes=10**6)
    log.append(written(NOW, 1, outcome="error", signals=["error"]) + written(NOW, 2, version="2.0.0"), NOW)
    vote = {"kind": "feedback", "at": NOW, "request_id": "req_2", "rating": "up"}
    log.append(json.dumps(vote).encode() + b"\n", NOW)
    reader = RequestLog(tmp_path)

    def found(**wanted: Any) -> list[str]:
        return [line["request_id"] for line in reader.search(Wanted(**wanted), 9)]

    assert found(outcome="error") == found(signal="error") == ["req_1"]
    assert found(version="2.0.0") == found(rating="up") == ["req_2"]
    assert found(models=frozenset({"chat"})) == found()
    assert found(models=frozenset({"other"})) == found(models=frozenset()) == []
    assert found(model="other") == found(rating="down") == found(until=NOW - 1) == found(with_prompt=True) == []


def test_half_written_copies_of_a_killed_process_do_not_stay(tmp_path: Path) -> None:
    log = writing(tmp_path)
    log.append(written(NOW, 1, user="u"), NOW)
    log.rotate()
    (path,) = segments(tmp_path / "g")
    left = path.with_name(f".{path.stem}.parquet.new"), path.with_name(".1-gone.jsonl.new")
    for copy in left:
        copy.write_bytes(path.read_bytes())
    RequestLog(tmp_path).erase("u", NOW)
    assert not [copy for copy in left if copy.exists()]
    left[0].write_bytes(b"rows")
    writing(tmp_path, "bbbb").adopt()
    assert not left[0].exists()


def test_an_erasure_behind_one_that_was_torn_is_obeyed(tmp_path: Path) -> None:
    log = writing(tmp_path)
    log.append(written(NOW, 1, user="u"), NOW)
    (tmp_path / "g" / "erased.jsonl").write_bytes(b'{"user": "ot')  # the disk was full
    note_erasure(tmp_path / "g", Erasure("u", NOW))
    assert ids(tmp_path) == []


def test_what_a_gateway_that_is_gone_has_left_is_held_to_its_bounds(tmp_path: Path) -> None:
    """On a cluster every pod has a name of its own, so nobody else ever would."""
    own, gone, there = (tmp_path / name for name in ("pod-c", "pod-a", "pod-b"))
    for folder in (own, gone, there):
        folder.mkdir()
        (folder / "1764268332123-9f3a.part").write_bytes(b"{}\n")
        os.utime(folder / "1764268332123-9f3a.part", (1000.0, 1000.0))
    lock = take_folder(there)
    bounds = Bounds(1 << 20, 3600.0, 1 << 20, 500.0)
    assert clear_up_after_others(tmp_path, own, bounds, now=1400.0) == 0
    assert [p.suffix for p in segments(gone)] == [".jsonl"], "nobody writes it any more"
    assert clear_up_after_others(tmp_path, own, bounds, now=1501.0) == 1
    assert segments(gone) == []
    assert gone.is_dir()
    assert clear_up_after_others(tmp_path, own, bounds, now=time.time() + 3700.0) == 0
    assert not gone.exists()
    assert [p.suffix for folder in (own, there) for p in segments(folder)] == [".part"] * 2, (
        "not its own, nor one in use"
    )
    os.close(lock)


def test_what_can_not_be_cleared_up_keeps_nobody_elses(tmp_path: Path) -> None:
    for name in ("lost+found", "pod-a", "pod-b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1764268332123-9f3a.jsonl").write_bytes(b"{}\n")
        os.utime(tmp_path / name / "1764268332123-9f3a.jsonl", (1000.0, 1000.0))
    (tmp_path / "pod-a" / "writer.lock").mkdir()  # can't be opened
    with pytest.raises(IsADirectoryError):
        clear_up_after_others(tmp_path, tmp_path / "pod-c", Bounds(1 << 20, 3600.0, 1 << 20, 500.0), now=1501.0)
    assert [len(segments(tmp_path / name)) for name in ("lost+found", "pod-a", "pod-b")] == [1, 1, 0]
    assert len(list(RequestLog(tmp_path).lines())) == 1, "what mkfs made is no gateway's"


def test_a_folder_that_is_removed_while_a_gateway_waits_for_it_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "pod-a"
    first = take_folder(folder)
    with ThreadPoolExecutor() as pool:
        second = pool.submit(take_folder, folder)
        with pytest.raises(TimeoutError):
            second.result(0.1)
        shutil.rmtree(folder)
        os.close(first)
        os.close(second.result(10))
    assert (folder / "writer.lock").exists()


def writer(folder: Path) -> Writer:
    (folder / "secret").write_bytes(b"s" * 32)
    return Writer(
        WriterSettings(
            folder=folder / "g", secret_file=folder / "secret", boot="aaaa", format="parquet", segment_bytes=100_000,
            segment_s=3600.0, total_bytes=10**6, kept_s=7200.0,
        )
    )  # fmt: skip


def test_a_line_does_not_wait_for_a_clock_that_went_back(tmp_path: Path) -> None:
    made = writer(tmp_path)
    made.take(pack({"kind": "request", "at": NOW, "operation": "chat"}), NOW)
    assert made.wait_s(NOW) == LINES_HELD_S
    assert made.wait_s(NOW - 3600) == 0.0
    made.flush(NOW - 3600)
    assert made.wait_s(NOW - 3600) == TIDY_EVERY_S


def test_a_segment_that_can_not_become_columns_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it tried again every second: each try is a process."""
    tried: list[str] = []

    class Failing:
        returncode = 1

        def __init__(self, argv: list[str], **_: Any) -> None:
            tried.append(Path(argv[-1]).name)

        def poll(self) -> int:
            return 1

    monkeypatch.setattr(writing_process.subprocess, "Popen", Failing)
    made = writer(tmp_path)
    now = time.time()
    names = [f"{int(now * 1000) + i}-bbbb.jsonl" for i in range(2)]
    for name in names:
        (tmp_path / "g" / name).write_bytes(written(now, 1))
    for _ in range(5):
        made.tidy(now)
    assert tried == names
