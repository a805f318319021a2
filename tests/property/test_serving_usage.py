"""Usage through crashes, restarts, lost, doubled and reordered messages: the store ends with the truth."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from serving.accounting import HOUR_S, UsageRow, hour_of
from serving.gateway.usage import UsageBook
from serving.gateway.usage_files import UsageFiles
from serving.gateway.usage_keeper import RESEND_S, UsageKeeper
from serving.outcomes import UsageReport

KEYS = ("k", "l")
START = 1_700_000_000 // HOUR_S * HOUR_S + 10.0


class Store:
    """The controller's side as agreed: the greatest row of each place, places added up."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, int, str, str, str], UsageRow] = {}

    def take(self, rows: tuple[UsageRow, ...]) -> None:
        for row in rows:
            place = (row.gateway, row.boot, row.hour, row.key, row.model, row.version)
            kept = self.rows.get(place)
            if kept is None or row.requests > kept.requests:
                self.rows[place] = row

    def requests(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for row in self.rows.values():
            total[row.key] += row.requests
            assert row.input_tokens == 3 * row.requests
            assert row.output_tokens == 5 * row.requests
        return total


class UsageThroughFaults(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store()
        self.boots = 0
        self.monotonic = 0.0
        self.wall = START
        self.counted: Counter[str] = Counter()
        """Every request that was answered."""
        self.safe: Counter[str] = Counter()
        """Those of earlier starts that were on disk or in the store when the gateway died."""
        self.connection = 0
        self.on_the_way: list[tuple[int, UsageReport]] = []
        self.answers: list[int] = []
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        name = f"boot{self.boots}"
        self.book = UsageBook("g", name, most_rows=8)
        self.keeper = UsageKeeper(
            self.book, UsageFiles(Path(self.folder.name), "g", name), lambda: self.monotonic, lambda: self.wall
        )
        self.now: Counter[str] = Counter()
        self.saved: Counter[str] = Counter()

    @rule(key=st.sampled_from(KEYS), version=st.sampled_from(["1", "2"]), times=st.integers(1, 3))
    def answer(self, key: str, version: str, times: int) -> None:
        for _ in range(times):
            self.book.count(key, "chat", version, 3, 5, self.wall)
        self.counted[key] += times
        self.now[key] += times

    @rule()
    def write(self) -> None:
        self.loop.run_until_complete(self.keeper.save())
        self.saved = Counter(self.now)

    @rule()
    def tell(self) -> None:
        self.monotonic += 1
        report = self.loop.run_until_complete(self.keeper.next_report())
        if report is not None:
            self.on_the_way.append((self.connection, report))

    @rule(which=st.integers(0, 100), twice=st.booleans(), answered=st.booleans())
    def arrive(self, which: int, twice: bool, answered: bool) -> None:
        """Any report that was ever sent arrives, perhaps again, in any order; its answer may get lost."""
        if self.on_the_way:
            index = which % len(self.on_the_way)
            connection, report = self.on_the_way[index] if twice else self.on_the_way.pop(index)
            self.store.take(report.rows)
            if answered and connection == self.connection:
                self.answers.append(report.number)

    @rule(key=st.sampled_from(KEYS), meanwhile=st.integers(0, 2), again=st.booleans())
    def round_trip(self, key: str, meanwhile: int, again: bool) -> None:
        """A report arrives and is answered while counting goes on; perhaps another is sent before."""
        self.tell()
        if not self.on_the_way:
            return
        _, report = self.on_the_way.pop()
        self.store.take(report.rows)
        if meanwhile:
            self.answer(key, "1", meanwhile)
        if again:
            self.monotonic += RESEND_S + 1
            self.tell()
        self.keeper.accepted(report.number)

    @rule(which=st.integers(0, 100))
    def answer_arrives(self, which: int) -> None:
        if self.answers:
            self.keeper.accepted(self.answers.pop(which % len(self.answers)))

    @rule()
    def connection_breaks(self) -> None:
        """What was under way is lost or arrives all the same; answers are lost."""
        self.keeper.reconnected()
        self.answers.clear()
        self.connection += 1

    @rule(by_s=st.sampled_from([60.0, HOUR_S, 5 * HOUR_S, -HOUR_S, -60.0]))
    def clock_moves(self, by_s: float) -> None:
        self.wall = max(START, self.wall + by_s)
        self.book.forget_past(self.wall)

    @rule()
    def crash(self) -> None:
        """kill -9, and a new start on the same disk."""
        self.safe += self.saved
        self.connection_breaks()
        self.boot()

    @invariant()
    def never_more_than_was_answered(self) -> None:
        if hasattr(self, "store"):
            got = self.store.requests()
            assert all(got[k] <= self.counted[k] for k in KEYS)
            assert got["overflow"] <= sum(self.counted.values())

    @invariant()
    def memory_is_bounded(self) -> None:
        if hasattr(self, "book"):
            hours = 1 + (hour_of(self.wall) - hour_of(START)) // HOUR_S
            assert len(self.book) <= 8 + max(hours, 200)

    def teardown(self) -> None:
        """In the end the connection holds, and everything arrives that was not lost with a crash."""
        self.connection_breaks()
        for _ in range(4 * self.boots + 10):
            report = self.loop.run_until_complete(self.keeper.next_report())
            if report is not None:
                self.store.take(report.rows)
                self.keeper.accepted(report.number)
        got = self.store.requests()
        assert sum(got.values()) <= sum(self.counted.values())
        assert sum(got.values()) >= sum((self.safe + self.now).values())
        if self.boots == 1:
            assert sum(got.values()) == sum(self.counted.values())
        self.loop.run_until_complete(self.keeper.save())
        assert list(Path(self.folder.name).iterdir()) == []
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()


TestUsageThroughFaults = UsageThroughFaults.TestCase
TestUsageThroughFaults.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
