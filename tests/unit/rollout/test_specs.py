"""The schema that people write, and what it says when they write it wrong."""

from __future__ import annotations

import pytest

from rollout.errors import InvalidSpec
from rollout.specs import RolloutSpec, parse_duration_s, parse_spec
from rollout.strategy_specs import StrategyName
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
        ({"strategy": {"rolling": {}}}, "strategy.rolling: unknown field; the fields here are ab, blueGreen, canary"),
        ({"strategy": {"canary": {}, "shadow": {}}}, "strategy names canary and shadow; give exactly one"),
        ({"strategy": {"blueGreen": None}}, "strategy.blueGreen is empty; give a value ({} for the defaults)"),
        ({"strategy": {"blue_green": {}}}, "strategy.blue_green: unknown field; the fields here are ab, blueGreen"),
        ({"strategy": {"blueGreen": {"smok": []}}}, "blueGreen.smok: unknown field; the fields here are autoSwitch"),
        ({"strategy": {"blueGreen": {"smoke": [{"name": "a", "prompt": "b", "expect": {"contain": "c"}}]}}},
         "smoke.0.expect.contain: unknown field; the fields here are contains, json, matches, notMatches"),
        ({"strategy": {"blueGreen": {"smoke": [{"name": "a", "expect": {"json": True}}]}}}, "prompt or messages"),
        ({"strategy": {"blueGreen": {"smoke": [{"name": "a", "prompt": "b", "expect": {}}]}}}, "nothing is expected"),
        ({"strategy": {"blueGreen": {"smoke": [{"name": "a", "prompt": "b", "expect": {"matches": "("}}]}}},
         "'(' is no regular expression"),
        ({"strategy": {"blueGreen": {"previewRequests": 5}}}, "previewRequests without testers can't be reached"),
        ({"strategy": {"shadow": {"mirror": 5}}}, "shadow.mirror: unknown field; the fields here are duration"),
        ({"strategy": {"shadow": {"mirrorPercent": 0}}}, "greater than or equal to 1"),
        ({"strategy": {"shadow": {"onPassed": "shrug"}}}, "'pause' or 'promote'"),
        ({"strategy": {"ab": {"weight": 100}}}, "less than or equal to 99"),
        ({"strategy": {"canary": {"testers": [{"header": "x-beta"}]}}}, "a header with its value, or the id of a key"),
        ({"strategy": {"canary": {"testers": [{"key": "abcdefgh1234", "who": 1}]}}},
         "testers.0.who: unknown field; the fields here are header, key, value"),
        ({"engine": {"minReplicas": 3, "maxReplicas": 2}}, "maxReplicas 2 is below minReplicas 3"),
        ({"engine": {"capacity": "replace"}}, "needs minReplicas of at least 2"),
        ({"engine": {"resources": {"limit": {}}}}, "resources.limit: unknown field; the fields here are limits"),
        ({"engine": {"resources": {"limits": {"memory": "lots"}}}}, "engine.resources.limits.memory"),
        ({"paused": "yes"}, "paused"),
        ({"engine": {"minReplicas": True}}, "True is not a number"),
        ({"strategy": {"canary": {"steps": []}}}, "steps is empty"),
        ({"strategy": {"canary": {"steps": [{"weight": 50}, {"weight": 10}]}}}, "must rise"),
        ({"strategy": {"canary": {"steps": [{"weight": 101}]}}}, "less than or equal to 100"),
        ({"strategy": {"canary": {"steps": [{"weight": 5, "duration": "soon"}]}}}, "'soon' is not a duration"),
        ({"strategy": {"canary": {"steps": [{"weight": 5, "duration": "1m", "maxDuration": "1s"}]}}}, "shorter than"),
        ({"analysis": {"alpha": "2"}}, "analysis.alpha"),
        ({"analysis": {"signals": [{"name": "vibes"}]}}, "'vibes' is no signal; there are error, engine-4xx"),
        ({"analysis": {"signals": [{"name": "vibes/bad"}]}}, "guardrail/<name>, score/<name>, prometheus/<name>"),
        ({"analysis": {"signals": [{"name": "prometheus/errors"}]}}, "those need them: prometheus: {events: ..."),
        ({"analysis": {"signals": [{"name": "error", "prometheus": {"events": "a$version", "total": "b$version"}}]}},
         "queries belong to signals named prometheus/<name>"),
        ({"analysis": {"signals": [{"name": "prometheus/x", "prometheus": {"events": "up", "total": "b$version"}}]}},
         "prometheus.events"),
        ({"analysis": {"signals": [{"name": "error", "maxSlowdown": "2"}]}}, "is for slow-first-token and slow-tokens"),
        ({"analysis": {"signals": [{"name": "slow-tokens", "maxSlowdown": 2},
                                   {"name": "slow-first-token", "maxSlowdown": 3}]}}, "maxSlowdown is 2 and 3"),
        ({"analysis": {"signals": [{"name": "error"}, {"name": "error"}]}}, "named twice"),
        ({"analysis": {"signals": []}}, "signals is empty"),
        ({"analysis": {"signals": [{"name": "slow-tokens", "maxSlowdown": "11"}]}}, "less than or equal to 10"),
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


