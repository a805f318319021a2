"""What goes wrong between a client and the API server, on demand or by chance."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.kubernetes.api_errors import Refused


class Trouble(enum.Enum):
    """The kinds of trouble that clients must live through."""

    CONFLICT = "conflict"
    """409: somebody else was quicker."""
    TOO_MANY = "too many requests"
    """429 with Retry-After."""
    INTERNAL = "internal error"
    """500, and nothing was done."""
    UNAVAILABLE = "unavailable"
    """503, and nothing was done."""
    TIMEOUT = "time-out"
    """504, and nothing was done."""
    LOST_ANSWER = "lost answer"
    """It was done, but the connection broke before the answer."""
    CUT = "cut"
    """The connection broke before anything was done."""
    GONE = "gone"
    """410: the version asked for is too old."""


@dataclass(frozen=True)
class Asked:
    """A request as a fault sees it."""

    method: str
    path: str
    verb: str
    resource: str
    """With the subresource behind a slash."""
    namespace: str | None
    name: str
    user: str = ""
    agent: str = ""
    manager: str = ""

    @property
    def writes(self) -> bool:
        return self.verb in ("create", "update", "patch", "delete", "deletecollection")


@dataclass
class Fault:
    """One kind of trouble for the requests that it matches, so many times."""

    trouble: Trouble
    where: Callable[[Asked], bool] = lambda _: True
    times: int = 1
    retry_after_s: float = 1.0


@dataclass
class Faults:
    """Planned faults, and faults by chance."""

    planned: list[Fault] = field(default_factory=list)
    chance: float = 0.0
    """How probable it is that a request meets trouble."""
    kinds: tuple[Trouble, ...] = tuple(Trouble)
    generator: random.Random = field(default_factory=lambda: random.Random(1))
    met: list[tuple[Trouble, Asked]] = field(default_factory=list)

    def plan(
        self, trouble: Trouble, where: Callable[[Asked], bool] = lambda _: True, times: int = 1, **more: Any
    ) -> None:
        self.planned.append(Fault(trouble, where, times, **more))

    def strike(self, asked: Asked) -> Fault | None:
        """The trouble that this request meets, if any; it is used up by that."""
        for fault in self.planned:
            if fault.times > 0 and fault.where(asked):
                fault.times -= 1
                self.met.append((fault.trouble, asked))
                return fault
        if self.chance and self.generator.random() < self.chance:
            fault = Fault(self.generator.choice(self.kinds), retry_after_s=0.01)
            if not _possible(fault.trouble, asked):
                return None
            self.met.append((fault.trouble, asked))
            return fault
        return None

    def clear(self) -> None:
        self.planned.clear()
        self.chance = 0.0


def _possible(trouble: Trouble, asked: Asked) -> bool:
    if trouble is Trouble.CONFLICT:
        return asked.verb in ("update", "patch", "delete")
    if trouble is Trouble.GONE:
        return asked.verb in ("list", "watch")
    return True


def refusal(fault: Fault) -> Refused | None:
    """The answer for a fault that has one."""
    answers = {
        Trouble.CONFLICT: (409, "Conflict", "the object has been modified; please apply your changes to the latest"),
        Trouble.TOO_MANY: (429, "TooManyRequests", "Too many requests, please try again later."),
        Trouble.INTERNAL: (500, "InternalError", "etcdserver: leader changed"),
        Trouble.UNAVAILABLE: (503, "ServiceUnavailable", "the server is currently unable to handle the request"),
        Trouble.TIMEOUT: (504, "Timeout", "Timeout: request did not complete within the allotted timeout"),
        Trouble.GONE: (410, "Expired", "The provided continue parameter is too old"),
    }  # fmt: skip
    if fault.trouble not in answers:
        return None
    code, reason, message = answers[fault.trouble]
    more = {"retryAfterSeconds": int(fault.retry_after_s)} if code == 429 else {}
    return Refused(code, reason, message, **more)
