"""The request log below the home, as the control plane hands it out; who is erased goes from the drift archive too.

The drift archive is below the same home, or with a drift watch of its own (`drift_watch_url`), which is asked then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rollout.control_api.requests import EraseIncomplete
from serving.drift.config import EMBEDDING_VALUES, Places
from serving.errors import ServingError
from serving.gateway.request_ids import load_secret
from serving.request_log.marks import mark_of
from serving.request_log.reading import RequestLog, Wanted
from tidegate.settings import Settings

WATCH_TIMEOUT_S = 15.0
"""The watch answers within ten seconds, whether it could or not."""


class WatchAway(Exception):
    """A drift watch elsewhere has not erased. The message is for people."""


class HomesRequestLog:
    """What all gateways of this home logged."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log = RequestLog(settings.request_log_dir)
        self._drift = Places(settings.home)

    def find(self, request_id: str) -> Mapping[str, Any] | None:
        """See `LoggedRequests`."""
        return self._log.find(request_id)

    def search(self, wanted: Mapping[str, Any], limit: int) -> list[Mapping[str, Any]]:
        """See `LoggedRequests`."""
        return list(self._log.search(Wanted(**wanted), limit))

    def erase(self, user: str, until: float) -> int:
        """See `LoggedRequests`. What one part fails at keeps no other from its turn."""
        mark = self._mark(user)
        parts: tuple[tuple[str, Callable[[str, float], int]], ...] = (
            ("request log", self._log.erase), ("drift watch's vectors", self._vectors),
        )  # fmt: skip
        gone: dict[str, int] = {}
        failed: dict[str, str] = {}
        for part, take_out in parts:
            try:
                gone[part] = take_out(mark, until)
            except OSError as error:
                failed[part] = error.strerror or type(error).__name__
            except (ServingError, WatchAway) as error:
                failed[part] = str(error)
        if failed:
            raise EraseIncomplete(incomplete(gone, failed))
        return sum(gone.values())

    def _mark(self, user: str) -> str:
        """Under which the user stands everywhere.

        Raises:
            EraseIncomplete: made with another secret than the gateways', it would name nobody.
        """
        settings = self._settings
        if settings.drift_watch_url and settings.request_secret_file is None:
            raise EraseIncomplete(
                "nothing is erased: the drift watch is elsewhere (drift_watch_url), and users stand there under a mark "
                "made with the gateways' secret; give its file as request_secret_file"
            )
        try:
            return mark_of(load_secret(settings.gateway_secret_file), user)
        except OSError as error:
            raise EraseIncomplete(
                f"nothing is erased: the gateways' secret {settings.gateway_secret_file} can't be read "
                f"({error.strerror}); users stand everywhere under a mark made with it"
            ) from None

    def _vectors(self, mark: str, until: float) -> int:
        if self._settings.drift_watch_url:
            return ask_watch(self._settings, mark, until)
        if not self._drift.archive.is_dir():
            return 0
        from serving.drift.erasing import erase

        return erase(self._drift, EMBEDDING_VALUES, mark, until)


def incomplete(gone: Mapping[str, int], failed: Mapping[str, str]) -> str:
    """What is erased, what is not and what to do, in one line.

    >>> incomplete({"request log": 4}, {"drift watch's vectors": "it is away"})
    "erased: 4 lines of the request log; not erased: the drift watch's vectors (it is away); run it again when mended"
    """
    done = ", ".join(f"{count} lines of the {part}" for part, count in gone.items()) or "nothing for sure"
    left = ", ".join(f"the {part} ({why})" for part, why in failed.items())
    return f"erased: {done}; not erased: {left}; run it again when mended"


def ask_watch(settings: Settings, mark: str, until: float) -> int:
    """Let a drift watch elsewhere take a user's vectors out; how many rows went. Blocks.

    Raises:
        WatchAway: it did not, or nobody knows whether it did.
        OSError: its key can't be read.
    """
    import httpx

    url = f"{settings.drift_watch_url.rstrip('/')}/erase"
    try:
        reply = httpx.post(
            url, json={"user": mark, "until": until}, headers=settings.drift_key_headers, timeout=WATCH_TIMEOUT_S,
            trust_env=False,
        )  # fmt: skip
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise WatchAway(f"the watch at {url} does not answer, {type(error).__name__}; see its pod's log") from None
    try:
        said = reply.json()
        if reply.status_code == httpx.codes.OK:
            return int(said["erased"])
        why = str(said["error"])[:300]
    except (ValueError, KeyError, TypeError):
        why = "no answer of a drift watch"
    raise WatchAway(f"the watch at {url} answered {reply.status_code}: {why}")
