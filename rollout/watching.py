"""What the controller sees of each model, put together anew only where something changed. Shell around observe.py.

Events are looked at as soon as they are booked. Counters, of which a hundred gateways send a thousand a second, only
let a rollout go forward, which can wait: with one rollout they are read at once, with many at most once a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from rollout.actuate import WorkloadActuator
from rollout.analysis.ledger import Ledger
from rollout.observation import Observation, SmokeResult
from rollout.observe import observe
from rollout.status import ModelStatus
from rollout.traffic_routers.base import RouterView, TrafficRouter

STALE_S = 1.0
"""How old a reading of counters may be, at most."""

STALE_PER_MODEL_S = 0.01
"""How much older it may be for each model that is being read: what bounds the work."""

MAX_SMOKE = 1000
"""Results of smoke suites that are remembered; the oldest go first."""

_WORLD = ("workloads", "gateways", "table_applied", "ready_endpoints", "in_flight", "smoke")
"""What an observation holds besides the evidence: as it is right now, whatever the age of the evidence."""


class _Places(NamedTuple):
    """A model's own applications and digests, worked out once per status."""

    status: ModelStatus
    applications: set[str]
    digests: frozenset[str]


class _Reading(NamedTuple):
    """A model's evidence as last read, and when."""

    ledger: Ledger
    observation: Observation
    at: float


class Watching:
    """Looks at router, workloads and evidence for one model at a time."""

    def __init__(
        self,
        router: TrafficRouter,
        workloads: WorkloadActuator,
        clock: Callable[[], float],
        smoke: Callable[[ModelStatus], SmokeResult | None] | None = None,
    ) -> None:
        self._router = router
        self._workloads = workloads
        self._clock = clock
        self._ask_smoke = smoke
        self._smoke: dict[str, SmokeResult] = {}
        self._readings: dict[str, _Reading] = {}
        self._touched: set[str] = set()
        self._places: dict[str, _Places] = {}
        self._view: RouterView | None = None

    # -- what changed -----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """The next observations must see the gateways as they are now."""
        self._view = None

    def forget(self, model: str) -> None:
        """The next observation must read a model's evidence anew."""
        self._readings.pop(model, None)
        self._touched.discard(model)

    def forget_all(self) -> None:
        """The next observations must read all evidence anew."""
        self._readings.clear()
        self._touched.clear()
        self._places.clear()

    def touch(self, model: str) -> None:
        """A model's counters have grown; the next observation may read them a little later."""
        self._touched.add(model)

    def note_smoke(self, rollout: str, result: SmokeResult) -> None:
        """What a rollout's smoke suite found."""
        self._smoke[rollout] = result
        if len(self._smoke) > MAX_SMOKE:
            del self._smoke[next(iter(self._smoke))]

    # -- what is seen -----------------------------------------------------------------------------------------------

    def observe(
        self, status: ModelStatus, ledger: Ledger | None, *, ended: Mapping[str, Any] | None = None
    ) -> Observation:
        """One look at what concerns one model.

        Args:
            status: the model's.
            ledger: the evidence of its rollout, where there is any.
            ended: without a ledger: what was seen when the last rollout ended, as it is in the log; its evidence is
                shown then.

        """
        places = self._places_of(status)
        if self._view is None:
            self._view = self._router.view()
        view, running = _narrowed(self._view, places), self._workloads.seen
        if running is not None:
            running = {a: running[a] for a in places.applications if a in running}
        if ledger is not None and self._must_read(status.model, ledger):
            seen = observe(view, running, ledger, places.applications)
            self._readings[status.model] = _Reading(ledger, seen, self._clock())
            self._touched.discard(status.model)
        else:
            seen = observe(view, running, None, places.applications)
            kept = self._readings[status.model].observation if ledger is not None else _as_logged(ended)
            if kept is not None:
                seen = kept.model_copy(update={name: getattr(seen, name) for name in _WORLD})
        smoke = self._smoke_of(status)
        return seen if smoke is None else seen.model_copy(update={"smoke": smoke})

    def _must_read(self, model: str, ledger: Ledger) -> bool:
        reading = self._readings.get(model)
        if reading is None or reading.ledger is not ledger:
            return True
        if model not in self._touched:
            return False
        age_s = self._clock() - reading.at
        return not 0 <= age_s < min(STALE_S, STALE_PER_MODEL_S * len(self._readings))

    def _places_of(self, status: ModelStatus) -> _Places:
        known = self._places.get(status.model)
        if known is None or known.status is not status:
            running = status.running()
            known = _Places(status, {d.application for d in running}, frozenset(d.digest for d in running))
            self._places[status.model] = known
        return known

    def _smoke_of(self, status: ModelStatus) -> SmokeResult | None:
        rollout = status.rollout
        if rollout is None:
            return None
        noted = self._smoke.get(rollout.id)
        if noted is None and self._ask_smoke is not None and rollout.active:
            return self._ask_smoke(status)
        return noted


def _narrowed(view: RouterView, places: _Places) -> RouterView:
    """What the routers tell of one model. Nothing is checked again: it was when it was told."""
    ready, in_flight = view.ready_endpoints, view.in_flight
    return RouterView.model_construct(
        gateways=view.gateways,
        applied=view.applied,
        ready_endpoints={a: ready[a] for a in places.applications if a in ready},
        in_flight=None if in_flight is None else {d: in_flight[d] for d in places.digests if d in in_flight},
    )


def _as_logged(ended: Mapping[str, Any] | None) -> Observation | None:
    """An observation from the log, or None when an older version wrote what can't be read as one any more."""
    if ended is None:
        return None
    try:
        return Observation.model_validate(ended)
    except ValidationError:
        return None
