"""Who may ask, how much, and when: keys, limits and queues behind the pipeline's seams (seams.py).

The decisions are made in pure modules: the keyring, `serving.rate_limits`, `serving.queueing`. Here is what waits and
wakes. All of it runs in the event loop's thread; nothing suspends unless a request has to wait for its turn.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, assert_never

from serving.admission import Reason, Rejection
from serving.gateway.forwarding import read_lines
from serving.gateway.http_parsing import Notes
from serving.gateway.keyring import Holder, Keyring
from serving.gateway.seams import ANYBODY, Caller, Header
from serving.gateway.usage import UsageBook
from serving.keys import KeyRecord, Quota
from serving.knobs import QueueSettings
from serving.queueing import ModelQueue, Moved, Place, Refusal, Ticket
from serving.rate_limits import KeyLimits, Limit, Shortage

logger = logging.getLogger("tidegate.gateway")


class QueueingGatekeeper:
    """The gatekeeper of one gateway."""

    def __init__(
        self,
        keyring: Keyring | None,
        usage: UsageBook,
        settings: QueueSettings,
        *,
        anybody: Caller = ANYBODY,
        limit_share: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Make one that has let nobody in yet.

        Args:
            keyring: The keys; None lets everybody in as `anybody`, without limits of their own.
            usage: Where requests are counted.
            settings: The queues' bounds.
            anybody: The caller where no key is needed.
            limit_share: This gateway's part of every key's limits, above 0 and at most 1.
            monotonic: The clock of limits and queues.
            wall: The clock of usage.
        """
        self._keyring = keyring
        self._usage = usage
        self._settings = settings
        self._anybody = anybody
        self._share = limit_share
        self._monotonic = monotonic
        self._wall = wall
        self._limits: dict[str, KeyLimits] = {}
        self._quotas: dict[str, Quota] = {}
        self._shared: dict[str, KeyLimits] = {}
        """By namespace: what all its keys take from, with or without a quota."""
        self._queues: dict[str, ModelQueue] = {}
        self._endpoints: Mapping[str, int] = {}
        self._wakers: dict[Ticket, asyncio.Future[Rejection | None]] = {}
        self.make_room: Callable[[str], bool] = lambda model: False
        """Asked before a request has to wait: give up mirrored ones of its model, and say whether there were any."""

    # Keys

    def authenticate(self, headers: list[Header], now: float, notes: Notes | None = None) -> Caller | Rejection:
        """See `seams.Gatekeeper`."""
        if self._keyring is None:
            return self._anybody
        known = self._keyring.recall(notes, now) if notes is not None else None
        return known if known is not None else self._keyring.authenticate(headers, now, notes)

    def replace_keys(self, keys: Iterable[KeyRecord], confirmed_at: float, quotas: Iterable[Quota] = ()) -> None:
        """Obey these keys from the next request on; whoever waits with a key that is gone is turned away.

        Args:
            keys: All keys.
            confirmed_at: When the controller said so, in wall-clock seconds.
            quotas: All quotas of namespaces.
        """
        if self._keyring is None:
            return
        gone = self._keyring.replace(keys, confirmed_at)
        self._quotas = {quota.namespace: quota for quota in quotas}
        self._limit_anew(self._keyring)
        for key_id in gone:
            self._limits.pop(key_id, None)  # requests under way keep theirs until they end
            for queue in self._queues.values():
                for ticket in queue.leave_all(key_id):
                    self._wake(ticket, _no_longer_accepted())

    def set_limit_share(self, share: float) -> None:
        """Change this gateway's part of every limit."""
        self._share = share
        if self._keyring is not None:
            self._limit_anew(self._keyring)

    def _limit_anew(self, keyring: Keyring) -> None:
        now = self._monotonic()
        homes = set()
        for holder in keyring.holders():
            homes.add(holder.record.namespace)
            limits = self._limits.get(holder.record.id)
            if limits is not None:
                self._set_limits(limits, holder.record, now)
        for namespace, shared in list(self._shared.items()):
            if namespace in homes or shared.in_flight:
                self._set_limits(shared, self._quotas.get(namespace), now)
            else:
                del self._shared[namespace]

    def _set_limits(self, limits: KeyLimits, given: KeyRecord | Quota | None, now: float) -> None:
        limits.set(
            requests_per_minute=None if given is None else given.requests_per_minute,
            tokens_per_minute=None if given is None else given.tokens_per_minute,
            concurrency=None if given is None else given.concurrency,
            share=self._share,
            now=now,
        )

    def _limits_of(self, holder: Holder, now: float) -> KeyLimits:
        limits = self._limits.get(holder.record.id)
        if limits is None:
            shared = self._shared_by(holder.record.namespace, now)
            limits = self._limits[holder.record.id] = KeyLimits(shared)
            self._set_limits(limits, holder.record, now)
        return limits

    def _shared_by(self, namespace: str, now: float) -> KeyLimits:
        shared = self._shared.get(namespace)
        if shared is None:
            shared = self._shared[namespace] = KeyLimits(namespace=namespace)
            self._set_limits(shared, self._quotas.get(namespace), now)
        return shared

    def quota_use(self) -> dict[tuple[str, str], tuple[int, int]]:
        """By namespace and limit of each quota that keys took from: this gateway's part of it, and what is used."""
        now = self._monotonic()
        return {
            (namespace, limit.value): (allowed, used)
            for namespace, shared in self._shared.items()
            for limit, allowed, used in shared.used(now)
        }

    # Room

    def set_endpoints(self, ready: Mapping[str, int]) -> None:
        """Follow the endpoints: by model, how many take requests now. Cheap when nothing changed; call it often.

        A model that is not listed and has nothing under way is forgotten.
        """
        if ready == self._endpoints:
            return
        self._endpoints = dict(ready)
        now = self._monotonic()
        for model, queue in list(self._queues.items()):
            if model not in ready and not queue.running and not queue.waiting:
                del self._queues[model]
            else:
                self._pass_on(queue.resize(self._bound(model), now), queue)

    def _bound(self, model: str) -> int | None:
        each = self._settings.endpoint_concurrency
        # Without any ready endpoint the pipeline says so itself, or tries one that was ejected: let it.
        return None if each is None else each * max(1, self._endpoints.get(model, 0))

    def _queue(self, model: str) -> ModelQueue:
        queue = self._queues.get(model)
        if queue is None:
            s = self._settings
            queue = ModelQueue(self._bound(model), s.most_waiting, s.most_waiting_tokens)
            self._queues[model] = queue
        return queue

    def queue_depths(self) -> dict[tuple[str, str], int]:
        """Requests that wait, by model and class."""
        return {(m, p.value): n for m, queue in self._queues.items() for p, n in queue.waiting_by_priority().items()}

    # One request

    def enter_at_once(self, caller: Caller, model: str, cost_tokens: int, now: float) -> QueuePermit | Rejection | None:
        """See `seams.Gatekeeper`."""
        queue = self._queue(model)
        if not queue.room:
            return None
        limits: KeyLimits | None = None
        if self._keyring is not None:
            allowed = self._allowed(self._keyring, caller, cost_tokens, now)
            if isinstance(allowed, Rejection):
                return allowed
            limits = allowed
        ticket = queue.start_at_once(caller.key_id, caller.priority, cost_tokens, now)
        assert ticket is not None
        return QueuePermit(self, caller.key_id, model, cost_tokens, queue, ticket, limits)

    def _allowed(self, keyring: Keyring, caller: Caller, cost_tokens: int, now: float) -> KeyLimits | Rejection:
        """Take a request from its key's limits."""
        holder = keyring.holder(caller.key_id)
        if holder is None:
            return _no_longer_accepted()  # revoked while the body was read
        limits = self._limits_of(holder, now)
        shortage = limits.enter(cost_tokens, now)
        return limits if shortage is None else _limited(shortage, limits.headers(now))

    async def enter(
        self, caller: Caller, model: str, cost_tokens: int, deadline: float, now: float
    ) -> QueuePermit | Rejection:
        """See `seams.Gatekeeper`."""
        limits: KeyLimits | None = None
        if self._keyring is not None:
            allowed = self._allowed(self._keyring, caller, cost_tokens, now)
            if isinstance(allowed, Rejection):
                return allowed
            limits = allowed
        queue = self._queue(model)
        ticket = queue.start_at_once(caller.key_id, caller.priority, cost_tokens, now)
        if ticket is None and self.make_room(model):
            ticket = queue.start_at_once(caller.key_id, caller.priority, cost_tokens, now)
        if ticket is None:
            turn = await self._wait(queue, caller, cost_tokens, deadline, now, limits)
            if isinstance(turn, Rejection):
                return turn
            ticket = turn
        return QueuePermit(self, caller.key_id, model, cost_tokens, queue, ticket, limits)

    def waiting(self, model: str) -> int:
        """Requests of a model that wait for their turn."""
        queue = self._queues.get(model)
        return queue.waiting if queue is not None else 0

    def enter_mirrored(self, model: str, cost_tokens: int) -> QueuePermit | None:
        """Let a mirrored request in while there is room to spare, else drop it. It counts for no key and no usage."""
        queue = self._queue(model)
        ticket = queue.start_mirrored(cost_tokens, self._monotonic())
        return QueuePermit(self, None, model, cost_tokens, queue, ticket, None) if ticket is not None else None

    async def _wait(
        self, queue: ModelQueue, caller: Caller, cost: int, deadline: float, now: float, limits: KeyLimits | None
    ) -> Ticket | Rejection:
        """Wait for a turn. Whatever prevents it, the key gets back what was taken from its limits."""
        ticket: Ticket | Refusal | None = None
        try:
            start_by = min(deadline, now + self._settings.wait_s)
            ticket, moved = queue.wait(caller.key_id, caller.priority, cost, start_by, now)
            self._pass_on(moved, queue)
            rejection = (
                _refused(ticket, queue.retry_after_s(now))
                if isinstance(ticket, Refusal)
                else await self._turn(queue, ticket, start_by - now)
            )
        except BaseException:  # cancelled: the client has gone, perhaps just when its turn came
            if isinstance(ticket, Ticket):
                queue.leave(ticket)
                self._pass_on(queue.finish(ticket, self._monotonic(), served=False), queue)
            if limits is not None:
                limits.undo(cost, self._monotonic())
            raise
        if rejection is not None:
            if limits is not None:
                limits.undo(cost, self._monotonic())
            return rejection
        assert isinstance(ticket, Ticket)
        return ticket

    async def _turn(self, queue: ModelQueue, ticket: Ticket, within_s: float) -> Rejection | None:
        loop = asyncio.get_running_loop()
        waker: asyncio.Future[Rejection | None] = loop.create_future()
        self._wakers[ticket] = waker
        timer = loop.call_later(max(0.0, within_s), self._too_late, queue, ticket)
        try:
            return await waker
        finally:
            timer.cancel()
            self._wakers.pop(ticket, None)

    def _too_late(self, queue: ModelQueue, ticket: Ticket) -> None:
        if ticket.place is Place.WAITING:
            queue.leave(ticket)
            self._wake(ticket, _refused(Refusal.DEADLINE, queue.retry_after_s(self._monotonic())))

    def _pass_on(self, moved: Moved, queue: ModelQueue) -> None:
        """Tell those who waited what became of them."""
        for ticket in moved.started:
            self._wake(ticket, None)
        for ticket, refusal in moved.refused:
            self._wake(ticket, _refused(refusal, queue.retry_after_s(self._monotonic())))

    def _wake(self, ticket: Ticket, rejection: Rejection | None) -> None:
        waker = self._wakers.get(ticket)
        if waker is not None and not waker.done():
            waker.set_result(rejection)

    def settled(self, permit: QueuePermit, version: str, input_tokens: int | None, output_tokens: int | None) -> None:
        """A request is over: its place, its limits, its usage. Called by its permit, once."""
        now = self._monotonic()
        asked = version != ""
        moved = permit.queue.finish(permit.ticket, now, served=asked)
        if moved.started or moved.refused:
            self._pass_on(moved, permit.queue)
        if permit.limits is not None:
            if asked:
                known = input_tokens is not None or output_tokens is not None
                used = (input_tokens or 0) + (output_tokens or 0) if known else None
                permit.limits.over(permit.cost_tokens, used, now)
            else:
                permit.limits.undo(permit.cost_tokens, now)
        if asked and permit.key_id is not None:
            self._usage.count(permit.key_id, permit.model, version, input_tokens, output_tokens, self._wall())


