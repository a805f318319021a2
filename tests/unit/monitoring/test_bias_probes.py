"""Bias probes: what they ask, when they speak of a gap, and that they do so seldom without one."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from monitoring.bias_probes import Attribute, Measure, gaps, probe_pairs, sign_flip_p_value
from rollout.probes.base import ProbeReport
from rollout.probes.memory import MemoryProbeReports
from tidegate.errors import TidegateError
from tidegate.probing import asker, metrics_of, probe, round_of


def test_pairs_differ_in_one_place_and_cover_both_languages() -> None:
    pairs = probe_pairs()
    assert len(pairs) == 120
    assert {(p.language, p.attribute) for p in pairs} == {(lang, a) for lang in ("en", "zh") for a in Attribute}
    for pair in pairs:
        assert pair.first != pair.second
        shared = sum(a == b for a, b in zip(pair.first, pair.second, strict=False))
        assert shared > 2
        assert pair.first.isascii() is (pair.language == "en")


def test_without_a_difference_a_gap_is_seldom_found_and_a_plain_one_is() -> None:
    pairs, rng = probe_pairs(), np.random.default_rng(3)
    runs = 40
    wrong = 0
    for _ in range(runs):
        values = [tuple(rng.normal(size=2)) for _ in pairs]
        wrong += any(gap.found for gap in gaps(pairs, {Measure.LENGTH: values}, rng))
    assert wrong <= 3
    told = [(0.0, 1.0 if pair.attribute is Attribute.RELIGION else 0.0) for pair in pairs]
    found = [gap for gap in gaps(pairs, {Measure.REFUSAL: told, Measure.LENGTH: [None] * len(pairs)}, rng) if gap.found]
    assert [(gap.name, gap.mean, gap.pairs) for gap in found] == [("bias.religion.refusal", 1.0, 24)]
    with pytest.raises(ValueError, match="one for each"):
        gaps(pairs, {Measure.LENGTH: []}, rng)
    assert sign_flip_p_value([], rng) == 1.0


def answers(biased: bool) -> httpx.Client:
    def reply(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert (body["model"], body["temperature"]) == ("chat@1.0.0", 0)
        prompt = body["messages"][0]["content"]
        declines = biased and ("blind" in prompt or "残疾" in prompt)
        text = "I'm sorry, but I can't help with that." if declines else "Of course, here you are, a fine answer."
        return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})

    return httpx.Client(transport=httpx.MockTransport(reply), base_url="http://gateway")


def harmless(texts: list[str]) -> list[float]:
    return [0.01] * len(texts)


def test_a_version_that_declines_for_one_group_is_reported_and_nothing_of_its_words(tmp_path: Path) -> None:
    report = probe(asker(answers(biased=True), "chat", "1.0.0"), harmless, "chat", "1.0.0")
    assert {(gap.attribute, gap.measure) for gap in report.found} >= {("disability", "refusal")}
    assert {gap.attribute for gap in report.found} == {"disability"}
    assert "sorry" not in report.model_dump_json()
    assert metrics_of(report)["disability.refusal"] == 1.0
    fair = probe(asker(answers(biased=False), "chat", "1.0.0"), harmless, "chat", "1.0.0", languages=("zh",))
    assert (fair.found, fair.pairs) == ((), 60)


def test_a_version_that_does_not_answer_is_no_report() -> None:
    away = httpx.Client(transport=httpx.MockTransport(lambda r: httpx.Response(503)), base_url="http://gateway")
    with pytest.raises(TidegateError, match="7 of the first 7 pairs of probes, of 60"):
        probe(asker(away, "chat", "1.0.0"), harmless, "chat", "1.0.0", languages=("en",))


def test_the_schedule_goes_on_after_a_restart_and_a_version_that_fails_keeps_no_other_from_its_turn(
    tmp_path: Path,
) -> None:
    reports = MemoryProbeReports()
    now, asked = [1000.0], list[str]()

    def run(model: str, version: str) -> ProbeReport:
        asked.append(version)
        if version == "1.0.0":
            raise TidegateError("no answer")
        report = ProbeReport(
            model=model, version=version, at=now[0], languages=("en",), pairs=1, unanswered=0, gaps=()
        )  # fmt: skip
        reports.save(report)
        return report

    def turn(failed_at: dict[tuple[str, str], float]) -> list[str]:
        asked.clear()
        round_of(24 * 3600.0, reports, [("chat", "1.0.0"), ("chat", "1.1.0")], failed_at, run, lambda: now[0])
        return list(asked)

    failed_at = {("gone", "1.0.0"): 1.0}
    assert turn(failed_at) == ["1.0.0", "1.1.0"]
    assert failed_at.keys() == {("chat", "1.0.0")}
    now[0] += 600
    assert turn(failed_at) == [], "what failed is left alone for an hour, what is reported for a day"
    assert turn({}) == ["1.0.0"], "a restart forgets failures, not reports"
    now[0] += 24 * 3600
    assert turn(failed_at) == ["1.0.0", "1.1.0"]
