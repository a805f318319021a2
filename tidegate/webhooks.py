"""The configured webhooks as receivers, and the file that remembers how far each has been told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rollout.notifications.base import Position
from rollout.notifications.webhook import WebhookNotifier, parse_secret
from tidegate.errors import WrongUse
from tidegate.runfile import write_private
from tidegate.settings import Settings, WebhookSettings

_CURSORS = TypeAdapter(dict[str, Position])


class FileCursors:
    """Cursors in a JSON file, replaced as a whole: after a crash it holds the old ones or the new ones."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Mapping[str, Position]:
        """See `Cursors.load`.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            return _CURSORS.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValidationError, OSError) as error:
            raise ValueError(f"{self._path} can't be read: {type(error).__name__}") from error

    def save(self, cursors: Mapping[str, Position]) -> None:
        """See `Cursors.save`."""
        write_private(self._path, json.dumps({name: c.model_dump() for name, c in cursors.items()}))


def build_webhooks(settings: Settings, clock: Callable[[], float]) -> tuple[WebhookNotifier, ...]:
    """A receiver for each configured webhook.

    Raises:
        WrongUse: a secret file that can't be read, or holds no secret.
    """
    return tuple(
        WebhookNotifier(name=w.name, url=w.url, secret=_secret(w), wanted=w.events, clock=clock)
        for w in settings.webhooks
    )


def _secret(webhook: WebhookSettings) -> bytes:
    try:
        return parse_secret(webhook.secret_file.expanduser().read_text())
    except OSError as error:
        raise WrongUse(
            f"webhook {webhook.name}: {webhook.secret_file}: {error.strerror}; name a readable file"
        ) from None
    except ValueError as error:
        raise WrongUse(f"webhook {webhook.name}: {webhook.secret_file}: {error}") from None
