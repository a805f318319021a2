"""Who can reach whom under the chart's NetworkPolicies, by an evaluator that follows their documented meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from tests.unit.helm.charts import SETS, Object, objects, pods, values_of

EVERY = ["", *SETS]


class Peer(NamedTuple):
    namespace: str
    labels: Mapping[str, str]


OWN = {"app.kubernetes.io/name": "tidegate", "app.kubernetes.io/instance": "r"}
ENGINE = {"app.kubernetes.io/managed-by": "tidegate", "tidegate.dev/release": "r"}


def part(component: str) -> Peer:
    return Peer("models", {**OWN, "app.kubernetes.io/component": component})


def engine(namespace: str = "models") -> Peer:
    return Peer(namespace, ENGINE)


STRANGER = Peer("models", {"app": "stranger"})
PROMETHEUS = Peer("monitoring", {"app": "prometheus"})
KUBERAY = Peer("kuberay-system", {"app": "kuberay"})
ELSEWHERE = Peer("", {})
"""An address outside of the cluster, or the API server's."""


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_peer(peer: Mapping[str, Any], who: Peer, policy_namespace: str) -> bool:
    if "ipBlock" in peer:
        return who is ELSEWHERE
    if who is ELSEWHERE:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": who.namespace}):
            return False
    elif who.namespace != policy_namespace:
        return False
    return selects(peer.get("podSelector", {}), who.labels)


def has_port(rule: Mapping[str, Any], port: int) -> bool:
    ports = rule.get("ports")
    return ports is None or any(p["port"] <= port <= p.get("endPort", p["port"]) for p in ports)


def one_way(found: tuple[Object, ...], at: Peer, other: Peer, port: int, kind: str) -> bool:
    """Whether the policies at one end let it pass: no policy lets all pass, several add up.

    As in a cluster, a rule without peers, be it an empty list of them, is for everybody.
    """
    policies = [
        o
        for o in found
        if o["kind"] == "NetworkPolicy"
        and o["metadata"]["namespace"] == at.namespace
        and kind.capitalize() in o["spec"]["policyTypes"]
        and selects(o["spec"]["podSelector"], at.labels)
    ]
    side = "from" if kind == "ingress" else "to"
    return not policies or any(
        has_port(rule, port)
        and (not rule.get(side) or any(is_peer(p, other, o["metadata"]["namespace"]) for p in rule[side]))
        for o in policies
        for rule in o["spec"].get(kind, [])
    )


def reaches(found: tuple[Object, ...], source: Peer, target: Peer, port: int) -> bool:
    return one_way(found, source, target, port, "egress") and one_way(found, target, source, port, "ingress")


@pytest.mark.parametrize("name", EVERY)
def test_what_is_needed_passes(name: str) -> None:
    found = objects(name)
    components = {about["labels"]["app.kubernetes.io/component"] for _, about, _ in pods(found)}
    needed = [
        (part("gateway"), part("controller"), 8080),
        (part("gateway"), engine(), 8265),
        (part("gateway"), engine(), 30000),
        (part("controller"), part("gateway"), 8000),
        (part("controller"), engine(), 8265),
        (part("controller"), ELSEWHERE, 5432),
        (part("test"), part("gateway"), 8001),
        (part("test"), part("controller"), 8080),
        (PROMETHEUS, part("gateway"), 8001),
        (PROMETHEUS, part("controller"), 8080),
        (PROMETHEUS, engine(), 8080),
        (PROMETHEUS, engine(), 30000),
        (KUBERAY, engine(), 8265),
        (engine(), engine(), 6379),
        (engine(), ELSEWHERE, 443),
        (part("gateway"), part("drift"), 8091),
        (part("controller"), part("drift"), 8090),
        (part("test"), part("drift"), 8090),
        (PROMETHEUS, part("drift"), 8090),
    ]
    if name != "external-everything":
        needed += [(part("controller"), ELSEWHERE, 6443), (part("first-secrets"), ELSEWHERE, 443)]
    else:
        needed += [(part("gateway"), ELSEWHERE, 14318), (engine(), ELSEWHERE, 14318)]
    if "probes" in components:
        needed += [(part("probes"), part("controller"), 8080), (part("probes"), part("gateway"), 8000)]
        needed += [(part("probes"), part("mlflow"), 5000)] if "mlflow" in components else []
    if "guardrails" in components:
        needed += [(part(p), part("guardrails"), 8092) for p in ("gateway", "test")]
    if "mlflow" in components:
        needed += [(part("controller"), part("mlflow"), 5000), (engine(), part("mlflow"), 5000)]
    if "postgresql" in components:
        needed += [(part("controller"), part("postgresql"), 5432), (part("mlflow"), part("postgresql"), 5432)]
    if "redis" in components:
        needed += [(engine(), part("redis"), 6379)]
    if name == "ha":
        needed += [
            (p, Peer("observability", {}), 4317) for p in (part("gateway"), part("controller"), engine("team-a"))
        ]
        needed += [(PROMETHEUS, engine("team-a"), 8080)]
        needed += [(part("gateway"), engine("team-a"), 8265), (engine("team-b"), part("redis"), 6379)]
    client = Peer("ingress", {"app": "nginx"}) if name == "external-everything" else STRANGER
    needed += [(client, part("gateway"), 8000)]
    assert [n for n in needed if not reaches(found, *n)] == []


