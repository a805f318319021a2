from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubernetes.server import ApiServer


@pytest.fixture
def api() -> Iterator[ApiServer]:
    """An API server of one's own, on loopback."""
    with ApiServer() as server:
        yield server
