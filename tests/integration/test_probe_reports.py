"""Reports of bias probes over the control plane's API: whoever probed keeps them, gate and command line read them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from rollout.probes.base import ProbeReport
from rollout.probes.memory import MemoryProbeReports
from tests.contract.test_probe_reports import report
from tests.integration.control_rig import TOKEN, running
from tidegate.cli.main import run
from tidegate.client import ControlClient, connect
from tidegate.errors import ControlError, ControlUnavailable
from tidegate.probing import SAVE_AGAIN_AFTER_S, ControlReports
from tidegate.settings import Settings

pytestmark = pytest.mark.integration


async def test_a_report_is_kept_by_the_control_plane_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = MemoryProbeReports()
    async with running(probes=kept) as rig:
        await rig.serve_canary()
        for name, value in {
            "TIDEGATE_HOME": tmp_path, "TIDEGATE_KEY": TOKEN, "TIDEGATE_CONTROL_PORT": rig.url.rpartition(":")[2],
        }.items():  # fmt: skip
            monkeypatch.setenv(name, str(value))

        def as_a_prober() -> None:
            with connect(Settings(home=tmp_path)) as client:
                reports = ControlReports(client)
                assert reports.load("chat", "1.0.1") is None
                reports.save(report("1.0.1", at=3.0))
                assert reports.load("chat", "1.0.1") == report("1.0.1", at=3.0) == kept.load("chat", "1.0.1")
                with pytest.raises(ControlError, match="over an hour ahead"):
                    reports.save(report("1.0.1", at=time.time() + 7200))
                with pytest.raises(ControlError, match="ledger"):
                    reports.save(report(model="ledger"))

        await asyncio.to_thread(as_a_prober)
        assert await asyncio.to_thread(run, ["probe", "show", "chat@1.0.1", "--json"]) == 0
        assert ProbeReport.model_validate_json(capsys.readouterr().out) == report("1.0.1", at=3.0)
        assert await asyncio.to_thread(run, ["probe", "show", "chat@1.0.0"]) == 1
        assert "tidegate probe run chat@1.0.0" in capsys.readouterr().err
        other = report("1.0.1").model_dump(mode="json")
        key = {"authorization": f"Bearer {TOKEN}"}
        answer = await rig.http.put("/api/v1/probes/chat/1.0.0", json=other, headers=key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_report")


def test_while_the_lead_changes_a_report_is_not_lost() -> None:
    class Changing(ControlClient):
        def __init__(self, failures: list[ControlError]) -> None:
            self.failures, self.kept = failures, list[ProbeReport]()

        def keep_probe_report(self, report: ProbeReport) -> None:
            if self.failures:
                raise self.failures.pop(0)
            self.kept.append(report)

    waits: list[float] = []
    client = Changing([ControlUnavailable("away"), ControlError("not leading", status=503)])
    ControlReports(client, waits.append).save(report())
    assert (client.kept, waits) == ([report()], list(SAVE_AGAIN_AFTER_S[:2]))
    with pytest.raises(ControlError, match="no right"):
        ControlReports(Changing([ControlError("no right", status=403)]), waits.append).save(report())
    with pytest.raises(ControlUnavailable):
        ControlReports(Changing([ControlUnavailable("away")] * 9), waits.append).save(report())