@pytest.mark.parametrize("name", EVERY)
def test_nothing_else_does(name: str) -> None:
    found = objects(name)
    forbidden = [
        (STRANGER, part("controller"), 8080),
        (STRANGER, part("gateway"), 8001),
        (STRANGER, part("mlflow"), 5000),
        (STRANGER, part("postgresql"), 5432),
        (STRANGER, part("redis"), 6379),
        (STRANGER, engine(), 8265),
        (STRANGER, engine(), 30000),
        (Peer("elsewhere", part("gateway").labels), part("controller"), 8080),
        (Peer("elsewhere", part("gateway").labels), engine(), 30000),
        (engine(), part("controller"), 8080),
        (engine(), part("postgresql"), 5432),
        (part("gateway"), part("postgresql"), 5432),
        (part("gateway"), ELSEWHERE, 443) if name != "ha" else (part("gateway"), part("mlflow"), 8001),
        (part("postgresql"), ELSEWHERE, 443),
        (part("redis"), ELSEWHERE, 443),
        (part("mlflow"), part("controller"), 8080),
        *(
            (source, part("drift"), 8091)
            for source in (STRANGER, engine(), PROMETHEUS, part("controller"), part("test"))
        ),
        (STRANGER, part("drift"), 8090),
        (engine(), part("drift"), 8090),
        (STRANGER, part("guardrails"), 8092),
        (part("controller"), part("guardrails"), 8092),
        *(
            (part(source), target, port)
            for source in ("drift", "guardrails")
            for target, port in ((ELSEWHERE, 443), (part("controller"), 8080), (part("gateway"), 8000), (ELSEWHERE, 53))
        ),
    ]
    if name == "external-everything":
        forbidden += [(STRANGER, part("gateway"), 8000)]
    there = {about["labels"]["app.kubernetes.io/component"] for _, about, _ in pods(found)} | {None}
    asked = [f for f in forbidden if f[1].labels.get("app.kubernetes.io/component") in there or f[1] is ELSEWHERE]
    assert [f for f in asked if reaches(found, *f)] == []


def test_addresses_that_a_value_names_are_reached_whatever_their_port() -> None:
    outside = {
        "mlflow": {"enabled": False, "trackingUri": "http://mlflow.example.com:5001"},
        "redis": {"address": "redis.example.com:6380"},
        "controller": {"prometheusUrl": "http://prometheus.monitoring.svc:9090/select/0"},
        "networkPolicy": {"engineEgress": [], "controllerEgress": []},
    }
    found = objects(outside)
    needed = [(engine(), 6380), (engine(), 5001), (part("controller"), 5001), (part("controller"), 9090)]
    assert [n for n in needed if not one_way(found, n[0], ELSEWHERE, n[1], "egress")] == []
    refused = [(part("controller"), 6380), (engine(), 9090), (part("gateway"), 5001), (engine(), 22)]
    assert not any(one_way(found, at, ELSEWHERE, port, "egress") for at, port in refused)
    plain = objects(
        {
            "mlflow": {"enabled": False, "trackingUri": "https://mlflow.example.com"},
            "networkPolicy": {"engineEgress": [], "controllerEgress": []},
        }
    )
    assert one_way(plain, engine(), ELSEWHERE, 443, "egress")


def test_with_policies_off_all_is_open_and_each_layer_holds_alone() -> None:
    found = objects({"networkPolicy": {"enabled": False}})
    assert not any(o["kind"] == "NetworkPolicy" for o in found)
    way = (STRANGER, part("postgresql"), 5432)
    assert reaches(found, *way)

    def without(*names: str) -> tuple[Object, ...]:
        return tuple(
            o for o in objects("minimal") if o["kind"] != "NetworkPolicy" or o["metadata"]["name"] not in names
        )

    assert not reaches(without("r-default-deny"), *way)
    assert not reaches(without("r-postgresql"), *way)
    assert reaches(without("r-default-deny", "r-postgresql"), *way)


@pytest.mark.parametrize("name", EVERY)
def test_every_service_leads_to_a_port_of_a_pod(name: str) -> None:
    found = objects(name)
    for service in (o for o in found if o["kind"] == "Service"):
        selector = dict(service["spec"]["selector"])
        selector.pop("tidegate.dev/leader", None)
        targets = [spec for _, about, spec in pods(found) if selector.items() <= about["labels"].items()]
        assert len(targets) == 1, service["metadata"]["name"]
        names = {port["name"] for container in targets[0]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_nobody_beside_the_release_may_be_named() -> None:
    """An empty list of peers leaves the release's own, and a manifest that can still be read."""
    empty = {"monitoringFrom": [], "kuberayFrom": [], "controllerFrom": []}
    for name in SETS:
        nobody = {**values_of(name), "networkPolicy": empty}
        rules = [
            rule
            for policy in objects(nobody)
            if policy["kind"] == "NetworkPolicy"
            for rule in policy["spec"].get("ingress") or ()
            if "from" in rule
        ]
        assert rules
        # Without any peer in it a rule would let everybody in.
        assert all(rule["from"] and all("podSelector" in peer for peer in rule["from"]) for rule in rules)
    traced = {"tracing": {"endpoint": "http://collector.observability.svc:4317"}}
    sending = [part("gateway"), part("controller"), engine()]
    untraced = objects({**traced, "networkPolicy": {"tracingTo": []}})
    assert not any(one_way(untraced, at, ELSEWHERE, 4317, "egress") for at in sending)
    everywhere = objects({**traced, "networkPolicy": {"tracingTo": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}})
    assert all(one_way(everywhere, at, ELSEWHERE, 4317, "egress") for at in sending)
