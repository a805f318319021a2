"""Who leads, by a Lease: taken, renewed, given back, taken over, and no hindrance while there is no API server."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from rollout.errors import LogConflict
from rollout.operator import election as module
from rollout.operator.api import ResourceApi
from rollout.operator.election import ALONE_S, DURATION_S, Election
from tests.kubernetes.faults import Trouble
from tests.kubernetes.rig import ACCOUNT, NAMESPACE, address, prepared
from tests.kubernetes.server import ApiServer
from tests.unit.helm.charts import objects

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_S", 0.005)
    monkeypatch.setattr(module, "RENEW_S", 0.005)


class Hall:
    """Candidates for one Lease, with the chart's rights and a clock of the test's own."""

    def __init__(self, api: ApiServer, folder: Path) -> None:
        self.api = api
        self.now = 1_000_000.0
        self._client = ResourceApi(address(api, folder, ACCOUNT).configuration())

    def candidate(self, name: str) -> Election:
        return Election(
            self._client,
            namespace=NAMESPACE,
            name="r-controller",
            holder=name,
            clock=lambda: self.now,
            monotonic=lambda: self.now,
        )

    @property
    def holder(self) -> str:
        found = self.api.cluster.find("leases", NAMESPACE, "r-controller")
        return str(found["spec"].get("holderIdentity")) if found else ""


@pytest.fixture
def hall(api: ApiServer, tmp_path: Path) -> Hall:
    return Hall(prepared(api, objects()), tmp_path)


async def soon(candidate: Election, within_s: float = 5.0) -> bool:
    """Whether it is elected within so long; who is expected to be is waited for."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await candidate.elected()
            return True
    return False


async def test_the_first_gets_it_and_the_second_waits(hall: Hall) -> None:
    one, two = hall.candidate("one"), hall.candidate("two")
    assert await soon(one)
    assert not await soon(two, 0.15)
    assert hall.holder == "one"
    await one.give_back()
    assert await soon(two)
    assert hall.holder == "two"


async def test_who_does_not_renew_loses_it(hall: Hall) -> None:
    one, two = hall.candidate("one"), hall.candidate("two")
    assert await soon(one)
    assert not await soon(two, 0.15)
    hall.now += DURATION_S + 1
    assert await soon(two), "it has not changed for as long as it lasts"
    with pytest.raises(LogConflict, match="held by somebody else"):
        async with asyncio.timeout(5):
            await one.keep()


async def test_a_renewed_lease_is_not_taken(hall: Hall) -> None:
    one, two = hall.candidate("one"), hall.candidate("two")
    assert await soon(one)
    for _ in range(4):
        assert not await soon(two, 0.15)
        hall.now += DURATION_S / 2
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await one.keep()
    assert hall.holder == "one"


async def test_who_leads_goes_on_while_the_api_server_is_away(hall: Hall) -> None:
    one = hall.candidate("one")
    assert await soon(one)
    hall.api.leave()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await one.keep()
    assert "does not answer" in one.message
    hall.api.come_back()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await one.keep()
    assert one.message == ""


async def test_without_any_api_server_the_store_alone_decides(hall: Hall) -> None:
    one = hall.candidate("one")
    with hall.api.away():
        assert not await soon(one, 0.15)
        waiting = asyncio.create_task(one.elected())
        await asyncio.sleep(0.02)
        hall.now += ALONE_S + 1
        await asyncio.wait_for(waiting, 5)
    assert not one.held


@pytest.mark.parametrize("trouble", [Trouble.CONFLICT, Trouble.INTERNAL, Trouble.LOST_ANSWER, Trouble.TOO_MANY])
async def test_trouble_with_one_write_changes_nothing(hall: Hall, trouble: Trouble) -> None:
    one = hall.candidate("one")
    assert await soon(one)
    hall.api.faults.plan(trouble, lambda asked: asked.verb == "update", times=3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await one.keep()
    assert (hall.holder, one.held) == ("one", True)
