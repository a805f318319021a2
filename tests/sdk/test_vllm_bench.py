"""vLLM's own load generator as a client, `vllm bench serve`: completions and chat, against the simulated engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sdk.conftest import Simulated

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).with_name("vllm_bench.py")
REQUESTS, OUTPUT_TOKENS = 60, 12


def test_vllm_bench_serve_is_answered_in_full(simulated: Simulated, tmp_path: Path) -> None:
    shared = [
        "--model", "chat", "--tokenizer", str(tmp_path), "--base-url", simulated.gateway.url,
        "--dataset-name", "random", "--random-input-len", "20", "--random-output-len", str(OUTPUT_TOKENS),
        "--num-prompts", str(REQUESTS), "--max-concurrency", "8", "--disable-tqdm", "--seed", "3",
        "--header", f"Authorization=Bearer {simulated.keys['everything']}",
    ]  # fmt: skip
    runs = [
        [*shared, "--backend", "openai", "--endpoint", "/v1/completions"],
        [*shared, "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"],
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        input=json.dumps(runs),
        env=env,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines() if line[:7] == "RESULT "]
    assert len(results) == 2
    for result in results:
        print({k: result[k] for k in ("backend", "completed", "request_throughput", "mean_ttft_ms", "mean_itl_ms")})
        assert (result["completed"], result["failed"]) == (REQUESTS, 0)
        assert result["total_output_tokens"] == REQUESTS * OUTPUT_TOKENS
        assert result["mean_ttft_ms"] > 0
