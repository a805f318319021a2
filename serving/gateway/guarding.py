"""Which guardrails are in force for which revision, and what they say of a request before an engine is asked.

A revision's policy comes with the traffic table, by its digest. A text that does not have its digest, or that this
gateway can't put in force (a plug-in that is not installed), makes the revision *unusable* here: it takes no requests
and is told to the controller as not ready, so a canary gets no traffic, rather than traffic without its checks.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from guardrails.chat_streams import Located
from guardrails.checks.base import Catalogue
from guardrails.enforcement import ActivePolicy, activate
from guardrails.errors import GuardrailError, InvalidPolicy
from guardrails.model_checks.base import ModelChecks
from guardrails.pipeline import Guardrails, asked
from guardrails.plugins import installed_catalogue
from guardrails.policies.shipped import Shipped, shipped_text
from guardrails.policy import parse_policy
from guardrails.streaming import Pending
from guardrails.verdicts import Direction, Hit, Verdict
from monitoring.instruments import GatewayInstruments
from serving.admission import Reason, Rejection
from serving.gateway.attempts import Call
from serving.gateway.config import InvalidConfig
from serving.gateway.guard_records import GuardRecord
from serving.gateway.guard_settings import GuardSettings
from serving.gateway.logs import log
from serving.openai_protocol import Operation, metered_body, parse_request
from serving.specs import digest_of_text
from serving.traffic import RevisionTraffic, TrafficTable

READABLE = (Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES, Operation.EMBEDDINGS)
"""Operations whose texts are found in prompt and answer."""

RETRY_AFTER_S = 1
POLICIES_KEPT = 64


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """One revision's guardrails. `digest` is "" for the gateway's default."""

    model: str
    version: str
    name: str
    digest: str
    guardrails: Guardrails
    holds_input: bool
    holds_output: bool
    models: frozenset[str]
    """Kinds of checks that models do and text waits for."""
    observed: tuple[Direction, ...]
    """What is looked at after the fact, since nothing waits for it."""
    holds: bool
    """Whether something has to wait for a verdict; otherwise it only observes."""

    def record(self) -> GuardRecord:
        """Where what is found in a request is written down."""
        return GuardRecord(self.name, self.digest)


class Guarding:
    """The guardrails of one gateway. Follows the traffic table; asked once for each request."""

    def __init__(
        self,
        settings: GuardSettings,
        models: ModelChecks,
        crowded: Callable[[str], bool],
        instruments: GatewayInstruments,
    ) -> None:
        """Begin.

        Args:
            settings: what they may cost.
            models: runs model checks.
            crowded: whether so much waits for a kind of check that no more should be let in.
            instruments: where verdicts are counted.

        Raises:
            InvalidConfig: the default policy can't be used.
        """
        self._settings = settings
        self._models = models
        self._crowded = crowded
        self._instruments = instruments
        self._active: dict[str, ActivePolicy] = {}
        self._in_force: dict[str, PolicyInForce] = {}
        self.unusable: dict[str, str] = {}
        """By application: why its policy can't be put in force here."""
        self.judges: dict[str, ActivePolicy] = {}
        """By digest: policies that score the answers of rollouts."""
        self.on_models: Callable[[frozenset[str]], None] = lambda _: None
        """Told which kinds of models are needed, so that they are loaded before a request waits for them."""
        self._default = _default_policy(settings.default_policy)

    # Tables

    def table_applied(self, table: TrafficTable) -> None:
        """Put the policies of a new table in force."""
        before, self._in_force = self._in_force, {}
        self.unusable, self.judges = {}, {}
        for model in table.models:
            for revision in (*model.drains, *model.revisions):
                known = before.get(revision.digest)
                if known is not None and known.version == revision.version:
                    self._in_force[revision.digest] = known
                else:
                    self._enforce(model.model, revision, table.policies)
            if model.judge:
                try:
                    self.judges[model.judge] = self._activated(model.judge, table.policies)
                except Exception as error:
                    log(logging.ERROR, "judge-unusable", model=model.model, digest=model.judge[:12], reason=_why(error))
        self._forget(table.policies)
        needed = {kind for policy in self._in_force.values() for kind in policy.models}
        needed |= {a.kind.name for judge in self.judges.values() for a in judge.output if a.is_model}
        self.on_models(frozenset(needed))

    def _enforce(self, model: str, revision: RevisionTraffic, texts: Mapping[str, str]) -> None:
        try:
            active = self._activated(revision.policy, texts) if revision.policy else self._default
        except Exception as error:  # of a plug-in, say: one policy's fault must not leave the others out of force
            self.unusable[revision.application] = _why(error)
            log(logging.ERROR, "policy-unusable", model=model, version=revision.version, reason=_why(error),
                way_out="register the version with a policy that this gateway can put in force")  # fmt: skip
            return
        if active is not None:
            self._in_force[revision.digest] = self._policy(model, revision, active)

    def _policy(self, model: str, revision: RevisionTraffic, active: ActivePolicy) -> PolicyInForce:
        def late(found: tuple[Located, ...]) -> None:
            for (_, check, verdict), n in Counter((0, f.finding.check, f.finding.verdict) for f in found).items():
                self._instruments.guardrail_verdicts(model, revision.version, check, "output", verdict.value, n)

        guardrails = Guardrails(active, self._models, report_late=late)
        every = (*active.input, *active.output)
        held = {side: guardrails.holds(side) for side in (Direction.INPUT, Direction.OUTPUT)}
        return PolicyInForce(
            model=model,
            version=revision.version,
            name=active.policy.name,
            digest=revision.policy,
            guardrails=guardrails,
            holds_input=held[Direction.INPUT],
            holds_output=held[Direction.OUTPUT],
            models=frozenset(check.kind.name for check in every if check.is_model and check.rule.holds),
            observed=tuple(side for side, waits in held.items() if not waits and active.checks(side)),
            holds=any(held.values()),
        )

    def _activated(self, digest: str, texts: Mapping[str, str]) -> ActivePolicy:
        known = self._active.get(digest)
        if known is None:
            text = texts.get(digest)
            if text is None or digest_of_text(text) != digest:
                found = "is not in the table" if text is None else f"has the digest {digest_of_text(text)[:12]}"
                raise InvalidPolicy([f"the policy {digest[:12]} {found}; the controller must send it again"])
            catalogue = _catalogue()
            known = self._active[digest] = activate(parse_policy(text, catalogue), catalogue)
        return known

    def _forget(self, texts: Mapping[str, str]) -> None:
        for digest in [d for d in self._active if d not in texts][:-POLICIES_KEPT]:
            del self._active[digest]

    # Requests

    def of(self, revision: RevisionTraffic) -> PolicyInForce | None:
        """The guardrails of a revision; None when nothing is looked at."""
        return self._in_force.get(revision.digest)

    def usable(self, application: str) -> bool:
        """Whether the policy of an application's revision is in force."""
        return application not in self.unusable

    async def admit(self, call: Call, policy: PolicyInForce, fields: Mapping[str, Any]) -> Rejection | None:
        """Check a prompt before an engine is asked: None lets it go on, perhaps with a changed body.

        Args:
            call: the request; its body is replaced where something was masked, and its unit gets a record.
            policy: that of the revision that is to answer.
            fields: the body, parsed.
        """
        unit = call.unit
        record = unit.guard = unit.guard or policy.record()
        if unit.operation not in READABLE:
            return Rejection(
                Reason.CONTENT_FILTERED,
                f"The guardrail policy `{policy.name}` can't check this endpoint, so it is closed for this model; use "
                "/v1/chat/completions, /v1/completions, /v1/responses or /v1/embeddings.",
            )
        crowded = next((kind for kind in sorted(policy.models) if self._crowded(kind)), None)
        if crowded is not None:
            record.check = crowded
            return Rejection(
                Reason.GUARDRAIL_OVERLOADED,
                f"Too many texts wait for the safety check `{crowded}`; try again in {RETRY_AFTER_S} s.",
                retry_after_s=RETRY_AFTER_S,
            )
        if not policy.holds_input:
            return None
        began = time.monotonic()
        result = await policy.guardrails.check_input(dict(fields))
        record.input, record.input_s = result.verdict, time.monotonic() - began
        record.add(Direction.INPUT, result.findings)
        self.count(policy, Direction.INPUT, record.worst(Direction.INPUT))
        call.prompt_language = result.language
        if result.verdict is Verdict.BLOCK:
            record.check = _blocking(result.findings)
            return Rejection(
                Reason.CONTENT_FILTERED,
                f"The prompt was stopped by the guardrail policy of this model (check: {record.check}). Change the "
                "prompt and try again.",
                param="prompt",
            )
        if result.verdict is Verdict.ERROR:
            record.check = result.failed_check or "guardrails"
            return unavailable(record.check)
        if result.verdict is Verdict.REDACT:
            call.fields = {**result.body, "model": unit.pick.route.model}
            body = written(call.fields)
            call.body = (metered_body(body, call.fields) or body) if call.metered else body
        return None

    @staticmethod
    def fields_of(call: Call) -> Mapping[str, Any]:
        """The body that the client sent, parsed once more."""
        request = parse_request(call.prompt)
        assert not isinstance(request, Rejection), "it was read before"
        return request.fields

    def count(self, policy: PolicyInForce, direction: Direction, worst: Mapping[str, Verdict]) -> None:
        """Count what each check of a policy said of one prompt, or of one answer: `worst` has those that found some."""
        names = (check.rule.name for check in policy.guardrails.active.checks(direction))
        for check, verdict in {**dict.fromkeys(names, Verdict.ALLOW), **worst}.items():
            self._instruments.guardrail_verdicts(policy.model, policy.version, check, direction.value, verdict.value)

    async def ask(self, pending: Pending) -> Sequence[Hit] | str:
        """A model's hits on a text that is looked at after the fact, or why there are none."""
        return await asked(self._models, pending)

    async def close(self) -> None:
        """Stop what still observes."""
        for policy in self._in_force.values():
            await policy.guardrails.close()
        await self._models.close()


