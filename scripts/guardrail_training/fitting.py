"""Fits the three models of the toxicity ensemble, each from fixed features and with a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from torch import nn

from guardrails.classifiers.encoder import SentenceEncoder
from guardrails.classifiers.token_features import Tokens, hashed_features

Arrays = dict[str, NDArray[Any]]

BUCKETS = 2**18
BATCH = 256
SMOOTHED = (0.02, 0.96)
"""Labels are pulled towards the middle: the sets disagree, and a network that is never certain ranks better."""


def fit_pairs(cut: Sequence[list[int]], labels: NDArray[Any], weights: NDArray[Any], c: float) -> Arrays:
    """Logistic regression on hashed tokens and pairs."""
    texts, places = hashed_features(Tokens.of(cut), BUCKETS)
    counts = csr_matrix((np.ones(len(texts), np.float32), (texts, places)), shape=(len(cut), BUCKETS))
    seen = np.bincount(places, minlength=BUCKETS)
    rarity = (np.log((1 + len(cut)) / (1 + seen)) + 1).astype(np.float32)
    scaled = counts.multiply(rarity).tocsr()
    norms = np.sqrt(np.asarray(scaled.multiply(scaled).sum(axis=1)).ravel())
    scaled = csr_matrix(scaled.multiply(1 / norms[:, None]))
    fitted = LogisticRegression(C=c, max_iter=60, solver="liblinear", random_state=0).fit(
        scaled, labels, sample_weight=weights
    )
    return {
        "pairs.rarity": rarity.astype(np.float16),
        "pairs.weight": fitted.coef_[0].astype(np.float16),
        "pairs.bias": fitted.intercept_.astype(np.float32),
    }


def mean_vectors(encoder: SentenceEncoder, cut: Sequence[list[int]]) -> NDArray[np.float32]:
    """The sum of each text's token vectors over the root of their number."""
    rows = [encoder.token_vectors(np.array(ids)).sum(axis=0) / np.sqrt(len(ids)) for ids in cut]
    return np.array(rows, np.float32)


def fit_network(
    name: str,
    features: NDArray[np.float32],
    labels: NDArray[Any],
    chance: NDArray[np.float64],
    *,
    widths: tuple[int, int],
    seed: int,
    draws: int = 400_000,
) -> Arrays:
    """A network with two hidden layers, as arrays: `name.1.weight` (inputs, outputs), `name.1.bias`, and so on."""
    torch.manual_seed(seed)
    dice = np.random.default_rng(seed)
    centre, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    if abs(float(np.linalg.norm(features[0])) - 1) < 1e-3:  # embeddings have length 1 already
        centre, spread = np.zeros_like(centre), np.ones_like(spread)
    inputs = torch.from_numpy((features - centre) / spread)
    aims = torch.from_numpy((labels * SMOOTHED[1] + SMOOTHED[0]).astype(np.float32))
    network = _network(features.shape[1], widths)
    steps = draws // BATCH
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    drawn = torch.from_numpy(dice.choice(len(labels), (steps, BATCH), p=chance))
    for batch in drawn:
        loss = nn.functional.binary_cross_entropy_with_logits(network(inputs[batch])[:, 0], aims[batch])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        pace.step()
    layers = [module for module in network if isinstance(module, nn.Linear)]
    arrays: Arrays = {}
    for number, layer in enumerate(layers, 1):
        arrays[f"{name}.{number}.weight"] = layer.weight.detach().numpy().T.astype(np.float64)
        arrays[f"{name}.{number}.bias"] = layer.bias.detach().numpy().astype(np.float64)
    first = f"{name}.1"  # fold the scaling of the inputs into the first layer
    arrays[f"{first}.weight"] = arrays[f"{first}.weight"] / spread[:, None]
    arrays[f"{first}.bias"] = arrays[f"{first}.bias"] - centre @ arrays[f"{first}.weight"]
    return {
        key: np.ascontiguousarray(value.astype(np.float16 if key.endswith("weight") else np.float32))
        for key, value in arrays.items()
    }


def _network(inputs: int, widths: tuple[int, int]) -> nn.Sequential:
    first, second = widths
    return nn.Sequential(
        nn.Dropout(0.2),
        nn.Linear(inputs, first),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(second, 1),
    )