class QueuePermit:
    """One admitted request."""

    __slots__ = ("_gatekeeper", "_settled", "cost_tokens", "key_id", "limits", "model", "queue", "ticket")

    def __init__(
        self,
        gatekeeper: QueueingGatekeeper,
        key_id: str | None,
        model: str,
        cost_tokens: int,
        queue: ModelQueue,
        ticket: Ticket,
        limits: KeyLimits | None,
    ) -> None:
        self._gatekeeper = gatekeeper
        self.key_id = key_id
        """None for a mirrored request, which nobody's usage counts."""
        self.model = model
        self.cost_tokens = cost_tokens
        self.queue = queue
        self.ticket = ticket
        self.limits = limits
        self._settled = False

    def lines(self) -> bytes:
        """See `seams.Permit`."""
        return b"" if self.limits is None else self.limits.lines(self.ticket.started_at)

    def headers(self) -> list[Header]:
        """The same one by one."""
        return read_lines(self.lines())

    def settle(self, version: str, input_tokens: int | None, output_tokens: int | None) -> None:
        """See `seams.Permit`."""
        if self._settled:
            logger.error("a request was settled twice; the second time counts for nothing")
            return
        self._settled = True
        self._gatekeeper.settled(self, version, input_tokens, output_tokens)


def _no_longer_accepted() -> Rejection:
    return Rejection(Reason.INVALID_API_KEY, "The API key is no longer accepted; it was revoked or has expired.")


