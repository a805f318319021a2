"""The published JSON Schema and the reader of specs say the same."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.errors import InvalidSpec
from rollout.schema import json_schema
from rollout.specs import parse_spec

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

BEYOND_SCHEMA = (
    "must rise", "is shorter than", "is empty", "named twice", "is below minReplicas", "needs minReplicas",
    "without testers", "is no regular expression", "maxSlowdown is", "queries belong to", "is for slow-first-token",
    "greater than", "less than", "their number is fixed", "Kueue admits", "is not ours to shape", "exclude each other",
    "tolerates everything", "takes no value", "belongs to the effect",
)  # fmt: skip
"""What the reader alone complains about: two fields that don't fit, and the range of a number written as a string."""


def read(document):
    try:
        return parse_spec(document), ""
    except InvalidSpec as error:
        return None, str(error)


def test_it_is_a_schema_of_the_draft_it_names():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_example_is_valid():
    VALIDATOR.validate(yaml.safe_load((ROOT / "examples/rollout.yaml").read_text()))


def test_every_class_says_what_it_is_for():
    nameless = [n for n, body in SCHEMA["$defs"].items() if body["type"] == "object" and "description" not in body]
    assert nameless == []


def test_every_default_is_itself_valid():
    def defaults(node):
        if isinstance(node, dict):
            if "default" in node:
                yield {k: v for k, v in node.items() if k != "default"}, node["default"]
            for part in node.values():
                yield from defaults(part)
        elif isinstance(node, list):
            for part in node:
                yield from defaults(part)

    found = list(defaults(SCHEMA))
    assert len(found) > 20
    for schema, default in found:
        jsonschema.Draft202012Validator({**schema, "$defs": SCHEMA["$defs"]}).validate(default)


@pytest.mark.parametrize(
    "change",
    [
        {"modle": "x"},
        {"model": "Chat Bot"},
        {"strategy": {"canary": {}, "ab": {}}},
        {"strategy": {"blueGreen": None}},
        {"strategy": {"blue_green": {}}},
        {"strategy": {"canary": {"steps": [{"weight": 0}]}}},
        {"strategy": {"canary": {"steps": [{"weight": 5, "duration": "soon"}]}}},
        {"strategy": {"canary": {"testers": [{"header": "x-beta"}]}}},
        {"strategy": {"canary": {"testers": [{"header": "x", "value": "1", "key": "abcdefgh1234"}]}}},
        {"strategy": {"blueGreen": {"smoke": [{"name": "a", "prompt": "b", "expect": {}}]}}},
        {"strategy": {"blueGreen": {"smoke": [{"name": "a", "expect": {"contains": "b"}}]}}},
        {"strategy": {"shadow": {"onPassed": "shrug"}}},
        {"analysis": {"alpha": 2}},
        {"analysis": {"alpha": "much"}},
        {"analysis": {"signals": []}},
        {"analysis": {"signals": [{"name": "vibes"}]}},
        {"analysis": {"signals": [{"name": "prometheus/x", "prometheus": {"events": "up", "total": "up"}}]}},
        {"engine": {"minReplicas": 0}},
        {"engine": {"minReplicas": True}},
        {"engine": {"resources": {"limits": {"memory": "lots"}}}},
        {"paused": "yes"},
    ],
)
def test_both_refuse_what_is_wrong(change):
    document = {"model": "chat", "version": "1.3.0"} | change
    assert not VALIDATOR.is_valid(document)
    assert read(document)[0] is None


# -- both agree on whatever somebody may write -----------------------------------------------------------------------

WRONG = st.sampled_from([None, True, -1, 0, 1.5, 1e9, "", "x", "30s", "0.5", "7", [], {}, [{}], {"a": 1}])


def maybe(right):
    """Mostly right, sometimes anything."""
    return st.integers(0, 24).flatmap(lambda n: WRONG if n == 0 else right)


def mapping(required=None, **optional):
    """A mapping of some of these fields, now and then with one that does not exist."""
    fields = {k: maybe(v) for k, v in optional.items()}
    known = st.fixed_dictionaries({k: maybe(v) for k, v in (required or {}).items()}, optional=fields)
    return st.tuples(known, st.integers(0, 30)).map(lambda two: two[0] | ({"unheardOf": 1} if two[1] == 0 else {}))


