"""The drift watch as the control plane hands it out: of this home by its files, or elsewhere (`drift_watch_url`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rollout.control_api.drift import DriftWatchAway, NotWatched
from tidegate.errors import TidegateError
from tidegate.settings import Settings

if TYPE_CHECKING:
    import httpx

WATCH_TIMEOUT_S = 15.0
"""The watch answers within ten seconds, whether it could or not."""


class HomesDriftWatch:
    """What the settings say is the drift watch."""

    def __init__(self, settings: Settings, transport: httpx.BaseTransport | None = None) -> None:
        """Prepare; nothing is asked yet. `transport` replaces the network in tests."""
        self._settings = settings
        self._transport = transport

    def status(self) -> Mapping[str, Any]:
        """See `DriftWatch`."""
        if self._settings.drift_watch_url:
            return self._ask("GET", "/status")
        from tidegate.drift import Drift

        try:
            return Drift(self._settings).status()
        except TidegateError as error:
            raise DriftWatchAway(str(error)) from None

    def acknowledge(self, model: str, stream: str | None, by: str, reason: str) -> bool:
        """See `DriftWatch`."""
        if self._settings.drift_watch_url:
            said = {"model": model, "scope": stream, "by": by, "reason": reason}
            return bool(self._ask("POST", "/ack", said)["taken_in"])
        from tidegate.drift import Drift

        try:
            return Drift(self._settings).acknowledge(model, stream, reason, by=by)
        except TidegateError as error:
            raise NotWatched(str(error)) from None
        except OSError as error:
            raise DriftWatchAway(f"the acknowledgement can't be written: {error.strerror}") from None

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        import httpx

        url = f"{self._settings.drift_watch_url.rstrip('/')}{path}"
        try:
            with httpx.Client(timeout=WATCH_TIMEOUT_S, trust_env=False, transport=self._transport) as client:
                reply = client.request(method, url, json=body, headers=self._settings.drift_key_headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DriftWatchAway(
                f"the watch at {url} does not answer, {type(error).__name__}; see its pod's log"
            ) from None
        except OSError as error:
            raise DriftWatchAway(f"the drift watch's key can't be read: {error.strerror}") from None
        try:
            found = reply.json()
            if reply.status_code == httpx.codes.OK and isinstance(found, dict):
                return found
            why = str(found["error"])[:300]
        except (ValueError, KeyError, TypeError):
            why = "no answer of a drift watch"
        if reply.status_code == httpx.codes.NOT_FOUND and why.endswith("is not watched"):
            raise NotWatched(f"{why}; see `tidegate drift status`")
        older = "; an older watch takes no acknowledgement over HTTP: restart its pod on this release's image"
        raise DriftWatchAway(
            f"the watch at {url} answered {reply.status_code}: {why}"
            + (older if reply.status_code == httpx.codes.NOT_FOUND else "")
        )
