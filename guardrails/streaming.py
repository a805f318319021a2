"""Check text while it flows and let go only what is cleared. Pure: the time is an argument, models run elsewhere.

One `StreamGuard` serves one text: one choice of an answer (or one part of it), or a whole message at once. It

- cuts the text into stretches by what is in it, never by how it arrived (`text_units.next_cut`),
- lets every rule look at a stretch together with what is still held and some text before,
- hands out `Pending` work for models, at most `max_pending` at once, and takes verdicts in any order,
- lets text go up to the point that every check that holds has cleared, redacted, and not within a word or an emoji.

Each check has a *cleared* position: all its hits that begin before it are known, and none lies across it. A rule
clears a stretch up to where something unfinished begins (`Check.unfinished_from`), a model when its verdict has
come. What goes out therefore depends on the text and the verdicts alone: the same for any chunks and for any order
of verdicts.

A block takes effect at the position that its check had cleared before: text before it is let go once all others have
cleared it, then the stream ends. A check that could not run ends it in the same way when the policy fails closed, as
FAILED and never as BLOCKED. Memory is bounded by the longest thing that a check waits for, unless a check wants the
whole answer; then by the policy's `max_characters`.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from guardrails.checks.base import Context
from guardrails.enforcement import ActiveCheck, could_not_run, judge
from guardrails.normalise import View
from guardrails.policy import Failure, Mode, Policy
from guardrails.redaction import SEEN_CHARACTERS, settled
from guardrails.stream_text import StreamText
from guardrails.text_units import MAX_CLUSTER, Stretch, is_boundary, language_of, next_cut, word_boundary
from guardrails.verdicts import Edit, Finding, Hit, Language, Verdict, apply_edits, edits_of, in_order

LANGUAGE_CHARACTERS = 400
"""The language that picks a threshold is that of so much text before the end of the stretch."""
PATIENT_FROM = 512
"""Once so many characters are held, the next look waits for a quarter more of them: looking is linear in what is
held."""
SHARED_CARRY = 128
"""Checks that want no more text before a stretch than this share one view of it, with as much as any of them wants."""
OBSERVED = Stretch(max_characters=400, whole_sentences=False)
"""How much text rules that hold nothing look at together: nobody waits for them."""
CONTEXT_SLACK = 64
KEPT_CHARACTERS = 4 * MAX_CLUSTER
LIMIT_CHECK = "limits"
"""The name under which a text that is too long is reported."""


class Ending(enum.StrEnum):
    """How a stream ended."""

    FINISHED = "finished"
    BLOCKED = "blocked"
    """The policy blocks it: `finish_reason: content_filter`."""
    FAILED = "failed"
    """A check could not run and the policy fails closed: an error, never content_filter."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A text for a model. `text` begins with `context_characters` of text that has been looked at before."""

    id: int
    active: ActiveCheck
    text: str
    context_characters: int
    start: int
    end: int
    context: Context
    deadline: float
    """On the caller's clock, in seconds."""


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one call."""

    text: str = ""
    """To be sent now."""
    findings: tuple[Finding, ...] = ()
    work: tuple[Pending, ...] = ()
    """To be started now."""
    ending: Ending | None = None
    """Set once; nothing is sent after it. Verdicts of checks that only observe may still come."""
    doomed: bool = False
    """It will end early, though text before may still wait for its verdict. Once no other choice runs, generating
    more is waste."""


@dataclass(slots=True, eq=False)
class _Track:
    """How far one check has come."""

    active: ActiveCheck
    cleared: int = 0
    holds: bool = False
    until_end: bool = False
    waiting: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Work that is under way or queued, by id: where it begins and ends."""

    def settle(self, reached: int) -> None:
        """Move on to the first text whose verdict has not come."""
        self.cleared = max(self.cleared, min((start for start, _ in self.waiting.values()), default=reached))


