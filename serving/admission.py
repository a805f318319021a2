"""Admit a request or reject it with one of a closed set of reasons, and pick its revision. Pure.

The pick is where an experiment is made or spoilt (analysis.md, section 1): a unit is randomised only among arms
that could serve it, by the keyed hash of `serving.traffic`. Whatever leaves no choice (a pinned version, a weight
of 0 or 100, an arm without endpoints, an expired lease) is *forced* and carries no evidence.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from serving.traffic import Generation, ModelTraffic, RevisionTraffic, Role, assigned_role


class Reason(enum.StrEnum):
    """Why a request was rejected before it was sent to any engine. A closed set: it is a metric's label."""

    BODY_TOO_LARGE = "body_too_large"
    INVALID_JSON = "invalid_json"
    INVALID_REQUEST = "invalid_request"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_NOT_READY = "model_not_ready"
    PROMPT_REFUSED = "prompt_refused"
    UNKNOWN_URL = "unknown_url"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    MALFORMED_HTTP = "malformed_http"
    """No HTTP request that is read here, or one that did not come in time."""
    TOO_MANY_CONNECTIONS = "too_many_connections"
    INTERNAL_ERROR = "internal_error"
    """The gateway itself failed: a defect of it, never the caller's fault."""
    INVALID_API_KEY = "invalid_api_key"
    """No key, one that nobody issued, or one that has expired or was revoked."""
    UNKNOWN_REQUEST = "unknown_request"
    """A vote on a request that this key did not make, or that no gateway of this platform answered."""
    ALREADY_RATED = "already_rated"
    NOT_PERMITTED = "not_permitted"
    """The key lacks a scope, or may not ask this model."""
    RATE_LIMITED = "rate_limited"
    """The key's requests per minute are used up."""
    TOKEN_RATE_LIMITED = "token_rate_limited"  # noqa: S105 - tokens of text
    """The key's tokens per minute are used up."""
    CONCURRENCY_LIMITED = "concurrency_limited"
    """The key has as many requests under way as it may."""
    NAMESPACE_RATE_LIMITED = "namespace_rate_limited"
    """What all keys of the namespace may ask for in a minute is used up; the next two likewise."""
    NAMESPACE_TOKEN_RATE_LIMITED = "namespace_token_rate_limited"  # noqa: S105 - tokens of text
    NAMESPACE_CONCURRENCY_LIMITED = "namespace_concurrency_limited"
    KEYS_UNAVAILABLE = "keys_unavailable"
    """The gateway itself has no keys yet, or only ones that are too old to be trusted."""
    QUEUE_FULL = "queue_full"
    OVERLOADED = "overloaded"
    """Shed while the queue fills up, lowest priority first."""
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    """It could not be answered within its time limit, so it is not begun."""
    CONTENT_FILTERED = "content_filtered"
    """The version's guardrail policy blocks the prompt, or can't check what is asked."""
    GUARDRAIL_UNAVAILABLE = "guardrail_unavailable"
    """A check of the policy could not run, and the policy fails closed."""
    GUARDRAIL_OVERLOADED = "guardrail_overloaded"
    """Too much waits for a check that the policy needs."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that is not served: the reason, a message for the client, and when to come back."""

    reason: Reason
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Further headers of the answer, OpenAI's `x-ratelimit-*` for instance; names in lower case."""


_CANARY: Final = Role.CANARY
_STABLE: Final = Role.STABLE


@dataclass(frozen=True, slots=True)
class Route:
    """One model's traffic, laid out for the hot path."""

    traffic: ModelTraffic
    generation: Generation
    stable: RevisionTraffic | None
    canary: RevisionTraffic | None
    weight: int
    """The canary's weight in percent, 0 without a canary."""

    @property
    def model(self) -> str:
        """The registered model's name."""
        return self.traffic.model


def route_of(traffic: ModelTraffic, generation: Generation) -> Route:
    """Lay out one model's traffic of a table of this generation."""
    canary = traffic.by_role(_CANARY)
    weight = canary.weight if canary is not None else 0
    return Route(traffic, generation, traffic.by_role(_STABLE), canary, weight)


