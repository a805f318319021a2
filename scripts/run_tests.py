"""Run every test in two lanes side by side: `scripts/run_tests.py [OPTIONS]`. That saves about a quarter of the time.

One lane has what starts processes (Ray above all, of which a machine bears one at a time) and mostly waits; its output
is shown as it comes. The other has what computes; it runs with lower priority, and its output is shown when it has
ended. Options are handed to both pytests; with files or folders among them, one pytest runs just those. The exit code
is 0 only if both lanes passed.

A folder that nobody has put into a lane runs in the second, so none is left out.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STARTS_PROCESSES = ("contract", "integration", "sdk", "soak", "e2e")
NOTHING_COLLECTED = 5
LOWER_PRIORITY = ("nice", "-n", "5")


def folders() -> list[str]:
    """Those below tests/ that hold tests."""
    return sorted({path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/test_*.py")})


def pytest(names: list[str], options: list[str]) -> list[str]:
    """The command that runs these folders."""
    return [sys.executable, "-m", "pytest", *(f"tests/{name}" for name in names), *options]


def names_places(options: list[str]) -> bool:
    """Whether somebody asks for certain files, folders or tests."""
    return any((ROOT / option.partition("::")[0]).exists() for option in options if not option.startswith("-"))


def main(options: list[str]) -> int:
    """Run both lanes; see the module."""
    if names_places(options):
        return subprocess.run(pytest([], options), cwd=ROOT, check=False).returncode
    began = time.monotonic()
    found = folders()
    first = [name for name in STARTS_PROCESSES if name in found]
    second = [name for name in found if name not in STARTS_PROCESSES]
    print(f"beside each other: {', '.join(first)} (shown now) and {', '.join(second)} (shown at the end)", flush=True)
    with tempfile.TemporaryFile(mode="w+", errors="replace") as said:
        computing = subprocess.Popen(
            [*LOWER_PRIORITY, *pytest(second, options), "--color=no", "-p", "no:cacheprovider"],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            waiting = subprocess.run(pytest(first, options), cwd=ROOT, check=False).returncode
            print(f"\n=== and beside it: {', '.join(second)} ===", flush=True)
            computed = computing.wait()
        except BaseException:
            computing.terminate()
            computing.wait()
            raise
        said.seek(0)
        print(said.read(), flush=True)
    print(f"both lanes took {(time.monotonic() - began) / 60:.1f} min", flush=True)
    codes = [0 if code == NOTHING_COLLECTED else code for code in (waiting, computed)]
    return max(codes, key=abs) if waiting != NOTHING_COLLECTED or computed != NOTHING_COLLECTED else NOTHING_COLLECTED


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
