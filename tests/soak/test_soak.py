"""A soak of one minute, and what kill -9 of a replica costs: benchmarks/gateway_soak.py with assertions."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gateway_soak import Soak, run
from benchmarks.soak.load import Kind
from benchmarks.soak.world import Shape

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(240)]


async def test_a_minute_of_trouble_costs_nobody_a_wrong_answer(tmp_path: Path) -> None:
    soak = Soak(seconds=55, clients=20, seed=7)
    verdict = await run(soak, tmp_path)
    print("\n" + verdict.table())
    assert verdict.faults == []
    assert soak.tally.wrong == []
    assert soak.done["engines killed (-9)"] >= 3
    for kind in Kind:
        assert soak.tally.outcomes[kind], f"nobody was {kind.value}: the soak did not test what it should"


async def test_kill_9_costs_only_the_streams_that_had_begun(tmp_path: Path) -> None:
    """Long answers, so that many are under way on an engine when it goes: whole ones and streams, half and half."""
    shares = {Kind.UNARY: 45, Kind.STREAM: 45, Kind.PINNED: 10}
    shape = Shape(first_token_ms=150, between_tokens_ms=30)
    soak = Soak(20, 40, 3, trouble_every_s=2.0, trouble={"kill": 1}, shares=shares, shape=shape)
    verdict = await run(soak, tmp_path)
    print("\n" + verdict.table())
    kills, lost = soak.done["engines killed (-9)"], sum(soak.tally.broken_streams.values())
    print(f"{kills} kills: {soak.tally.begun_when_killed} streams had begun there, {lost} were lost; "
          f"{soak.retries['endpoint-lost']} requests were answered by another replica")  # fmt: skip
    assert verdict.faults == []  # among them: any lost stream that had not begun there, any lost whole answer
    assert kills >= 4
    assert 0 < lost <= soak.tally.begun_when_killed + 2 * kills  # a first piece may be on its way to the client
    assert soak.retries["endpoint-lost"] > 0
    whole = soak.tally.outcomes[Kind.UNARY]
    assert whole["answered"] >= 0.98 * whole.total()  # but for those whose second engine was killed as well
