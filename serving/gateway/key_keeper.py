"""Brings the controller's keys to the gatekeeper, and keeps them on disk for a start without a controller."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from serving.gateway.gatekeeper import QueueingGatekeeper
from serving.gateway.keyring import Keyring, KeysUnreadable, load_keys, save_keys
from serving.gateway.logs import log
from serving.outcomes import KeysPush

TOUCH_EVERY_S = 60.0
"""How often the file's time is renewed while the controller is heard: it says how old the keys are after a restart."""


class KeyKeeper:
    """The way of keys into this process. One per gateway that asks for keys."""

    def __init__(
        self, gatekeeper: QueueingGatekeeper, keyring: Keyring, path: Path, wall: Callable[[], float] = time.time
    ) -> None:
        self._gatekeeper = gatekeeper
        self._keyring = keyring
        self._path = path
        self._wall = wall
        self._saved: KeysPush | None = None
        self._touched_at = 0.0

    def load(self) -> None:
        """Obey the keys of the last run until the controller pushes its own."""
        try:
            found = load_keys(self._path)
        except KeysUnreadable as e:
            log(logging.ERROR, "keys-unreadable", reason=str(e))
            return
        if found is not None:
            self._saved, pushed_at = found
            self._obey(self._saved, min(pushed_at, self._wall()))

    def _obey(self, push: KeysPush, confirmed_at: float) -> None:
        self._gatekeeper.replace_keys(push.keys, confirmed_at, push.quotas)

    async def pushed(self, push: KeysPush) -> None:
        """Obey these keys and quotas at once, then keep them."""
        self._obey(push, self._wall())
        log(logging.INFO, "keys-applied", keys=len(self._keyring), quotas=len(push.quotas))
        if self._saved == push:
            return
        try:
            await asyncio.to_thread(save_keys, self._path, push)
            self._saved = push
            self._touched_at = self._wall()
        except OSError as e:
            way_out = "make room or fix the permissions; a start without the controller would obey older keys"
            log(logging.ERROR, "keys-not-saved", path=str(self._path), reason=e.strerror, way_out=way_out)

    async def heard(self) -> None:
        """The leading controller is there, so the keys are its newest."""
        now = self._wall()
        self._keyring.confirm(now)
        if self._saved is not None and now - self._touched_at > TOUCH_EVERY_S:
            self._touched_at = now
            with contextlib.suppress(OSError):  # then they count as older than they are, no worse
                await asyncio.to_thread(os.utime, self._path)
