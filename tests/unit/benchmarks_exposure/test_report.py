"""Intervals, complaints, and the files a run leaves."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.exposure.campaign import TIDEGATE, Agreement, FalseResult, clopper_pearson, under_fault, without_fault
from benchmarks.exposure.markdown import fill
from benchmarks.exposure.ratios import Case, Ratio
from benchmarks.exposure.report import Report, fill_page, save
from benchmarks.exposure.traffic import Fault, Shape


@pytest.mark.parametrize(
    ("hits", "runs", "low", "high"),
    [
        pytest.param(0, 2_000, 0.0, 0.001843, id="none"),
        pytest.param(20, 2_000, 0.006120, 0.015402, id="one percent"),
        pytest.param(5, 10, 0.187086, 0.812914, id="half"),
        pytest.param(10, 10, 0.691503, 1.0, id="all"),
    ],
)
def test_clopper_and_pearsons_interval(hits, runs, low, high):
    assert clopper_pearson(hits, runs) == pytest.approx((low, high), abs=1e-5)


def ratio(value: float, limit: float | None) -> Ratio:
    return Ratio(Case(0.01, 0.05, limit=limit), 100, 135.0, 135.0 * value, 120.0, 300.0, value, 0.01, 0)


def healthy(hits: int, scheme: str = TIDEGATE) -> FalseResult:
    return FalseResult(Shape.STEADY, scheme, 0.01, 2_000, hits, {"error": hits}, *clopper_pearson(hits, 2_000))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"ratios": [ratio(1.26, 1.25)]}, None, id="above the limit within two standard errors"),
        pytest.param({"ratios": [ratio(1.28, 1.25)]}, "exposure ratio 1.280", id="surely above the limit"),
        pytest.param({"ratios": [ratio(9.0, None)]}, None, id="no limit"),
        pytest.param({"healthy": [healthy(25)]}, None, id="false rollbacks that 1 % explains"),
        pytest.param({"healthy": [healthy(40)]}, "40 of 2,000", id="false rollbacks that it does not"),
        pytest.param({"healthy": [healthy(900, "Flagger")]}, None, id="other tools promise nothing"),
        pytest.param({"agreement": Agreement(10, 1)}, "decided otherwise in 1 of 10", id="the ledger disagrees"),
    ],
)
def test_what_makes_the_bench_fail(changes, words):
    complaints = Report(0.1, 0.01, 1, **changes).complaints()
    assert [words in c for c in complaints] == ([True] if words else [])


def test_a_small_run_leaves_strict_json_and_a_plot(tmp_path):
    fault = Fault("latency x 1.3", slowdown=1.3)
    faults, agreed = under_fault(Shape.STEADY, fault, 2, 0, 1)
    found = list(without_fault(Shape.STEADY, 4, 2, 1, 1))
    report = Report(0.1, 0.01, 1, [ratio(1.2, 1.25)], faults, [f for f, _ in found], agreed)
    for _, more in found:
        report.agreement += more
    data, picture, tables = save(report, tmp_path / "deep" / "folder")
    stored = json.loads(data.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert {r["scheme"] for r in stored["faults"]} == {r.scheme for r in faults}
    assert stored["agreement"] == {"rollouts": 1, "otherwise": 0}
    assert picture.stat().st_size < 150_000
    lines = [line for line in tables.read_text().splitlines() if line]
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    assert any("latency x 1.3" in line for line in lines)
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {n} -->\nold\n<!-- /{n} -->\n" for n in ("ratios", "faults", "healthy", "peers")))
    for _ in range(2):
        fill_page(report, page)
    assert page.read_text().count("| latency x 1.3 |") == 1
    assert "old" not in page.read_text()
    assert page.with_suffix(".svg").exists()
    assert all(not math.isnan(r.exposure_mean) for r in faults)


def test_a_page_without_a_tables_place_is_refused():
    with pytest.raises(ValueError, match="<!-- faults -->"):
        fill("<!-- ratios -->\n<!-- /ratios -->\n", {"ratios": "r", "faults": "f"})
