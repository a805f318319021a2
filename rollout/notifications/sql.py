"""How far each receiver has been told, in the database of the event log that it is a place in.

So it outlives the disk of whoever leads, the next leader goes on where the last one stopped, and a backup holds both as
they were at one moment: a place kept elsewhere would lie behind the end of a log that was restored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from rollout.event_log.database import Database
from rollout.event_log.schema import NOTIFIED
from rollout.notifications.base import Position


class SqlCursors:
    """One row for each receiver.

    A controller that has lost the leadership and does not know it yet may put an older place back: then something is
    told twice, under one id, and nothing is left out.

    Args:
        database: a URL as in `database.store_url`, or connections that others share.

    """

    def __init__(self, database: str | Database) -> None:
        self._database = Database(database) if isinstance(database, str) else database

    def load(self) -> Mapping[str, Position]:
        """See `Cursors.load`.

        Raises:
            EventLogUnavailable: the store does not answer.
        """
        rows = self._database.run(lambda c: c.execute(sa.select(NOTIFIED)).all(), reads_only=True)
        return {row.receiver: Position(entry=row.entry, index=row.place) for row in rows}

    def save(self, cursors: Mapping[str, Position]) -> None:
        """See `Cursors.save`. One statement, the same however often it is done.

        Raises:
            EventLogUnavailable: the store does not answer.
        """
        if not cursors:
            return
        rows = [{"receiver": n, "entry": c.entry, "place": c.index} for n, c in sorted(cursors.items())]
        table: Any = sqlite if self._database.is_sqlite else postgresql
        insert = table.insert(NOTIFIED).values(rows)
        change = {name: insert.excluded[name] for name in ("entry", "place")}
        keep = insert.on_conflict_do_update(index_elements=["receiver"], set_=change)
        self._database.run(lambda connection: connection.execute(keep))

    def close(self) -> None:
        """Close every connection."""
        self._database.close()
