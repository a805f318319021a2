"""Look at prompts and answers after they have gone out: for what only observes, and for the judge of a rollout.

Neither delays anybody. Both lines of work are bounded by what may wait and by their share of this process's time, and
what does not fit is not looked at. Of a policy that observes this costs a count. Of the judge it costs evidence, so the
choice must not depend on the arm: whether there is room for a request is decided at its admission, before its answer is
known; from then on it is judged, or counts for no `guardrail/...` signal. A check that could not run is no signal
either: then the unit does not count for it (`outcomes.UNITS`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from guardrails.assembly import answer_of_events
from guardrails.enforcement import ActivePolicy
from guardrails.observing import Ask, Observation
from guardrails.verdicts import Direction, Verdict
from serving.gateway.guard_settings import GuardSettings
from serving.gateway.guarding import Guarding, PolicyInForce
from serving.gateway.judging import GENERATING
from serving.gateway.recorder import Recorder
from serving.gateway.transcript import Transcript
from serving.gateway.units import Unit
from serving.streaming import DONE, sse_payloads

logger = logging.getLogger("tidegate.gateway")

FAMILY = "guardrail"

Judged = Sequence[tuple[tuple[str, ...], tuple[str, ...]]]
"""Of each answer the signals that it shows, and those that were measured on it."""


@dataclass(slots=True)
class Asked:
    """What is kept of a request that may be looked at."""

    prompt: bytes
    policy: PolicyInForce | None
    """Whose observing checks are to look; None when only the judge is."""


@dataclass(slots=True)
class _Job:
    observation: Observation
    prompt: bytes
    transcript: Transcript | None
    done: Callable[[Observation | None], None]


class _Line:
    """Work that is done one after the other within a share of the time; models are awaited beside it."""

    def __init__(self, share: float, most: int, ask: Ask, within_s: float) -> None:
        self._share = share
        self._most = most
        self._ask = ask
        self._within_s = within_s
        self._jobs: deque[_Job] = deque()
        self._news = asyncio.Event()
        self._beside: set[asyncio.Task[None]] = set()

    @property
    def full(self) -> bool:
        """Whether nothing more may wait."""
        return len(self._jobs) >= self._most or len(self._beside) >= self._most

    def put(self, job: _Job) -> None:
        """Take work."""
        self._jobs.append(job)
        self._news.set()

    async def run(self) -> None:
        """Work for ever."""
        while True:
            while not self._jobs:
                self._news.clear()
                await self._news.wait()
            job = self._jobs.popleft()
            try:
                await self._look(job)
            except asyncio.CancelledError:
                job.done(None)
                raise
            except Exception:
                logger.exception("looking at an answer failed; it counts as not looked at")
                job.done(None)

    async def _look(self, job: _Job) -> None:
        steps = _steps(job)
        while True:
            began = time.perf_counter()
            finished = next(steps, self) is self
            if finished and not job.observation.needs_models:
                job.done(job.observation)
            spent_s = time.perf_counter() - began
            await asyncio.sleep(spent_s * (1 / self._share - 1))
            if finished:
                break
        if job.observation.needs_models:
            task = asyncio.get_running_loop().create_task(self._models(job))
            self._beside.add(task)
            task.add_done_callback(self._beside.discard)

    async def _models(self, job: _Job) -> None:
        looked: Observation | None = None  # also when it is cancelled: half a look measures nothing
        try:
            async with asyncio.timeout(self._within_s):
                await job.observation.models(self._ask)
            looked = job.observation
        except TimeoutError:
            pass
        except Exception:
            logger.exception("models could not look at an answer; it counts as not looked at")
        finally:
            job.done(looked)

    def close(self) -> None:
        """Give up what waits."""
        for task in self._beside:
            task.cancel()
        while self._jobs:
            self._jobs.popleft().done(None)


def _steps(job: _Job) -> Iterator[None]:
    """Read what is to be looked at, then look: in small steps, for whoever counts the time."""
    observation = job.observation
    observation.prompt = _json(job.prompt)
    yield
    if job.transcript is not None:
        observation.answer = _answer(job.transcript)
        yield
    yield from observation.steps()


def _json(data: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _answer(transcript: Transcript) -> dict[str, Any] | None:
    """What an engine said; None when it can't be read."""
    if transcript.compressed:
        return None
    if not transcript.event_stream:
        return _json(transcript.text) if transcript.whole else None
    return answer_of_events(_json(payload) for payload in sse_payloads(transcript.text) if payload != DONE)


