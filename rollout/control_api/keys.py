"""The routes of keys and usage.

A key's text is in one answer, the one that made it, and nowhere else: what is kept is the hash of its secret.

No `from __future__ import annotations` in modules with routes: FastAPI reads annotations of local functions.
"""

import asyncio
import json
import logging
import secrets
import string
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query

from rollout.access import manages, sees
from rollout.accounts.base import UsageSum
from rollout.control_api.authentication import Caller, Forbidden
from rollout.control_api.bodies import KeyBody
from rollout.control_api.guard import Guard, check_model
from rollout.control_api.plane import ControlPlane
from rollout.errors import RolloutError
from serving.keys import EVERYWHERE, ID_CHARS, KeyRecord, Scope, hash_secret, write_key

log = logging.getLogger(__name__)

MAX_KEYS = 10_000
"""Every gateway holds all of them in memory."""
DAY_S = 86400.0
_ID_ALPHABET = string.ascii_lowercase + string.digits


class UnknownKey(RolloutError):
    """No key has that id."""


class InvalidKey(RolloutError):
    """A key that could do nothing, or one too many."""


def key_routes(plane: ControlPlane, guard: Guard, clock: Callable[[], float]) -> APIRouter:
    """Keys: made, listed, revoked."""
    routes = APIRouter(prefix="/api/v1/keys")
    Asking = Annotated[Caller, Depends(guard)]  # noqa: N806 - a type

    @routes.post("", status_code=201)
    async def create(body: KeyBody, caller: Asking) -> dict[str, Any]:
        plane.controller.require_leadership()
        if len(plane.keys.keys()) >= MAX_KEYS:
            raise InvalidKey(f"there are {MAX_KEYS} keys, which is the limit; old ones can't be reused")
        if not manages(caller.namespace, body.namespace, body.roles):
            raise Forbidden(
                f"a key of namespace {body.namespace} with the roles {', '.join(sorted(body.roles)) or 'none'} is not "
                f"{caller.actor}'s to make: it is bound to {caller.namespace}, and gateways' keys open all. Make one "
                f"with --namespace {caller.namespace}, or ask an admin of all namespaces"
            )
        secret = secrets.token_urlsafe(32)
        record = new_record(body, secret, key_id=new_id(), now=clock())
        await plane.keys.put_key(record)
        _log("key created", record, caller)
        bound = "" if record.namespace == EVERYWHERE else record.namespace
        deployed = {s.model for s in plane.controller.statuses if sees(bound, s.namespace)}
        return {
            "key": write_key(record.id, secret),
            "record": shown(record, clock()),
            "warning": warn(record, deployed),
        }

    @routes.get("")
    async def list_(caller: Asking) -> dict[str, Any]:
        plane.controller.require_leadership()
        mine = (r for r in by_id(plane).values() if manages(caller.namespace, r.namespace, r.roles))
        found = sorted(mine, key=lambda r: (r.created_at, r.id))
        return {"keys": [shown(r, clock()) for r in found]}

    @routes.post("/{key_id}/revoke")
    async def revoke(key_id: Annotated[str, Path(max_length=64)], caller: Asking) -> dict[str, Any]:
        plane.controller.require_leadership()
        record = by_id(plane).get(key_id)
        # Another namespace's is as unknown as one that there never was.
        if record is None or not manages(caller.namespace, record.namespace, record.roles):
            raise UnknownKey(f"no key has the id {key_id!r}; `tidegate key list` shows them")
        if record.revoked_at is None:
            record = record.model_copy(update={"revoked_at": clock()})
            await plane.keys.put_key(record)
            _log("key revoked", record, caller)
        return {"record": shown(record, clock())}

    return routes


def usage_routes(plane: ControlPlane, guard: Guard, clock: Callable[[], float]) -> APIRouter:
    """Usage, added up."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/usage")
    async def usage(
        caller: Annotated[Caller, Depends(guard)],
        since: Annotated[float | None, Query(ge=0, description="Seconds since the epoch; else a day ago.")] = None,
        until: Annotated[float | None, Query(ge=0, description="Seconds since the epoch; else now.")] = None,
        key: Annotated[str | None, Query(max_length=64, description="A key's id or name.")] = None,
        model: Annotated[str | None, Query(max_length=63)] = None,
    ) -> dict[str, Any]:
        plane.controller.require_leadership()
        check_model(plane, caller, model)
        until_s = clock() if until is None else until
        since_s = until_s - DAY_S if since is None else since
        names, bound = plane.names_for(caller), caller.namespace
        records = {i: r for i, r in by_id(plane).items() if not bound or r.namespace in (bound, EVERYWHERE)}
        ids = [None] if key is None else _ids(records.values(), key)

        def read() -> list[UsageSum]:
            return [
                row
                for key_id in ids
                for row in plane.accounts.usage(since=since_s, until=until_s, key=key_id, model=model)
                if names is None or row.model in names
            ]

        rows = [row.model_dump(mode="json") for row in await asyncio.to_thread(read)]
        for row in rows:
            known = records.get(str(row["key"]))
            row["key_name"] = known.name if known is not None else None
        return {"since": since_s, "until": until_s, "usage": rows}

    return routes


def by_id(plane: ControlPlane) -> dict[str, KeyRecord]:
    """Every key there is, by its id."""
    records = plane.keys.keys()
    return {record.id: record for record in records}


def _ids(records: Iterable[KeyRecord], wanted: str) -> list[str]:
    """The ids that a person means: an id, or every key of that name, revoked ones too."""
    found = [r.id for r in records if wanted in (r.id, r.name)]
    if not found:
        raise UnknownKey(f"no key has the id or name {wanted!r}; `tidegate key list` shows them")
    return found


def new_id() -> str:
    """A key's public id, by chance."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARS))


def new_record(body: KeyBody, secret: str, *, key_id: str, now: float) -> KeyRecord:
    """What is kept of a new key.

    Raises:
        InvalidKey: it could do nothing.

    """
    scopes = body.scopes
    if scopes is None:  # a key for the control plane need not be one for asking models
        scopes = frozenset() if body.roles else frozenset({Scope.INFERENCE})
    if not scopes and not body.roles:
        raise InvalidKey("a key with neither scopes nor roles could do nothing; give one")
    return KeyRecord(
        id=key_id,
        secret_sha256=hash_secret(secret),
        name=body.name,
        namespace=body.namespace,
        scopes=scopes,
        models=body.models,
        roles=body.roles,
        priority=body.priority,
        requests_per_minute=body.requests_per_minute,
        tokens_per_minute=body.tokens_per_minute,
        concurrency=body.concurrency,
        created_at=now,
        expires_at=None if body.expires_in is None else now + body.expires_in,
    )


def shown(record: KeyRecord, now: float) -> dict[str, Any]:
    """A key as it may be shown: without its hash."""
    state = "revoked" if record.revoked_at is not None else "active" if record.valid(now) else "expired"
    document = record.model_dump(mode="json", exclude={"secret_sha256"})
    for name in ("scopes", "roles"):
        document[name] = sorted(document[name])
    return {**document, "state": state}


def warn(record: KeyRecord, deployed: Iterable[str]) -> str:
    """What is odd about a key and may be meant; "" when nothing is."""
    unknown = sorted(set(record.models) - set(deployed))
    if not unknown:
        return ""
    return f"not deployed yet: {', '.join(unknown)}; the key works for them once they are"


def _log(event: str, record: KeyRecord, caller: Caller) -> None:
    line = {"event": event, "key": record.id, "name": record.name, "namespace": record.namespace}
    log.info("%s", json.dumps({**line, "actor": caller.actor, "source": caller.source}))
