"""What a pod's hooks ask and do: `python -m serving.engines.pod ready | drain`. No Ray here, it must start fast.

The replica and the hooks share a folder of the pod. In `engine.json` the replica writes where its engine answers; by a
file `leaving` it is told that the pod must go: then it says so to the gateways, which send nothing new there.

- `ready` (readiness probe): exit 0 when the engine answers `/health`, so a pod is ready when its model answers.
- `drain` (preStop): waits until gateways have looked again and nothing runs in the engine, at most `--within` seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

ENGINE_FILE = "engine.json"
LEAVING_FILE = "leaving"
ASK_S = 2.0
NOTICE_S = 8.0
"""Gateways ask a ready replica every 5 s; after this long all of them have seen that it is leaving."""
POLL_S = 0.5
_LOAD = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? ([0-9.e+]+)$", re.M)


def announce(folder: Path, url: str, boot: str) -> None:
    """Write down where the engine answers, whole or not at all. A mark of leaving stays: the pod goes all the same."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{ENGINE_FILE}"
    temporary.write_text(json.dumps({"url": url, "boot": boot}))
    os.replace(temporary, folder / ENGINE_FILE)


def is_leaving(folder: Path) -> bool:
    """Whether the pod has been told to go."""
    return (folder / LEAVING_FILE).exists()


def load_of(url: str) -> int | None:
    """How many requests run and wait in an engine, by its own metrics; None when it does not tell."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=ASK_S) as answer:  # noqa: S310 - our own engine
            return count_of(answer.read().decode())
    except (OSError, ValueError):
        return None


def count_of(metrics: str) -> int | None:
    r"""The requests in an engine's metrics; None where there are none of these series.

    >>> count_of('vllm:num_requests_running{model="a"} 2.0\nvllm:num_requests_waiting{model="a"} 1.0')
    3
    """
    found = _LOAD.findall(metrics)
    return round(sum(map(float, found))) if found else None


def ready(folder: Path) -> bool:
    """Whether the engine of this pod answers."""
    url = _engine_url(folder)
    if url is None:
        return False
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=ASK_S) as answer:  # noqa: S310 - our own engine
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def drain(folder: Path, within_s: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> bool:
    """Say that this pod leaves, and wait until its engine has nothing to do. Returns whether it came to that.

    An engine that does not answer has nothing to finish.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LEAVING_FILE).touch()
    began = clock()
    while clock() - began < within_s:
        url = _engine_url(folder)
        if clock() - began >= min(NOTICE_S, within_s / 2) and (url is None or not load_of(url)):
            return True
        sleep(POLL_S)
    return False


def _engine_url(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / ENGINE_FILE).read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The hooks' command line. Returns 0 for yes, 1 for no."""
    parser = argparse.ArgumentParser(prog="python -m serving.engines.pod", description=__doc__)
    parser.add_argument("what", choices=("ready", "drain"))
    parser.add_argument("--folder", type=Path, required=True, help="the folder that the replica was given as pod_dir")
    parser.add_argument("--within", type=float, default=30.0, metavar="SECONDS", help="the longest a drain may take")
    given = parser.parse_args(arguments)
    if given.what == "ready":
        return 0 if ready(given.folder) else 1
    return 0 if drain(given.folder, given.within, time.monotonic, time.sleep) else 1


if __name__ == "__main__":
    sys.exit(main())
