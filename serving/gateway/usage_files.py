"""Usage on disk: what the controller has not accepted yet, one file for each start of a gateway.

A file is replaced as a whole at most once a second, and is gone when nothing is open. So kill -9 loses what was counted
since the last write: about one second. Files of earlier starts are read at the next one, told, and deleted once
accepted.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import orjson
from pydantic import ValidationError

from serving.accounting import UsageRow
from serving.errors import ServingError
from serving.gateway.durable import replace_file
from serving.gateway.usage import Values, row_of

ORPHAN_AFTER_S = 3600.0
"""A file of another gateway that nobody has touched for so long is told by whoever finds it. Doing so for a gateway
that still runs does no harm: rows are cumulative."""


class UsageUnreadable(ServingError):
    """A usage file that is none."""


@dataclass(frozen=True, slots=True)
class EarlierUsage:
    """What an earlier start had not told."""

    path: Path
    written_ns: int
    rows: tuple[UsageRow, ...]


class UsageFiles:
    """The files of one gateway. All methods block: call them from a thread."""

    def __init__(self, folder: Path, gateway: str, boot: str) -> None:
        self._folder = folder
        self._gateway = gateway
        self._boot = boot
        self._own_prefix = quote(gateway, safe="")
        self.path = folder / f"{self._own_prefix}-{boot}.json"

    def save(self, rows: list[Values]) -> None:
        """Keep these rows and no others.

        Raises:
            OSError: they could not be written.
        """
        if rows:
            content = {"gateway": self._gateway, "boot": self._boot, "rows": rows}
            replace_file(self.path, orjson.dumps(content))
        else:
            self.path.unlink(missing_ok=True)

    def earlier(self, now: float) -> list[Path]:
        """Files of earlier starts, the oldest first; of other gateways only those that nobody touches.

        Args:
            now: Wall-clock seconds.
        """
        found: list[tuple[float, Path]] = []
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError):  # gone meanwhile
                written = path.stat().st_mtime
                own = path.stem.rpartition("-")[0] == self._own_prefix
                if path != self.path and (own or now - written > ORPHAN_AFTER_S):
                    found.append((written, path))
        return [path for _, path in sorted(found)]

    def read(self, path: Path) -> EarlierUsage:
        """The rows of an earlier start.

        Raises:
            UsageUnreadable: it is no usage file; it was renamed to `*.unreadable`.
            OSError: it can't be read.
        """
        written_ns = path.stat().st_mtime_ns
        try:
            content = orjson.loads(path.read_bytes())
            gateway, boot = content["gateway"], content["boot"]
            rows = tuple(row_of(gateway, boot, tuple(values)) for values in content["rows"])
        except (ValueError, KeyError, TypeError, ValidationError) as e:
            aside = path.with_suffix(".unreadable")
            path.rename(aside)
            raise UsageUnreadable(f"{path} holds no usage ({type(e).__name__}); it is kept as {aside}") from None
        return EarlierUsage(path, written_ns, rows)

    def forget(self, earlier: EarlierUsage) -> None:
        """Delete a file whose rows were accepted, unless somebody wrote it again.

        Raises:
            OSError: it could not be deleted.
        """
        with contextlib.suppress(FileNotFoundError):
            if earlier.path.stat().st_mtime_ns == earlier.written_ns:
                earlier.path.unlink()
