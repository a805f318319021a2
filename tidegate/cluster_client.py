"""The command line's client of a cluster: what it does on one machine through the control plane, it does by resources.

Deployments and verbs are written into ModelDeployments and read back from their status, so that whoever may write the
resource needs no key of the control plane. What only the event log knows (history, explain, replay, keys, usage) is
asked of the controller through a port-forward, with the key in `$TIDEGATE_KEY`.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Protocol, TypeVar

import httpx

from rollout.commands import Verb
from rollout.errors import ClusterError, ClusterUnavailable, RolloutError, UnknownRollout
from rollout.operator.documents import ConditionType, Handled, Outcome
from rollout.operator.remote import Remote
from rollout.operator.resource import Resource
from tidegate.client import ControlClient, Order, Place, user_name
from tidegate.errors import ControlError, ControlUnavailable
from tidegate.replies import CommandReply, DecisionReply, ModelStatus, RolloutStatus

T = TypeVar("T")

POLL_S = 1.0
REFUSALS = frozenset({
    "InvalidSpec", "ModelNameTaken", "VersionNotFound", "VersionUnusable", "RegistryUnavailable", "Quarantined",
    "InsufficientCapacity", "WorkloadRejected",
})  # fmt: skip
"""Reasons of the condition Progressing for which nothing was started."""


class ClusterClient(ControlClient):
    """A ControlClient over the resources of one namespace.

    Args:
        remote: the resources.
        dial: opens a connection to the controller's API, for what the resources do not say.
        token: the key for that API.
        actor: who asks; goes into the event log.
        release: the namespace in which that controller is; else the resources'.

    """

    def __init__(
        self, remote: Remote, dial: Callable[[], Connection], token: str = "", actor: str = "", release: str = ""
    ) -> None:
        super().__init__("http://controller", token, actor, transport=_Forwarded(dial))
        at = release or remote.namespace
        logs = f"`kubectl logs -n {at} -l app.kubernetes.io/component=controller`"
        self._place = Place(
            name=f"the controller in namespace {at}",
            if_away=f"{logs} shows why",
            if_key_unknown=(
                "put one into TIDEGATE_KEY that it does: the release's own is in its Secret RELEASE-control, entry "
                "`token`, and with that `tidegate key create --role` makes others"
            ),
            log=logs,
        )
        self._remote = remote
        self._actor = actor or user_name()

    # ------------------------------------------------------------------------------------------------ questions

    def models(self) -> tuple[ModelStatus, ...]:
        """See `ControlClient`."""
        return tuple(
            ModelStatus(model=s.model, stable=s.stable, canary=s.canary, phase=s.phase) for s in self.rollouts()
        )

    def rollouts(self) -> tuple[RolloutStatus, ...]:
        """See `ControlClient`."""
        return tuple(status_of(r) for r in _told(self._remote.all))

    def rollout(self, model: str) -> RolloutStatus:
        """See `ControlClient`."""
        return status_of(_told(lambda: self._remote.of(model)))

    def events(self, model: str | None = None) -> Iterator[RolloutStatus]:
        """See `ControlClient`. The resources are looked at once a second."""
        seen: dict[str, RolloutStatus] = {}
        while True:
            for status in self.rollouts() if model is None else (self.rollout(model),):
                if seen.get(status.model) != status:
                    seen[status.model] = status
                    yield status
            time.sleep(POLL_S)

    # ------------------------------------------------------------------------------------------------- commands

    def deploy(self, spec: Mapping[str, Any], *, reason: str = "", dry_run: bool = False) -> CommandReply:
        """See `ControlClient`. The reason is not kept: a resource says what should be, not why."""
        model = str(spec.get("model"))
        try:
            before: Resource | None = self._remote.of(model)
        except UnknownRollout:
            before = None
        except ClusterError as error:
            raise _refusal(error) from None
        after = _told(lambda: self._remote.wish(spec, dry_run=dry_run))
        if dry_run:
            return CommandReply(
                plan={"reason": f"apply modeldeployment {after.key.name}", "changes": _changes(before, after)}
            )
        taken = _told(lambda: self._remote.taken(after))
        progressing = taken.status.condition(ConditionType.PROGRESSING)
        if progressing is not None and progressing.reason in REFUSALS:
            raise ControlError(progressing.message, code=progressing.reason, status=409)
        told = taken.status.handled(Verb.DEPLOY)
        refused = told is not None and told.id == taken.wish and told.outcome is Outcome.REFUSED
        said = told.message if told is not None and refused else taken.status.reason
        return CommandReply(decision=DecisionReply(cause="command", reason=said), status=status_of(taken))

    def _say(self, model: str, verb: str, order: Order) -> CommandReply:
        """Annotate, and wait for what becomes of it. How soon the gateways follow is in `observedWeight`."""
        resource = _told(lambda: self._remote.of(model))
        if order.dry_run:
            where = f"{resource.key.namespace}/{resource.key.name}"
            return CommandReply(plan={"reason": f"annotate modeldeployment {where} with tidegate.dev/{verb}"})
        said = {"reason": order.reason, "to": order.version, "full": order.full, "by": self._actor}
        handled = _told(lambda: self._remote.say(resource, Verb(verb), said))
        now = status_of(_told(lambda: self._remote.of(model)))
        return CommandReply(decision=_decision(handled, verb, now), status=now)


def _decision(handled: Handled | None, verb: str, now: RolloutStatus) -> DecisionReply:
    if handled is None:
        return DecisionReply(cause="command", reason=f"{verb}: {now.model} is {now.phase} at {now.weight} %")
    if handled.outcome is Outcome.REFUSED:
        raise ControlError(handled.message, code="refused", status=409)
    return DecisionReply(cause="command", reason=handled.message)


def _told(call: Callable[[], T]) -> T:
    try:
        return call()
    except RolloutError as error:
        raise _refusal(error) from None


def _refusal(error: RolloutError) -> ControlError:
    if isinstance(error, ClusterUnavailable):
        return ControlUnavailable(str(error), code="unavailable")
    return ControlError(str(error), status=404 if isinstance(error, UnknownRollout) else 409)


def status_of(resource: Resource) -> RolloutStatus:
    """A resource's status in the words of the control plane. What a resource does not tell is left out."""
    told = resource.status
    progressing, rolled_back = (told.condition(k) for k in (ConditionType.PROGRESSING, ConditionType.ROLLED_BACK))
    return RolloutStatus.model_validate(
        {
            "model": resource.model,
            "phase": told.phase,
            "strategy": told.strategy,
            "stable": told.stable,
            "canary": told.canary,
            "weight": told.weight,
            "observed_weight": told.observed_weight,
            "step": told.step,
            "steps": [{"weight": 0}] * told.steps,
            "stage": told.stage,
            "reason": told.reason,
            "waiting_for": progressing.message if progressing is not None and told.canary is not None else "",
            "cause": told.waiting_for,
            "signals": [_signal(s.model_dump()) for s in told.signals],
            "started_at": _seconds(told.started_at),
            "updated_at": _seconds(told.finished_at or told.started_at),
            "rollout": told.rollout,
            "target": told.target,
            "previous": told.previous,
            "kept": told.kept,
            "awaits": told.awaits,
            "quarantine": dict.fromkeys(told.quarantined, rolled_back.message if rolled_back is not None else ""),
            "quarantined_versions": {v: v for v in told.quarantined},
            "retiring": [{"version": v} for v in told.draining],
        }
    )


