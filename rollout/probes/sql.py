"""Reports of bias probes in the database of the event log: the disk of whoever leads may go with it."""

from __future__ import annotations

import logging
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.dialects import postgresql, sqlite

from rollout.event_log.database import Database
from rollout.event_log.schema import PROBE_REPORTS
from rollout.probes.base import KEPT, ProbeReport

log = logging.getLogger(__name__)

_ROWS = PROBE_REPORTS.c


class SqlProbeReports:
    """One row for each version.

    Args:
        database: a URL as in `database.store_url`, or connections that others share.

    """

    def __init__(self, database: str | Database) -> None:
        self._database = Database(database) if isinstance(database, str) else database

    def load(self, model: str, version: str) -> ProbeReport | None:
        """See `ProbeReports.load`. One that can't be read is none: the version is probed again.

        Raises:
            EventLogUnavailable: the store does not answer.
        """
        query = sa.select(_ROWS.report).where(_ROWS.model == model, _ROWS.version == version)
        text = self._database.run(lambda c: c.execute(query).scalar_one_or_none(), reads_only=True)
        try:
            return None if text is None else ProbeReport.model_validate_json(text)
        except ValidationError as error:
            log.warning("the report on %s@%s can't be read (%d errors)", model, version, error.error_count())
            return None

    def save(self, report: ProbeReport) -> None:
        """See `ProbeReports.save`.

        Raises:
            EventLogUnavailable: the store does not answer.
        """
        row = {"model": report.model, "version": report.version, "at": report.at, "report": report.model_dump_json()}
        table: Any = sqlite if self._database.is_sqlite else postgresql
        insert = table.insert(PROBE_REPORTS).values(row)
        keep = insert.on_conflict_do_update(
            index_elements=["model", "version"],
            set_={name: insert.excluded[name] for name in ("at", "report")},
            where=insert.excluded.at >= _ROWS.at,
        )
        own = sa.select(_ROWS.version).where(_ROWS.model == report.model)
        newest = own.order_by(_ROWS.at.desc(), _ROWS.version).limit(KEPT)
        rest = sa.delete(PROBE_REPORTS).where(_ROWS.model == report.model, _ROWS.version.not_in(newest))

        def put(connection: sa.Connection) -> None:
            connection.execute(keep)
            connection.execute(rest)

        self._database.run(put)

    def close(self) -> None:
        """Close every connection."""
        self._database.close()
