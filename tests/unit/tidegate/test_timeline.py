"""What `rollout explain` tells, from canned logs."""

from typing import Any

from tidegate.cli.evidence import e_value
from tidegate.cli.timeline import render, rollouts_in, tell
from tidegate.replies import HistoryEntry

T0 = 1_700_000_000.0


def entry(number: int, at: float, kind: str, **fields: Any) -> HistoryEntry:
    return HistoryEntry(id=number, at=T0 + at, kind=kind, **fields)


def start(rollout: str, version: str) -> dict[str, Any]:
    return {"type": "start", "rollout": rollout, "spec": {"model": "chat", "version": version}}


def event(at: float, arm: str = "canary") -> dict[str, Any]:
    return {"signal": "error", "arm": arm, "admitted_at": T0 + at - 0.1, "settled_at": T0 + at}


def total(admitted: int, first: float, last: float, role: str = "canary") -> dict[str, Any]:
    return {
        "role": role,
        "digest": "d",
        "weight": 5,
        "admitted": admitted,
        "first_admitted_at": T0 + first,
        "last_admitted_at": T0 + last,
    }


SEEN = {
    "signals": [
        {
            "name": "error",
            "canary": {"events": 9, "n": 50},
            "stable": {"events": 0, "n": 950},
            "log_e": 4.7,
            "threshold": 4.6,
            "verdict": "Failed",
        }
    ],
    "exposure": {"canary_requests": 52, "lower_bound": 41},
}

LOG = [
    entry(1, -500, "command", actor="up", reason="first", actions=(start("r0", "1.0.0"),)),
    entry(2, -400, "decision", cause="progress", reason="ready", actions=({"type": "promote"},)),
    entry(3, 0, "command", actor="alice", reason="deploy chat@1.2.0 by alice", actions=(start("r1", "1.2.0"),)),
    entry(4, 20, "decision", cause="progress", reason="ready", actions=({"type": "set-step", "step": 0, "weight": 5},)),
    entry(
        5,
        22,
        "evidence",
        actor="gateway/g",
        payload={"rollout": "r1", "gateway": "g", "boot": "b", "totals": [total(10, 20.5, 21.9)]},
    ),
    entry(
        6,
        22.5,
        "evidence",
        payload={"rollout": "r1", "gateway": "g", "boot": "b", "events": [event(22.2), event(22.4, "stable")]},
    ),
    entry(
        7,
        30,
        "decision",
        cause="signal-failed",
        reason="error: canary 9 of 50",
        actions=({"type": "withdraw", "trigger": "signal", "condemn": True},),
        observation=SEEN,
    ),
    entry(
        8,
        30.4,
        "evidence",
        payload={
            "rollout": "r1",
            "gateway": "g",
            "boot": "b",
            "totals": [total(54, 20.5, 30.05), total(900, 0, 31, "stable")],
        },
    ),
    entry(
        9,
        33,
        "decision",
        cause="drained",
        reason="chat@1.2.0 drained in 3.0 s",
        actions=({"type": "remove", "digest": "d"},),
        observation=SEEN,
    ),
]


def test_the_story_is_in_order_and_complete() -> None:
    assert rollouts_in(LOG) == [("r0", "1.0.0"), ("r1", "1.2.0")]
    story = tell(LOG, "r1")
    texts = [m.text for m in story.moments]
    wanted = [
        "deploy chat@1.2.0 by alice -> start 1.2.0",
        "step 1 at 5 %",
        "first canary request",
        "first error on the canary (1 in all, 1 on stable)",
        "canary withdrawn (signal, condemned until `ack`)",
        "last canary request",
        "drained and stopped",
    ]
    assert len(texts) == len(wanted)
    assert all(part in text for part, text in zip(wanted, texts, strict=True)), texts


def test_a_decision_tells_what_it_saw() -> None:
    withdrawn = next(m for m in tell(LOG, "r1").moments if "withdrawn" in m.text)
    assert "error: canary 9 of 50 (18.0 %) against stable 0 of 950 (0.0 %), e = 110 of 99" in withdrawn.details[0]
    assert "52 canary requests, lower bound 41" in withdrawn.details[1]


def test_exposure_counts_what_came_after_the_decision() -> None:
    story = tell(LOG, "r1")
    assert (story.canary_requests, story.lower_bound) == (54, 41)
    lines = render(story)
    assert lines[-1] == "canary requests in all: 54; at least 41 were needed to tell"
    assert "+   30.05 s  last canary request" in "\n".join(lines)


def test_another_rollouts_entries_stay_out() -> None:
    assert [m.entry for m in tell(LOG, "r0").moments] == [1, 2]


def test_an_unknown_rollout_is_an_empty_story() -> None:
    assert "nothing in the log" in render(tell(LOG, "r9"))[0]


def test_e_values_are_readable_at_any_size() -> None:
    found = [e_value(x) for x in (0.0, 3.6109, 4.6052, -3.0, 300.0, float("inf"))]
    assert found == ["1", "37", "100", "0.05", "10^130", "?"]


def test_what_was_seen_of_the_rollout_before_is_not_told_of_the_next_one() -> None:
    log = [
        *LOG,
        entry(20, 100, "command", actor="bob", reason="deploy", actions=(start("r2", "1.3.0"),), observation=SEEN),
    ]
    told = tell(log, "r2")
    assert told.moments[0].details == ()
    assert told.lower_bound is None