def written(value: Mapping[str, Any]) -> bytes:
    """JSON again, also of what orjson refuses: numbers beyond 64 bits, half a surrogate pair."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


@cache
def _catalogue() -> Catalogue:
    """The checks that there are; packages are looked through once, which takes long for an event loop."""
    return installed_catalogue()


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, GuardrailError) else f"making its checks raised {type(error).__name__}"


def unavailable(check: str) -> Rejection:
    """What a client is told when a check could not run and the policy fails closed."""
    return Rejection(
        Reason.GUARDRAIL_UNAVAILABLE,
        f"A safety check ({check}) could not be run, and without it nothing is answered; try again in "
        f"{RETRY_AFTER_S} s.",
        retry_after_s=RETRY_AFTER_S,
    )


def _blocking(found: Iterable[Located]) -> str:
    blocked = (located.finding.check for located in found if located.finding.verdict is Verdict.BLOCK)
    return next(blocked, "guardrails")


def _default_policy(named: str) -> ActivePolicy | None:
    """The policy where a version brings none; None for `none`.

    Raises:
        InvalidConfig: it can't be read, or has faults.
    """
    if named == "none":
        return None
    try:
        text = shipped_text(Shipped(named)) if named in set(Shipped) else Path(named).read_text(encoding="utf-8")
        catalogue = _catalogue()
        return activate(parse_policy(text, catalogue), catalogue)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(
            f"default_policy {named!r} can't be read ({type(error).__name__}); give default, standard, none or the "
            "path of a policy"
        ) from None
    except GuardrailError as error:
        raise InvalidConfig(f"default_policy {named!r}: {error}") from None
