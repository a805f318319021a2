"""The configured webhooks as receivers, and how far each has been told in the file of an older version."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rollout.notifications.base import Cursors, Position
from rollout.notifications.webhook import WebhookNotifier, parse_secret
from tidegate.errors import WrongUse
from tidegate.settings import Settings, WebhookSettings

log = logging.getLogger(__name__)

_CURSORS = TypeAdapter(dict[str, Position])


def adopt_cursors(store: Cursors, path: Path) -> None:
    """Take over what an older version kept in a file of its home, once: it is in the store now.

    What a damaged file said is forgotten: receivers are told what happens from now on.
    """
    try:
        found = _CURSORS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return
    except (ValidationError, OSError) as error:
        log.warning("how far webhooks were told can't be read from %s: %s", path, type(error).__name__)
    else:
        if not store.load():
            store.save(found)
    path.unlink(missing_ok=True)


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
