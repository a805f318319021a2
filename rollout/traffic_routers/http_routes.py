"""An HTTPRoute's part in a rollout: which backends with which weights, and whether its Gateway has taken them. Pure.

The route is somebody else's: they say hosts, paths and Gateway, and leave one rule's `backendRefs` to us. The rule is
the one named `tidegate`, else the first. Since `rules` is one value for server-side apply, all of it is written, as it
was read but for these backends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from serving.traffic import ModelTraffic

Route = Mapping[str, Any]

RULE = "tidegate"
_SERVICE = re.compile(r"^service://(?P<namespace>[^/]+)/(?P<name>[^:]+):(?P<port>[0-9]+)$")


class NotRoutable(Exception):
    """Traffic that an HTTPRoute can't divide; says why and the way out."""


def backends(traffic: ModelTraffic, namespace: str) -> list[dict[str, Any]]:
    """The weighted backends of a model, stable first.

    Args:
        traffic: the model's part of the table.
        namespace: the route's.

    Raises:
        NotRoutable: a revision is no Service, or the table asks for what a route can't do.

    """
    if traffic.mirror_percent:
        raise NotRoutable(f"{traffic.model}: an HTTPRoute mirrors nothing that could be judged; use our gateways")
    found = []
    for revision in traffic.revisions:
        service = _SERVICE.match(revision.endpoints)
        if service is None:
            raise NotRoutable(
                f"{traffic.model}@{revision.version} is no Service that a route could name: the traffic router "
                "gateway-api divides workloads given by engine.workloadRef; for all others use our gateways"
            )
        reference: dict[str, Any] = {"kind": "Service", "name": service["name"], "port": int(service["port"])}
        if service["namespace"] != namespace:
            reference["namespace"] = service["namespace"]
        found.append({**reference, "weight": revision.weight})
    return found


def with_backends(route: Route, refs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The route's rules with these backends in our rule.

    Raises:
        NotRoutable: it has no rule.

    """
    rules = [dict(rule) for rule in (route.get("spec") or {}).get("rules") or ()]
    if not rules:
        raise NotRoutable(f"HTTPRoute {route['metadata']['name']} has no rule; give it one, named {RULE} or the first")
    index = next((i for i, rule in enumerate(rules) if rule.get("name") == RULE), 0)
    rules[index]["backendRefs"] = [dict(ref) for ref in refs]
    return rules


def has_backends(route: Route, refs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether our rule of the route has exactly these backends, whatever defaults were added to each."""
    rules = (route.get("spec") or {}).get("rules") or ()
    if not rules:
        return False
    live = next((rule for rule in rules if rule.get("name") == RULE), rules[0]).get("backendRefs") or ()
    return len(live) == len(refs) and all(
        all(has.get(key, 1 if key == "weight" else None) == value for key, value in ref.items())
        for has, ref in zip(live, refs, strict=True)
    )


def accepted_by(route: Route) -> int | None:
    """How many Gateways have taken the route as it is now; None while one has not, or has refused it."""
    generation = route["metadata"].get("generation")
    parents = (route.get("status") or {}).get("parents") or ()
    wanted = len((route.get("spec") or {}).get("parentRefs") or ())
    if not parents or len(parents) < wanted:
        return None
    return len(parents) if all(_holds(p, generation) for p in parents) else None


def refusal(route: Route) -> str:
    """What a Gateway says against the route; empty when none does."""
    for parent in (route.get("status") or {}).get("parents") or ():
        for condition in parent.get("conditions") or ():
            if condition.get("type") in ("Accepted", "ResolvedRefs") and condition.get("status") == "False":
                return f"{condition.get('reason')}: {condition.get('message') or ''}".strip()
    return ""


def _holds(parent: Mapping[str, Any], generation: object) -> bool:
    conditions = {c.get("type"): c for c in parent.get("conditions") or ()}
    return all(
        conditions.get(kind, {}).get("status") == "True" and conditions[kind].get("observedGeneration") == generation
        for kind in ("Accepted", "ResolvedRefs")
    )