@dataclass(slots=True, eq=False)
class _Lane:
    """The checks that look at the same stretches."""

    stretch: Stretch
    rules: list[_Track] = field(default_factory=list)
    models: list[_Track] = field(default_factory=list)
    reached: int = 0

    @property
    def least(self) -> int:
        """How long the next stretch is at least."""
        held = self.reached - min((track.cleared for track in self.rules), default=self.reached)
        return held // 4 if held > PATIENT_FROM else 1


class StreamGuard:
    """The checks of one policy on one text. See the module's docstring."""

    def __init__(
        self, policy: Policy, checks: Sequence[ActiveCheck], context: Context, *, stretch: Stretch | None = None
    ) -> None:
        """Begin.

        Args:
            policy: for its limits and how much text is taken together.
            checks: those of its checks that this text is for.
            context: what checks may know.
            stretch: how much is taken together instead, for a text that is there at once.
        """
        self._policy = policy
        self._context = context
        self._text = StreamText()
        self._whole: list[str] = []
        self._lanes: dict[Stretch, _Lane] = {}
        self._at_end: list[_Track] = []
        for active in checks:
            rule = active.rule
            track = _Track(active, holds=rule.holds, until_end=rule.mode is Mode.BUFFER_FULL)
            if active.looks_at_whole:
                self._at_end.append(track)
                continue
            size = stretch or (rule.hold_back or policy.hold_back).stretch()
            if not (stretch or rule.holds or active.is_model):
                size = OBSERVED
            lane = self._lanes.setdefault(size, _Lane(size))
            (lane.models if active.is_model else lane.rules).append(track)
        self._tracks = [*self._at_end, *(t for lane in self._lanes.values() for t in (*lane.rules, *lane.models))]
        self._holding = [track for track in self._tracks if track.holds]
        self._queue: deque[tuple[_Track, Pending]] = deque()
        self._under_way: dict[int, tuple[_Track, Pending]] = {}
        self._ids = 0
        self._findings: list[Finding] = []
        self._redactions: list[Finding] = []
        self._stop_at: tuple[int, Ending] | None = None
        self._complete = False
        self._released = 0
        self._overflow: list[str] = []
        self._over_limit = False
        self._enforcing = [active for active in checks if active.rule.enforces]
        self._beside = ""
        """The end of what went out, as long as a redaction is near it."""
        self._since_edit = 0
        self._looked_at_all = False
        self.ending: Ending | None = None
        self.redacted = False
        """Whether anything that went out was changed."""

    # --- what comes in ---------------------------------------------------------------------------------------------

    def feed(self, chunk: str, now: float) -> Step:
        """Take more text."""
        if self._complete or self.ending is not None:
            return Step(ending=self.ending) if not chunk else Step()
        if chunk:
            self._take(chunk)
            self._look()
        return self._step(now)

    def finish(self, now: float) -> Step:
        """Nothing comes any more: look at the rest."""
        if not self._complete and self.ending is None:
            self._text.complete()
            self._end()
        return self._step(now)

    def resolve(self, work_id: int, hits: Sequence[Hit] | str, now: float) -> Step:
        """Take a model's verdict: hits with offsets in the pending's text, or the reason why there is none.

        A verdict that comes twice, or after its time, is ignored.
        """
        found = self._under_way.pop(work_id, None)
        if found is not None:
            track, pending = found
            if isinstance(hits, str):
                self._failed(track, pending, hits)
            else:
                self._judged(track, pending, hits)
        return self._step(now)

    def expire(self, now: float) -> Step:
        """Give up on work whose deadline has passed."""
        for work_id, (track, pending) in list(self._under_way.items()):
            if pending.deadline <= now:
                del self._under_way[work_id]
                self._failed(track, pending, f"no verdict within {track.active.rule.time_budget_ms} ms")
        return self._step(now)

    @property
    def next_deadline(self) -> float | None:
        """When `expire` has something to do, if nothing else happens."""
        return min((pending.deadline for _, pending in self._under_way.values()), default=None)

    @property
    def outstanding(self) -> int:
        """Verdicts that are still to come."""
        return len(self._under_way) + len(self._queue)

    @property
    def held_characters(self) -> int:
        """How much has come and not gone."""
        return self._text.end - self._released

    @property
    def remembered_characters(self) -> int:
        """How much text is kept, held or as context; without what checks of the whole answer need."""
        return len(self._text.text)

    # --- looking ---------------------------------------------------------------------------------------------------

    def _take(self, chunk: str) -> None:
        limit = self._policy.limits.max_characters
        if self._over_limit:
            self._overflow.append(chunk)
            return
        if not self._tracks:
            self._text.add(chunk)
            return
        room = limit - self._text.end
        self._text.add(chunk[:room] if len(chunk) > room else chunk)
        if self._at_end:
            self._whole.append(chunk[: max(0, room)])
        if len(chunk) > room:
            self._over_limit = True
            self._overflow.append(chunk[room:])

    def _look(self) -> None:
        """Decide every stretch whose end is known, in the order of their ends, whatever lane they are in."""
        while True:
            cuts = []
            for lane in self._lanes.values():
                cut = next_cut(self._text.text, self._text.local(lane.reached), lane.stretch, least=lane.least)
                if cut is not None:
                    cuts.append((cut - self._text.local(0), lane))
            if not cuts:
                break
            end, lane = min(cuts, key=lambda found: found[0])
            self._decide(lane, end, complete=False)
        if self._over_limit and not self._looked_at_all:
            self._end()

    def _end(self) -> None:
        """Look at the rest of the text, for it is complete, or as long as it may be."""
        if self._looked_at_all:
            self._complete = True
            return
        self._looked_at_all = True
        self._complete = not self._over_limit or self._policy.limits.beyond is Failure.CLOSED
        for lane in self._lanes.values():
            if self._text.end > lane.reached:
                self._decide(lane, self._text.end, complete=True)
            for track in lane.rules:
                track.cleared = self._text.end
            for track in lane.models:
                track.settle(self._text.end)
        for track in self._at_end:
            self._look_at_whole(track)
        if self._over_limit:
            self._report_length()

    def _report_length(self) -> None:
        end, limit = self._text.end, self._policy.limits.max_characters
        reason = f"longer than {limit} characters"
        language = Language.OTHER
        if self._policy.limits.beyond is Failure.CLOSED and self._holding:
            self._findings.append(Finding(LIMIT_CHECK, Verdict.ERROR, end, end, 0.0, language, reason))
            self._stop(end, Ending.FAILED)
        else:
            self._findings.append(Finding(LIMIT_CHECK, Verdict.FLAG, end, end, 1.0, language, reason))

    def _decide(self, lane: _Lane, end: int, *, complete: bool) -> None:
        language = language_of(self._text.part(end - LANGUAGE_CHARACTERS, end))
        carries = [track.active.kind.carry_over_characters for track in lane.rules]
        shared = max((carry for carry in carries if carry <= SHARED_CARRY), default=0)
        by_carry: dict[int, list[_Track]] = {}
        for track, carry in zip(lane.rules, carries, strict=True):
            by_carry.setdefault(max(carry, shared), []).append(track)
        views: dict[int, View] = {}
        for carry, tracks in by_carry.items():
            start = self._context_start(min(track.cleared for track in tracks) - carry)
            view = views.get(start) or views.setdefault(start, View(self._text.part(start, end)))
            context = replace(self._context, language=language, preceding=start, complete=complete)
            for track in tracks:
                self._apply_rule(track, view, start, end, context)
        for track in lane.models:
            self._ask_model(track, lane.reached, end, language, complete=complete)
        lane.reached = end

    def _context_start(self, wanted: int) -> int:
        """A little before where the context should begin, so that it begins with a word."""
        if wanted <= 0:
            return 0
        before = self._text.part(wanted - CONTEXT_SLACK, wanted)
        spaces = max(before.rfind(" "), before.rfind("\n"))
        return wanted - len(before) + spaces + 1 if spaces >= 0 else wanted

    def _apply_rule(self, track: _Track, view: View, start: int, end: int, context: Context) -> None:
        check = track.active.check
        assert check is not None
        try:
            hits = [hit.moved(start) for hit in check.examine(view, context)]
            clear = end if context.complete else start + max(0, min(len(view.original), check.unfinished_from(view)))
        except Exception as error:
            reason = f"raised {type(error).__name__}"
            self._error(track, could_not_run(track.active.rule, track.cleared, end, context.language, reason))
            track.cleared = end
            return
        for hit in sorted(hits, key=lambda h: -h.start):
            if hit.start < clear < hit.end:
                clear = hit.start
        before, track.cleared = track.cleared, max(track.cleared, clear)
        new = [hit for hit in hits if before < hit.end <= track.cleared]
        self._record(track, judge(track.active.rule, new, context.language), before)

    def _look_at_whole(self, track: _Track) -> None:
        whole = "".join(self._whole)
        check = track.active.check
        end = self._text.end
        context = replace(self._context, language=language_of(whole[-LANGUAGE_CHARACTERS:]), preceding=0, complete=True)
        if check is None:
            self._ask_model(track, 0, end, context.language, complete=True, whole=whole)
            return
        track.cleared = end
        try:
            hits = check.examine(View(whole), context)
        except Exception as error:
            reason = f"raised {type(error).__name__}"
            self._error(track, could_not_run(track.active.rule, 0, end, context.language, reason), at=0)
            return
        self._record(track, judge(track.active.rule, hits, context.language), 0)

    # --- models ----------------------------------------------------------------------------------------------------

    def _ask_model(
        self, track: _Track, start: int, end: int, language: Language, *, complete: bool, whole: str | None = None
    ) -> None:
        rule = track.active.rule
        if rule.languages is not None and language not in rule.languages:
            track.settle(end)
            return
        begin = max(0, start - self._policy.carry_over_characters)
        text = self._text.part(begin, end) if whole is None else whole
        self._ids += 1
        pending = Pending(
            id=self._ids,
            active=track.active,
            text=text,
            context_characters=len(text) - (end - start),
            start=start,
            end=end,
            context=replace(self._context, language=language, preceding=begin, complete=complete),
            deadline=0.0,
        )
        track.waiting[pending.id] = (start, end)
        track.settle(start)
        self._queue.append((track, pending))

    def _hand_out(self, now: float) -> tuple[Pending, ...]:
        work = []
        while self._queue and len(self._under_way) < self._policy.limits.max_pending:
            track, pending = self._queue.popleft()
            pending = replace(pending, deadline=now + track.active.rule.time_budget_ms / 1000)
            self._under_way[pending.id] = (track, pending)
            work.append(pending)
        return tuple(work)

    def _judged(self, track: _Track, pending: Pending, hits: Sequence[Hit]) -> None:
        first = pending.start - pending.context_characters
        moved = []
        for hit in hits:
            start, end = max(pending.start, first + hit.start), min(pending.end, first + hit.end)
            if end > start:
                moved.append(replace(hit, start=start, end=end))
        self._record(track, judge(track.active.rule, moved, pending.context.language), pending.start)
        self._done(track, pending)

    def _failed(self, track: _Track, pending: Pending, reason: str) -> None:
        finding = could_not_run(track.active.rule, pending.start, pending.end, pending.context.language, reason)
        self._error(track, finding, at=pending.start)
        self._done(track, pending)

    def _done(self, track: _Track, pending: Pending) -> None:
        lane = next((lane for lane in self._lanes.values() if track in lane.models), None)
        del track.waiting[pending.id]
        track.settle(self._text.end if lane is None or self._complete else lane.reached)

    # --- what follows ----------------------------------------------------------------------------------------------

    def _record(self, track: _Track, findings: list[Finding], cleared_before: int) -> None:
        self._findings += findings
        if not track.active.rule.enforces:
            return
        for finding in findings:
            if finding.verdict is Verdict.BLOCK:
                self._stop(0 if track.until_end else cleared_before, Ending.BLOCKED)
            elif finding.verdict is Verdict.REDACT:
                start = max(finding.start, cleared_before)
                if finding.end > start:
                    self._redactions.append(replace(finding, start=start))

    def _error(self, track: _Track, finding: Finding, at: int | None = None) -> None:
        self._findings.append(finding)
        if track.active.rule.fails_closed:
            self._stop(0 if track.until_end else track.cleared if at is None else at, Ending.FAILED)

    def _stop(self, at: int, ending: Ending) -> None:
        """The earliest stop counts; of two at one place the block, for it is certain."""
        if self._stop_at is None or (at, ending is Ending.FAILED) < (
            self._stop_at[0],
            self._stop_at[1] is Ending.FAILED,
        ):
            self._stop_at = (at, ending)

    def _clear_to(self) -> int:
        """How far the text may go out."""
        cleared = self._text.end
        for track in self._holding:
            if track.until_end and not (self._complete or self._over_limit):
                return 0
            if track.until_end and track.waiting:
                return 0
            cleared = min(cleared, track.cleared)
        return cleared

    def _step(self, now: float) -> Step:
        if self.ending is not None:
            findings, self._findings = self._findings, []
            return Step(findings=in_order(findings), work=self._hand_out(now))
        text = self._release()
        findings, self._findings = self._findings, []
        if self.ending in (Ending.BLOCKED, Ending.FAILED):
            self._queue.clear()
            self._under_way.clear()
        return Step(
            text=text,
            findings=in_order(findings),
            work=self._hand_out(now),
            ending=self.ending,
            doomed=self._stop_at is not None,
        )

    def _release(self) -> str:
        cleared = self._clear_to()
        stop = self._stop_at
        ends_here = stop is not None and cleared >= stop[0]
        to = min(cleared, stop[0]) if stop is not None else cleared
        edits = edits_of(self._redactions)
        to = self._whole_units(to, edits)
        text = ""
        if to > self._released:
            due = [Edit(e.start - self._released, e.end - self._released, e.replacement) for e in edits if e.end <= to]
            text = apply_edits(self._text.part(self._released, to), due)
            if due or self._beside:
                text = settled(text, self._beside, self._enforcing, self._context)
                self.redacted = True
                recent = (self._beside + text)[-SEEN_CHARACTERS:]
                self._beside = recent if due or self._since_edit + len(text) < SEEN_CHARACTERS else ""
                self._since_edit = 0 if due else self._since_edit + len(text)
            self._redactions = [finding for finding in self._redactions if finding.start >= to]
            self._released = to
        if ends_here and stop is not None:
            self.ending = stop[1]
        elif self._released == self._text.end and (self._complete or self._over_limit):
            text += "".join(self._overflow)
            self._overflow.clear()
            self.ending = Ending.FINISHED if self._complete else None
        self._text.forget(self._needed_from())
        return text

    def _whole_units(self, to: int, edits: Sequence[Edit]) -> int:
        """The last position up to `to` that splits no redaction, no word and no visible character."""
        for edit in reversed(edits):
            if edit.start < to < edit.end:
                to = edit.start
        if to >= self._text.end or to <= self._released:
            return to
        local = self._text.local(to)
        snapped = word_boundary(self._text.text, local)
        edges = {edge for edit in edits for edge in (edit.start, edit.end)}
        if to in edges and is_boundary(self._text.text, local):
            return to
        return max(self._released, to - (local - snapped))

    def _needed_from(self) -> int:
        needed = self._released - KEPT_CHARACTERS
        for lane in self._lanes.values():
            for track in lane.rules:
                carry = max(SHARED_CARRY, track.active.kind.carry_over_characters)
                needed = min(needed, track.cleared - carry - 2 * CONTEXT_SLACK)
            if lane.models:
                needed = min(needed, lane.reached - self._policy.carry_over_characters)
            needed = min(needed, lane.reached - KEPT_CHARACTERS - LANGUAGE_CHARACTERS)
        return needed
