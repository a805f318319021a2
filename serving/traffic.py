"""The traffic table: which revision gets which weight. Pure; the contract between rollout and serving.

The controller writes tables, gateways obey them. A table carries a generation `(fence, sequence)`: the fence is
the controller's leadership token, the sequence grows with each table of that leader. A gateway refuses a table
that is not newer than the one it has, so a controller that lost its leadership can't act any more.

Assignment is a keyed hash, `u = H(salt, unit) / 2^64`, canary when `u < weight`: sticky by construction, it moves
only the units that must move when the weight changes, and since the salt is a secret of the rollout no client
can aim at an arm (analysis.md, section 1).
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, NamedTuple, Self

from pydantic import Field, StringConstraints, model_validator

from serving.errors import InvalidTable
from serving.specs import Digest, Frozen, ModelName


class Role(enum.StrEnum):
    """What a revision is within its model's rollout."""

    STABLE = "stable"
    CANARY = "canary"


class Generation(NamedTuple):
    """Order of tables: compared as a pair, the fence first."""

    fence: int
    sequence: int


ENDPOINTS_PATTERN = r"^(ray://[a-z0-9.-]{1,253}:[0-9]{1,5}|service://[a-z0-9-]{1,63}/[a-z0-9.-]{1,253}:[0-9]{1,5})?$"


class RevisionTraffic(Frozen):
    """One revision's part of a model's traffic. `weight` is in percent of the model's new requests.

    `policy` is the SHA-256 of the version's guardrail policy, whose text is in the table; "" where it brings none.
    """

    digest: Digest
    version: str
    role: Role
    weight: Annotated[int, Field(ge=0, le=100)]
    application: str
    policy: str = ""
    endpoints: Annotated[
        str, StringConstraints(pattern=ENDPOINTS_PATTERN), Field(exclude_if=lambda value: not value)
    ] = ""
    """Where the gateways learn which engines answer for it: `ray://HOST:PORT`, a Ray dashboard; or
    `service://NAMESPACE/NAME:PORT`, a Service of the cluster. Empty: the one place that the gateway is configured
    with."""


class Tester(Frozen):
    """Whose requests go to the canary whatever its weight, while it is ready: a header with a value, or a key's id.

    Such requests had no choice of arm, so they carry no evidence.
    """

    header: Annotated[str, StringConstraints(to_lower=True, pattern=r"^[A-Za-z0-9-]{1,64}$")] | None = None
    value: Annotated[str, StringConstraints(max_length=256)] | None = None
    key: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.header is None) == (self.key is None) or (self.header is None) != (self.value is None):
            raise InvalidTable("a tester is a header with its value, or the id of a key; give one of the two")
        return self


class ModelTraffic(Frozen):
    """How one model's requests are divided: one stable revision, and at most one canary.

    `drains` lists applications that get no new requests but may still be answering; gateways keep their
    endpoints until the controller drops them from the table. `rollout` identifies the rollout whose evidence is
    being gathered; None means that nothing is being judged.

    `mirror_percent` of stable's requests are copied to the canary (a shadow; its answer never reaches a client).
    With `watch`, requests that could only go to stable are told as evidence too, at weight 100: for objectives of
    one revision, before and after a switch. `max_slowdown` is the factor by which a canary's latency may exceed
    stable's before it is an event. `judge` is the SHA-256 of the policy by which the answers of both arms are scored,
    its text in the table; "" where no signal needs one. `scores` are the scored signals that this rollout watches,
    without `score/`: a score costs a message for each answer, so gateways tell only those.

    `namespace` is whose model it is on a cluster: only that namespace's keys may ask it. Empty, as on the local
    platform and in tables of older controllers, it is everybody's.
    """

    model: ModelName
    salt: str
    rollout: str | None = None
    revisions: tuple[RevisionTraffic, ...]
    drains: tuple[RevisionTraffic, ...] = ()
    mirror_percent: Annotated[int, Field(ge=0, le=100)] = 0
    watch: bool = False
    max_slowdown: Annotated[float, Field(ge=1)] = 1.25
    testers: tuple[Tester, ...] = ()
    scores: tuple[str, ...] = ()
    judge: str = ""
    namespace: Annotated[str, StringConstraints(max_length=63), Field(exclude_if=lambda value: not value)] = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        roles = [r.role for r in self.revisions]
        if len(set(roles)) != len(roles):
            raise InvalidTable(f"model {self.model!r}: two revisions with one role in one table; send one of each")
        total = sum(r.weight for r in self.revisions)
        if self.revisions and total != 100:
            raise InvalidTable(f"model {self.model!r}: weights sum to {total}, not to 100; send them all again")
        return self

    def by_role(self, role: Role) -> RevisionTraffic | None:
        """The revision that has this role, or None."""
        return next((r for r in self.revisions if r.role is role), None)

    def by_version(self, version: str) -> RevisionTraffic | None:
        """The revision of a semantic version that still takes requests, or None."""
        return next((r for r in self.revisions if r.version == version), None)


class TrafficTable(Frozen):
    """All models' traffic at one generation. Applied as a whole, between two requests.

    `policies` has the text of every guardrail policy that a model or revision names, by its SHA-256: so that a revision
    and its policy come, are kept on disk and go together. Whoever uses a text compares it with its digest first.
    """

    fence: int
    sequence: int
    issued_at: float
    models: tuple[ModelTraffic, ...] = ()
    policies: Mapping[str, str] = Field(default_factory=dict)

    @property
    def generation(self) -> Generation:
        """This table's place in the order of tables."""
        return Generation(self.fence, self.sequence)

    def model(self, name: str) -> ModelTraffic | None:
        """The traffic of one model, or None when it is not served."""
        return next((m for m in self.models if m.model == name), None)


@lru_cache(maxsize=4096)
def unit_interval(salt: str, unit: str) -> float:
    """Map a unit (a session, or one request) to [0, 1), uniformly, keyed by the rollout's secret salt.

    The last few thousand are remembered, in memory only: a session comes again and again, and hashing costs ten times
    as much as looking it up.
    """
    keyed = _keyed(salt).copy()
    keyed.update(unit.encode())
    return int.from_bytes(keyed.digest(), "big") / 2.0**64


@lru_cache(maxsize=256)
def _keyed(salt: str) -> hashlib.blake2b:
    """The hash with its key taken in: copying it saves half of what starting anew costs."""
    return hashlib.blake2b(key=salt.encode()[:64], digest_size=8)


def assigned_role(salt: str, unit: str, canary_weight: int) -> Role:
    """The arm of a unit: canary exactly when its hash falls below the canary's weight (percent)."""
    return Role.CANARY if unit_interval(salt, unit) * 100.0 < canary_weight else Role.STABLE