class Overseer:
    """The recorder's second look. Made inside a running event loop."""

    def __init__(self, settings: GuardSettings, guarding: Guarding, recorder: Recorder, ask: Ask) -> None:
        self._guarding = guarding
        self._recorder = recorder
        self._ask = ask
        self._slots = settings.judge_slots
        self._observing = _Line(settings.observe_share, settings.observe_waiting, self._ask, settings.judge_within_s)
        self._judging = _Line(settings.judge_share, settings.judge_slots, self._ask, settings.judge_within_s)
        self._judged: dict[int, Unit] = {}
        """Units that have a slot, by identity."""
        self._closed = False
        recorder.overseer = self

    def work(self) -> tuple[Any, ...]:
        """The coroutines that do the work, to be run for ever."""
        return self._observing.run(), self._judging.run()

    # A request's life, as the recorder tells it

    def admitted(self, unit: Unit, policy: PolicyInForce | None, prompt: bytes) -> None:
        """Decide whether a request will be looked at, before anything of its answer is known."""
        judge = unit.pick.route.traffic.judge
        full = policy is None or not policy.observed or self._observing.full
        wanted = None if full else policy
        if judge and self._may_judge(unit, judge):
            self._judged[id(unit)] = unit
            unit.asked = Asked(prompt, wanted)
        elif wanted is not None:
            unit.asked = Asked(prompt, wanted)

    def _may_judge(self, unit: Unit, judge: str) -> bool:
        room = len(self._judged) < self._slots and not self._closed
        return room and unit.judged and unit.operation in GENERATING and judge in self._guarding.judges

    def settled(self, unit: Unit) -> None:
        """It has its outcome, by whatever way: it won't be judged any more."""
        self._judged.pop(id(unit), None)

    def read(self, unit: Unit, transcript: Transcript | None, *, first_attempt: bool) -> bool:
        """An answer is over. Returns whether the unit's outcome waits for the judge, who then settles it."""
        asked = unit.asked
        if asked is None:
            return False
        if asked.policy is not None and first_attempt and not self._observing.full and not self._closed:
            self._observe(unit, asked.policy, asked.prompt, transcript)
        if id(unit) not in self._judged or transcript is None or not first_attempt:
            return False
        judge = self._guarding.judges.get(unit.pick.route.traffic.judge)
        if judge is None or self._closed:
            return False
        self._judge(unit, judge, asked.prompt, transcript)
        return True

    def _observe(self, unit: Unit, policy: PolicyInForce, prompt: bytes, transcript: Transcript | None) -> None:
        def done(looked: Observation | None) -> None:
            if looked is None:
                return
            record = unit.guard = unit.guard or policy.record()
            sides = [side for side in policy.observed if side is Direction.INPUT or looked.answer is not None]
            for side in sides:
                record.add(side, looked.findings.get(side, ()))
                self._guarding.count(policy, side, record.worst(side))
            self._recorder.on_findings(unit)

        observation = Observation(policy.guardrails.active, policy.observed, None, None)
        self._observing.put(_Job(observation, prompt, transcript, done))

    def _judge(self, unit: Unit, judge: ActivePolicy, prompt: bytes, transcript: Transcript) -> None:
        def done(looked: Observation | None) -> None:
            if looked is not None and looked.answer is not None:
                self._recorder.judged(unit, *signals_of(looked))
            else:
                self._recorder.judged(unit, (), ())

        self._judging.put(_Job(Observation(judge, (Direction.OUTPUT,), None, None), prompt, transcript, done))

    def compare(
        self, judge: str, prompt: bytes, transcripts: Sequence[Transcript], done: Callable[[Judged | None], None]
    ) -> bool:
        """Judge the answers of a mirrored pair, both or neither.

        Args:
            judge: the digest of the rollout's judge.
            prompt: what was asked.
            transcripts: what was answered.
            done: told, once, what each answer shows and what was measured on it; None when it could not be judged.

        Returns:
            False, and `done` is never called, when there is no such judge or no room.
        """
        policy = self._guarding.judges.get(judge)
        if policy is None or self._closed or self._judging.full:
            return False
        looks: list[Observation | None] = []

        def looked(look: Observation | None) -> None:
            looks.append(look)
            if len(looks) == len(transcripts):
                found = [signals_of(look) for look in observations if look.answer is not None]
                done(found if None not in looks and len(found) == len(transcripts) else None)

        observations = [Observation(policy, (Direction.OUTPUT,), None, None) for _ in transcripts]
        for observation, transcript in zip(observations, transcripts, strict=True):
            self._judging.put(_Job(observation, prompt, transcript, looked))
        return True

    def close(self) -> None:
        """Look at nothing from now on; what waits for the judge counts as not judged."""
        self._closed = True
        self._observing.close()
        self._judging.close()


def signals_of(looked: Observation) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The signals that an answer shows, and those that were measured on it: checks that ran.

    A check that could not run, on any text of the answer, has measured nothing.
    """
    findings = [located.finding for located in looked.findings.get(Direction.OUTPUT, ())]
    failed = {finding.check for finding in findings if finding.verdict is Verdict.ERROR}
    names = [check.rule.name for check in looked.active.output if check.rule.name not in failed]
    shown = {finding.check for finding in findings} - failed
    return _named(name for name in names if name in shown), _named(names)


def _named(checks: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{FAMILY}/{check}" for check in checks)