def _signal(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": told["name"],
        "verdict": told["verdict"],
        "canary": {"events": told["canary_events"], "n": told["canary_requests"]},
        "stable": {"events": told["stable_events"], "n": told["stable_requests"]},
        "log_e": float(told["log_e"] or 0),
        "threshold": float(told["threshold"] or 0),
    }


def _seconds(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None


def _changes(before: Resource | None, after: Resource) -> list[str]:
    """What an apply would change of the spec, a line for each field."""
    was = before.spec.model_dump(mode="json", by_alias=True) if before is not None and before.spec is not None else {}
    now = after.spec.model_dump(mode="json", by_alias=True) if after.spec is not None else {}
    found = [
        f"{k}: {was.get(k)} -> {now[k]}" for k in now if was.get(k) != now[k] and not isinstance(now[k], dict | list)
    ]
    found += [f"{k} changes" for k in now if was and was.get(k) != now[k] and isinstance(now[k], dict | list)]
    return found if before is not None else [f"makes modeldeployment {after.key.name}"]


class Connection(Protocol):
    """What `http.client` needs of a socket; a socket is one."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of it."""

    def makefile(self, mode: Any, /) -> Any:  # noqa: ANN401 - a file object of whatever kind
        """What is received."""

    def close(self) -> None:
        """End it."""


class _Forwarded(httpx.BaseTransport):
    """HTTP over connections that somebody else opens, one for each request."""

    def __init__(self, dial: Callable[[], Connection]) -> None:
        self._dial = dial

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request, read its whole answer."""
        connection = http.client.HTTPConnection("controller")
        try:
            connection.sock = self._dial()
            headers = {k: v for k, v in request.headers.items() if k.lower() not in ("connection", "accept-encoding")}
            path = request.url.raw_path.decode()
            connection.request(
                request.method, path, body=request.read() or None, headers={**headers, "Connection": "close"}
            )
            answer = connection.getresponse()
            return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read(), request=request)
        except ClusterError as error:
            raise _refusal(error) from None
        except TimeoutError as error:
            raise httpx.ReadTimeout(str(error), request=request) from error
        except (OSError, http.client.HTTPException) as error:
            raise httpx.ConnectError(str(error), request=request) from error
        finally:
            connection.close()
