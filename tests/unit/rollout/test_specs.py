"""The schema that people write, and what it says when they write it wrong."""

from __future__ import annotations

import pytest

from rollout.errors import InvalidSpec
from rollout.specs import parse_duration_s, parse_spec
from serving.outcomes import Signal


def test_the_shortest_spec_has_sound_defaults():
    spec = parse_spec({"model": "chat", "version": "1.3.0"})
    assert [s.weight for s in spec.strategy.canary.steps] == [5, 25, 50]
    assert spec.analysis.alpha == 0.01
    assert {s.name for s in spec.analysis.signals} >= {Signal.ERROR, Signal.ENGINE_4XX, Signal.LENGTH_STOP}
    assert spec.rollback_window == 1800


def test_a_custom_resource_is_read_with_strings_for_numbers():
    document = {
        "apiVersion": "tidegate.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "chat"},
        "spec": {
            "model": "chat",
            "version": "1.3.0",
            "strategy": {"canary": {"steps": [{"weight": 1, "duration": "30s", "maxDuration": "30m"}], "soak": "5m"}},
            "analysis": {
                "alpha": "0.01",
                "signals": [{"name": "error"}, {"name": "slow-tokens", "maxSlowdown": "1.25"}],
            },
            "rollbackWindow": "30m",
        },
    }
    spec = parse_spec(document)
    assert spec.strategy.canary.steps[0].max_duration == 1800
    assert spec.strategy.canary.soak == 300


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"modle": "x"}, "modle: unknown field; the fields here are analysis"),
        ({"strategy": {"canary": {"step": []}}}, "canary.step: unknown field; the fields here are holdbackPercent"),
        ({"strategy": {"shadow": {}}}, "strategy.shadow: unknown field; the fields here are canary"),
        ({"strategy": {"canary": {"steps": []}}}, "steps is empty"),
        ({"strategy": {"canary": {"steps": [{"weight": 50}, {"weight": 10}]}}}, "must rise"),
        ({"strategy": {"canary": {"steps": [{"weight": 101}]}}}, "less than or equal to 100"),
        ({"strategy": {"canary": {"steps": [{"weight": 5, "duration": "soon"}]}}}, "'soon' is not a duration"),
        ({"strategy": {"canary": {"steps": [{"weight": 5, "duration": "1m", "maxDuration": "1s"}]}}}, "shorter than"),
        ({"analysis": {"alpha": "2"}}, "analysis.alpha"),
        ({"analysis": {"signals": [{"name": "vibes"}]}}, "analysis.signals.0.name"),
        ({"analysis": {"signals": [{"name": "error"}, {"name": "error"}]}}, "named twice"),
        ({"analysis": {"signals": []}}, "signals is empty"),
        ({"analysis": {"signals": [{"name": "slow-tokens", "maxSlowdown": "2"}]}}, "maxSlowdown 2.0 can't be had yet"),
        ({"model": "Chat Bot"}, "model"),
    ],
)  # fmt: skip
def test_a_wrong_spec_names_the_field_and_the_way_out(change, told):
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({"model": "chat", "version": "1.3.0"} | change)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("1.5m", 90), ("2h", 7200), (7, 7), ("7", 7)]
)
def test_durations(text, seconds):
    assert parse_duration_s(text) == seconds
