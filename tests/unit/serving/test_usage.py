"""Usage: what is counted where, what is told when, and what is on disk meanwhile."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from serving.accounting import HOUR_S, UsageRow
from serving.gateway.usage import MOST_TOKENS_OF_A_REQUEST, OVERFLOW_KEY, UsageBook
from serving.gateway.usage_files import ORPHAN_AFTER_S, UsageFiles, UsageUnreadable
from serving.gateway.usage_keeper import MOST_ROWS_A_REPORT, RESEND_S, UsageKeeper

HOUR = 1_700_000_000 // HOUR_S * HOUR_S
NOW = HOUR + 10.0


def book(**rest: int) -> UsageBook:
    return UsageBook("gateway-0", "b1", **rest)


def one(made: UsageBook) -> UsageRow:
    (row,) = made.open_rows()
    return row


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class TestBook:
    # tokens in and out as reported -> what the row says
    REPORTED = {  # noqa: RUF012
        "both": ((7, 5), (7, 5, 0)),
        "an embedding has no output": ((7, None), (7, 0, 0)),
        "none": ((None, None), (0, 0, 1)),
        "negative": ((-7, 5), (0, 5, 0)),
        "absurd": ((10**30, 1), (MOST_TOKENS_OF_A_REQUEST, 1, 0)),
    }

    @pytest.mark.parametrize(("given", "counted"), REPORTED.values(), ids=REPORTED)
    def test_tokens_are_counted_as_the_engine_reported_them(self, given, counted) -> None:
        made = book()
        made.count("k", "chat", "1.0.0", *given, NOW)
        row = one(made)
        assert (row.requests, row.input_tokens, row.output_tokens, row.unmetered) == (1, *counted)

    def test_rows_are_apart_by_hour_key_model_and_version(self) -> None:
        made = book()
        for place in [("k", "chat", "1"), ("l", "chat", "1"), ("k", "code", "1"), ("k", "chat", "2")]:
            made.count(*place, 1, 1, NOW)
        made.count("k", "chat", "1", 1, 1, NOW + HOUR_S)
        assert len(made.open_rows()) == 5
        assert {r.requests for r in made.open_rows()} == {1}

    def test_an_accepted_row_is_open_again_with_its_next_request_and_stays_cumulative(self) -> None:
        made = book()
        made.count("k", "chat", "1", 1, 2, NOW)
        made.accepted(made.open_rows())
        assert made.open_rows() == ()
        made.count("k", "chat", "1", 10, 20, NOW)
        assert (one(made).requests, one(made).input_tokens, one(made).output_tokens) == (2, 11, 22)

    def test_what_was_counted_after_sending_stays_open(self) -> None:
        made = book()
        made.count("k", "chat", "1", 1, 1, NOW)
        sent = made.open_rows()
        made.count("k", "chat", "1", 1, 1, NOW)
        made.accepted(sent)
        assert one(made).requests == 2

    def test_rows_of_another_start_are_not_taken_for_its_own(self) -> None:
        made = book()
        made.count("k", "chat", "1", 1, 1, NOW)
        made.accepted([one(made).model_copy(update={"boot": "b0"})])
        assert made.open_count == 1

    def test_past_hours_are_forgotten_once_accepted(self) -> None:
        made = book()
        made.count("k", "chat", "1", 1, 1, NOW)
        made.count("l", "chat", "1", 1, 1, NOW)
        made.accepted(made.open_rows()[:1])
        made.forget_past(NOW)
        assert len(made) == 2
        made.forget_past(NOW + HOUR_S)
        assert [r.key for r in made.open_rows()] == ["l"]
        assert len(made) == 1

    def test_a_forgotten_hour_is_not_begun_again_when_the_clock_goes_back(self) -> None:
        made = book()
        made.count("k", "chat", "1", 1, 1, NOW)
        made.accepted(made.open_rows())
        made.forget_past(NOW + HOUR_S)
        made.count("k", "chat", "1", 5, 5, NOW)  # it would be lost below the greater row in the store
        assert (one(made).hour, one(made).input_tokens) == (HOUR + HOUR_S, 5)

    def test_a_clock_that_leaps_ahead_and_comes_back_counts_by_the_true_hour_again(self) -> None:
        made = book()
        made.count("k", "chat", "1", 1, 1, NOW + 100 * HOUR_S)
        made.accepted(made.open_rows())
        made.forget_past(NOW)
        made.count("k", "chat", "1", 5, 5, NOW)
        assert one(made).hour == HOUR

    def test_too_many_places_are_counted_together(self) -> None:
        made = book(most_rows=3)
        for i in range(10):
            made.count(f"k{i}", "chat", "1", 1, 1, NOW)
        rows = {r.key: r.requests for r in made.open_rows()}
        assert rows == {"k0": 1, "k1": 1, "k2": 1, OVERFLOW_KEY: 7}
        made.count("k0", "chat", "1", 1, 1, NOW)
        assert {r.key: r.requests for r in made.open_rows()}["k0"] == 2


class TestFiles:
    ROW = (HOUR, "k", "chat", "1.0.0", 3, 10, 20, 1)

    def test_what_is_kept_can_be_read_by_the_next_start(self, tmp_path: Path) -> None:
        before, after = (
            UsageFiles(tmp_path / "usage", "gateway-0", "b1"),
            UsageFiles(tmp_path / "usage", "gateway-0", "b2"),
        )
        before.save([self.ROW])
        assert stat.S_IMODE(before.path.stat().st_mode) == 0o600
        (path,) = after.earlier(NOW)
        earlier = after.read(path)
        (row,) = earlier.rows
        assert (row.gateway, row.boot, row.key, row.requests, row.unmetered) == ("gateway-0", "b1", "k", 3, 1)
        after.forget(earlier)
        assert after.earlier(NOW) == []

    def test_nothing_open_is_no_file(self, tmp_path: Path) -> None:
        files = UsageFiles(tmp_path, "gateway-0", "b1")
        files.save([self.ROW])
        files.save([])
        files.save([])
        assert list(tmp_path.iterdir()) == []

    def test_other_gateways_files_are_left_to_them_unless_they_are_gone(self, tmp_path: Path) -> None:
        other = UsageFiles(tmp_path, "gateway-0-b", "b1")
        other.save([self.ROW])
        mine = UsageFiles(tmp_path, "gateway-0", "b2")
        written = other.path.stat().st_mtime
        assert mine.earlier(written + ORPHAN_AFTER_S - 1) == []
        assert mine.earlier(written + ORPHAN_AFTER_S + 1) == [other.path]

    def test_a_file_that_was_written_again_meanwhile_is_not_deleted(self, tmp_path: Path) -> None:
        other = UsageFiles(tmp_path, "gateway-1", "b1")
        other.save([self.ROW])
        mine = UsageFiles(tmp_path, "gateway-0", "b2")
        earlier = mine.read(other.path)
        other.save([self.ROW, self.ROW])
        os.utime(other.path, ns=(earlier.written_ns + 1, earlier.written_ns + 1))
        mine.forget(earlier)
        assert other.path.exists()

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b'{"gateway":"g"}', b'{"gateway":"g","boot":"b","rows":[[1]]}']
    )
    def test_a_spoilt_file_is_put_aside(self, tmp_path: Path, content: bytes) -> None:
        files = UsageFiles(tmp_path, "gateway-0", "b2")
        path = tmp_path / "gateway-0-b1.json"
        path.write_bytes(content)
        with pytest.raises(UsageUnreadable, match="kept as"):
            files.read(path)
        assert files.earlier(NOW) == []
        assert path.with_suffix(".unreadable").read_bytes() == content

    def test_names_of_gateways_may_have_any_letters(self, tmp_path: Path) -> None:
        before = UsageFiles(tmp_path, "闸门/../x", "b1")
        before.save([self.ROW])
        assert before.path.parent == tmp_path
        assert UsageFiles(tmp_path, "闸门/../x", "b2").earlier(NOW) == [before.path]


class Kept:
    """A keeper with clocks that stand, and its folder."""

    def __init__(self, folder: Path, boot: str = "b1", gateway: str = "gateway-0") -> None:
        self.now = 0.0
        self.book = UsageBook(gateway, boot)
        self.files = UsageFiles(folder, gateway, boot)
        self.keeper = UsageKeeper(self.book, self.files, monotonic=lambda: self.now, wall=lambda: NOW)

    def count(self, key: str = "k") -> None:
        self.book.count(key, "chat", "1.0.0", 1, 1, NOW)


class TestKeeper:
    async def test_a_report_is_told_once_and_again_only_when_it_was_lost(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path)
        assert await kept.keeper.next_report() is None
        kept.count()
        first = await kept.keeper.next_report()
        assert first is not None
        assert await kept.keeper.next_report() is None  # not answered yet
        kept.keeper.reconnected()
        kept.count()
        second = await kept.keeper.next_report()
        assert second is not None
        assert [r.requests for r in second.rows] == [2]
        kept.keeper.accepted(first.number)  # late, for a report that was given up
        assert kept.book.open_count == 1
        kept.keeper.accepted(second.number)
        assert await kept.keeper.next_report() is None
        assert kept.book.open_count == 0

    async def test_a_report_that_nobody_answers_is_sent_again(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path)
        kept.count()
        assert await kept.keeper.next_report() is not None
        kept.now += RESEND_S + 1
        assert await kept.keeper.next_report() is not None

    async def test_an_earlier_start_is_told_before_its_file_goes(self, tmp_path: Path) -> None:
        before = Kept(tmp_path, "b1")
        before.count()
        await before.keeper.save()
        after = Kept(tmp_path, "b2")
        after.count()
        report = await after.keeper.next_report()
        assert report is not None
        assert {r.boot for r in report.rows} == {"b1", "b2"}
        await after.keeper.next_report()
        assert before.files.path.exists()  # not accepted yet
        after.keeper.reconnected()
        again = await after.keeper.next_report()
        assert again is not None
        assert set(again.rows) == set(report.rows)
        after.keeper.accepted(again.number)
        assert await after.keeper.next_report() is None
        assert not before.files.path.exists()

    async def test_many_earlier_starts_are_told_one_after_the_other(self, tmp_path: Path) -> None:
        for i in range(4):
            before = Kept(tmp_path, f"b{i}")
            before.count()
            await before.keeper.save()
        (tmp_path / "gateway-0-bad.json").write_text("nonsense")
        after, told = Kept(tmp_path, "now"), set()
        for _ in range(10):
            report = await after.keeper.next_report()
            if report is not None:
                told |= {r.boot for r in report.rows}
                after.keeper.accepted(report.number)
        assert told == {"b0", "b1", "b2", "b3"}
        assert names(tmp_path) == ["gateway-0-bad.unreadable"]

    async def test_long_lists_are_told_in_parts(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path)
        for i in range(MOST_ROWS_A_REPORT + 1):
            kept.count(f"k{i}")
        sizes = []
        while (report := await kept.keeper.next_report()) is not None:
            sizes.append(len(report.rows))
            kept.keeper.accepted(report.number)
        assert sizes == [MOST_ROWS_A_REPORT, 1]

    async def test_what_was_accepted_is_no_longer_on_disk(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path)
        kept.count()
        await kept.keeper.save()
        assert kept.files.path.exists()
        report = await kept.keeper.next_report()
        assert report is not None
        kept.keeper.accepted(report.number)
        await kept.keeper.save()
        assert not kept.files.path.exists()

    async def test_every_change_is_written(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path)
        for requests in (1, 2, 3):
            kept.count()
            await kept.keeper.save()
            assert [r.requests for r in kept.files.read(kept.files.path).rows] == [requests]

    async def test_a_disk_that_refuses_is_tried_again(self, tmp_path: Path) -> None:
        folder = tmp_path / "usage"
        folder.write_text("in the way")
        kept = Kept(folder)
        kept.count()
        await kept.keeper.save()
        folder.unlink()
        await kept.keeper.save()
        assert kept.files.path.exists()

    async def test_hurry_ends_the_pause(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path)
        kept.keeper.hurry()
        await kept.keeper.pause()
