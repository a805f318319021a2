"""Where protection and mirroring plug into the way of a request. Small Protocols, and defaults that cost nothing.

The pipeline calls, in this order:

1. `gatekeeper.authenticate(headers, now, notes)` when the head of a request is there, before its body is read.
2. `gatekeeper.enter_at_once(...)` once the body was parsed and its model is known; when that can't let it in,
   `await gatekeeper.enter(caller, model, cost_tokens, deadline, now)`. It may wait (a queue); a client that goes away
   cancels it there.
3. `permit.lines()` when a request was let in; `permit.settle(...)` exactly once, when the request is over.
4. `mirror.offer(...)` when a request whose model is mirrored is about to be sent to its engine; from then on its
   outcome is told to `unit.witness`, if the mirror has set one.

A gateway without keys has no gatekeeper at all (None): then `ANYBODY` calls, and no permit exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from serving.admission import Rejection
from serving.keys import Priority, Scope

if TYPE_CHECKING:
    from serving.gateway.attempts import Call
    from serving.gateway.http_parsing import Notes
    from serving.gateway.transcript import Transcript
    from serving.outcomes import Cause
    from serving.traffic import TrafficTable

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Made once per key and kept, so that a request only looks it up."""

    key_id: str
    """The key's public id; "" where no key is needed."""
    name: str
    namespace: str
    scopes: frozenset[Scope]
    may_see_version: bool
    """Whether answers say which version and role gave them."""
    may_pin: bool
    """Whether `model: "chat@1.3.0"` is allowed."""
    priority: Priority
    homes: frozenset[str] | None
    """Namespaces whose models they may ask; None means all."""
    models: tuple[str, ...] = ()
    """Registered models that they may ask; empty means all."""

    def may_ask(self, model: str, home: str) -> bool:
        """Whether they may ask this model, whose namespace is `home`, see it listed, and rate its answers."""
        return (self.homes is None or home in self.homes) and (not self.models or model in self.models)


ANYBODY: Final = Caller(
    "", "", "default", frozenset(Scope), may_see_version=True, may_pin=True, priority=Priority.STANDARD, homes=None
)
"""The caller of a gateway that asks for no keys."""


class Permit(Protocol):
    """One admitted request."""

    def lines(self) -> bytes:
        """Headers to add to the answer (OpenAI's `x-ratelimit-*`), written out, each with its CR LF."""
        ...

    def settle(self, version: str, input_tokens: int | None, output_tokens: int | None) -> None:
        """The request is over, however it ended. Called exactly once for each permit, and must not raise.

        Args:
            version: The revision's version that the answer came from, "" when no engine was asked.
            input_tokens: As the engine reported them, None when it did not.
            output_tokens: The same for the output.
        """
        ...


class Gatekeeper(Protocol):
    """Decides who may ask, and when."""

    def authenticate(self, headers: list[Header], now: float, notes: Notes | None = None) -> Caller | Rejection:
        """Name the caller, or reject the request.

        Args:
            headers: The request's, names in lower case, in the order they came.
            now: Wall-clock seconds: keys expire by the calendar.
            notes: What was worked out from an equal head before; the gatekeeper may keep there whom it named.
        """
        ...

    def enter_at_once(self, caller: Caller, model: str, cost_tokens: int, now: float) -> Permit | Rejection | None:
        """The same as `enter` where nothing needs to wait: None, and nothing has happened, when it may have to."""
        ...

    async def enter(
        self, caller: Caller, model: str, cost_tokens: int, deadline: float, now: float
    ) -> Permit | Rejection:
        """Let a request in, make it wait for its turn, or reject it.

        It returns without suspending when there is nothing to wait for. It is cancelled when the client goes away
        while it waits; what it had reserved must then be given back.

        Args:
            caller: As `authenticate` named them.
            model: A registered model that the traffic table names.
            cost_tokens: An estimate: the prompt by its length, and the answer's limit where one was given.
            deadline: Monotonic seconds by which the whole answer must be there.
            now: Monotonic seconds.
        """
        ...


class Witness(Protocol):
    """Hears how the first attempt of a request went. Nothing of it may raise. Of what is said, the first counts."""

    def failed(self, cause: Cause) -> None:
        """There was no answer, or one that was cut."""
        ...

    def refused(self) -> None:
        """The engine answered with a 4xx."""
        ...

    def left(self) -> None:
        """The client went away before the end, or the gateway gave the request up."""
        ...

    def over(self, transcript: Transcript | None) -> None:
        """The client has its answer."""
        ...


class Mirror(Protocol):
    """Copies some of stable's requests to the canary; costs the client nothing.

    The copy leaves when the request does, so that both meet the same conditions: an outage finds both, and whether
    there is a copy can't depend on the answer.
    """

    def offer(self, call: Call, fields: Mapping[str, Any]) -> None:
        """Look at a request that is about to be sent: decide, and return at once. Must not raise, nor change the call.

        Args:
            call: The request: its unit (pick, operation), headers, body.
            fields: The body, parsed.
        """
        ...

    def table_applied(self, table: TrafficTable) -> None:
        """Give up what this table does not ask for any more."""
        ...

    def stop(self) -> None:
        """Give up everything, and mirror nothing from now on."""
        ...
