"""Reads weights that ship with the package: safetensors (numbers only, nothing that could run), checked by digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse

from guardrails.errors import CheckFailed

MODELS = Path(__file__).resolve().parent.parent / "models"
"""Where the shipped models lie, each in a folder of its own with a README (the model card)."""

WEIGHTS = "weights.safetensors"
SETTINGS = "settings.json"


class UnusableWeights(CheckFailed):
    """A classifier's weights can't be used, so nothing is known about any text."""


def load_model(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays and the settings of the model in a folder.

    `settings.json` holds the SHA-256 of the weights beside what was decided in training (thresholds, calibration).

    Raises:
        UnusableWeights: A file is missing, damaged, or belongs to other settings.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        data = (folder / WEIGHTS).read_bytes()
        expected = settings["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableWeights(
            f"the model {folder.name!r} can't be read ({type(error).__name__}); {_WAY_OUT}"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise UnusableWeights(
            f"the weights of {folder.name!r} have SHA-256 {found[:12]}..., "
            f"its settings name {str(expected)[:12]}...; {_WAY_OUT}"
        )
    try:
        arrays = parse(data)
    except SafetensorError as error:
        raise UnusableWeights(f"the weights of {folder.name!r} are no safetensors; {_WAY_OUT}") from error
    return {name: _wide(array) for name, array in arrays.items()}, settings


_WAY_OUT = "install the package again, or train it again (see the model card, guardrails/models)"


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    """Half precision is for the disk: arithmetic is done in single precision."""
    return array.astype(np.float32) if array.dtype == np.float16 else array
