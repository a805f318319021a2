"""How well the learned guardrail checks judge, and how fast.

    python -m benchmarks.guardrails_accuracy [--data FOLDER] [--split dev] [--quick]

FOLDER (or `$TIDEGATE_GUARDRAIL_DATA`) holds labelled texts as `dev.jsonl.gz` or another file named by `--split`: lines
with `source`, `lang`, `text`, `toxic`. Accuracy is by source and by language, never of the pool alone, since the sets
disagree on what is toxic. Intervals are 95 % bootstrap intervals over texts. Without data only speed is measured.
Everything runs on one core; peers are measured where they are installed.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

THREADS = "1"
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, THREADS)  # before numpy is imported

import numpy as np  # noqa: E402
import psutil  # noqa: E402

from guardrails.classifiers.toxicity import ToxicityClassifier  # noqa: E402

LENGTH = 1000
SENTENCES = {
    "en": (
        "The library opens at nine and closes at six on weekdays. Bring your card if you want to borrow three books. "
        "Our train was late, so we missed the first part of the talk. Could you send me the slides when you can? "
        "The recipe needs two eggs, a cup of flour and a little salt. She plays the violin in the city orchestra. "
        "We compared four databases and chose the one with the simplest backups. The garden is lovely after rain. "
    ),
    "zh": (
        "图书馆工作日九点开门，六点关门。想借三本以上的书请带上借书证。火车晚点了，我们错过了报告的开头。"
        "有空的时候能把幻灯片发给我吗？这个菜需要两个鸡蛋、一杯面粉和少许盐。她在市交响乐团拉小提琴。"
        "我们比较了四种数据库，选了备份最简单的一种。雨后的花园很漂亮。下周的会议改到星期三下午三点。"
    ),
}
Rows = list[dict[str, Any]]
Judge = Callable[[Sequence[str]], np.ndarray]


def say(line: str = "") -> None:
    """One line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def auc(labels: np.ndarray, sure: np.ndarray) -> float:
    """The chance that a toxic text scores above a harmless one; ties count half (Mann and Whitney)."""
    _, inverse, counts = np.unique(sure, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return float("nan")
    return float((ranks[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


def average_precision(labels: np.ndarray, sure: np.ndarray) -> float:
    """The mean precision at the rank of each toxic text; texts with the same score come together."""
    order = np.argsort(-sure, kind="stable")
    hits = np.cumsum(labels[order])
    last = np.r_[np.flatnonzero(np.diff(sure[order])), len(order) - 1]
    gained = np.diff(np.r_[0, hits[last]])
    return float((gained * hits[last] / (last + 1)).sum() / max(int(labels.sum()), 1))


def at_threshold(labels: np.ndarray, flagged: np.ndarray) -> tuple[float, float, float, float]:
    """Precision, recall, F1 and the share of harmless texts flagged."""
    hits = int((flagged & (labels == 1)).sum())
    precision = hits / max(int(flagged.sum()), 1)
    recall = hits / max(int(labels.sum()), 1)
    wrong = int((flagged & (labels == 0)).sum()) / max(int((labels == 0).sum()), 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9), wrong


def interval(labels: np.ndarray, sure: np.ndarray, draws: int, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of the AUC over resampled texts."""
    dice = np.random.default_rng(seed)
    picks = (dice.integers(0, len(labels), len(labels)) for _ in range(draws))
    found = np.array([auc(labels[at], sure[at]) for at in picks])
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def accuracy(rows: Rows, draws: int) -> None:
    """The table by source, then by language."""
    judge = ToxicityClassifier()
    scores = _in_parts(judge, rows)
    sure = np.array([score.probability for score in scores])
    flagged = np.array([score.flagged for score in scores])
    labels = np.array([row["toxic"] for row in rows])
    say(
        f"{'':24}{'n':>6} {'AUC':>6} {'95 % interval':>15} {'AP':>6} {'prec.':>6} {'recall':>6} {'F1':>6} {'false+':>7}"
    )
    for key in ("source", "lang"):
        names = np.array([row[key] for row in rows])
        for name in sorted(set(names)):
            at = names == name
            low, high = interval(labels[at], sure[at], draws)
            figures = at_threshold(labels[at], flagged[at])
            say(
                f"{name:24}{int(at.sum()):>6} {auc(labels[at], sure[at]):6.3f} {f'{low:.3f} to {high:.3f}':>15} "
                f"{average_precision(labels[at], sure[at]):6.3f} " + " ".join(f"{value:6.3f}" for value in figures)
            )
        say()
    identity_gap(rows, flagged)


GROUPS = {
    "women": ("women", "woman", "女人", "女性"),
    "Black people": ("black people", "black person", "black woman", "black man", "黑人"),
    "gay people": ("gay", "同性恋"),
    "trans people": ("trans ", "跨性别"),
    "Muslims": ("muslim", "穆斯林"),
    "immigrants, foreigners": ("immigrant", "外国人", "移民"),
    "disabled people": ("disabled", "残疾"),
}


def identity_gap(rows: Rows, flagged: np.ndarray) -> None:
    """Harmless texts of HateCheck that name a group beside those that name none: how often each is flagged."""
    harmless = [
        (row["text"].lower(), bool(flag))
        for row, flag in zip(rows, flagged, strict=True)
        if row["source"].startswith("hatecheck") and not row["toxic"]
    ]
    named: dict[str, list[bool]] = {name: [] for name in (*GROUPS, "no group of these")}
    for text, flag in harmless:
        groups = [name for name, words in GROUPS.items() if any(word in text for word in words)]
        for name in groups or ["no group of these"]:
            named[name].append(flag)
    say("harmless texts of HateCheck that are flagged, by the group they name")
    for name, flags in named.items():
        if flags:
            say(f"{name:24}{len(flags):>6} {np.mean(flags):6.3f}")
    say()


def _in_parts(judge: ToxicityClassifier, rows: Rows) -> list[Any]:
    return [
        score
        for low in range(0, len(rows), 256)
        for score in judge.scores([row["text"] for row in rows[low : low + 256]])
    ]


def thousand(language: str, rows: Rows, count: int) -> list[str]:
    """Texts of 1,000 characters: harmless rows put together where there are data, else rotated sentences."""
    pieces = [
        row["text"].strip()
        for row in rows
        if row["lang"] == language and not row["toxic"] and len(row["text"]) < LENGTH
    ]
    if len(pieces) < 200:
        text = SENTENCES[language] * 8
        return [text[37 * at % len(SENTENCES[language]) :][:LENGTH] for at in range(count)]
    dice = np.random.default_rng(3)
    return [" ".join(pieces[at] for at in dice.integers(0, len(pieces), 60))[:LENGTH] for _ in range(count)]


def speed(name: str, judge: Judge, texts: Sequence[str], rounds: int) -> None:
    """Time for one text at a time, and texts per second by 32."""
    judge(texts[:4])
    taken = []
    for text in itertools.islice(itertools.cycle(texts), rounds):
        started = time.perf_counter()
        judge([text])
        taken.append(1000 * (time.perf_counter() - started))
    started = time.process_time()
    batched = [judge(texts[low : low + 32]) for low in range(0, len(texts), 32)]
    rate = sum(map(len, batched)) / (time.process_time() - started)
    p50, p99 = np.percentile(taken, [50, 99])
    say(f"{name:36} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  batched {rate:7.0f}/s per core")


def peers() -> dict[str, Judge]:
    """Other classifiers that happen to be installed."""
    found: dict[str, Judge] = {}
    try:
        module = importlib.import_module("profanity_check")
    except ImportError:
        return found
    found["alt-profanity-check"] = lambda texts: np.asarray(module.predict_prob(list(texts)))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print accuracy, speed and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("TIDEGATE_GUARDRAIL_DATA"), help="folder of labelled texts"
    )
    parser.add_argument("--split", default="dev", help="which file of the folder: dev reads dev.jsonl.gz")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and bootstrap draws")
    options = parser.parse_args(arguments)
    rows: Rows = []
    if options.data:
        with gzip.open(Path(options.data) / f"{options.split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = list(map(json.loads, lines))
    process = psutil.Process()
    before = process.memory_info().rss
    judge = ToxicityClassifier()
    started = time.perf_counter()
    judge.load()
    more = (process.memory_info().rss - before) / 2**20
    say(f"loaded in {time.perf_counter() - started:.1f} s, {more:.0f} MB more resident")
    judges = {"toxicity": lambda texts: np.array([score.probability for score in judge.scores(texts)])} | peers()
    for (name, rate), language in itertools.product(judges.items(), SENTENCES):
        speed(f"{name}, 1,000 characters, {language}", rate, thousand(language, rows, 64), 64 if options.quick else 400)
    short = [row["text"] for row in rows if len(row["text"]) < 120][:256] or [
        "How do I kill a Python process?",
        "今天天气很好。",
    ] * 64
    speed("toxicity, under 120 characters", judges["toxicity"], short, 64 if options.quick else 400)
    say(f"resident after all that: {process.memory_info().rss / 2**20:.0f} MB")
    say()
    if not rows:
        say("no labelled texts: give --data FOLDER for accuracy")
        return
    accuracy(rows, 200 if options.quick else 1000)
    for name, rate in peers().items():
        labels, found = np.array([row["toxic"] for row in rows]), rate([row["text"] for row in rows])
        sources = np.array([row["source"] for row in rows])
        for source in sorted(set(sources)):
            say(f"{name} on {source}: AUC {auc(labels[sources == source], found[sources == source]):.3f}")


if __name__ == "__main__":
    main()
