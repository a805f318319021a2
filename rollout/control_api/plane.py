"""What the routes act on: the controller, behind it the versions, and what every answer is made of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol

from rollout.access import sees
from rollout.accounts.base import AccountStore
from rollout.actions import Shift, SwitchBack, Withdraw
from rollout.commands import Command, Target, Verb, earlier_version
from rollout.control_api.authentication import Authenticator, Caller, Forbidden
from rollout.controller import Controller
from rollout.decision import Decision
from rollout.errors import CommandRefused, UnknownRollout
from rollout.reports import report
from rollout.specs import RolloutSpec
from rollout.status import ModelStatus
from rollout.traffic_routers.gateway import GatewayRouter
from rollout.versions import Versions
from serving.keys import KeyRecord, Quota

CONFIRM_LOOK_S = 0.001
"""How often it is looked whether the gateways have confirmed, while somebody waits for that."""


class Keys(Protocol):
    """Keys and quotas, as the controller keeps them."""

    async def put_key(self, record: KeyRecord) -> None:
        """Keep a new key or the new state of one, and tell every gateway."""
        ...

    def keys(self) -> tuple[KeyRecord, ...]:
        """Every key there is, revoked and expired ones too."""
        ...

    async def put_quota(self, quota: Quota) -> None:
        """Keep what the keys of a namespace may use together, and tell every gateway."""
        ...

    async def drop_quota(self, namespace: str) -> None:
        """Let a namespace have no quota, and tell every gateway."""
        ...

    def quotas(self) -> tuple[Quota, ...]:
        """Every quota there is."""
        ...


class KeyIndex:
    """The keys by id, made anew only when they have changed.

    Raises:
        NotLeading: (on a call) this controller has not read the keys, so that it can't say that one is unknown.

    """

    def __init__(self, controller: Controller, keys: Keys) -> None:
        self._controller = controller
        self._keys = keys
        self._of: tuple[KeyRecord, ...] = ()
        self._by_id: Mapping[str, KeyRecord] = {}

    def __call__(self) -> Mapping[str, KeyRecord]:
        """By id."""
        self._controller.require_leadership()
        found = self._keys.keys()
        if found is not self._of:
            self._of, self._by_id = found, {record.id: record for record in found}
        return self._by_id


class ControlPlane:
    """What the routes act on."""

    def __init__(
        self,
        *,
        controller: Controller,
        router: GatewayRouter,
        versions: Versions,
        keys: Keys,
        accounts: AccountStore,
        authenticator: Authenticator,
    ) -> None:
        self.controller = controller
        self.router = router
        self.versions = versions
        self.keys = keys
        self.accounts = accounts
        self.authenticator = authenticator

    def home(self, model: str) -> str:
        """The namespace of a model; "" outside a cluster, and for one that nobody has deployed."""
        try:
            return self.controller.status(model).namespace
        except UnknownRollout:
            return ""

    def seen_by(self, caller: Caller) -> tuple[ModelStatus, ...]:
        """The models that a caller may see."""
        return tuple(s for s in self.controller.statuses if sees(caller.namespace, s.namespace))

    def may_see(self, caller: Caller, model: str) -> bool:
        """Whether a caller may see a model, which need not exist."""
        return not caller.namespace or sees(caller.namespace, self.home(model))

    def require_known(self, caller: Caller, model: str) -> None:
        """Refuse a model that nobody has deployed, as `Controller.status` does, without names that are not theirs.

        Raises:
            UnknownRollout: there is none.

        """
        names = self.names_for(caller)
        if names is not None and model not in names:
            known = ", ".join(sorted(names)) or "none yet"
            raise UnknownRollout(
                f"model {model[:64]!r} was never deployed (deployed in {caller.namespace}: {known}); `tidegate deploy` "
                "does that"
            )

    def names_for(self, caller: Caller) -> frozenset[str] | None:
        """The names of these models, for who is bound to a namespace; None for who may see all."""
        return frozenset(s.model for s in self.seen_by(caller)) if caller.namespace else None

    def report(self, status: ModelStatus) -> dict[str, Any]:
        """A model's status document."""
        model = status.model
        seen = self.controller.observation(model)
        rollout = status.rollout if status.rollout is not None and status.rollout.active else None
        told = report(status, seen, self.controller.waiting_for(model))
        if self.controller.store_message:  # nothing is decided meanwhile, so what was waited for last is stale
            told |= {"waiting_for": f"holding, since the store is away: {self.controller.store_message}"}
        return told | {
            "gateways": seen.gateways,
            "endpoints": {d.version: seen.ready_endpoints.get(d.application, 0) for d in status.running()},
            "step_started_at": rollout.step_started_at if rollout is not None else None,
        }

    async def deploy(self, spec: RolloutSpec, command: Command, *, dry_run: bool) -> dict[str, Any]:
        """Resolve and verify the version, then start its rollout, in the namespace that the model has already.

        Raises:
            Forbidden: that is not the namespace which whoever said it is bound to.

        """
        version, deployed = await self.versions.resolve(spec, self.home(spec.model))
        bound = command.namespace
        # Asked again, after the wait: somebody else may have taken the name meanwhile.
        if not (sees(bound, deployed.namespace) and sees(bound, self.home(spec.model))):
            raise Forbidden(
                f"model {spec.model!r} would not live in namespace {bound}, which is the only one that {command.actor} "
                f"may command. A ModelDeployment makes a model there: `tidegate deploy -n {bound}`"
            )
        target = self.controller.new_target(spec, deployed, self.versions.judge(spec))
        answer = await self._carry_out(spec.model, command, target, dry_run=dry_run)
        if dry_run:
            answer["plan"] |= {"bump": version.bump, "bump_reason": version.bump_reason}
        return answer

    async def verb(self, model: str, command: Command, *, dry_run: bool, wait_s: float = 0.0) -> dict[str, Any]:
        """Carry out any other verb; with `wait_s` wait so long for the gateways to confirm that traffic has left."""
        target = await self.aim(model, command)
        return await self._carry_out(model, command, target, dry_run=dry_run, wait_s=wait_s)

    async def aim(self, model: str, command: Command) -> Target | None:
        """What the verb would have to start, if anything."""
        return await self._target(self.controller.status(model), command)

    async def _target(self, status: ModelStatus, command: Command) -> Target | None:
        rollout = status.rollout
        match command.verb:
            case Verb.RETRY:
                if rollout is None:
                    raise CommandRefused(
                        f"retry: {status.model} has no rollout to repeat; `tidegate deploy` starts one"
                    )
                return await self._target_of(rollout.spec, rollout.target.namespace)
            case Verb.UNDO:
                return self._earlier(status, command.version, emergency=False)
            case Verb.ROLLBACK if _must_start(status, command):
                return self._earlier(status, command.version, emergency=True)
            case _:
                return None

    def _earlier(self, status: ModelStatus, version: str | None, *, emergency: bool) -> Target:
        """How to start a revision that was stable before, exactly as it ran: the registry need not answer for it."""
        deployed = earlier_version(status, version)
        spec = RolloutSpec(model=status.model, version=deployed.version)
        if status.rollout is not None:
            spec = status.rollout.spec
        changes = {"version": deployed.version, "emergency": emergency, "paused": False}
        wanted = spec.model_copy(update=changes)
        return self.controller.new_target(wanted, deployed, self.versions.judge(wanted))

    async def _target_of(self, spec: RolloutSpec, namespace: str) -> Target:
        _, deployed = await self.versions.resolve(spec, namespace)
        return self.controller.new_target(spec, deployed, self.versions.judge(spec))

    async def _carry_out(
        self, model: str, command: Command, target: Target | None, *, dry_run: bool, wait_s: float = 0.0
    ) -> dict[str, Any]:
        if dry_run:
            return {"plan": said(self.controller.plan(model, command, target))}
        began = time.perf_counter()
        decision = await self.controller.execute(model, command, target)
        answer: dict[str, Any] = {"decision": said(decision)}
        moved = [a for a in decision.actions if isinstance(a, Withdraw | SwitchBack | Shift)]
        if wait_s > 0 and moved:
            answer["confirmed"] = {"weight": _left(moved[-1]), **await self._confirmed(model, began, wait_s)}
        status = self.controller.status(model)
        return {**answer, "accepted_at": status.updated_at, "status": self.report(status)}

    async def _confirmed(self, model: str, began: float, wait_s: float) -> dict[str, Any]:
        """How long it took from the command until every connected gateway had the table that follows from it."""
        while not (seen := self.controller.observation(model)).table_applied:
            if time.perf_counter() - began >= wait_s or not seen.gateways:
                return {"all": False, "gateways": seen.gateways, "after_s": None}
            await asyncio.sleep(CONFIRM_LOOK_S)
        return {"all": True, "gateways": seen.gateways, "after_s": time.perf_counter() - began}


def _left(action: Withdraw | SwitchBack | Shift) -> int:
    """What the revision that is taken back keeps, in percent: what stable can't take yet."""
    return action.weight if isinstance(action, Shift) else action.keep


def _must_start(status: ModelStatus, command: Command) -> bool:
    """Whether a rollback goes to something that does not run any more."""
    stable, to = status.stable, command.version
    if stable is None or to == stable.version:
        return False
    taken_back = status.canary if status.canary is not None else status.leaving
    if to is None and (taken_back is not None or status.previous is not None):
        return False
    if to is not None and status.canary is not None and to == status.canary.version:
        return False
    return to is None or status.still_running(to) is None


def said(decision: Decision) -> dict[str, Any]:
    """A decision without its secrets."""
    actions: list[Mapping[str, Any]] = [a.model_dump(mode="json", exclude={"salt"}) for a in decision.actions]
    return {"cause": decision.cause, "reason": decision.reason, "actions": actions}