@dataclass(slots=True, init=False)
class Pick:
    """The revision that a request is for. `evidence` is true when chance, and nothing else, chose it."""

    route: Route
    revision: RevisionTraffic
    evidence: bool
    pinned: bool
    watched: bool
    """There was no other arm, and the table asks to tell of it all the same: evidence for an absolute objective."""

    def __init__(
        self, route: Route, revision: RevisionTraffic, evidence: bool, pinned: bool = False, watched: bool = False
    ) -> None:
        self.route = route
        self.revision = revision
        self.evidence = evidence
        self.pinned = pinned
        self.watched = watched

    @property
    def counted(self) -> bool:
        """Whether its outcome is told to the controller as evidence of either kind."""
        return self.evidence or self.watched

    @property
    def weight(self) -> int:
        """The weight that it is told under: the canary's, or 100 where it had no other arm and is watched."""
        return 100 if self.watched else self.route.weight


@dataclass(slots=True)
class Availability:
    """What could serve now. `ready(application)`: an endpoint takes requests; `known`: one exists at all."""

    ready: Callable[[str], bool]
    known: Callable[[str], bool]
    lease_valid: bool


def is_tester(route: Route, fields: Mapping[bytes, bytes], key_id: str) -> bool:
    """Whether a rule of the table sends this request to the canary.

    Args:
        route: The model's traffic.
        fields: The request's headers by name, in lower case.
        key_id: The caller's key, "" for none.
    """
    for tester in route.traffic.testers:
        if tester.header is not None:
            value = fields.get(tester.header.encode())
            if value is not None and value.decode("utf-8", "replace") == tester.value:
                return True
        elif key_id and tester.key == key_id:
            return True
    return False


def choose(
    route: Route, version: str | None, unit: str, available: Availability, *, tester: bool = False
) -> Pick | Rejection:
    """Pick the revision of one request.

    Args:
        route: The model's traffic.
        version: The pinned version, or None.
        unit: The session, or a fresh random id.
        available: What could serve now.
        tester: Whether a rule sends it to the canary whatever its weight, while that is ready.

    Returns:
        The pick, or a rejection: an unknown version, or nothing ready.
    """
    if version is not None:
        return _pinned(route, version, available)
    stable, canary, weight = route.stable, route.canary, route.weight
    if tester and canary is not None and available.ready(canary.application):
        return Pick(route, canary, evidence=False)
    stable_ready = stable is not None and available.ready(stable.application)
    # A weight of 0 means "none", also while stable restarts: a canary that was taken back must not come back so.
    canary_ready = canary is not None and weight > 0 and available.ready(canary.application)
    if stable_ready and stable is not None and canary_ready and canary is not None:
        if not available.lease_valid:
            return Pick(route, stable, evidence=False)
        if weight >= 100:
            return Pick(route, canary, evidence=False)
        chosen = canary if assigned_role(route.traffic.salt, unit, weight) is _CANARY else stable
        return Pick(route, chosen, evidence=route.traffic.rollout is not None)
    if canary_ready and canary is not None:
        return Pick(route, canary, evidence=False)
    # Stable's endpoints may all be ejected for the moment: trying one is better than refusing everybody.
    if stable is not None and (stable_ready or available.known(stable.application)):
        return Pick(route, stable, evidence=False, watched=weight == 0 and route.traffic.watch)
    return not_ready(route.model)


def _pinned(route: Route, version: str, available: Availability) -> Pick | Rejection:
    revision = route.traffic.by_version(version)
    if revision is None:
        return model_not_found(f"{route.model}@{version}")
    if not available.known(revision.application):
        return not_ready(f"{route.model}@{version}")
    return Pick(route, revision, evidence=False, pinned=True)


def model_not_found(name: str) -> Rejection:
    """The rejection of a model or version that no table names."""
    shown = name if len(name) <= 128 else name[:128] + "..."
    return Rejection(
        Reason.MODEL_NOT_FOUND,
        f"The model `{shown}` does not exist or you do not have access to it. GET /v1/models lists what is served.",
        param="model",
    )


def not_ready(name: str) -> Rejection:
    """The rejection of a model that exists but has no endpoint at the moment."""
    return Rejection(
        Reason.MODEL_NOT_READY,
        f"The model `{name}` has no ready endpoint at the moment; try again in 1 s.",
        param="model",
        retry_after_s=1,
    )
