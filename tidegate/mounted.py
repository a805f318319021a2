"""What a cluster mounts into the control plane's container: its token, the gateways' key, the store's URL.

Such files are somebody else's (a Secret's, most often): they are read, never made or changed, and what is wrong with
one is said with its setting and its path, never with what it holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from serving.keys import ControlRole, KeyRecord, hash_secret, matches, split_key
from tidegate.errors import WrongUse

if TYPE_CHECKING:
    from rollout.accounts.base import AccountStore
    from rollout.event_log.database import Database
    from tidegate.settings import Settings

MIN_TOKEN_CHARS = 32
GATEWAYS = "the gateways of this release"


def read_mounted(path: Path, setting: str, min_chars: int = MIN_TOKEN_CHARS) -> str:
    """What a mounted file holds, without white space around it.

    Raises:
        WrongUse: it can't be read, or what it holds is too short to be what it should be.
    """
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = (getattr(error, "strerror", None) or "it is no text").lower()
        raise WrongUse(f"{setting} {path}: {why}; mount the Secret there, or name another file") from None
    if len(text) < min_chars:
        raise WrongUse(
            f"{setting} {path} holds {len(text)} characters, fewer than {min_chars}; put more into the Secret"
        )
    return text


def read_gateway_key(settings: Settings) -> tuple[str, str] | None:
    """The gateways' key as (id, secret); None when gateways dial with a key or token that is known anyway.

    Raises:
        WrongUse: the file can't be read or holds no key.
    """
    path = settings.gateway_key_file
    if path is None:
        return None
    key = split_key(read_mounted(path, "gateway_key_file"))
    if key is None or len(key[1]) < MIN_TOKEN_CHARS:
        raise WrongUse(
            f"gateway_key_file {path} holds no key; write tg-<12 lower-case letters or digits>-<secret of "
            f"{MIN_TOKEN_CHARS} to 128 characters>"
        )
    return key


def book_gateway_key(accounts: AccountStore, key: tuple[str, str], now: float) -> None:
    """See that gateways are let in with this key, and that it opens nothing else. The same again changes nothing.

    A key that was revoked by hand stays revoked; another one in the Secret is the way on.
    """
    key_id, secret = key
    records = {record.id: record for record in accounts.keys()}  # noqa: SIM118 - a method of the port, no mapping's
    known = records.get(key_id)
    if known is not None and matches(known, secret):
        return
    roles = frozenset({ControlRole.GATEWAY})
    accounts.put_key(
        KeyRecord(
            id=key_id, secret_sha256=hash_secret(secret), name=GATEWAYS, scopes=frozenset(), roles=roles, created_at=now
        )
    )


def open_store(settings: Settings) -> Database:
    """Connect to the store and bring its schema up to date.

    Raises:
        WrongUse: the file with its URL can't be read or is empty.
        UnusableStore: the URL is none of a store.
        EventLogUnavailable: it can't be reached.
    """
    from rollout.event_log.database import Database

    if settings.store_url_file is not None:
        read_mounted(settings.store_url_file, "store_url_file", min_chars=1)
    return Database(settings.event_log_url)
