"""What a ModelDeployment asks of the controller now: guards in stated precedence, one answer out of a closed set. Pure.

Precedence:

    1. deletion     a resource that goes drains its model first, and is let go when nothing of it runs
    2. the name     who is not the oldest to claim a model gets nothing
    3. the hold     our finalizer stands on it before anything is started for it
    4. safety       rollback, abort: carried out whatever the spec says, even one that can't be read
    5. the spec     what can't be read is told, and nothing is done by it
    6. commands     undo, ack, retry, promote
    7. the wish     a spec that was not carried out yet is deployed, superseding what rolls out
    8. the pause    asked for, or asked for no more
    9. capacity     stable's replicas are others than the spec's, and nothing rolls out

A wish is carried out once. Whatever becomes of it (promoted, taken back, aborted), it is not deployed again until the
spec changes, or somebody says `ack` or `retry`: after an automatic rollback the spec still names the bad version.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from rollout.asks import Asked
from rollout.commands import Command, Verb
from rollout.operator.names import GROUP
from rollout.operator.resource import COMMANDS, Resource, Unreadable
from rollout.status import ModelStatus

SAFE_FIRST = (Verb.ROLLBACK, Verb.ABORT)
"""Commands that do not wait for a spec that can be read."""


class Ask(enum.StrEnum):
    """What is to be done for a resource."""

    NOTHING = "nothing"
    REFUSE_NAME = "refuse-name"
    """Another, older resource has this model."""
    REFUSE_SPEC = "refuse-spec"
    REFUSE_ORDER = "refuse-order"
    """An annotation that can't be read."""
    HOLD = "hold"
    """Put the finalizer on it."""
    RELEASE = "release"
    """Take the finalizer off it: nothing of its model runs any more."""
    WAIT = "wait"
    """Its model is being drained."""
    UNDEPLOY = "undeploy"
    COMMAND = "command"
    DEPLOY = "deploy"


@dataclass(frozen=True)
class Known:
    """What the controller knows of the model that a resource claims."""

    status: ModelStatus | None = None
    """None: it was never deployed."""
    asked: Asked = field(default_factory=Asked)
    rival: Resource | None = None
    """The older resource that claims the same model, if there is one."""
    tried: str = ""
    """The wish that was tried and is not to be tried again yet."""


@dataclass(frozen=True)
class Intent:
    """The answer."""

    ask: Ask
    command: Command | None = None
    """What to tell the controller, for COMMAND, UNDEPLOY and DEPLOY."""
    verb: Verb | None = None
    """Which annotation it came from, for COMMAND and REFUSE_ORDER."""
    id: str = ""
    why: str = ""


def intent(resource: Resource, known: Known) -> Intent:
    """The first guard that applies, in the order of this module's docstring."""
    if resource.deleting:
        return _going(resource, known)
    if known.rival is not None:
        other = known.rival.key
        return Intent(
            Ask.REFUSE_NAME,
            why=f"model {resource.model} belongs to {other.namespace}/{other.name}, which is older; "
            "give this one another model, or delete that one",
        )
    if not resource.held:
        return Intent(Ask.HOLD)
    pending = _pending(resource, known)
    if pending is not None and pending.verb in SAFE_FIRST:
        return pending
    if resource.spec is None:
        return Intent(Ask.REFUSE_SPEC, why=resource.problem)
    rest = _wish(resource, known) or _pause(resource, known) or _scale(resource, known)
    return pending or rest or Intent(Ask.NOTHING)


def _going(resource: Resource, known: Known) -> Intent:
    if not resource.held:  # somebody else's finalizer holds it; ours is off, so there is nothing left to do
        return Intent(Ask.NOTHING)
    if known.rival is not None or known.status is None or not known.status.running():
        return Intent(Ask.RELEASE)
    status = known.status
    if status.stable is None and status.canary is None and status.leaving is None and status.previous is None:
        left = ", ".join(r.deployed.version for r in status.retiring)
        return Intent(Ask.WAIT, why=f"draining {left}")
    ask = f"delete/{resource.uid}"
    return Intent(Ask.UNDEPLOY, command=_command(resource, Verb.UNDEPLOY, ask, reason="its resource was deleted"))


