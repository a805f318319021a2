"""An acknowledgement of alarms, handed to the watch by a file, so that one given while it is down is taken in later."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from serving.drift.book import replace
from serving.drift.config import Places

LOOK_S = 0.05


def hand_over(places: Places, said: Mapping[str, Any], wait_s: float) -> bool:
    """Leave an acknowledgement for the watch; False when nobody has taken it in within `wait_s` seconds. Blocks.

    Args:
        places: the watch's.
        said: `model`, `scope` (None for all streams of the model), `by`, `at`, `reason`.
        wait_s: how long to wait; the watch looks twice a second.

    """
    places.acknowledgements.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = places.acknowledgements / f"{time.time():.6f}-{secrets.token_hex(4)}.json"
    replace(path, json.dumps(dict(said)))
    deadline = time.monotonic() + wait_s
    while path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True
