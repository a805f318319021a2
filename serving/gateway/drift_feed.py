"""Tell the drift watch of some of the requests that have ended. Costs the others one comparison.

The watch is a process of its own (docs/adr/0006): nothing is embedded here. A sampled request becomes one frame on a
socket (`drift_line`). When the watch is away or reads too slowly, frames are dropped and counted; nothing waits for it.
Which requests are told is decided by chance and by the rate alone, never by what they hold or which version had them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable

from monitoring.drift.sampling import SamplingState, choose
from serving.gateway.drift_line import LocalWatch, RemoteWatch, WatchAway, dial
from serving.gateway.logs import log
from serving.gateway.request_ids import issue_bytes
from serving.gateway.sessions import session_mark
from serving.gateway.units import Unit
from serving.request_log.marks import mark_of, user_of
from serving.sightings import Scored, Sighting, asked_text, frame, shortened
from serving.streaming import Answer
from serving.traffic import RevisionTraffic, Role

OUTPUT_DRIFT = "output-drift"
"""The score that says how much an answer looks like the canary's and not like stable's."""

BUFFERED_BYTES = 512 * 1024
"""Unsent frames that are kept for a watch that is slow, some hundreds."""

RECONNECT_S = 1.0
AWAITED = 1024
"""Units whose score is awaited; of more the oldest get none."""


class DriftFeed:
    """The line of one gateway to the drift watch. Made inside a running event loop.

    Args:
        watch: Where the watch listens.
        secret: For the ids that requests have for their clients.
        most_per_s: Requests that are told of, at most.
        monotonic: Seconds.

    """

    def __init__(
        self, watch: LocalWatch | RemoteWatch, secret: bytes, most_per_s: float, monotonic: Callable[[], float]
    ) -> None:
        self._watch = watch
        self._secret = secret
        self._most_per_s = most_per_s
        self._monotonic = monotonic
        self._chance = random.Random()  # noqa: S311 - which requests are told is no secret
        self._sampling = SamplingState(allowance=max(1.0, most_per_s))
        self._transport: asyncio.WriteTransport | None = None
        self._awaited: OrderedDict[int, Unit] = OrderedDict()
        self._tokens = 0
        self.sent = 0
        self.dropped = 0
        """Sampled requests that the watch was not told of: it was away, or slow."""
        self.on_score: Callable[[Unit, str, float], object] = lambda unit, name, score: None
        """Called with the score of an answer, after its unit has settled."""

    # What requests bring

    def ended(self, unit: Unit, answer: Answer, answered_by: RevisionTraffic | None) -> None:
        """See `recorder.AfterReading`."""
        if unit.question is None:
            return
        self._sampling, chosen = choose(self._sampling, self._monotonic(), self._most_per_s, self._chance.random())
        if chosen:
            self.tell(unit, answer, answered_by)

    def tell(
        self, unit: Unit, answer: Answer, answered_by: RevisionTraffic | None, samples: tuple[str, ...] = ()
    ) -> None:
        """Tell of one request, whatever the sampling says; `samples` are further answers to it."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > BUFFERED_BYTES:
            self.dropped += 1
            return
        transport.write(frame(self._sighting(unit, answer, answered_by, samples)))
        self.sent += 1

    def _sighting(
        self, unit: Unit, answer: Answer, answered_by: RevisionTraffic | None, samples: tuple[str, ...]
    ) -> Sighting:
        assert unit.question is not None
        pick, asked = unit.pick, unit.question
        traffic, by = pick.route.traffic, answered_by or pick.revision
        by_chance = by.role[0] if pick.evidence else "f"
        kind = by_chance if by is pick.revision else "r"
        mark = session_mark(traffic.salt, unit.session) if pick.evidence and unit.session is not None else ""
        request_id = issue_bytes(
            self._secret, asked.nonce, kind, pick.route.generation, traffic.model, by.version, mark, key=asked.key
        )
        prompt, user = asked_text(asked.fields), user_of(asked.fields)
        text = "\n".join(answer.texts) if by is pick.revision else ""
        compared = unit.ticket.number > 0 and 0 < pick.weight < 100 and bool(text)
        wanted = compared and (OUTPUT_DRIFT in traffic.scores or bool(samples))
        return Sighting(
            model=traffic.model, request_id=request_id.decode(), at=unit.admitted_at, tenant=asked.namespace,
            route=unit.operation.value, prompt=shortened(prompt), characters=len(prompt),
            answer=shortened(text) if wanted else "", samples=tuple(map(shortened, samples)),
            rollout=traffic.rollout or "" if wanted else "", canary=pick.revision.role is Role.CANARY,
            weight_percent=pick.weight, token=self._await(unit) if wanted else 0,
            user=mark_of(self._secret, user) if user else "",
        )  # fmt: skip

    def _await(self, unit: Unit) -> int:
        self._tokens += 1
        self._awaited[self._tokens] = unit.without_question()  # a thousand bodies would be a lot of memory
        if len(self._awaited) > AWAITED:
            self._awaited.popitem(last=False)
        return self._tokens

    # The line

    async def run(self) -> None:
        """Keep the line up for ever; cancel it to stop."""
        known = True
        while True:
            try:
                line = await dial(self._watch, self._heard)
            except WatchAway as away:
                if known:
                    log(logging.INFO, "drift-watch-away", reason=str(away))
                known = False
            else:
                known, self._transport = True, line.transport
                log(logging.INFO, "drift-watch-connected")
                try:
                    await line.ended
                finally:
                    self._transport = None
                    self._awaited.clear()
                    if line.transport is not None:
                        line.transport.close()
            await asyncio.sleep(RECONNECT_S)

    def _heard(self, scored: Scored) -> None:
        unit = self._awaited.pop(scored.token, None)
        if unit is not None:
            self.on_score(unit, scored.name, scored.score)
