"""Which stream of requests a watch is of: all of a model's, or those of one tenant or one route. Pure.

A stream is watched because a reference was built for it; without one it does not exist.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

from serving.errors import ServingError
from serving.sightings import Sighting

EVERYTHING = "all"
MOST_STREAMS = 64
"""Watched at once; each takes up to some MB, and a second of set-up per part of the day."""

_SCOPE = re.compile(r"all|(?:tenant|route)=.{1,63}")


class UnknownStream(ServingError, ValueError):
    """No stream can have this name."""


class StreamName(NamedTuple):
    """A model, and which of its requests: `all`, `tenant=NAMESPACE` or `route=OPERATION`."""

    model: str
    scope: str = EVERYTHING

    @property
    def tenant(self) -> str | None:
        """The namespace whose requests it has, None for those of all."""
        return self.scope.removeprefix("tenant=") if self.scope.startswith("tenant=") else None

    @property
    def route(self) -> str | None:
        """The operation, None for all."""
        return self.scope.removeprefix("route=") if self.scope.startswith("route=") else None

    @property
    def path(self) -> str:
        """Its place below a folder."""
        return f"{quote(self.model, safe='')}/{quote(self.scope, safe='=')}"

    @classmethod
    def of_path(cls, model: str, scope: str) -> StreamName:
        """What `path` was made of."""
        return stream(unquote(model), unquote(scope))


def stream(model: str, scope: str = EVERYTHING) -> StreamName:
    """A stream's name.

    Raises:
        UnknownStream: for a scope of another form.

    """
    if not _SCOPE.fullmatch(scope):
        raise UnknownStream(f"stream {scope[:80]!r}: write all, tenant=NAMESPACE or route=OPERATION")
    return StreamName(model, scope)


def streams_of(seen: Sighting) -> tuple[StreamName, ...]:
    """The streams that a request belongs to, whether they are watched or not."""
    return (
        StreamName(seen.model),
        StreamName(seen.model, f"tenant={seen.tenant}"),
        StreamName(seen.model, f"route={seen.route}"),
    )
