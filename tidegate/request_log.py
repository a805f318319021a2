"""The request log below the home, as the control plane hands it out; who is erased goes from the drift archive too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.drift.config import EMBEDDING_VALUES, Places
from serving.gateway.request_ids import load_secret
from serving.request_log.marks import mark_of
from serving.request_log.reading import RequestLog, Wanted
from tidegate.settings import Settings


class HomesRequestLog:
    """What all gateways of this home logged."""

    def __init__(self, settings: Settings) -> None:
        self._log = RequestLog(settings.request_log_dir)
        self._secret_file = settings.gateway_secret_file
        self._drift = Places(settings.home)

    def find(self, request_id: str) -> Mapping[str, Any] | None:
        """See `LoggedRequests`."""
        return self._log.find(request_id)

    def search(self, wanted: Mapping[str, Any], limit: int) -> list[Mapping[str, Any]]:
        """See `LoggedRequests`."""
        return list(self._log.search(Wanted(**wanted), limit))

    def erase(self, user: str, until: float) -> int:
        """See `LoggedRequests`."""
        mark = mark_of(load_secret(self._secret_file), user)
        gone = self._log.erase(mark, until)
        if self._drift.archive.is_dir():
            from serving.drift.erasing import erase

            gone += erase(self._drift, EMBEDDING_VALUES, mark, until)
        return gone
