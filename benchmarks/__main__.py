"""`make bench`: every benchmark, one after the other, never two at once. `python -m benchmarks NAME...` runs some.

`python -m benchmarks NAME --quick` hands what follows the name to that benchmark.
The last two start the platform with the bundled model on a home of its own, unless one answers already.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tidegate import bundled
from tidegate.settings import load_settings

NAMES = (
    "rollout_exposure",
    "rollout_speed",
    "controller_speed",
    "drift_detection",
    "gateway_overhead",
    "gateway_peers",
    "gateway_prefix_affinity",
    "gateway_soak",
    "guardrails_accuracy",
    "guardrails_rules",
    "observability_cost",
    "hallucination",
    "serving_throughput",
)


def run(name: str, *arguments: str) -> int:
    """Run one benchmark in a process of its own."""
    sys.stdout.write(f"\n== {name}\n")
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=False).returncode


def through_the_platform(name: str) -> int:
    """Measure the whole platform, beside the bare engine where that is asked for."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as home:
        os.environ.setdefault("TIDEGATE_HOME", home)
        command = [sys.executable, "-m", "tidegate.cli.main"]
        started = subprocess.run([*command, "up", "--detach"], check=False).returncode
        if started != 0:
            return started
        try:
            settings = load_settings()
            if name == "hallucination":
                return run(name, "--url", settings.gateway_url)
            folder = str(bundled.folder(settings))
            flags = [part for k, v in bundled.ENGINE_ARGS.items() for part in ("--engine-arg", f"{k}={v}")]
            return run(name, "--model-dir", folder, "--url", settings.gateway_url, *flags)
        finally:
            if Path(os.environ["TIDEGATE_HOME"]) == Path(home):
                subprocess.run([*command, "down"], check=False)


def main() -> int:
    """Run what is asked for, else everything; the worst exit code."""
    given = sys.argv[1:]
    first = next((place for place, part in enumerate(given) if part.startswith("-")), len(given))
    wanted, flags = given[:first] or list(NAMES), given[first:]
    unknown = sorted(set(wanted) - set(NAMES))
    if unknown:
        sys.stderr.write(f"no benchmark named {', '.join(unknown)}; there are {', '.join(NAMES)}\n")
        return 2
    if first == 0 and {"-h", "--help"} & set(flags):
        sys.stdout.write(f"{__doc__}\nThere are {', '.join(NAMES)}.\n")
        return 0
    if flags and len(wanted) > 1:
        sys.stderr.write(f"options ({' '.join(flags)}) go to one benchmark, and {len(wanted)} would run; name one\n")
        return 2
    if flags:
        return run(wanted[0], *flags)
    return max(through_the_platform(name) if name in NAMES[-2:] else run(name) for name in wanted)


if __name__ == "__main__":
    sys.exit(main())
