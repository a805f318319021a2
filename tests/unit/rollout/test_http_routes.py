"""HTTPRoutes: what is written of them, and when a Gateway has taken it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from rollout.traffic_routers.http_routes import (
    NotRoutable,
    accepted_by,
    backends,
    has_backends,
    refusal,
    with_backends,
)
from serving.traffic import ModelTraffic, RevisionTraffic, Role
from tests.kubernetes.gateways import a_route

REFS = [
    {"kind": "Service", "name": "old", "port": 8000, "weight": 90},
    {"kind": "Service", "name": "new", "port": 8000, "weight": 10},
]


def traffic(new: str = "service://here/new:8000", **more: Any) -> ModelTraffic:
    arms = ((Role.STABLE, 90, "service://here/old:8000"), (Role.CANARY, 10, new))
    revisions = tuple(
        RevisionTraffic(digest="a" * 64, version="1.0.0", role=r, weight=w, application=str(r), endpoints=at)
        for r, w, at in arms
    )
    return ModelTraffic(model="chat", salt="s", revisions=revisions, **more)


def test_backends_are_the_services_of_the_table() -> None:
    assert backends(traffic(), "here") == REFS
    elsewhere = backends(traffic("service://there/new:8000"), "here")[1]
    assert elsewhere["namespace"] == "there", "and a ReferenceGrant is its owner's to give"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (traffic(""), "engine.workloadRef"),
        (traffic("ray://a-head-svc.here.svc:8265"), "use our gateways"),
        (traffic(mirror_percent=5), "mirrors nothing"),
    ],
)
def test_what_a_route_cannot_do_is_said(given: ModelTraffic, complaint: str) -> None:
    with pytest.raises(NotRoutable, match=complaint):
        backends(given, "here")


def test_nothing_else_of_a_route_is_changed() -> None:
    route = a_route("chat")
    other = {"matches": [{"path": {"value": "/health"}}], "backendRefs": [{"name": "status", "port": 80}]}
    named = {"name": "tidegate", "matches": [], "backendRefs": []}
    route["spec"]["rules"] += [other, named]
    before = copy.deepcopy(route)
    rules = with_backends(route, REFS)
    assert route == before
    assert rules[:2] == before["spec"]["rules"][:2]
    assert rules[2] == {**named, "backendRefs": REFS}
    first = with_backends(a_route("chat"), REFS)[0]
    assert first["backendRefs"] == REFS
    assert first["timeouts"] == {"request": "600s"}, "the owner's"
    with pytest.raises(NotRoutable, match="has no rule"):
        with_backends({"metadata": {"name": "chat"}, "spec": {}}, REFS)


@pytest.mark.parametrize(
    ("live", "same"),
    [
        (REFS, True),
        ([{"group": "", **ref} for ref in REFS], True),  # defaults that the API server adds
        (REFS[::-1], False),
        (REFS[:1], False),
        ([REFS[0], REFS[1] | {"weight": 11}], False),
        ([REFS[0], {k: v for k, v in REFS[1].items() if k != "weight"}], False),
    ],
)
def test_whether_a_route_is_as_wanted(live: list, same: bool) -> None:
    route = a_route("chat")
    route["spec"]["rules"][0]["backendRefs"] = live
    assert has_backends(route, REFS) is same


def taken(generation: int = 2, parents: int = 1, **conditions: tuple[str, int]) -> dict:
    route = a_route("chat", ["public", "private"][:parents] if parents else ["public"])
    route["metadata"]["generation"] = generation
    told = [
        {"type": kind, "status": status, "observedGeneration": at, "reason": kind, "message": "m"}
        for kind, (status, at) in conditions.items()
    ]
    route["status"] = {"parents": [{"conditions": told} for _ in range(parents)]}
    return route


@pytest.mark.parametrize(
    ("route", "gateways", "refused"),
    [
        (taken(Accepted=("True", 2), ResolvedRefs=("True", 2)), 1, ""),
        (taken(parents=2, Accepted=("True", 2), ResolvedRefs=("True", 2)), 2, ""),
        (taken(Accepted=("True", 1), ResolvedRefs=("True", 1)), None, ""),  # of the weights before
        (taken(Accepted=("True", 2), ResolvedRefs=("True", 1)), None, ""),
        (taken(Accepted=("True", 2)), None, ""),
        (taken(Accepted=("True", 2), ResolvedRefs=("False", 2)), None, "ResolvedRefs: m"),
        (taken(Accepted=("False", 2), ResolvedRefs=("True", 2)), None, "Accepted: m"),
        (taken(parents=0), None, ""),
        (a_route("chat") | {"metadata": {"name": "chat", "generation": 1}}, None, ""),
    ],
)
def test_when_a_gateway_has_taken_it(route: dict, gateways: int | None, refused: str) -> None:
    assert accepted_by(route) == gateways
    assert refusal(route) == refused


def test_one_gateway_of_two_is_not_all() -> None:
    route = taken(parents=2, Accepted=("True", 2), ResolvedRefs=("True", 2))
    route["status"]["parents"].pop()
    assert accepted_by(route) is None
