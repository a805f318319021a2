"""Which alias moves when. Pure.

`candidate` names the version whose rollout is under way; `production` the one that was last found Healthy.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple, assert_never

from registry.models import Alias


class Moment(enum.StrEnum):
    """What happened to a version."""

    DEPLOYED = "deployed"
    """Its rollout began."""
    HEALTHY = "healthy"
    """Its rollout ended well, soak included."""
    ABANDONED = "abandoned"
    """Its rollout was aborted or taken back before it was Healthy: what was in production still is."""
    RESTORED = "restored"
    """A rollback returned to it."""


class AliasMove(NamedTuple):
    """One alias to set; `version` None means: remove it."""

    alias: Alias
    version: str | None


def alias_moves(moment: Moment, version: str, aliases: Mapping[str, str]) -> tuple[AliasMove, ...]:
    """The moves that bring `aliases` (alias to version) where the moment wants them.

    Idempotent: once they are made, asking again gives none. A candidate that became production, or was given up,
    is no candidate any more; somebody else's candidate is left alone.

    >>> alias_moves(Moment.HEALTHY, "1.1.0", {"candidate": "1.1.0", "production": "1.0.0"})
    (AliasMove(alias=<Alias.PRODUCTION: 'production'>, version='1.1.0'), \
AliasMove(alias=<Alias.CANDIDATE: 'candidate'>, version=None))
    """
    match moment:
        case Moment.DEPLOYED:
            wanted = [] if aliases.get(Alias.PRODUCTION) == version else [AliasMove(Alias.CANDIDATE, version)]
        case Moment.HEALTHY | Moment.RESTORED:
            wanted = [AliasMove(Alias.PRODUCTION, version)]
            if aliases.get(Alias.CANDIDATE) == version:
                wanted.append(AliasMove(Alias.CANDIDATE, None))
        case Moment.ABANDONED:
            wanted = [AliasMove(Alias.CANDIDATE, None)] if aliases.get(Alias.CANDIDATE) == version else []
        case _:
            assert_never(moment)
    return tuple(move for move in wanted if aliases.get(move.alias) != move.version)
