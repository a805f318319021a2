"""The definition of ModelDeployments: generated, structural, and of one mind with the reader of specs."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.errors import InvalidSpec
from rollout.operator.crd import definition, document
from rollout.specs import parse_spec
from tests.kubernetes import structural
from tests.kubernetes.api_errors import Refused
from tests.kubernetes.kinds import kinds_of_definition

ROOT = Path(__file__).parents[2]
DEFINITION = definition()
SCHEMA = DEFINITION["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
(MODEL_DEPLOYMENT,) = kinds_of_definition(definition())

needs_rules = pytest.mark.skipif(not structural.RULES_RUN, reason="cel-expr-python is not installed")

FULL: dict[str, Any] = {
    "model": "chat",
    "version": "1.3.0",
    "paused": False,
    "progressDeadlineSeconds": 1800,
    "engine": {
        "image": "tidegate-engine:0.1",
        "minReplicas": 2,
        "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "24Gi"}},
        "capacity": "replace",
    },
    "strategy": {
        "canary": {
            "steps": [
                {"weight": 1, "duration": "30s"},
                {"weight": 10, "duration": "1m", "maxDuration": "30m"},
                {"weight": 50, "duration": 60},
            ],
            "soak": "5m",
            "holdbackPercent": 20,
            "testers": [{"header": "x-tester", "value": "me"}, {"key": "abcdefabcdef"}],
        }
    },
    "analysis": {
        "alpha": "0.01",
        "signals": [
            {"name": "error", "maxRate": "0.05", "share": 2},
            {"name": "slow-first-token", "maxSlowdown": "1.5"},
            {"name": "prometheus/carts", "prometheus": {"events": "a{v='$version'}", "total": "b{v='$version'}"}},
        ],
        "onInsufficient": "pause",
    },
    "rollbackWindow": "30m",
}
BLUE_GREEN = {
    "blueGreen": {
        "testers": [{"key": "abcdefabcdef"}],
        "smoke": [{"name": "sum", "prompt": "1+1", "expect": {"contains": "2"}}],
        "previewRequests": 3,
    }
}


def admit(spec: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, Any]:
    def whole(part: dict[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "tidegate.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "chat"},
            "spec": copy.deepcopy(part),
        }

    before = whole(old) if old is not None else None
    return structural.admitted(MODEL_DEPLOYMENT, "chat", whole(spec), before, SCHEMA, "Strict")["spec"]


def changed(path: str, value: Any, spec: dict[str, Any] = FULL) -> dict[str, Any]:
    """The spec with another value at one place; `...` takes it away."""
    made = copy.deepcopy(spec)
    here: Any = made
    *parents, last = path.split(".")
    for part in parents:
        here = here[int(part)] if part.isdigit() else here.setdefault(part, {})
    key: Any = int(last) if last.isdigit() else last
    if value is ...:
        del here[key]
    else:
        here[key] = value
    return made


def test_the_chart_ships_what_the_generator_makes() -> None:
    shipped = (ROOT / "helm/tidegate/crds/modeldeployments.yaml").read_text()
    assert shipped == document(), "run `python -m rollout.operator.crd > helm/tidegate/crds/modeldeployments.yaml`"


def test_the_schema_is_structural() -> None:
    structural.check_structural(SCHEMA, "modeldeployments.tidegate.dev")


def rules(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every rule with where it stands and the schema that it stands at."""
    for rule in schema.get("x-kubernetes-validations") or ():
        yield path, rule, schema
    for name, part in (schema.get("properties") or {}).items():
        yield from rules(part, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from rules(schema["items"], f"{path}[]")


def test_no_rule_may_cost_more_than_an_api_server_allows() -> None:
    """What an API server 1.33 works out beforehand, in its two traps; it refuses the whole definition for one of them.

    The text of a whole number has no bound there at all, and a value that may be a number or a string is taken for one
    of 3 MiB whatever its maxLength says (kubernetes/kubernetes issue 124234 and pull request 132837).
    """
    for path, rule, schema in rules(SCHEMA):
        assert not re.search(r"\bstring\(|\.(trim|replace|matches|contains|split|substring|find)\(", rule["rule"]), path
        for name in re.findall(r"string\(self\.?(\w*)\)", rule.get("messageExpression", "")):
            read = schema["properties"][name] if name else schema
            assert read.get("x-kubernetes-int-or-string"), f"{path}: string({name}) of a whole number"


def test_lists_that_a_rule_goes_through_and_texts_that_a_message_repeats_are_short() -> None:
    def below(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield schema
        for part in [
            *(schema.get("properties") or {}).values(),
            schema.get("items"),
            schema.get("additionalProperties"),
        ]:
            if isinstance(part, dict):
                yield from below(part)

    for part in below(SCHEMA):
        if part.get("type") == "array":
            assert part["maxItems"] <= 200
        if part.get("type") == "string" and part.get("description") and "enum" not in part:
            assert part["maxLength"] <= 16_384
        if "additionalProperties" in part:
            assert part["maxProperties"] <= 64


def test_every_field_says_what_it_is_for() -> None:
    def silent(node: dict[str, Any], path: str) -> list[str]:
        found = [] if node.get("description") or not path else [path]
        for name, part in (node.get("properties") or {}).items():
            found += silent(part, f"{path}.{name}".lstrip("."))
        return found + (silent(node["items"], f"{path}[]") if node.get("items", {}).get("properties") else [])

    assert [path for path in silent(SCHEMA["properties"]["spec"], "") if not path.startswith("engine.")] == []
    assert silent(SCHEMA["properties"]["status"], "") == []


def test_it_fits_into_what_etcd_and_helm_take() -> None:
    assert len(json.dumps(DEFINITION)) < 200_000


def test_what_is_read_is_kept_and_whole_numbers_are_filled_in() -> None:
    assert admit(FULL)["strategy"] == FULL["strategy"], "nothing is added to a strategy that was written out"
    small = admit({"model": "chat", "version": "1.0.0"})
    assert small["engine"]["minReplicas"] == 1, "the scale subresource finds its number"
    assert "strategy" not in small
    assert parse_spec(small) == parse_spec({"model": "chat", "version": "1.0.0"}), "filling in changes nothing"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("weights fall", changed("strategy.canary.steps.1.weight", 1), "the weights of steps must rise"),
    ("no steps", changed("strategy.canary.steps", []), "give at least one"),
    ("replicas", changed("engine.maxReplicas", 1), "maxReplicas is below minReplicas; raise it"),
    ("replace", changed("engine.minReplicas", 1), "capacity: replace needs minReplicas of at least 2"),
    ("replace grows", changed("engine.maxReplicas", 3, changed("engine.capacity", "replace")), "their number is fixed"),
    ("queue", changed("engine.queueName", "gpus"), "Kueue admits a fixed number"),
    ("not ours", changed("engine.workloadRef", {"name": "chat"}), "a workload that is not ours to shape"),
    ("toleration", changed("engine.tolerations", [{"value": "x"}]), "must say so: operator: Exists"),
    ("toleration value", changed("engine.tolerations", [{"key": "k", "operator": "Exists", "value": "x"}]), "no value"),
    ("toleration time", changed("engine.tolerations", [{"key": "k", "tolerationSeconds": 3}]), "NoExecute"),
    (
        "cache",
        changed("engine.weights", {"cache": {"hostPath": "/models", "persistentVolumeClaim": "models"}}),
        "hostPath and persistentVolumeClaim exclude each other",
    ),
    ("duration", changed("strategy.canary.steps.1.maxDuration", "59s"), "maxDuration 59s is shorter than duration"),
    (
        "default duration",
        changed("strategy", {"shadow": {"maxDuration": 59}}),
        "maxDuration 59 is shorter than duration",
    ),
    ("alpha", changed("analysis.alpha", "0.3"), "alpha 0.3 is out of range: above 0, at most 0.2"),
    ("alpha whole", changed("analysis.alpha", 1), "alpha 1 is out of range"),
    ("rate", changed("analysis.signals.0.maxRate", "1"), "maxRate 1 is out of range"),
    ("queries", changed("analysis.signals.2.prometheus", ...), "signal prometheus/carts: queries belong to"),
    ("slowdown", changed("analysis.signals.0.maxSlowdown", "2"), "maxSlowdown is for slow-first-token"),
    ("two strategies", changed("strategy.ab", {}), "strategy names more than one"),
    ("tester", changed("strategy.canary.testers.0.value", ...), "a tester is a header with its value"),
    (
        "previews",
        changed("strategy", changed("blueGreen.testers", [], BLUE_GREEN)),
        "previewRequests without testers cannot be reached",
    ),
    (
        "smoke",
        changed("strategy", changed("blueGreen.smoke.0.prompt", ..., BLUE_GREEN)),
        "smoke case sum: give a prompt",
    ),
    ("labels of nodes", changed("engine.nodeSelector", {"pool": 1}), "spec.engine.nodeSelector"),
    ("nothing expected", changed("strategy", changed("blueGreen.smoke.0.expect", {}, BLUE_GREEN)), "smoke[0].expect"),
    ("twice", changed("analysis.signals.1.name", "error"), "spec.analysis.signals"),
    ("a float", changed("analysis.alpha", 0.01), "spec.analysis.alpha"),
    ("weight", changed("strategy.canary.steps.0.weight", 0), "spec.strategy.canary.steps[0].weight"),
    ("unknown field", changed("engine.gpus", 1), 'unknown field "spec.engine.gpus"'),
    ("signal", changed("analysis.signals.0.name", "errors"), "spec.analysis.signals[0].name"),
]


@needs_rules
@pytest.mark.parametrize(("spec", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_bad_spec_is_refused_with_the_field_and_the_way_out(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as caught:
        admit(spec)
    assert message in caught.value.message


@needs_rules
def test_a_resource_stays_with_its_model() -> None:
    with pytest.raises(Refused, match="model chat cannot become talk; make a ModelDeployment of its own"):
        admit(changed("model", "talk"), old=FULL)
    admit(changed("version", "1.4.0"), old=FULL)


NUMBERS = st.sampled_from(
    ["0", "0.01", "0.2", "0.21", "1", "1.25", "2", "10", "11", 0, 1, 2, 5, 64, 65, 100, 101, -1, "-1"]
)
DURATIONS = st.sampled_from(
    ["0s", "1ms", "29s", "30s", "31", 30, 59, "1m", "60s", "0.5m", "1h", "2d", "soon", "-1s", ""]
)
CHANGES = st.one_of(
    st.tuples(
        st.sampled_from(
            ["analysis.alpha", "analysis.beta", "analysis.signals.0.share", "analysis.signals.0.maxRate",
             "analysis.signals.0.maxRatio", "analysis.signals.1.maxSlowdown", "engine.minReplicas",
             "engine.maxReplicas",
             "strategy.canary.steps.0.weight", "strategy.canary.steps.1.weight", "strategy.canary.holdbackPercent",
             "revisionHistoryLimit", "strategy.canary.soakRequests"]
        ),
        NUMBERS,
    ),
    st.tuples(
        st.sampled_from(
            ["strategy.canary.steps.1.duration", "strategy.canary.steps.1.maxDuration", "strategy.canary.soak",
             "rollbackWindow", "strategy.canary.steps.0.maxDuration"]
        ),
        DURATIONS,
    ),
    st.tuples(
        st.sampled_from(
            ["engine.capacity", "analysis.signals.2.prometheus", "strategy.canary.testers.0.header",
             "strategy.canary.testers.1.key", "strategy.canary.steps.0.duration", "engine.maxReplicas",
             "analysis.alpha"]
        ),
        st.just(...),
    ),
    st.tuples(st.just("analysis.signals.1.name"), st.sampled_from(["error", "empty", "guardrail/pii", "score/", "x"])),
    st.tuples(st.just("engine.workloadRef"), st.sampled_from([{"name": "chat"}, {"name": "Chat"}, {}])),
    st.tuples(st.just("engine.queueName"), st.just("gpus")),
    st.tuples(
        st.just("engine.tolerations"),
        st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "key": st.sampled_from(["gpu", ""]),
                    "operator": st.sampled_from(["Exists", "Equal"]),
                    "value": st.just("yes"),
                    "effect": st.sampled_from(["NoExecute", "NoSchedule"]),
                    "tolerationSeconds": st.just(5),
                },
            ),
            max_size=2,
        ),
    ),
    st.tuples(
        st.just("engine.weights"),
        st.sampled_from(
            [{}, {"cache": {"hostPath": "/m"}}, {"cache": {"hostPath": "/m", "persistentVolumeClaim": "m"}}]
        ),
    ),
    st.tuples(st.sampled_from(["engine.resources", "engine.capacity", "engine.maxReplicas"]), st.just(...)),
    st.tuples(st.just("strategy"), st.sampled_from([{}, BLUE_GREEN, {"shadow": {}}, {"ab": {"weight": 100}}])),
)  # fmt: skip

ONLY_WHOLE = "a whole number that is written as a string: local files may, the resource may not"


@needs_rules
@settings(max_examples=250, deadline=None)
@given(st.lists(CHANGES, max_size=3))
def test_the_resource_and_the_reader_accept_the_same(changes: list[tuple[str, Any]]) -> None:
    spec = FULL
    for path, value in changes:
        try:
            spec = changed(path, value, spec)
        except (KeyError, IndexError, TypeError):
            continue  # a change before took away what this one is about
    admitted, read, why = True, True, ""
    try:
        kept = admit(spec)
    except Refused:
        admitted = False
    try:
        parse_spec(spec)
    except InvalidSpec as error:
        read, why = False, str(error)
    if admitted and not read:
        assert "maxDuration" in why, f"what is let in must be readable: {why}"
        assert re.search(r"'[0-9.]+d'|ms|\.[0-9]", str(spec["strategy"])), "only days and fractions are the reader's"
    elif admitted:
        assert parse_spec(kept) == parse_spec(spec), "what was filled in must mean nothing"
    elif read:
        assert _whole_as_text(spec), f"refused without need: {spec}"


def _whole_as_text(spec: dict[str, Any]) -> bool:
    """Whether some whole number is written as a string: files may do that, the resource may not."""
    canary = spec.get("strategy", {}).get("canary", {})
    whole = [*spec["engine"].values(), spec.get("revisionHistoryLimit"), canary.get("holdbackPercent")]
    whole += [canary.get("soakRequests"), *(s.get("weight") for s in canary.get("steps", ()))]
    return any(isinstance(value, str) and value.isdigit() for value in whole)
