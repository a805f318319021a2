"""What a gateway remembers of sessions: how many requests they made, and where the last one went. Pure."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

CAPACITY: Final = 100_000
MARK_CHARS: Final = 12
"""Of a session's hash, as request ids carry it: two of a rollout's sessions share one once in a hundred million."""


def session_hash(salt: str, unit: str) -> str:
    """The name under which a session travels: keyed by the rollout's secret, the same on every gateway."""
    unit_bytes = unit.encode("utf-8", "replace")
    keyed = _keyed(salt).copy()
    keyed.update(unit_bytes)
    return keyed.hexdigest()


@lru_cache(maxsize=4096)
def session_mark(salt: str, unit: str) -> str:
    """The beginning of it, as request ids carry it. The last few thousand are remembered, in memory only."""
    return session_hash(salt, unit)[:MARK_CHARS]


@lru_cache(maxsize=256)
def _keyed(salt: str) -> hashlib.blake2b:
    return hashlib.blake2b(key=salt.encode()[:64], digest_size=12, person=b"tg-session")


@dataclass(slots=True, init=False)
class Visit:
    """One request of a session."""

    request_index: int
    """Within the rollout, from 1."""
    moved: bool
    """The session has just changed arms."""
    first_sight: bool
    """Chance has picked its arm for the first time within the rollout, as far as this gateway remembers."""

    def __init__(self, request_index: int, moved: bool, first_sight: bool) -> None:
        self.request_index = request_index
        self.moved = moved
        self.first_sight = first_sight


class _Session:
    __slots__ = ("count", "digest", "rollout", "sighted")

    def __init__(self, rollout: str, count: int, digest: str, sighted: bool) -> None:
        self.rollout = rollout
        self.count = count
        self.digest = digest
        self.sighted = sighted


class Sessions:
    """The last 100,000 sessions, least recently seen forgotten first. Holds hashes, never names."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._seen: OrderedDict[tuple[str, int], _Session] = OrderedDict()

    def visit(self, model: str, unit: str, rollout: str, digest: str, *, by_chance: bool) -> Visit:
        """Note one request of a session for a revision that chance, or something else, has picked."""
        key = (model, hash(unit))
        session = self._seen.get(key)
        if session is None:
            self._seen[key] = _Session(rollout, 1, digest, by_chance)
            if len(self._seen) > self._capacity:
                self._seen.popitem(last=False)
            return Visit(1, moved=False, first_sight=by_chance)
        self._seen.move_to_end(key)
        if session.rollout != rollout:
            session.rollout, session.count, session.sighted = rollout, 0, False
        session.count += 1
        moved = session.digest != digest
        session.digest = digest
        first_sight = by_chance and not session.sighted
        session.sighted = session.sighted or by_chance
        return Visit(session.count, moved, first_sight)

    def __len__(self) -> int:
        return len(self._seen)
