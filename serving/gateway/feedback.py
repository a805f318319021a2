"""`POST /v1/feedback`: what people think of answers. Needs no store, since the request id says whose answer it was.

A vote is for the version that gave the answer, and counts once, from the key that asked. A thumb down is evidence too
where chance had picked the version: for the arm and at the weight of the traffic table that was in force when the
request was admitted, which the last tables tell. It comes late, so it lets no rollout go forward (analysis.md,
section 2).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from monitoring.instruments import GatewayInstruments
from serving.admission import Reason, Rejection
from serving.gateway.observing import Observer, Vote
from serving.gateway.recorder import Recorder
from serving.gateway.request_ids import RequestFacts, nonce_of, read
from serving.gateway.seams import Caller
from serving.openai_protocol import Reply, json_reply
from serving.outcomes import THUMBS_DOWN, Event
from serving.traffic import Generation, ModelTraffic, Role, TrafficTable

LONGEST_BODY_BYTES = 16 * 1024
TABLES_KEPT = 256
"""Traffic tables whose requests a vote can still be evidence for."""
MOST_VOTES = 100_000
"""Votes that are remembered, so that each counts once."""
_ARMS = {"s": Role.STABLE, "c": Role.CANARY}


class Rated(BaseModel):
    """The body."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    request_id: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        description="the answer's `x-request-id`"
    )
    rating: Literal["up", "down"]
    comment: Annotated[str, StringConstraints(max_length=2000)] | None = None


class Feedback:
    """Takes the votes of one gateway process. Single-threaded; times are arguments."""

    def __init__(
        self, secret: bytes, recorder: Recorder, instruments: GatewayInstruments, observer: Observer | None
    ) -> None:
        self._secret = secret
        self._recorder = recorder
        self._instruments = instruments
        self._observer = observer
        self._tables: OrderedDict[Generation, dict[str, ModelTraffic]] = OrderedDict()
        self._votes: OrderedDict[bytes, str] = OrderedDict()

    def table_applied(self, table: TrafficTable) -> None:
        """Remember the table, for votes on the requests that it divides."""
        self._tables[table.generation] = {m.model: m for m in table.models}
        if len(self._tables) > TABLES_KEPT:
            self._tables.popitem(last=False)

    def take(self, caller: Caller, body: bytes, now: float) -> Reply | Rejection:
        """Count a vote, or say why it is none.

        Args:
            caller: who votes.
            body: the request's.
            now: wall-clock seconds.
        """
        rated = _read(body)
        if isinstance(rated, Rejection):
            return rated
        facts = read(self._secret, rated.request_id, caller.key_id)
        current = self._newest().get(facts.model) if facts is not None else None
        # A model that has got another owner since is as unknown to this key as any other of that namespace.
        if facts is None or (current is not None and not caller.may_ask(facts.model, current.namespace)):
            return Rejection(
                Reason.UNKNOWN_REQUEST,
                f"No request {rated.request_id[:80]} of this key is known. Pass the `x-request-id` of the answer, with "
                "the key that asked.",
                param="request_id",
            )
        nonce = nonce_of(rated.request_id)
        before = self._votes.get(nonce)
        if before is not None and before != rated.rating:
            return Rejection(
                Reason.ALREADY_RATED,
                f"Request {rated.request_id[:80]} was rated {before} before; each request is rated once.",
                param="rating",
            )
        if before is None:
            self._count(facts, nonce, rated, now)
        answer = {"object": "feedback", "request_id": rated.request_id, "rating": rated.rating}
        return json_reply(200, {**answer, "counted": before is None})

    def _count(self, facts: RequestFacts, nonce: bytes, rated: Rated, now: float) -> None:
        self._votes[nonce] = rated.rating
        if len(self._votes) > MOST_VOTES:
            self._votes.popitem(last=False)
        traffic = self._tables.get(facts.generation, {}).get(facts.model)
        if facts.model in self._newest():  # what no table names never becomes a label
            self._instruments.rated(facts.model, facts.version, rated.rating)
        if traffic is not None and rated.rating == "down" and facts.kind in _ARMS:
            self._tell(facts, traffic, nonce, now)
        if self._observer is not None:
            revision = traffic.by_version(facts.version) if traffic is not None else None
            self._observer.voted(
                Vote(rated.request_id, nonce, facts.model, facts.version, revision, rated.rating,
                     rated.comment or "", now)
            )  # fmt: skip

    def _newest(self) -> dict[str, ModelTraffic]:
        return next(reversed(self._tables.values())) if self._tables else {}

    def _tell(self, facts: RequestFacts, traffic: ModelTraffic, nonce: bytes, now: float) -> None:
        """Tell the controller, while the same rollout is judged.

        Without a session the request is its own unit; its mark is what tells the same vote, given to two gateways.
        """
        arm = _ARMS[facts.kind]
        revision, canary = traffic.by_role(arm), traffic.by_role(Role.CANARY)
        current = self._newest().get(facts.model)
        if revision is None or canary is None or not 0 < canary.weight < 100 or not traffic.rollout:
            return
        if current is None or current.rollout != traffic.rollout:
            return
        outbox, ledger = self._recorder.outbox, self._recorder.ledger
        outbox.append(
            Event(
                sequence=outbox.next_sequence(),
                model=facts.model,
                rollout=traffic.rollout,
                signal=THUMBS_DOWN,
                arm=arm,
                digest=revision.digest,
                weight=canary.weight,
                session=facts.session or nonce.hex(),
                # Its own number is not known. It has settled: the watermark says so of a unit of this gateway.
                admission=max(1, ledger.settled_through().get(facts.model, 0)),
                admitted_at=now,
                settled_at=now,
            )
        )
        self._recorder.on_event()


def _read(body: bytes) -> Rated | Rejection:
    if len(body) > LONGEST_BODY_BYTES:
        return Rejection(
            Reason.BODY_TOO_LARGE,
            f"The feedback has {len(body)} bytes; at most {LONGEST_BODY_BYTES} are taken. Shorten the comment.",
        )
    try:
        return Rated.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "json_invalid":
            return Rejection(Reason.INVALID_JSON, "The feedback is not JSON; send one object.")
        return Rejection(
            Reason.INVALID_REQUEST,
            f"{where or 'the body'}: {first['msg'].lower()}; send request_id, rating (up or down) and perhaps comment",
            param=where or None,
        )
