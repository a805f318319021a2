"""What protects a gateway and counts its usage, put together: keys, gatekeeper, their ways to disk and controller."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace

from serving.gateway.config import GatewayConfig
from serving.gateway.gatekeeper import QueueingGatekeeper
from serving.gateway.key_keeper import KeyKeeper
from serving.gateway.keyring import Keyring
from serving.gateway.seams import ANYBODY
from serving.gateway.usage import UsageBook
from serving.gateway.usage_files import UsageFiles
from serving.gateway.usage_keeper import UsageKeeper
from serving.traffic import TrafficTable


class Protection:
    """One gateway's. Made inside a running event loop."""

    def __init__(self, config: GatewayConfig, boot: str) -> None:
        assert config.keys_file is not None
        assert config.usage_dir is not None
        book = UsageBook(config.name, boot)
        self.usage = UsageKeeper(book, UsageFiles(config.usage_dir, config.name, boot))
        self.keyring = (
            Keyring(secrets.token_bytes(32), max_age_s=config.keys_max_age_s) if config.auth == "keys" else None
        )
        self.gatekeeper = QueueingGatekeeper(
            self.keyring,
            book,
            config.queue,
            anybody=replace(ANYBODY, may_see_version=config.show_version),
            limit_share=config.limit_share,
        )
        self.keys = KeyKeeper(self.gatekeeper, self.keyring, config.keys_file) if self.keyring is not None else None

    def load(self) -> None:
        """Obey the keys of the last run until the controller pushes its own."""
        if self.keys is not None:
            self.keys.load()

    def follow(self, table: TrafficTable | None, ready: Mapping[str, int]) -> None:
        """Give every model as much room as it has endpoints. Cheap when nothing changed; call it often.

        Args:
            table: The traffic table in force.
            ready: By application, the endpoints that take requests now.
        """
        if table is not None:
            self.gatekeeper.set_endpoints({
                m.model: sum(ready.get(r.application, 0) for r in m.revisions if r.weight > 0) for m in table.models
            })  # fmt: skip

    def missing(self, now: float) -> str | None:
        """Why this gateway can't let anybody in, or None; `now` in wall-clock seconds."""
        if self.keyring is None or self.keyring.usable(now):
            return None
        return "no API keys that hold: none came from the controller yet, or it was heard too long ago"

    async def close(self) -> None:
        """Keep on disk what was not accepted."""
        await self.usage.save()
