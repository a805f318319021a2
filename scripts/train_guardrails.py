"""Trains the toxicity model that ships with the guardrails: `python -m scripts.train_guardrails FOLDER [--out FOLDER]`.

FOLDER holds `train.jsonl.gz` and `dev.jsonl.gz`, one JSON object a line: `{"source", "lang", "text", "toxic"}`. The
models are fitted on train (and on sentences from the project's own grammars); dev only sets calibration and thresholds.
Seeded: the same data, versions and machine type give the same weights. About six minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save

from guardrails.classifiers.encoder import SentenceEncoder, shared_encoder
from guardrails.classifiers.toxicity import TOXICITY, Model
from guardrails.classifiers.weights import SETTINGS, WEIGHTS
from guardrails.verdicts import Language
from scripts.guardrail_training.calibration import best_threshold, platt
from scripts.guardrail_training.fitting import Arrays, fit_network, fit_pairs, mean_vectors
from scripts.guardrail_training.grammar import Row
from scripts.guardrail_training.rows import own, read, sampling

HEADS = 4
PER_PATTERN = 24
PAIR_SHARE, MEAN_SHARE = 0.5, 0.5
SUSPICIOUS = 0.5
PAIR_WEIGHTS = {
    "cold": 1.0,
    "davidson": 0.3,
    "hatecheck": 3.0,
    "hatecheck-zh": 3.0,
    "openai-moderation": 6.0,
    "xstest": 3.0,
}
RARE_LABEL = 4.0
"""What the inoffensive texts of Davidson et al. (a sixth of them) count more in the pair model."""

_started = time.monotonic()


def say(message: str) -> None:
    """One line of progress with the seconds since the start."""
    sys.stdout.write(f"{time.monotonic() - _started:6.0f} s  {message}\n")
    sys.stdout.flush()


def embedded(encoder: SentenceEncoder, rows: Sequence[Row]) -> np.ndarray:
    """The sentence embedding of each row, computed in order of length."""
    cut = encoder.cut([row.text for row in rows])
    found = np.zeros((len(rows), 512), np.float32)
    order = np.argsort([len(ids) for ids in cut], kind="stable")
    for chunk in np.array_split(order, max(1, len(order) // 2000)):
        found[chunk] = encoder.embed([cut[at] for at in chunk])
    return found


def fitted(encoder: SentenceEncoder, train: Sequence[Row], own_rows: Sequence[Row], seed: int) -> Arrays:
    """The arrays of all three models."""
    rows = [*train, *own_rows]
    labels, chance = np.array([row.toxic for row in rows]), sampling(rows)
    lower = encoder.cut([row.text.lower() for row in rows])
    weights = np.array(
        [PAIR_WEIGHTS.get(r.source, 1.0) * (RARE_LABEL if (r.source, r.toxic) == ("davidson", 0) else 1) for r in train]
    )
    arrays = fit_pairs(lower[: len(train)], labels[: len(train)], weights, c=2.0)
    say("pairs of tokens fitted")
    arrays |= fit_network("mean", mean_vectors(encoder, lower), labels, chance, widths=(64, 32), seed=seed)
    say("token means fitted")
    vectors = embedded(encoder, rows)
    say(f"{len(rows)} texts embedded")
    for number in range(HEADS):
        arrays |= fit_network(f"head{number}", vectors, labels, chance, widths=(256, 32), seed=seed + number)
        say(f"network {number + 1} of {HEADS} fitted")
    return arrays


def tuned(
    model_arrays: Arrays, settings: dict[str, Any], encoder: SentenceEncoder, dev: Sequence[Row]
) -> dict[str, Any]:
    """The settings with calibration and thresholds from dev: first of the light models alone, then of all."""
    settings = dict(settings)
    labels, sources = np.array([r.toxic for r in dev]), np.array([r.source for r in dev])
    members = {Language.EN: [], Language.ZH: [], Language.OTHER: list(range(len(dev)))}
    for at, row in enumerate(dev):
        members[Language(row.lang)].append(at)
    neutral = {language.value: (1.0, 0.0) for language in Language}
    blank = {
        **settings,
        "light_calibration": neutral,
        "calibration": neutral,
        "thresholds": dict.fromkeys(neutral, 0.5),
    }
    wide = {name: value.astype(np.float32) for name, value in model_arrays.items()}
    model = Model(wide, blank, encoder)
    texts = [row.text[:1500] for row in dev]
    light = model.light_logits(texts)
    full = light + model.head_logits(texts)
    for key, logits in (("light_calibration", light.astype(np.float64)), ("calibration", full.astype(np.float64))):
        settings[key] = {name.value: platt(logits[at], labels[at], sources[at]) for name, at in members.items()}
    settings["thresholds"] = dict.fromkeys(neutral, 0.5)
    scores = Model(wide, settings, encoder).scores([row.text for row in dev])
    sure = np.array([score.probability for score in scores])
    settings["thresholds"] = {
        name.value: best_threshold(sure[at], labels[at], sources[at]) for name, at in members.items()
    }
    return settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, tune, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds train.jsonl.gz and dev.jsonl.gz")
    parser.add_argument(
        "--out", type=Path, default=TOXICITY, help="receives the weights and settings (default: the shipped ones)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--tune-only", action="store_true", help="keep the weights in --out; set calibration and thresholds anew"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    encoder = shared_encoder()
    dev = read(options.folder / "dev.jsonl.gz")
    if options.tune_only:
        arrays = load_file(options.out / WEIGHTS)
    else:
        train = read(options.folder / "train.jsonl.gz")
        grown = own(PER_PATTERN, options.seed, dev)
        arrays = fitted(encoder, train, grown, options.seed)
    data = save(dict(sorted(arrays.items())))
    settings = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "heads": HEADS,
        "pair_share": PAIR_SHARE,
        "mean_share": MEAN_SHARE,
    }
    settings = tuned(arrays, {**settings, "suspicious": SUSPICIOUS}, encoder, dev)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / WEIGHTS).write_bytes(data)
    (options.out / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    say(f"{len(data) / 1e6:.1f} MB written to {options.out}")


if __name__ == "__main__":
    main()
