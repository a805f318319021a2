"""Debian's Prometheus and promtool for the tests that need them: skipped without, and failing where `CI` is set."""

from __future__ import annotations

import os
import shutil

import pytest

MISSING = "Prometheus is not installed; `apt-get install prometheus` (or `make test` as root) does that"


def require(program: str) -> str:
    """The path of `prometheus` or `promtool`."""
    found = shutil.which(program)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    return found