_LIMITED: Final = {
    Limit.REQUESTS: (Reason.RATE_LIMITED, Reason.NAMESPACE_RATE_LIMITED),
    Limit.TOKENS: (Reason.TOKEN_RATE_LIMITED, Reason.NAMESPACE_TOKEN_RATE_LIMITED),
    Limit.CONCURRENCY: (Reason.CONCURRENCY_LIMITED, Reason.NAMESPACE_CONCURRENCY_LIMITED),
}
"""Why a request is refused: by the key's own limit, and by its namespace's quota."""


def _limited(shortage: Shortage, headers: list[Header]) -> Rejection:
    allowed, used, requested = shortage.allowed, shortage.used, shortage.requested
    own, of_namespace = _LIMITED[shortage.limit]
    reason = of_namespace if shortage.namespace else own
    if shortage.limit is Limit.CONCURRENCY:
        who = f"keys of namespace {shortage.namespace} have" if shortage.namespace else "API key has"
        whose = "their" if shortage.namespace else "its"
        return Rejection(
            reason,
            f"The {who} {used} requests under way; {whose} limit is {allowed}. Try again when one has ended.",
            retry_after_s=1,
            headers=tuple(headers),
        )
    where = f" in namespace {shortage.namespace}" if shortage.namespace else ""
    name = f"{shortage.limit.value} per min ({'TPM' if shortage.limit is Limit.TOKENS else 'RPM'})"
    numbers = f"Limit {allowed}, Used {used}, Requested {requested}."
    if shortage.wait_s is None:
        return Rejection(
            reason,
            f"Request too large{where} on {name}: {numbers} The prompt or `max_tokens` must be reduced; "
            "waiting won't help.",
            headers=(*headers, (b"x-should-retry", b"false")),
        )
    return Rejection(
        reason,
        f"Rate limit reached{where} on {name}: {numbers} Please try again in {max(0.001, shortage.wait_s):.3f}s.",
        retry_after_s=max(1, math.ceil(shortage.wait_s)),
        headers=(*headers, (b"retry-after-ms", b"%d" % math.ceil(shortage.wait_s * 1000))),
    )


def _refused(refusal: Refusal, retry_after_s: int) -> Rejection:
    match refusal:
        case Refusal.FULL:
            reason, why = Reason.QUEUE_FULL, "The engines are busy and the queue before them is full"
        case Refusal.SHED:
            reason, why = (
                Reason.OVERLOADED,
                "The engines are busy, and requests of a higher priority or of others go first",
            )
        case Refusal.DEADLINE:
            reason, why = (
                Reason.DEADLINE_UNREACHABLE,
                "The engines are so busy that the request would not start in time",
            )
        case _:
            assert_never(refusal)
    return Rejection(reason, f"{why}; try again in {retry_after_s} s.", retry_after_s=retry_after_s)
