"""Which events are units of their own, so that the tests' null holds for each: sessions, hiccups, rates. Pure.

Analysis page, sections 2 and 4.
"""

from __future__ import annotations

from hashlib import blake2b

from rollout.analysis.comparison import LATENCY
from serving.outcomes import Event, SignalName
from serving.traffic import Role

MAX_SESSIONS = 250_000
"""Sessions whose first event is remembered, per rollout (about 20 MB). Beyond it, new sessions' events are not
booked: evidence is lost, which is safe, where counting one session twice would not be; the signal is an Error then."""

LONGEST_ANSWER_S = 600.0
"""An event that began longer than this before the last slow one ended is of a gateway whose clock differs."""

WATCHED = 100
"""The weight of a unit that had no choice of arm, and is watched."""


class Units:
    """Remembers what makes an event one of a unit that was counted already."""

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        self._sessions: set[int] = set()
        self._slow_until: dict[tuple[SignalName, str], float] = {}
        self._stable_events: dict[SignalName, int] = {}
        self.span = 0
        """Admissions between the first event and the last one, over all gateways."""

    @property
    def full(self) -> str:
        """Why no new session can be counted; empty while one can."""
        if len(self._sessions) < self._max_sessions:
            return ""
        return (
            f"more than {self._max_sessions} sessions had events: no new ones are counted; end this rollout, and start "
            "another one at a lower rate of events or without this signal"
        )

    def apart(self, event: Event) -> bool:
        """Whether a slow unit began after the last one that counted at its level had ended.

        One hiccup slows every answer that is under way on a replica. Booked one by one they would be as many
        independent proofs of one accident, and the next event would be likelier to be the same arm's, which the
        test's null forbids. Both arms are thinned together: apart, the one with less traffic would be spared.

        Each level is a test of its own and is thinned by itself. Were they thinned together, the many short answers
        that are slow at the median would leave no room for the few long ones that are slow at p99, which are the
        ones that tell a slow canary.
        """
        if event.signal not in LATENCY:
            return True
        key = (event.signal, event.level)
        until = self._slow_until.get(key, float("-inf"))
        if event.admitted_at < until <= event.admitted_at + LONGEST_ANSWER_S:
            return False
        self._slow_until[key] = event.settled_at
        return True

    def first_of_session(self, event: Event) -> bool:
        """Whether this is a session's first event of this signal, of a latency at this level.

        The others of a sticky session count for nobody.
        """
        if event.session is None:
            return True
        # A session that is watched after a switch is another unit than the same one before it.
        side = event.digest if event.weight == WATCHED else ""
        named = f"{event.signal}|{event.level}|{event.session}|{side}".encode()
        key = int.from_bytes(blake2b(named, digest_size=8).digest(), "big")
        if key in self._sessions or len(self._sessions) >= self._max_sessions:
            return False
        self._sessions.add(key)
        return True

    def stable_rate(self, event: Event) -> float:
        """Stable's rate of such events per request, from earlier events alone; for a session's later requests.

        Admission numbers count the requests in between, so nothing is needed but the events, in their order: the same
        when the log is folded again.
        """
        before = self._stable_events.get(event.signal, 0)
        if event.arm is Role.STABLE:
            self._stable_events[event.signal] = before + 1
        if event.request_index == 1 or before < 2 or self.span == 0:
            return 0.0
        return min(0.5, (before - 1) / (self.span * (1.0 - event.weight / 100.0)))
