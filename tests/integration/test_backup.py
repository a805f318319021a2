"""A backup is restored as docs/kubernetes.md says, and the controller stands where it stood, gateways obeying it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from rollout.accounts.sql import SqlAccountStore
from rollout.status import Stage
from serving.accounting import UsageRow
from serving.keys import KeyRecord, hash_secret
from tests.integration.controllers import MODEL, Gateway, RunningController, until
from tests.ports import free_ports
from tests.postgres import Postgres, find_binaries

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
AFTER_RESTORE = ROOT / "helm" / "tidegate" / "files" / "after-restore.sql"


def postgres_tool(name: str, *arguments: str) -> None:
    """One of PostgreSQL's programs, of the server's own version."""
    binaries = find_binaries()
    assert binaries is not None
    done = subprocess.run([binaries / name, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@asynccontextmanager
async def leading(url: str, port: int) -> AsyncIterator[RunningController]:
    running = RunningController(url, "c", port, lease_s=1.0)
    running.start()
    try:
        await until(lambda: running.controller.leads, "it leads")
        yield running
    finally:
        await running.stop()


async def test_a_restored_store_tells_the_same_and_gateways_obey_it(postgres: Postgres, tmp_path: Path) -> None:
    lost, restored = postgres.new_database(), postgres.new_database()
    (port,) = free_ports(1)
    dump = tmp_path / "tidegate.dump"
    hour = int(time.time()) // 3600 * 3600
    follower = Gateway([port])
    try:
        async with leading(lost, port) as running:
            await running.deploy("1.0.0")
            await until(lambda: running.controller.status(MODEL).stable is not None, "1.0.0 is stable")
            await running.deploy("1.1.0")
            await until(lambda: _weight(follower) == 10, "the canary has traffic")
            secret = hash_secret("s" * 43)
            key = KeyRecord(id="abcdefghijkl", secret_sha256=secret, name="website", created_at=1.0)
            await running.controller.accounting.put_key(key)
            accounts = SqlAccountStore(running.database)
            row = UsageRow(gateway="g", boot="b", key=key.id, model=MODEL, version="1.0.0", hour=hour, requests=7)
            accounts.add_usage([row])
            used = accounts.usage(since=0, until=hour + 3600)
            before = running.controller.status(MODEL)
            postgres_tool("pg_dump", "--format=custom", f"--file={dump}", lost)
        async with leading(lost, port) as running:  # what happens after the backup is lost; gateways have seen it
            await until(lambda: _fence(follower) == running.controller._fence, "the gateway obeys the next leader")
            seen = _fence(follower)

        postgres_tool("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={restored}", str(dump))
        with psycopg.connect(restored) as connection:
            (fence,) = connection.execute("SELECT fence FROM lease").fetchone() or (0,)
        assert fence + 1 <= seen, "the trap: the next leader's fence would be one that gateways know already"
        postgres_tool("psql", "--quiet", "--set=ON_ERROR_STOP=1", f"--dbname={restored}", f"--file={AFTER_RESTORE}")

        async with leading(restored, port) as running:
            assert running.controller.status(MODEL) == before
            assert running.controller.accounting.keys() == (key,)
            assert SqlAccountStore(running.database).usage(since=0, until=hour + 3600) == used
            await until(lambda: _fence(follower) > seen, "the gateway obeys the restored controller")
            await follower.happen(20)
            await until(lambda: _stage(running) is Stage.WITHDRAWN, "evidence counts as before")
            await until(lambda: _weight(follower) == 0, "and the gateway follows")
        assert follower.refused == []
    finally:
        await follower.stop()


def _fence(follower: Gateway) -> int:
    return 0 if follower.table is None else follower.table.fence


def _weight(follower: Gateway) -> int:
    traffic = follower.traffic()
    return 0 if traffic is None else next((r.weight for r in traffic.revisions if r.version == "1.1.0"), 0)


def _stage(running: RunningController) -> Stage | None:
    rollout = running.controller.status(MODEL).rollout
    return None if rollout is None else rollout.stage
