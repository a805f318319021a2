"""The official SDK for Node.js: node/suite.mjs, one test for each of its cases.

The packages are installed once, from the lock file, without running any of their scripts, and kept between runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.sdk.conftest import Simulated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
FOLDER = Path(__file__).parent / "node"
SUITE = FOLDER / "suite.mjs"
CASES = re.findall(r"^test\('([^']+)'", SUITE.read_text(), re.MULTILINE)
NODE_AT_LEAST = 20
INSTALL_WITHIN_S = 180


def unavailable(why: str) -> None:
    """Skip what needs Node.js where there is none; fail in continuous integration, which must have it."""
    message = f"{why}; install Node.js {NODE_AT_LEAST} or newer with npm"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def _installed() -> bool:
    """Whether node_modules holds what the lock file says: npm writes down there what it installed."""
    hidden = FOLDER / "node_modules" / ".package-lock.json"
    if not hidden.exists():
        return False
    wanted = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    found = json.loads(hidden.read_text())["packages"]
    return all(found.get(name, {}).get("version") == entry["version"] for name, entry in wanted.items() if name)


@pytest.fixture(scope="module")
def node() -> str:
    """The program, with the packages in place."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        unavailable("there is no node or no npm on the PATH")
        raise AssertionError
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < NODE_AT_LEAST:
        unavailable(f"node is {version}")
    if not _installed():
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_WITHIN_S)
        if done.returncode != 0:
            unavailable(f"npm ci failed: {done.stderr.strip()[-400:]}")
    return program


@pytest.fixture(scope="module")
def results(node: str, simulated: Simulated) -> dict[str, dict[str, Any]]:
    """What became of each case."""
    env = {
        **os.environ,
        "BASE_URL": simulated.url,
        "API_KEY": simulated.keys["everything"],
        "LIMITED_KEY": simulated.keys["node"],
        "PLAIN_KEY": simulated.keys["plain"],
    }
    done = subprocess.run([node, str(SUITE)], env=env, cwd=FOLDER, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", CASES)
def test_with_node(results: dict[str, dict[str, Any]], name: str) -> None:
    assert results[name]["ok"], results[name]["error"]


def test_all_cases_were_run(results: dict[str, dict[str, Any]]) -> None:
    assert list(results) == CASES
    assert len(CASES) >= 20


def test_streams_that_node_left_stop_the_engine(results: dict[str, dict[str, Any]], simulated: Simulated) -> None:
    assert results["leaving a stream"]["ok"]
    deadline = time.monotonic() + 20
    metric = 'vllm:num_requests_running{model_name="long"} 0'
    while metric not in httpx.get(simulated.engines["long"].url + "/metrics", timeout=10).text:
        assert time.monotonic() < deadline, "the engine still works for a client that has left"
        time.sleep(0.05)