def numbers(low, high):
    return st.integers(low, high) | st.integers(low, high).map(str)


durations = st.sampled_from(["30s", "500ms", "1.5m", " 2h ", 0, 7.5, "90"])
booleans = st.booleans()
testers = st.lists(
    mapping(key=st.just("abcdefgh1234")) | mapping({"header": st.just("x-beta"), "value": st.text(max_size=3)}),
    max_size=2,
)
steps = st.lists(mapping({"weight": numbers(1, 100)}, duration=durations, maxDuration=durations), max_size=3)
canary = mapping(
    steps=steps, soak=durations, soakRequests=numbers(1, 9), holdbackPercent=numbers(1, 50), testers=testers
)
expect = mapping(
    contains=st.just("Paris"), matches=st.sampled_from(["^a+$", "("]), notMatches=st.just("b"),
    json=st.just(True) | st.just({"type": "object"}),
)  # fmt: skip
messages = st.lists(mapping({"role": st.just("user"), "content": st.text(max_size=3)}), min_size=1, max_size=2)
smoke = mapping(
    {"name": st.sampled_from("ab"), "expect": expect}, prompt=st.just("Hi"), messages=messages, maxTokens=numbers(1, 9)
)
blue_green = mapping(
    testers=testers, smoke=st.lists(smoke, max_size=2), previewDuration=durations, previewRequests=numbers(1, 9),
    autoSwitch=booleans,
)  # fmt: skip
shadow = mapping(
    mirrorPercent=numbers(1, 100), duration=durations, maxDuration=durations, pairs=numbers(1, 9),
    onPassed=st.sampled_from(["pause", "promote"]), onFailed=st.just("withdraw"),
)  # fmt: skip
ab = mapping(weight=numbers(1, 99), sessions=numbers(1, 9), safety=booleans)
any_strategy = (
    st.fixed_dictionaries({}, optional={"canary": maybe(canary)})
    | st.fixed_dictionaries({"blueGreen": maybe(blue_green)}, optional={"canary": st.just({})})
    | st.fixed_dictionaries({"shadow": maybe(shadow)})
    | st.fixed_dictionaries({"ab": maybe(ab)})
)
decimals = st.sampled_from(["0.05", 0.05, "0.2", 0.1, "2", 1.5])
queries = mapping({"events": st.just("bad$version"), "total": st.sampled_from(["all$version", "all"])})
names = st.sampled_from(
    ["error", "slow-tokens", "slow-first-token", "guardrail/pii", "score/nll", "prometheus/x", "y/z"]
)
signals = st.lists(
    mapping(
        {"name": names}, share=decimals, maxRate=decimals, maxRatio=decimals, maxSlowdown=decimals, gating=booleans,
        prometheus=queries,
    ),
    max_size=3,
)  # fmt: skip
analysis = mapping(
    alpha=decimals, beta=decimals, signals=signals, onInsufficient=st.sampled_from(["pause", "promote", "rollback"])
)
quantities = st.dictionaries(
    st.sampled_from(["cpu", "memory"]), st.sampled_from([1, "500m", "24Gi", "0.5", "lots", -1])
)
engine = mapping(
    image=st.just("engine:1"), minReplicas=numbers(1, 4), maxReplicas=numbers(1, 64),
    resources=mapping(limits=quantities, requests=quantities), capacity=st.sampled_from(["surge", "replace"]),
    onShortage=st.sampled_from(["stay", "shed"]),
)  # fmt: skip
documents = mapping(
    {"model": st.just("chat"), "version": st.just("1.3.0")}, paused=booleans, progressDeadlineSeconds=numbers(1, 9),
    revisionHistoryLimit=numbers(0, 9), engine=engine, strategy=any_strategy, analysis=analysis,
    rollbackWindow=durations, drainDeadline=durations, emergency=booleans,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(documents)
def test_schema_and_reader_agree(document):
    spec, complaint = read(document)
    valid = VALIDATOR.is_valid(document)
    if spec is not None:
        assert valid, list(VALIDATOR.iter_errors(document))
    elif valid:
        assert any(phrase in complaint for phrase in BEYOND_SCHEMA), complaint
