"""All that the drift watch knows: a watch for each stream that has a reference, its alarms, and its files.

For one thread. What operators do reaches it by files: a reference that was built, an acknowledgement. So the command
line needs no line to this process, and what was asked for while it was down is done when it comes back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.drift.errors import DriftError
from monitoring.drift.features import Cheap, cheap_features
from monitoring.drift.sampling import SamplingState, choose
from monitoring.drift.two_sample import OutputDrift
from monitoring.drift.watch import Alarm, Detector, DriftWatch
from monitoring.semantic_entropy import semantic_entropy
from serving.drift import library
from serving.drift.archive import Archive
from serving.drift.config import DriftConfig
from serving.drift.erasing import forget_notes, noted, take_out
from serving.drift.library import About, Built, Embed
from serving.drift.streams import StreamName, streams_of
from serving.sightings import Scored, Sighting

logger = logging.getLogger("tidegate.drift")

ALARMS_KEPT = 50
"""Of each stream, acknowledged or not; the oldest go first."""

ALARMS_TOLD = 5
"""Of them in the status, which is written twice a second."""

ROLLOUTS_KEPT = 32
"""Pairs of arms whose answers are compared; each takes about 1 MB."""

OUTPUT_DRIFT, SEMANTIC_ENTROPY = "output-drift", "semantic-entropy"
_LENGTH = list(Cheap).index(Cheap.LOG_LENGTH)


@dataclass(slots=True)
class Watched:
    """One stream."""

    name: StreamName
    about: About
    watch: DriftWatch
    alarms: list[dict[str, Any]] = field(default_factory=list)
    """As they are told: plain values, the newest last."""
    changed: bool = False

    @property
    def paging(self) -> bool:
        """Whether an alarm that may hold a rollout is in force."""
        return any(detector is not Detector.KERNEL for detector in self.watch.active())


@dataclass(frozen=True, slots=True)
class Reply:
    """A score, and the place in the batch of the sighting that asked for it."""

    place: int
    scored: Scored


class Book:
    """Everything of one drift watch but its sockets.

    Args:
        config: Rates, places.
        embed: Embeds texts, one row each.
        dimensions: Values of an embedding.
        rng: For sampling and the archive.

    """

    def __init__(self, config: DriftConfig, embed: Embed, dimensions: int, rng: np.random.Generator) -> None:
        self.config = config
        self.streams: dict[StreamName, Watched] = {}
        self.counts: dict[tuple[str, str], int] = {}
        """By (model, `seen`, `embedded` or `empty`): sightings."""
        self._embed = embed
        self._rng = rng
        self._sampling = SamplingState(allowance=max(1.0, config.embeddings_per_s))
        self._unusable: dict[StreamName, str] = {}
        """Digests of references that can't be read: told of once."""
        self._outputs: OrderedDict[str, OutputDrift] = OrderedDict()
        self._dimensions = dimensions
        places = config.places
        for folder in (places.references, places.states, places.acknowledgements, places.archive, places.erased):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._archive = Archive(places.archive, dimensions, config.archive_rows_per_hour, config.archive_days, rng)
        self._keeps = True
        """The last vectors could be kept."""
        self._erased: dict[str, float] = {}
        """Whose vectors, up to when, are not to be kept: by mark."""
        self._taken_out: dict[str, float] = {}
        """Whose are gone from the files."""

    def hold(self) -> None:
        """Be the one who writes the archive. Waits for whoever erases just now."""
        self._archive.hold()

    # -- requests -------------------------------------------------------------------------------------------------

    def take(self, batch: Sequence[Sighting], now_s: float) -> list[Reply]:
        """Take in some requests, in order.

        Args:
            batch: They.
            now_s: Monotonic seconds.

        Returns:
            The scores that they asked for.

        """
        chosen: list[int] = []
        texts: list[str] = []
        for place, seen in enumerate(batch):
            if not seen.samples:
                self._count(seen.model, "seen" if seen.prompt else "empty")
            self._sampling, taken = choose(self._sampling, now_s, self.config.embeddings_per_s, self._rng.random())
            if taken and seen.prompt:
                chosen.append(place)
                texts += [] if seen.samples else [seen.prompt]
                texts += [seen.answer, *seen.samples] if seen.token else []
        vectors = iter(self._embed(texts)) if texts else iter(())
        replies: list[Reply] = []
        embedded = set(chosen)
        for place, seen in enumerate(batch):
            if not seen.prompt:
                continue
            if seen.samples:
                if place in embedded and seen.token:
                    answers = np.stack([next(vectors) for _ in range(1 + len(seen.samples))])
                    score = semantic_entropy(answers)
                    replies.append(Reply(place, Scored(seen.token, SEMANTIC_ENTROPY, score)))
                continue
            cheap = cheap_features(seen.prompt)
            cheap[_LENGTH] = math.log2(1 + seen.characters)
            vector = next(vectors) if place in embedded else None
            if vector is not None:
                self._count(seen.model, "embedded")
                self._keep(seen, cheap, vector)
                if seen.token:
                    replies += [Reply(place, scored) for scored in self._output_drift(seen, next(vectors))]
            for name in streams_of(seen):
                watched = self.streams.get(name)
                if watched is not None:
                    self._observe(watched, seen, cheap, vector)
        return replies

    def _observe(
        self, watched: Watched, seen: Sighting, cheap: NDArray[np.float32], vector: NDArray[np.float32] | None
    ) -> None:
        watched.changed = True
        for alarm in watched.watch.observe(seen.request_id, cheap, vector, int(seen.at // 3600 % 24)):
            watched.alarms.append(told(alarm, watched, seen.at))
            del watched.alarms[:-ALARMS_KEPT]
            logger.warning("drift-alarm", extra={"fields": {
                "model": watched.name.model, "stream": watched.name.scope, "detector": alarm.detector.value,
                "severity": alarm.severity.value, "request_id": alarm.request_id,
            }})  # fmt: skip
            self._save(watched)

    def _output_drift(self, seen: Sighting, answer: NDArray[np.float32]) -> Iterable[Scored]:
        if not 0 < seen.weight_percent < 100:
            return
        drift = self._outputs.get(seen.rollout)
        if drift is None:
            drift = self._outputs[seen.rollout] = OutputDrift(self._dimensions)
            if len(self._outputs) > ROLLOUTS_KEPT:
                self._outputs.popitem(last=False)
        event = drift.observe(answer, canary=seen.canary, weight=seen.weight_percent / 100.0)
        # Only the half that looks like the canary is bet on; which half an answer is in does not depend on its arm.
        if event is not None and event.g > 0.0:
            yield Scored(seen.token, OUTPUT_DRIFT, event.g)

    def _keep(self, seen: Sighting, cheap: NDArray[np.float32], vector: NDArray[np.float32]) -> None:
        if seen.user and seen.at <= self._erased.get(seen.user, -math.inf):
            return
        try:
            self._archive.add(seen, cheap, vector)
            self._keeps = True
        except OSError as error:
            if self._keeps:  # once, not with every request
                logger.error("vectors can't be kept: %s", error.strerror)  # noqa: TRY400 - a full disk needs no trace
            self._keeps = False

    def _count(self, model: str, result: str) -> None:
        self.counts[model, result] = self.counts.get((model, result), 0) + 1

    # -- operators ------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Take in references that were built or removed, and what was acknowledged."""
        folder = self.config.places.references
        in_force = {name: library.digest_in_force(folder, name) for name in library.names(folder)}
        for name in [n for n, w in self.streams.items() if in_force.get(n) != w.about.digest]:
            del self.streams[name]
        for name in in_force.keys() - self.streams.keys():
            digest = in_force[name]
            if digest is None or self._unusable.get(name) == digest:
                continue
            try:
                built = library.load(folder, name)
            except DriftError as error:
                self._unusable[name] = digest
                logger.error("%s", error)  # noqa: TRY400 - the message says it all
                continue
            if built is not None:
                self.streams[name] = self._restored(name, built)
        for path in sorted(self.config.places.acknowledgements.glob("*.json")):
            self._acknowledge(path)
        self._obey_erasures()

    def _obey_erasures(self) -> None:
        """Take out of the archive whom somebody has erased since the last look."""
        places = self.config.places
        self._erased = noted(places.erased)
        fresh = {mark: until for mark, until in self._erased.items() if self._taken_out.get(mark) != until}
        if not fresh:
            return
        self._archive.let_go()
        try:
            take_out(places.archive, self._dimensions, fresh)
        except OSError as error:  # tried again with the next look
            logger.error("vectors of an erased user can't be taken out: %s", error.strerror)  # noqa: TRY400
            return
        self._taken_out = dict(self._erased)

    def _restored(self, name: StreamName, built: Built) -> Watched:
        seed = int(built.embedding.digest[:16], 16)
        watch = DriftWatch(built.cheap, built.embedding, np.random.default_rng(seed), self.config.threshold)
        watched = Watched(name, built.about, watch)
        path = self.config.places.states / f"{name.path}.json"
        try:
            stored = json.loads(path.read_text())
            watched.alarms = list(stored["alarms"])[-ALARMS_KEPT:]
            if stored["reference"] == built.about.digest:
                watch.restore(stored["watch"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, DriftError) as error:
            logger.warning("%s (%s) starts without its evidence: %s", *name, error)
        logger.info("drift-stream", extra={"fields": {"model": name.model, "stream": name.scope,
                                                      "reference": built.about.digest}})  # fmt: skip
        return watched

    def _acknowledge(self, path: Path) -> None:
        try:
            asked = json.loads(path.read_text())
            model, scope, by, at = str(asked["model"]), asked.get("scope"), str(asked["by"]), float(asked["at"])
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning("%s is no acknowledgement; it is deleted", path.name)
            path.unlink(missing_ok=True)
            return
        for name, watched in self.streams.items():
            if name.model == model and scope in (None, name.scope):
                watched.watch.clear()
                for alarm in watched.alarms:
                    alarm.setdefault("acknowledged", {"by": by, "at": at, "reason": str(asked.get("reason", ""))})
                self._save(watched)
        path.unlink(missing_ok=True)  # after its effect is on disk: twice does no harm

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state of every stream that has changed."""
        for watched in self.streams.values():
            if watched.changed:
                self._save(watched)

    def _save(self, watched: Watched) -> None:
        path = self.config.places.states / f"{watched.name.path}.json"
        state = {"reference": watched.about.digest, "watch": watched.watch.to_json(), "alarms": watched.alarms}
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace(path, json.dumps(state, allow_nan=False))
            watched.changed = False
        except OSError as error:  # a full disk must not end the watch
            logger.error("%s can't be written: %s", path, error.strerror)  # noqa: TRY400

    def prune(self, now: float) -> None:
        """Delete vectors that are too old."""
        with contextlib.suppress(OSError):
            self._archive.prune(now)
            forget_notes(self.config.places.erased, now)

    def close(self) -> None:
        """Write everything and let go of the files."""
        self.save()
        self._archive.close()

    def status(self, now: float) -> dict[str, Any]:
        """What it knows, as plain values: for people, for metrics, and for rollouts that are held."""
        return {
            "written_at": now,
            "streams": [_status_of(watched) for _, watched in sorted(self.streams.items())],
            "requests": [{"model": m, "result": r, "count": n} for (m, r), n in sorted(self.counts.items())],
        }


def told(alarm: Alarm, watched: Watched, at: float) -> dict[str, Any]:
    """An alarm as it is told: plain values, request ids and labels, and no text."""
    explanation = asdict(alarm.explanation)
    labels = watched.about.labels if alarm.detector is not Detector.CHEAP else ()
    for change in (*explanation["gained"], *explanation["lost"]):
        change["label"] = labels[change["cluster"]] if labels else ""
    return {
        "detector": alarm.detector.value, "severity": alarm.severity.value, "statistic": alarm.statistic,
        "threshold": alarm.threshold, "request_id": alarm.request_id, "at": at,
        "reference": watched.about.digest, "source": watched.about.source, "explanation": explanation,
    }  # fmt: skip


def _status_of(watched: Watched) -> dict[str, Any]:
    watch, active = watched.watch, watched.watch.active()
    about = watched.about.model_dump(mode="json", exclude={"labels", "model", "scope"})
    return {
        "model": watched.name.model, "stream": watched.name.scope, "reference": about,
        "seen": watch.seen, "embedded": watch.embedded, "unusable": watch.unusable, "paging": watched.paging,
        "detectors": {
            name.value: {"statistic": statistic, "threshold": threshold, "active": name in active,
                         "alarms": watch.alarms[name]}
            for name, (statistic, threshold) in watch.statistics().items()
        },
        "alarms": watched.alarms[-ALARMS_TOLD:],
    }  # fmt: skip


def replace(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)
