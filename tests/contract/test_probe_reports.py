"""What every keeper of bias probes' reports must do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from rollout.bias_gate import bias_reasons
from rollout.errors import EventLogUnavailable
from rollout.event_log.database import Database
from rollout.event_log.schema import PROBE_REPORTS
from rollout.gates import Gated
from rollout.probes.base import KEPT, GapReport, ProbeReport, ProbeReports
from rollout.probes.memory import MemoryProbeReports
from rollout.probes.sql import SqlProbeReports
from tidegate.probe_files import adopt_reports

GAP = GapReport(attribute="gender", measure="refusal", pairs=24, mean=0.25, p_value=0.001, found=True)


def report(version: str = "1.0.0", at: float = 1.0, model: str = "chat") -> ProbeReport:
    return ProbeReport(
        model=model, version=version, at=at, languages=("en", "zh"), pairs=120, unanswered=1,
        gaps=(GAP, GAP.model_copy(update={"measure": "length", "found": False})),
    )  # fmt: skip


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def reports(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProbeReports]:
    if request.param == "memory":
        yield MemoryProbeReports()
        return
    sqlite = f"sqlite:///{tmp_path / 'state.db'}"
    made = SqlProbeReports(sqlite if request.param == "sqlite" else request.getfixturevalue("postgres").new_database())
    yield made
    made.close()


def test_the_last_report_of_a_version_is_kept_and_an_earlier_one_never_replaces_it(reports: ProbeReports) -> None:
    assert reports.load("chat", "1.0.0") is None
    reports.save(report(at=5.0))
    reports.save(report(at=5.0))
    reports.save(report(at=4.0))
    reports.save(report("1.0.1", at=1.0))
    assert reports.load("chat", "1.0.0") == report(at=5.0)
    reports.save(report(at=6.0))
    assert reports.load("chat", "1.0.0") == report(at=6.0)
    assert reports.load("chat", "1.0.1") == report("1.0.1", at=1.0)
    assert reports.load("ledger", "1.0.0") is None


def test_a_model_has_a_bounded_number_of_them(reports: ProbeReports) -> None:
    reports.save(report("9.9.9", at=0.0, model="ledger"))
    for number in range(KEPT + 2):
        reports.save(report(f"1.0.{number}", at=float(number)))
    kept = [n for n in range(KEPT + 2) if reports.load("chat", f"1.0.{n}") is not None]
    assert kept == list(range(2, KEPT + 2))
    assert reports.load("ledger", "9.9.9") is not None


def test_files_of_an_older_version_are_taken_over_once(reports: ProbeReports, tmp_path: Path) -> None:
    folder = tmp_path / "probes"
    (folder / "chat").mkdir(parents=True)
    (folder / "chat" / "1.0.0.json").write_text(report(at=7.0).model_dump_json())
    (folder / "chat" / "1.0.1.json").write_text("{")
    adopt_reports(reports, folder)
    adopt_reports(reports, folder)
    assert reports.load("chat", "1.0.0") == report(at=7.0)
    assert reports.load("chat", "1.0.1") is None
    assert list((folder / "chat").iterdir()) == []


def test_the_next_leader_reads_what_was_kept_and_takes_one_that_is_damaged_for_none(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    first = SqlProbeReports(url)
    first.save(report())
    first.close()
    database = Database(url)
    following = SqlProbeReports(database)
    assert following.load("chat", "1.0.0") == report()
    database.run(lambda c: c.execute(sa.update(PROBE_REPORTS).values(report="{")))
    assert following.load("chat", "1.0.0") is None
    following.close()


def test_a_store_that_is_away_holds_a_rollout_and_says_so() -> None:
    def away(model: str, version: str) -> None:
        raise EventLogUnavailable("gone")

    asked = [Gated(rollout="r", model="chat", version="1.0.1", stable="1.0.0", names=("probe/bias",))]
    assert "does not answer" in asyncio.run(bias_reasons(away)(asked))["r"]
