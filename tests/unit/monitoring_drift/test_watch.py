from __future__ import annotations

import json

import numpy as np
import pytest

from monitoring.drift.errors import ForeignState
from monitoring.drift.explain import DISTANCE
from monitoring.drift.features import cheap_features
from monitoring.drift.watch import Alarm, Detector, DriftWatch, Severity
from tests.unit.monitoring_drift.streams import cheap_reference, cloud, english, reference

CHEAP, EMBEDDING = cheap_reference(), reference()
SECRET = "my password is hunter2 "


def watch(embedding=EMBEDDING) -> DriftWatch:
    return DriftWatch(CHEAP, embedding, np.random.default_rng(1))


def feed(of: DriftWatch, texts, vectors, prefix: str) -> list[Alarm]:
    raised: list[Alarm] = []
    for number, (text, vector) in enumerate(zip(texts, vectors, strict=True)):
        raised += of.observe(f"{prefix}-{number}", cheap_features(text), vector)
    return raised


def test_healthy_traffic_raises_nothing() -> None:
    of = watch()
    assert [a for a in feed(of, english(1500, 5), cloud(1500, 5), "a") if a.severity is Severity.PAGE] == []
    assert (of.seen, of.embedded, of.unusable) == (1500, 1500, 0)


def test_a_new_topic_pages_and_says_what_came_and_what_went() -> None:
    of = watch()
    feed(of, english(300, 5), cloud(300, 5), "a")
    alarms = {alarm.detector: alarm for alarm in feed(of, english(200, 6), cloud(200, 6, topics=(0,)), "b")}
    page = alarms[Detector.EMBEDDING]
    assert (page.severity, page.reference) == (Severity.PAGE, EMBEDDING.digest)
    assert page.statistic >= page.threshold == 2e6
    assert page.request_id.startswith("b-")
    gained, lost = page.explanation.gained, page.explanation.lost
    assert gained
    assert lost
    assert all(change.now_percent > change.before_percent for change in gained)
    assert all(change.now_percent < change.before_percent for change in lost)
    assert gained[0].recent_ids[0].startswith("b-")
    assert all(name.startswith("req-") for change in (*gained, *lost) for name in change.reference_ids)


def test_longer_prompts_in_another_script_are_found_without_an_embedding_and_named() -> None:
    of = watch(embedding=None)
    feed(of, english(300, 5), [None] * 300, "a")
    (alarm,) = feed(of, ["今天天气怎么样?" * 20] * 100, [None] * 100, "b")
    moved = {change.name: change.deviations for change in alarm.explanation.features}
    assert alarm.detector is Detector.CHEAP
    assert moved["han"] > 0.5
    assert moved["latin"] < -0.5
    assert set(moved) <= {*CHEAP.names, DISTANCE}


def test_a_vector_that_can_not_be_used_is_counted_and_does_not_end_the_watch() -> None:
    of = watch()
    broken = np.full(EMBEDDING.dimensions, np.nan, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        feed(of, english(5, 5), [broken] * 5, "a")
    feed(of, english(5, 5), [np.ones(768, dtype=np.float32)] * 5, "a")
    assert (of.seen, of.embedded, of.unusable) == (10, 0, 10)
    assert feed(of, english(200, 6), cloud(200, 6, topics=(5,)), "b")


def test_a_warning_is_not_told_again_while_it_flickers() -> None:
    of = watch()
    feed(of, english(200, 5), cloud(200, 5), "a")
    alarms = feed(of, english(400, 6), cloud(400, 6, topics=(5,)), "b")
    assert [alarm.detector for alarm in alarms].count(Detector.KERNEL) == 1
    assert set(of.active()) == {Detector.EMBEDDING, Detector.KERNEL}


def test_clearing_forgets_alarms_and_keeps_counters() -> None:
    of = watch()
    feed(of, english(400, 6), cloud(400, 6, topics=(5,)), "b")
    before = dict(of.alarms)
    of.clear()
    assert of.active() == ()
    assert (of.alarms, of.seen) == (before, 400)


def test_a_restart_goes_on_where_it_stopped() -> None:
    whole, first, second = watch(), watch(), watch()
    texts, vectors = english(110, 6), cloud(110, 6, topics=(5,))
    expected = feed(whole, texts, vectors, "b")
    told = feed(first, texts[:10], vectors[:10], "b")
    second.restore(json.loads(json.dumps(first.to_json())))
    told += [alarm for n in range(10, 110) for alarm in second.observe(f"b-{n}", cheap_features(texts[n]), vectors[n])]
    assert told == expected
    assert [alarm.detector for alarm in told] == [Detector.EMBEDDING]
    assert second.seen == 110


def test_a_state_of_a_replaced_reference_is_refused_whole() -> None:
    old, new = watch(), watch(reference(seed=9))
    feed(old, english(50, 6), cloud(50, 6), "b")
    with pytest.raises(ForeignState):
        new.restore(old.to_json())
    assert new.seen == 0
    assert all(statistic == 0.0 for statistic, _ in new.statistics().values())


def test_no_text_is_kept() -> None:
    of = watch()
    alarms = feed(of, [SECRET * 40] * 200, cloud(200, 6, topics=(5,)), "b")
    assert alarms
    assert "hunter2" not in json.dumps(of.to_json()) + repr(alarms)
