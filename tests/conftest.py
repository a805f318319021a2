"""Fixtures that several folders of tests share."""

from __future__ import annotations

from serving.gateway import compiled

compiled.use()  # the tests run over what will run: before any of it is imported

import os
from collections.abc import Iterator

import pytest

from tests.postgres import MISSING, Postgres, find_binaries


def pytest_report_header() -> str:
    """Say which of the two the gateway's tests run over."""
    return f"gateway's hot path: {'compiled' if compiled.in_use() else 'sources'} (TIDEGATE_COMPILED=0 for the sources)"


def require_postgres() -> None:
    """Skip what needs PostgreSQL where there is none; fail in continuous integration, which must have it."""
    if find_binaries() is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for all tests; each takes a database of its own. Not to be stopped by a test."""
    require_postgres()
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that the test may stop and kill."""
    require_postgres()
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path) -> str:
    """The URL of an empty store, on each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    return request.getfixturevalue("postgres").new_database()
