"""The traffic table in force: applied between two requests, kept on disk, its canary's weight on a lease."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from serving.admission import Route, route_of
from serving.errors import InvalidTable, StaleGeneration
from serving.traffic import Generation, RevisionTraffic, TrafficTable


class TrafficState:
    """What this gateway obeys. All methods are synchronous: a request sees one table, never half of one."""

    def __init__(self, lease_s: float) -> None:
        self.table: TrafficTable | None = None
        self.routes: dict[str, Route] = {}
        self.applied_at = 0.0
        """Wall-clock seconds."""
        self._lease_s = lease_s
        self._heard_at: float | None = None
        self._at_a_loss = False
        self._listeners: list[Callable[[TrafficTable], None]] = []

    def on_applied(self, listener: Callable[[TrafficTable], None]) -> None:
        """Call `listener` after each table."""
        self._listeners.append(listener)

    @property
    def generation(self) -> Generation:
        """The generation in force, (0, 0) before any."""
        return self.table.generation if self.table is not None else Generation(0, 0)

    def apply(self, table: TrafficTable, wall: float) -> bool:
        """Obey a table from now on.

        Args:
            table: The table.
            wall: Wall-clock seconds.

        Returns:
            False when it was in force already.

        Raises:
            StaleGeneration: its generation is lower, or the same with other content.
        """
        if self.table is not None:
            if table.generation < self.generation or (table.generation == self.generation and table != self.table):
                raise StaleGeneration(
                    f"table {tuple(table.generation)} is not newer than {tuple(self.generation)}, which is in force; "
                    "its sender has lost its leadership"
                )
            if table.generation == self.generation:
                return False
        self._at_a_loss = False
        self.table = table
        self.routes = {m.model: route_of(m, table.generation) for m in table.models}
        self.applied_at = wall
        for listener in self._listeners:
            listener(table)
        return True

    def heard(self, now: float, fence: int) -> None:
        """Renew the lease: the controller with this fence leads. A former leader's word renews nothing."""
        if fence >= self.generation.fence and not self._at_a_loss:
            self._heard_at = now

    def not_understood(self) -> None:
        """A table came that can't be read: it may take the canary back, so the lease is over until one can be read."""
        self._at_a_loss = True
        self._heard_at = None

    def lease_valid(self, now: float) -> bool:
        """Whether the canary may have its weight: a controller was heard within the lease."""
        return self._heard_at is not None and now - self._heard_at <= self._lease_s

    def revisions(self) -> list[tuple[str, RevisionTraffic, bool]]:
        """All revisions of the table: (model, revision, whether it only drains)."""
        found: list[tuple[str, RevisionTraffic, bool]] = []
        for model in self.table.models if self.table is not None else ():
            found += [(model.model, r, False) for r in model.revisions]
            found += [(model.model, r, True) for r in model.drains]
        return found


def save_table(path: Path, table: TrafficTable) -> None:
    """Write the table (mode 0600: it holds the salt) so that a reader sees the old one or the new one.

    Raises:
        OSError: it could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".table-")  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            # Not synced to the disk: it survives kill -9, and after a power cut the controller pushes again.
            file.write(table.model_dump_json())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_table(path: Path) -> TrafficTable | None:
    """Read the table of the last run, or None when there is none.

    Raises:
        InvalidTable: the file can't be read as a table.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise InvalidTable(f"{path} can't be read ({e.strerror}); remove it and wait for the controller") from None
    try:
        return TrafficTable.model_validate_json(text, extra="ignore")
    except ValidationError as e:
        raise InvalidTable(
            f"{path} is no traffic table ({e.error_count()} errors); remove it and wait for the controller"
        ) from None
