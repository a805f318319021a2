"""Every strategy on real Ray with simulated engines, behind two gateways that ask for keys."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.platform import Platform, running
from tidegate.client import ControlClient
from tidegate.load import Load
from tidegate.replies import RolloutStatus

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MODEL = "sim"
HEALTHY = "sim:?ttft_ms=5&itl_ms=1&tokens=12"
TESTERS = [{"header": "x-beta", "value": "1"}]
ANSWERS = {"name": "answers", "prompt": "Hello", "expect": {"matches": "\\w"}}
ZEBRA = {"name": "zebra", "prompt": "Hello", "expect": {"contains": "a zebra that nobody has seen"}}


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("home")
    with running(home, "--bare", auth="keys", gateways="2", guard_models="service") as started:
        sources = {"1.0.0": "", "1.0.1": "&seed=2", "1.0.2": "&seed=3", "1.0.3": "&seed=4", "1.1.0": "&error_rate=0.4"}
        for version, change in sources.items():
            started.tidegate("model", "register", MODEL, "--version", version, "--source", HEALTHY + change)
        started.tidegate("deploy", f"{MODEL}@1.0.0", "-y", "--wait")
        yield started


@pytest.fixture
def control(platform) -> Iterator[ControlClient]:
    with platform.control() as client:
        yield client


@pytest.fixture(scope="module")
def key(platform) -> str:
    made = platform.tidegate("key", "create", "tests", "--scope", "inference", "--scope", "see-version", "--json")
    return json.loads(made.stdout)["key"]


@pytest.fixture
def traffic(platform, key) -> Iterator[Load]:
    with Load(platform.settings.gateway_url, MODEL, clients=6, max_tokens=12, key=key) as load:
        yield load


def deploy(control: ControlClient, version: str, strategy: dict[str, Any], **changes: Any) -> None:
    control.deploy({"model": MODEL, "version": version, "strategy": strategy, "drainDeadline": "30s"} | changes)


def wait(control: ControlClient, holds: Callable[[RolloutStatus], bool], timeout_s: float = 120) -> RolloutStatus:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        status = control.rollout(MODEL)
        if holds(status):
            return status
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s} s: {status}")


def test_without_a_key_nobody_is_answered(platform):
    answer = httpx.get(platform.settings.gateway_url + "/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_both_gateways_follow(control):
    assert len(control.platform().gateways) == 2


def test_a_shadow_is_promoted_on_pairs_and_no_client_sees_it_before(control, traffic):
    strategy = {"shadow": {"mirrorPercent": 100, "duration": "1s", "pairs": 50, "onPassed": "promote"}}
    deploy(control, "1.0.1", strategy)
    status = wait(control, lambda s: s.phase == "Healthy" and s.stable == "1.0.1")
    promoted_at = next(e.at for e in control.history(MODEL) if e.at >= status.started_at and "promot" in e.reason)
    assert not [s for s in traffic.samples if s.version == "1.0.1" and s.started_at < promoted_at - 1]
    assert not traffic.errors, traffic.errors[:5]


def test_a_smoke_suite_condemns_before_anybody_was_answered(control, traffic):
    begun = time.time()
    deploy(control, "1.0.2", {"blueGreen": {"smoke": [ANSWERS, ZEBRA]}})
    status = wait(control, lambda s: s.phase == "Degraded")
    assert "zebra" in status.reason
    assert not [s for s in traffic.samples if s.version == "1.0.2" and s.started_at > begun]
    control.command(MODEL, "ack")


def test_testers_meet_a_blue_green_candidate_before_the_switch(platform, control, key, traffic):
    deploy(control, "1.0.2", {"blueGreen": {"smoke": [ANSWERS], "testers": TESTERS, "autoSwitch": False}})
    wait(control, lambda s: s.phase == "Paused")
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    url = platform.settings.gateway_url + "/v1/chat/completions"
    answer = httpx.post(url, json=body, headers={"authorization": f"Bearer {key}", "x-beta": "1"})
    assert (answer.status_code, answer.headers["x-tidegate-version"]) == (200, "1.0.2")
    assert {s.version for s in traffic.samples} == {"1.0.1"}
    control.command(MODEL, "promote")
    wait(control, lambda s: s.phase == "Healthy" and s.stable == "1.0.2")
    assert not traffic.errors, traffic.errors[:5]


def test_a_switch_to_a_bad_version_is_taken_back_by_itself(control, traffic):
    deploy(control, "1.1.0", {"blueGreen": {"previewDuration": "1s"}}, rollbackWindow="1h")
    wait(control, lambda s: s.stable == "1.1.0")
    status = wait(control, lambda s: s.phase == "Degraded")
    assert status.stable == "1.0.2"
    assert status.quarantined_versions
    met = sum(s.version == "1.1.0" or s.status >= 500 for s in traffic.samples)
    print(f"{met} requests met the bad version, {len(traffic.errors)} of them failed")
    control.command(MODEL, "ack")


def test_an_a_b_test_reports_and_waits_for_a_person(control, traffic):
    deploy(control, "1.0.3", {"ab": {"weight": 50, "sessions": 100}})
    status = wait(control, lambda s: s.phase == "Paused")
    assert status.awaits == "promote"
    assert any(c.told.startswith("error: ") for c in status.comparisons)
    control.command(MODEL, "abort")
    status = wait(control, lambda s: s.phase == "Degraded" and not s.retiring)
    assert status.stable == "1.0.2"
    assert not traffic.errors, traffic.errors[:5]


def test_models_on_ray_serve_check_what_engines_say(platform, key):
    platform.tidegate("model", "register", "guarded", "--source", f"{HEALTHY}&toxic_rate=1", "--policy", "standard")
    platform.tidegate("deploy", "guarded@1.0.0", "-y", "--wait")
    url, headers = platform.settings.gateway_url + "/v1/chat/completions", {"authorization": f"Bearer {key}"}
    hello = {"model": "guarded", "messages": [{"role": "user", "content": "Tell me of the harbour."}]}
    until = time.monotonic() + 60  # a replica of the service loads its models for seconds; until then nothing is let in
    while (answer := httpx.post(url, json=hello, headers=headers, timeout=30)).status_code != 200:
        assert answer.json()["error"]["code"] == "guardrail_unavailable", answer.text
        assert time.monotonic() < until, "the guardrails' service never came up"
        time.sleep(0.5)
    client = openai.OpenAI(base_url=platform.settings.gateway_url + "/v1", api_key=key, max_retries=0)
    whole = [client.chat.completions.create(**hello).choices[0].finish_reason for _ in range(20)]
    assert "content_filter" in whole, "every answer begins with an insult, and some are gross"
    endings = set()
    for _ in range(20):
        stream = client.chat.completions.create(**hello, stream=True)
        endings.add([choice for chunk in stream for choice in chunk.choices][-1].finish_reason)
    assert "content_filter" in endings
    insult = {"role": "user", "content": "You disgusting pathetic loser, nobody likes you, you dumb fool."}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="guarded", messages=[insult])
    assert refused.value.code == "content_filter"


def test_usage_is_what_was_asked(platform, control, traffic):
    time.sleep(2)
    reply = json.loads(platform.tidegate("usage", "--json").stdout)
    rows = [row for row in reply["usage"] if row["model"] == MODEL]
    assert sum(row["requests"] for row in rows) > 500
    assert {row["version"] for row in rows} >= {"1.0.0", "1.0.1", "1.0.2", "1.0.3", "1.1.0"}


def test_a_revoked_key_is_refused_within_a_second(platform, control):
    made = json.loads(platform.tidegate("key", "create", "short-lived", "--json").stdout)
    headers = {"authorization": f"Bearer {made['key']}"}
    with httpx.Client(base_url=platform.settings.gateway_url, headers=headers) as client:
        until = time.monotonic() + 5
        while client.get("/v1/models").status_code != 200 and time.monotonic() < until:
            time.sleep(0.02)
        assert client.get("/v1/models").status_code == 200
        control.revoke_key(made["id"])
        revoked_at = time.monotonic()
        while client.get("/v1/models").status_code == 200 and time.monotonic() < revoked_at + 5:
            time.sleep(0.01)
        print(f"refused {1000 * (time.monotonic() - revoked_at):.0f} ms after it was revoked")
        assert time.monotonic() - revoked_at < 1.5


def test_every_decision_of_all_this_can_be_replayed(control):
    assert all(d.same for d in control.replay(MODEL)), [d for d in control.replay(MODEL) if not d.same]