def _pending(resource: Resource, known: Known) -> Intent | None:
    """The most urgent command that was not handled yet."""
    for verb in COMMANDS:
        order = resource.order(verb)
        if order is None or order.id == known.asked.commands.get(verb) or _was_handled(resource, verb, order.id):
            continue
        if isinstance(order, Unreadable):
            return Intent(Ask.REFUSE_ORDER, verb=verb, id=order.id, why=order.problem)
        full = order.full or (verb is Verb.PROMOTE and order.reason == "full")
        command = _command(resource, verb, order.id, reason=order.reason, by=order.by, full=full, version=order.to)
        return Intent(Ask.COMMAND, command=command, verb=verb, id=order.id)
    return None


def hurries(resource: Resource, asked: Asked) -> bool:
    """Whether a rollback or an abort was asked for and not handled yet."""
    orders = ((verb, resource.order(verb)) for verb in SAFE_FIRST if f"{GROUP}/{verb}" in resource.annotations)
    return any(
        order is not None and order.id != asked.commands.get(verb) and not _was_handled(resource, verb, order.id)
        for verb, order in orders
    )


def _wish(resource: Resource, known: Known) -> Intent | None:
    wish = resource.wish
    if wish in (known.asked.wish, known.tried, resource.status.handled_wish):
        return None
    return Intent(Ask.DEPLOY, command=_command(resource, Verb.DEPLOY, wish), id=wish)


def _pause(resource: Resource, known: Known) -> Intent | None:
    rollout = known.status.rollout if known.status is not None else None
    if rollout is None or not rollout.active:
        return None
    had = known.asked.pause
    wanted = f"{resource.pause}@{rollout.id}" if resource.pause else ""  # the same word means a later rollout anew
    if wanted and not had and not _was_handled(resource, Verb.PAUSE, wanted):
        return Intent(Ask.COMMAND, command=_command(resource, Verb.PAUSE, wanted), verb=Verb.PAUSE, id=wanted)
    if had and not wanted and rollout.paused and not _was_handled(resource, Verb.RESUME, had):
        return Intent(Ask.COMMAND, command=_command(resource, Verb.RESUME, had), verb=Verb.RESUME, id=had)
    return None


def _scale(resource: Resource, known: Known) -> Intent | None:
    """Replicas follow the spec (and so the `scale` subresource) without a rollout."""
    status, spec = known.status, resource.spec
    if spec is None or status is None or status.stable is None or status.canary is not None:
        return None
    stable, engine = status.stable, spec.engine
    if status.leaving is not None or stable.engine.workload_ref is not None or engine.workload_ref is not None:
        return None
    if (stable.replicas, stable.engine.max_replicas) == (engine.min_replicas, engine.max_replicas):
        return None
    order = f"{engine.min_replicas}-{engine.max_replicas or ''}@{stable.digest[:8]}"
    if _was_handled(resource, Verb.SCALE, order):
        return None
    command = _command(resource, Verb.SCALE, order)
    change = {"replicas": engine.min_replicas, "most": engine.max_replicas}
    return Intent(Ask.COMMAND, command=command.model_copy(update=change), verb=Verb.SCALE, id=order)


def _was_handled(resource: Resource, verb: Verb, order: str) -> bool:
    """Whether the status remembers that a command was carried out or refused."""
    handled = resource.status.handled(verb)
    return handled is not None and handled.id == order


def _command(
    resource: Resource, verb: Verb, ask: str, *, reason: str = "", by: str = "", full: bool = False,
    version: str | None = None,
) -> Command:  # fmt: skip
    where = f"{resource.key.namespace}/{resource.key.name}"
    return Command(
        verb=verb,
        actor=by or where,
        source=f"modeldeployment {where}",
        namespace=resource.key.namespace,
        reason=reason,
        full=full,
        version=version,
        ask=ask,
    )


def rivals(resources: list[Resource]) -> dict[str, Resource]:
    """By uid of each resource that must yield: the older one that has the model."""
    oldest: dict[str, Resource] = {}
    for resource in sorted(resources, key=lambda r: r.seniority):
        if resource.model:
            oldest.setdefault(resource.model, resource)
    return {r.uid: oldest[r.model] for r in resources if r.model and oldest[r.model].uid != r.uid}
