"""Everything that can be configured about the drift watch, and where its files lie.

`serving` knows nothing of `tidegate`, so this is a plain value that the composition root builds; its JSON is what
`python -m serving.drift.main --config` takes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from monitoring.drift.detector import THRESHOLD
from serving.errors import ServingError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EMBEDDING_VALUES = 512
"""Of the encoder that comes with the platform."""
LONGEST_SOCKET_PATH = 100
"""The kernel takes 107 bytes."""


class InvalidDriftConfig(ServingError):
    """The drift watch can't be started like this."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the watch of a home keeps what it knows; all of it is readable by the owner alone."""

    home: Path

    @property
    def folder(self) -> Path:
        """All of it."""
        return self.home / "drift"

    @property
    def socket(self) -> Path:
        """Where gateways tell it of requests."""
        return self.folder / "feed.sock"

    @property
    def archive(self) -> Path:
        """Vectors of past requests, from which references are built."""
        return self.folder / "vectors"

    @property
    def references(self) -> Path:
        """What streams are compared with."""
        return self.folder / "references"

    @property
    def states(self) -> Path:
        """Evidence and alarms of each stream."""
        return self.folder / "states"

    @property
    def acknowledgements(self) -> Path:
        """What operators have seen and the watch has not taken in yet."""
        return self.folder / "acknowledged"

    @property
    def erased(self) -> Path:
        """Whose vectors are to go, and have gone."""
        return self.folder / "erased"

    @property
    def status(self) -> Path:
        """What the watch knew a second ago, as JSON."""
        return self.folder / "status.json"


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """One drift watch. Times are in seconds; port 0 means any free one (for tests)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    home: Path
    host: str = "127.0.0.1"
    """Loopback, unless there is a key: /status names tenants and requests."""
    port: int = 8090
    """Of /metrics, /healthz and /status."""
    feed_host: str = ""
    """Where gateways of a cluster tell it of requests, over TCP; empty means the socket in `places` instead."""
    feed_port: int = 8091
    key_file: Path | None = None
    """The key that gateways and watch prove to each other over a network (`serving.introduction`), and that whoever
    asks for /status shows."""
    embeddings_per_s: float = 20.0
    """Requests that are embedded, at most: a short prompt takes 1 to 2 ms of one core."""
    threshold: float = THRESHOLD
    """Mean requests to a false page, at least, of each stream."""
    save_every_s: float = 5.0
    """How much evidence kill -9 may lose. An alarm is saved at once."""
    archive_rows_per_hour: int = 1000
    """Requests of each model whose vectors are kept, drawn evenly from the hour; each takes 1.5 kB."""
    archive_days: int = 8
    """After that they are deleted: a week, and a day to build a reference of it."""

    def __post_init__(self) -> None:
        if min(self.embeddings_per_s, self.archive_rows_per_hour) < 0 or self.archive_days < 1:
            raise InvalidDriftConfig(f"{self}: rates are at least 0, archive_days at least 1")
        if self.key_file is None and (self.feed_host or self.host not in LOOPBACK):
            raise InvalidDriftConfig(
                f"host {self.host!r} and feed_host {self.feed_host!r} are beyond loopback, and there is no key_file; "
                f"give one, or host {LOOPBACK[0]} and no feed_host"
            )
        if not 1.0 < self.threshold <= 1e12 or self.save_every_s <= 0:
            raise InvalidDriftConfig(f"{self}: threshold is above 1 and at most 1e12, save_every_s above 0")

    @property
    def places(self) -> Places:
        """Its files."""
        return Places(self.home)

    def to_json(self) -> str:
        """This configuration as one line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote, for a watch that is to run.

        Raises:
            InvalidDriftConfig: not JSON, an unknown field, a value out of range, or a home too deep for a socket.

        """
        try:
            found = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise InvalidDriftConfig(f"--config: {where}: {first['msg']}") from None
        if not found.feed_host and len(str(found.places.socket).encode()) > LONGEST_SOCKET_PATH:
            raise InvalidDriftConfig(
                f"{found.places.socket} is too long for a socket (at most {LONGEST_SOCKET_PATH} bytes); "
                "choose a shorter TIDEGATE_HOME"
            )
        return found