def strategy(body):
    return parse_spec({"model": "chat", "version": "1.3.0", "strategy": body}).strategy


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({}, StrategyName.CANARY),
        ({"canary": {}}, StrategyName.CANARY),
        ({"blueGreen": {}}, StrategyName.BLUE_GREEN),
        ({"shadow": {}}, StrategyName.SHADOW),
        ({"ab": {}}, StrategyName.AB),
    ],
)
def test_each_strategy_needs_no_more_than_its_name(body, name):
    found = strategy(body)
    assert found.name is name
    assert type(found.chosen).__name__.lower().startswith(name.replace("-", ""))


@pytest.mark.parametrize(
    ("body", "holdbacks"),
    [
        ({"soak": "1m"}, (20, 10, 5)),
        ({"soak": "1m", "holdbackPercent": 50}, (50, 25, 13)),
        ({"soak": "1m", "holdbackPercent": 3}, (3, 2, 1)),
        ({"soak": "1m", "holdbackPercent": 1}, (1,)),
        ({"soak": "1m", "steps": [{"weight": 88}]}, (12, 10, 5)),
        ({"soak": "1m", "steps": [{"weight": 99}]}, (1,)),
        ({"soak": "1m", "steps": [{"weight": 100}]}, (20, 10, 5)),
    ],
)
def test_stable_keeps_less_and_less_through_the_soak_and_never_more_than_the_last_step_left_it(body, holdbacks):
    assert strategy({"canary": body}).canary.holdbacks == holdbacks


def test_signals_may_come_from_guardrails_scores_and_prometheus():
    query = {"events": 'sum(bad{v="$version",m="$model"})', "total": 'sum(all{v="$version"})'}
    names = ["error", "guardrail/toxicity", "score/judge", "slow-tokens"]
    signals = [{"name": n} for n in names] + [{"name": "prometheus/bad", "prometheus": query}]
    spec = parse_spec({"model": "chat", "version": "1.3.0", "analysis": {"signals": signals}})
    found = spec.analysis.signals[-1].prometheus
    assert found.events_of("chat", "1.2.0") == 'sum(bad{v="1.2.0",m="chat"})'
    assert found.total_of("chat", "1.3.0") == 'sum(all{v="1.3.0"})'


def test_a_spec_is_stored_and_read_again_unchanged():
    smoke = [
        {"name": "a", "messages": [{"role": "user", "content": "法国的首都？"}], "expect": {"json": {"type": "object"}}}
    ]
    body = {
        "model": "chat", "version": "1.3.0", "strategy": {"blueGreen": {"smoke": smoke}},
        "analysis": {"signals": [{"name": "error"}, {"name": "slow-tokens", "maxSlowdown": "2.5"}]},
        "engine": {"resources": {"limits": {"nvidia.com/gpu": 1, "memory": "24Gi"}}, "minReplicas": "2"},
    }  # fmt: skip
    spec = parse_spec(body)
    assert RolloutSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.analysis.max_slowdown == 2.5
    assert spec.engine.most_replicas == 2
