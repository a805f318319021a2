"""Real Ray, controller and gateway with simulated engines: what users and operators are promised when things break."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.e2e.platform import Platform, running
from tidegate.client import ControlClient
from tidegate.errors import ControlError
from tidegate.load import Load
from tidegate.replies import RolloutStatus

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MODEL = "sim"
HEALTHY = "sim:?ttft_ms=5&itl_ms=2&tokens=20"
STEPS = {
    "strategy": {"canary": {"steps": [{"weight": 10, "duration": "2s"}, {"weight": 50, "duration": "2s"}]}},
    "rollbackWindow": "1h",
    "drainDeadline": "30s",
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    with running(tmp_path_factory.mktemp("home"), "--bare") as started:
        for version, source in {
            "1.0.0": HEALTHY,
            "1.0.1": HEALTHY + "&seed=2",
            "1.0.2": HEALTHY + "&seed=3",
            "1.0.3": HEALTHY + "&seed=4",
            "1.1.0": HEALTHY + "&error_rate=1",
            "1.2.0": HEALTHY + "&fail_load=1",
        }.items():
            started.tidegate("model", "register", MODEL, "--version", version, "--source", source)
        started.tidegate("deploy", f"{MODEL}@1.0.0", "-y", "--wait")
        yield started


@pytest.fixture
def control(platform) -> Iterator[ControlClient]:
    with platform.control() as client:
        yield client


def load(platform: Platform, clients: int = 8) -> Load:
    return Load(platform.settings.gateway_url, MODEL, clients=clients)


def deploy(control: ControlClient, version: str, **changes) -> None:
    control.deploy({"model": MODEL, "version": version} | STEPS | changes)


def wait(control: ControlClient, holds: Callable[[RolloutStatus], bool], timeout_s: float = 90) -> RolloutStatus:
    until = time.monotonic() + timeout_s
    status = None
    while time.monotonic() < until:
        try:
            status = control.rollout(MODEL)
            if holds(status):
                return status
        except ControlError:
            pass  # the controller may be the thing that was killed
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s} s: {status}")


def process(platform: Platform, *words: str) -> psutil.Process:
    """The newest process of this platform whose command line has all these words."""
    found = [p for p in platform.processes() if all(w in " ".join(p.cmdline()) for w in words)]
    assert found, f"no process with {words}: {[' '.join(p.cmdline())[:80] for p in platform.processes()]}"
    return max(found, key=lambda p: p.create_time())


def test_no_client_sees_the_failures_of_a_version_that_is_taken_back(platform, control):
    with load(platform) as traffic:
        time.sleep(2)
        deploy(control, "1.1.0")
        wait(control, lambda s: s.phase == "Degraded")
        time.sleep(1)  # the gateway's last totals arrive after the decision
        status = control.rollout(MODEL)
    assert not traffic.errors, traffic.errors[:5]
    assert status.stable == "1.0.0"
    exposure = status.exposure
    print(f"canary requests until rollback {exposure.canary_requests}, lower bound {exposure.lower_bound}")
    assert 0 < exposure.canary_requests <= 40
    with pytest.raises(ControlError, match="condemned"):
        deploy(control, "1.1.0")
    control.command(MODEL, "ack")


def test_a_version_that_cannot_load_says_why_and_disturbs_nobody(platform, control):
    with load(platform, clients=2) as traffic:
        deploy(control, "1.2.0")
        status = wait(control, lambda s: s.phase == "Degraded", timeout_s=120)
    assert "can't be served" in status.reason
    assert not traffic.errors, traffic.errors[:5]
    assert {s.version for s in traffic.samples} == {"1.0.0"}


def test_a_rollback_by_hand_takes_effect_at_once_and_cuts_no_stream(platform, control):
    with load(platform) as traffic:
        deploy(control, "1.0.1", strategy={"canary": {"steps": [{"weight": 50, "duration": "10m"}]}})
        wait(control, lambda s: s.weight == 50 and s.exposure.canary_requests > 20)
        reply = control.command(MODEL, "rollback", reason="rehearsal")
        time.sleep(2)
        status = wait(control, lambda s: not s.retiring)
    late_s = status.exposure.last_admitted_at - reply.accepted_at
    print(f"last canary admission {late_s * 1000:+.1f} ms from the accepted rollback")
    assert late_s < 0.25
    assert not traffic.errors, traffic.errors[:5]
    assert traffic.samples[-1].version == "1.0.0"
    control.command(MODEL, "ack")


def test_a_rollout_goes_on_through_kills(platform, control):
    """Kill -9 of the controller, the gateway, and a replica in mid-rollout; it ends promoted, once."""
    with load(platform) as traffic:
        deploy(control, "1.0.2")
        wait(control, lambda s: s.weight == 10)
        os.kill(process(platform, "tidegate.control_plane").pid, signal.SIGKILL)
        wait(control, lambda s: s.phase == "Progressing" and s.weight >= 10)
        os.kill(process(platform, "serving.gateway.main").pid, signal.SIGKILL)
        time.sleep(1)
        os.kill(process(platform, "serving.engines.simulated").pid, signal.SIGKILL)
        status = wait(control, lambda s: s.phase in ("Healthy", "Degraded"), timeout_s=150)
    assert (status.phase, status.stable) == ("Healthy", "1.0.2"), status.reason
    promoted = [
        e
        for e in control.history(MODEL)
        if any(a["type"] == "promote" for a in e.actions) and e.at >= status.started_at
    ]
    assert len(promoted) == 1
    print(f"{len(traffic.errors)} of {len(traffic.samples)} requests failed while the only gateway was dead")


def test_rays_head_can_die(platform, control):
    os.kill(process(platform, "gcs_server").pid, signal.SIGKILL)
    time.sleep(1)
    with load(platform, clients=2) as traffic:
        until = time.monotonic() + 120
        while time.monotonic() < until and not any(not s.error for s in traffic.samples[-20:]):
            time.sleep(1)
        deploy(control, "1.0.3", emergency=True)
        status = wait(control, lambda s: s.phase in ("Healthy", "Degraded") and s.canary is None, timeout_s=150)
    assert (status.phase, status.stable) == ("Healthy", "1.0.3"), status.reason


def test_every_decision_of_all_this_can_be_explained_and_replayed(platform, control):
    assert all(d.same for d in control.replay(MODEL)), [d for d in control.replay(MODEL) if not d.same]
    told = platform.tidegate("rollout", "explain", MODEL, "--all").stdout
    for expected in ("1.1.0", "error", "rehearsal"):
        assert expected in told
