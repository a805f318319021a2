"""The state of a cluster: objects with versions, generations, finalizers and owners, and the history that watches read.

Everything here is synchronous and under one lock, so that tests may look at it and change it from any thread while
clients talk to it over HTTP (server.py).
"""

from __future__ import annotations

import datetime
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.kubernetes import structural
from tests.kubernetes.api_errors import Refused, already_exists, bad_request, conflict, gone, invalid, not_found
from tests.kubernetes.built_in import complaints
from tests.kubernetes.kinds import BUILT_IN, Kind, kinds_of_definition
from tests.kubernetes.managed_fields import Shape, apply, updated
from tests.kubernetes.selectors import matches

Object = dict[str, Any]
Key = tuple[str, str]

SERVER_OWNED = (
    "uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "namespace", "name",
    "resourceVersion",
)  # fmt: skip
"""Fields of metadata that no client can change."""

KEPT_EVENTS = 20_000
"""As many changes as watches may be behind before they are told that their version is gone."""


@dataclass(frozen=True)
class Change:
    """One step of the history."""

    version: int
    what: str
    key: tuple[str, str]
    after: Object
    before: Object | None


@dataclass(frozen=True)
class Write:
    """How a write was asked for."""

    manager: str = "unknown"
    subresource: str = ""
    dry_run: bool = False
    strictness: str = "Warn"


def copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


class Cluster:
    """One API server's memory."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self.version = 100
        self.kinds: dict[tuple[str, str, str], Kind] = {(k.group, k.version, k.plural): k for k in BUILT_IN}
        self._objects: dict[tuple[str, str], dict[Key, Object]] = {}
        self.history: deque[Change] = deque(maxlen=KEPT_EVENTS)
        self.oldest = self.version
        self.listeners: set[Callable[[], None]] = set()
        for name in ("default", "kube-system"):
            self.create(self.kind("namespaces"), None, {"metadata": {"name": name}}, Write())

    # -- what there is --

    def kind(self, plural: str, group: str | None = None, version: str | None = None) -> Kind:
        """The resource of this plural name, or kind; the newest served version when none is named."""
        for known in reversed(self.kinds.values()):
            if plural not in (known.plural, known.kind) or (group is not None and known.group != group):
                continue
            if version is None or known.version == version:
                return known
        raise Refused(404, "NotFound", "the server could not find the requested resource")

    def _store(self, kind: Kind) -> dict[Key, Object]:
        return self._objects.setdefault(kind.key, {})

    def _at(self, kind: Kind, namespace: str | None, name: str) -> Object:
        found = self._store(kind).get((namespace or "", name))
        if found is None:
            raise not_found(kind.full_name, name)
        return found

    def _shown(self, kind: Kind, found: Object) -> Object:
        return {**copied(found), "apiVersion": kind.api_version, "kind": kind.kind}

    def get(self, kind: Kind | str, namespace: str | None, name: str) -> Object:
        kind = self.kind(kind) if isinstance(kind, str) else kind
        with self.lock:
            return self._shown(kind, self._at(kind, namespace, name))

    def find(self, kind: Kind | str, namespace: str | None, name: str) -> Object | None:
        """The object or None, for tests."""
        try:
            return self.get(kind, namespace, name)
        except Refused:
            return None

    def list(self, kind: Kind | str, namespace: str | None = None, labels: str = "", fields: str = "") -> list[Object]:
        kind = self.kind(kind) if isinstance(kind, str) else kind
        with self.lock:
            here = sorted(self._store(kind).items())
            return [
                self._shown(kind, o)
                for (where, _), o in here
                if namespace in (None, where) and matches(o, labels, fields)
            ]

    # -- history --

    def _record(self, what: str, kind: Kind, after: Object, before: Object | None) -> None:
        if len(self.history) == self.history.maxlen:
            self.oldest = self.history[0].version
        self.history.append(Change(int(after["metadata"]["resourceVersion"]), what, kind.key, after, before))
        for wake in tuple(self.listeners):
            wake()

    def changes_since(self, kind: Kind, version: int) -> Iterator[Change]:
        """What happened to a resource after this version.

        Raises:
            Refused: 410, the history does not reach back so far.

        """
        with self.lock:
            if version < self.oldest:
                raise gone(f"too old resource version: {version} ({self.oldest})")
            recent = []
            for change in reversed(self.history):
                if change.version <= version:
                    break
                recent.append(change)
        return (c for c in reversed(recent) if c.key == kind.key)

    def forget_history(self) -> None:
        """As etcd's compaction does: a watch that goes on from an older version gets 410."""
        with self.lock:
            self.history.clear()
            self.oldest = self.version

    def _bump(self) -> str:
        self.version += 1
        return str(self.version)

    def now(self) -> str:
        return datetime.datetime.fromtimestamp(self.clock(), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    # -- writes --

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self.lock:
            yield

    def create(self, kind: Kind | str, namespace: str | None, body: Object, write: Write | None = None) -> Object:
        kind, write = self.kind(kind) if isinstance(kind, str) else kind, write or Write()
        with self._writing():
            new = _read(kind, body)
            metadata = new.setdefault("metadata", {})
            if metadata.get("resourceVersion"):
                raise Refused(500, "", "resourceVersion should not be set on objects to be created")
            if not metadata.get("name") and metadata.get("generateName"):
                metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
            self._named(kind, namespace, new)
            if kind.has_status and kind.custom:
                new.pop("status", None)
            metadata["managedFields"] = []
            metadata["managedFields"] = updated(None, new, Shape(kind.schema), write.manager, "", self.now())
            return self._born(kind, namespace, new, write)

    def restore(self, kind: str, namespace: str, body: Object) -> None:
        """Put an object there whole, with its status, as a backup does: admitted it was before."""
        with self._writing():
            new = copied(body)
            new["metadata"] |= {"uid": str(uuid.uuid4()), "resourceVersion": self._bump()}
            known = self.kind(kind)
            self._store(known)[namespace, new["metadata"]["name"]] = new
            self._record("ADDED", known, new, None)

    def _named(self, kind: Kind, namespace: str | None, new: Object) -> str:
        name = new["metadata"].get("name")
        if not name:
            raise invalid(kind.full_kind, "", [("metadata.name", "Required value: name or generateName is required")])
        if kind.namespaced:
            if new["metadata"].setdefault("namespace", namespace) != namespace:
                raise bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
            if namespace is not None and (namespace_object := self.find("namespaces", None, namespace)) is None:
                raise not_found("namespaces", namespace)
            if namespace is not None and namespace_object["metadata"].get("deletionTimestamp"):
                raise Refused(
                    403,
                    "Forbidden",
                    f'{kind.full_name} "{new["metadata"]["name"]}" is forbidden: unable to create '
                    f"new content in namespace {namespace} because it is being terminated",
                )
        return str(name)

    def _born(self, kind: Kind, namespace: str | None, new: Object, write: Write) -> Object:
        name = new["metadata"]["name"]
        new = self._admitted(kind, name, new, None, write)
        if (namespace or "", name) in self._store(kind):
            raise already_exists(kind.full_name, name)
        new["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": self.now()}
        new["metadata"].pop("deletionTimestamp", None)
        new["metadata"].pop("generation", None)
        if kind.counts_generations:
            new["metadata"]["generation"] = 1
        if write.dry_run:
            return self._shown(kind, new)
        new["metadata"]["resourceVersion"] = self._bump()
        self._store(kind)[namespace or "", name] = new
        self._record("ADDED", kind, new, None)
        if kind.plural == "customresourcedefinitions":
            self._define(new)
        return self._shown(kind, new)

    def _admitted(self, kind: Kind, name: str, new: Object, old: Object | None, write: Write) -> Object:
        if kind.plural == "customresourcedefinitions":
            for version in new["spec"]["versions"]:
                structural.check_structural(version["schema"]["openAPIV3Schema"], name)
        if causes := complaints(kind.plural, new):
            raise invalid(kind.full_kind, name, causes)
        if kind.schema is None:
            return new
        return structural.admitted(kind, name, new, old, kind.schema, write.strictness)

    def _define(self, definition: Object) -> None:
        for kind in kinds_of_definition(definition):
            self.kinds[kind.group, kind.version, kind.plural] = kind
        definition["status"] = {
            "conditions": [{"type": "Established", "status": "True"}, {"type": "NamesAccepted", "status": "True"}],
            "storedVersions": [v["name"] for v in definition["spec"]["versions"] if v.get("storage")],
        }

    def update(self, kind: Kind, namespace: str | None, name: str, body: Object, write: Write) -> Object:
        """PUT: replaces everything that the client may write there."""
        with self._writing():
            live = self._at(kind, namespace, name)
            new = _read(kind, body)
            asked = (new.get("metadata") or {}).get("resourceVersion")
            if not asked and (kind.custom or kind.plural == "leases"):
                why = f"Invalid value: {'0' if kind.custom else '0x0'}: must be specified for an update"
                raise invalid(kind.full_name, name, [("metadata.resourceVersion", why)])
            self._not_stale(kind, name, live, new)
            if new["metadata"].get("uid", live["metadata"]["uid"]) != live["metadata"]["uid"]:
                raise conflict(
                    kind.full_name, name, f"Precondition failed: UID in precondition: {new['metadata']['uid']}"
                )
            new = self._kept_apart(kind, live, new, write)
            new["metadata"]["managedFields"] = live["metadata"].get("managedFields") or []
            new["metadata"]["managedFields"] = updated(
                live, new, Shape(kind.schema), write.manager, write.subresource, self.now()
            )
            return self._changed(kind, namespace, live, new, write)

    def patch(
        self, kind: Kind, namespace: str | None, name: str, change: Callable[[Object], Object], write: Write
    ) -> Object:
        """A merge or JSON patch, made on what is there."""
        with self._writing():
            live = self._at(kind, namespace, name)
            new = change(self._shown(kind, live))
            self._not_stale(kind, name, live, new)
            if not write.subresource:
                _same_uid(kind, live, new)
            new = self._kept_apart(kind, live, new, write)
            new["metadata"]["managedFields"] = live["metadata"].get("managedFields") or []
            new["metadata"]["managedFields"] = updated(
                live, new, Shape(kind.schema), write.manager, write.subresource, self.now()
            )
            return self._changed(kind, namespace, live, new, write)

    def apply(
        self, kind: Kind, namespace: str | None, name: str, body: Object, write: Write, *, force: bool = False
    ) -> Object:
        """Server-side apply; creates what is not there, but for subresources."""
        with self._writing():
            body = copied(body)
            metadata = body.setdefault("metadata", {})
            if metadata.get("managedFields") is not None:
                raise bad_request("metadata.managedFields must be nil")
            if metadata.setdefault("name", name) != name:
                raise _other_name(metadata["name"], name)
            if body.get("kind") != kind.kind:
                raise bad_request("the name or kind of the object does not match the name or kind of the request")
            live = self._store(kind).get((namespace or "", name))
            if live is None and write.subresource:
                raise not_found(kind.full_name, name)
            if live is not None:
                self._not_stale(kind, name, live, body)
                if not write.subresource:  # of a status's metadata only the version is looked at
                    _same_uid(kind, live, body)
            elif metadata.get("uid"):
                raise conflict(
                    kind.full_name,
                    name,
                    f"uid mismatch: the provided object specified uid {metadata['uid']}, "
                    "and no existing object was found",
                )
            metadata.pop("resourceVersion", None)
            if kind.has_status and write.subresource != "status":
                body.pop("status", None)
            if write.subresource == "status":
                body = {k: v for k, v in body.items() if k in ("apiVersion", "kind", "status")} | {"metadata": {}}
            _typed(kind, namespace, name, body)
            new = apply(live, body, Shape(kind.schema), write.manager, write.subresource, self.now(), force=force)
            if live is None:
                self._named(kind, namespace, new)
                return self._born(kind, namespace, new, write)
            return self._changed(kind, namespace, live, new, write)

    def _not_stale(self, kind: Kind, name: str, live: Object, new: Object) -> None:
        asked = new.get("metadata") or {}
        if asked.get("name", name) != name:
            raise _other_name(asked["name"], name)
        if asked.get("resourceVersion") and asked["resourceVersion"] != live["metadata"]["resourceVersion"]:
            raise conflict(kind.full_name, name)

    def _kept_apart(self, kind: Kind, live: Object, new: Object, write: Write) -> Object:
        """A write of the status writes nothing else, and every other write leaves the status alone."""
        if write.subresource == "status":
            kept = copied(live)
            kept.pop("status", None)
            return {**kept, **({"status": new["status"]} if new.get("status") is not None else {})}
        if kind.has_status:
            new.pop("status", None)
            if "status" in live:
                new["status"] = copied(live["status"])
        return new

    def _changed(self, kind: Kind, namespace: str | None, live: Object, new: Object, write: Write) -> Object:
        name = live["metadata"]["name"]
        theirs = new.setdefault("metadata", {})
        for server_owned in SERVER_OWNED:
            theirs.pop(server_owned, None)
            if server_owned in live["metadata"]:
                theirs[server_owned] = live["metadata"][server_owned]
        for emptied in ("annotations", "labels", "finalizers", "ownerReferences"):
            if emptied in theirs and not theirs[emptied]:
                del theirs[emptied]
        new["apiVersion"], new["kind"] = live["apiVersion"], live["kind"]
        new = self._admitted(kind, name, new, live, write)
        added = set(theirs.get("finalizers") or ()) - set(live["metadata"].get("finalizers") or ())
        if added and live["metadata"].get("deletionTimestamp"):
            raise invalid(kind.full_kind, name, [
                ("metadata.finalizers", "Forbidden: no new finalizers can be added if the object is being deleted, "
                 f"found new finalizers {sorted(added)}"),
            ])  # fmt: skip
        if _essence(new) == _essence(live):
            return self._shown(kind, live)
        if kind.counts_generations and _generation_part(new) != _generation_part(live):
            new["metadata"]["generation"] = live["metadata"]["generation"] + 1
        if write.dry_run:
            return self._shown(kind, new)
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            return self._remove(kind, namespace, new)
        new["metadata"]["resourceVersion"] = self._bump()
        self._store(kind)[namespace or "", name] = new
        if kind.plural == "customresourcedefinitions":
            self._define(new)
        self._record("MODIFIED", kind, new, live)
        return self._shown(kind, new)

    def delete(
        self, kind: Kind | str, namespace: str | None, name: str, options: Object | None = None
    ) -> Object:  # fmt: skip
        """Gone at once, or marked until the last finalizer is taken away."""
        kind, options = self.kind(kind) if isinstance(kind, str) else kind, options or {}
        with self._writing():
            live = self._at(kind, namespace, name)
            wanted = options.get("preconditions") or {}
            for part in ("uid", "resourceVersion"):
                if wanted.get(part) and wanted[part] != live["metadata"][part]:
                    raise _not_the_one(kind, live, part, wanted[part])
            if not live["metadata"].get("finalizers"):
                return self._remove(kind, namespace, live)
            if live["metadata"].get("deletionTimestamp"):
                return self._shown(kind, live)
            new = copied(live)
            new["metadata"] |= {"deletionTimestamp": self.now(), "deletionGracePeriodSeconds": 0}
            if kind.counts_generations:
                new["metadata"]["generation"] = live["metadata"]["generation"] + 1
            new["metadata"]["resourceVersion"] = self._bump()
            self._store(kind)[namespace or "", name] = new
            self._record("MODIFIED", kind, new, live)
            return self._shown(kind, new)

    def _remove(self, kind: Kind, namespace: str | None, live: Object) -> Object:
        before = self._store(kind).pop((namespace or "", live["metadata"]["name"]))
        last = copied(live)
        last["metadata"]["resourceVersion"] = self._bump()
        self._record("DELETED", kind, last, before)
        if kind.plural == "customresourcedefinitions":
            self._undefine(live)
        self._collect(live["metadata"]["uid"])
        return self._shown(kind, last)

    def _undefine(self, definition: Object) -> None:
        for kind in kinds_of_definition(definition):
            for namespace, name in tuple(self._store(kind)):
                self.delete(kind, namespace or None, name)
            self.kinds.pop((kind.group, kind.version, kind.plural), None)

    def _collect(self, owner: str) -> None:
        """Garbage collection: what has no owner left goes too."""
        for kind in tuple(self.kinds.values()):
            for (namespace, name), found in tuple(self._store(kind).items()):
                owners = found["metadata"].get("ownerReferences") or []
                if not owners or owner not in {o["uid"] for o in owners}:
                    continue
                everyone = {o["metadata"]["uid"] for objects in self._objects.values() for o in objects.values()}
                if not everyone & {o["uid"] for o in owners} and (namespace, name) in self._store(kind):
                    self.delete(kind, namespace or None, name)


def _other_name(said: str, name: str) -> Refused:
    return bad_request(f"the name of the object ({said}) does not match the name on the URL ({name})")


def _same_uid(kind: Kind, live: Object, new: Object) -> None:
    """A patch of an object that was made anew is no conflict but a wrong field."""
    asked = (new.get("metadata") or {}).get("uid")
    if asked and asked != live["metadata"]["uid"]:
        why = f'Invalid value: "{asked}": field is immutable'
        raise invalid(kind.full_kind, live["metadata"]["name"], [("metadata.uid", why)])


def _not_the_one(kind: Kind, live: Object, part: str, wanted: str) -> Refused:
    what, did = ("UID", "deleted and then recreated") if part == "uid" else ("ResourceVersion", "modified")
    return conflict(
        kind.full_kind, live["metadata"]["name"],
        f"the {what} in the precondition ({wanted}) does not match the {what} in record ({live['metadata'][part]}). "
        f"The object might have been {did}",
    )  # fmt: skip


def _read(kind: Kind, body: Object) -> Object:
    """The body of a write as its kind: what it says of itself must fit the place that it was sent to."""
    new: Object = copied(body)
    said = new.setdefault("apiVersion", kind.api_version)
    if said != kind.api_version:
        raise bad_request(
            f"the API version in the data ({said}) does not match the expected API version ({kind.api_version})"
        )
    named = new.setdefault("kind", kind.kind)
    if named != kind.kind:
        about = f"{named}.{kind.group}" if kind.group else named
        raise invalid(
            about, (new.get("metadata") or {}).get("name", ""),
            [("kind", f'Invalid value: "{named}": must be {kind.kind}')],
        )  # fmt: skip
    return new


def _typed(kind: Kind, namespace: str | None, name: str, body: Object) -> None:
    """What is applied must fit the schema before anything is merged: an unknown field is a 500 and is not pruned."""
    said: list[str] = []
    if kind.schema is not None:
        undeclared: list[str] = []
        own = {k: v for k, v in body.items() if k not in ("apiVersion", "kind", "metadata")}
        structural.pruned(own, kind.schema, undeclared)
        said = [f".{path}: field not declared in schema" for path in undeclared]
        said += structural.mistyped(own, kind.schema)
    if said:
        why = said[0] if len(said) == 1 else "\n  ".join(["errors:", *said])
        about = f"{body['metadata'].get('namespace', '')}/{name}; {kind.api_version}, Kind={kind.kind}"
        raise Refused(500, "", f"failed to create typed patch object ({about}): {why}")


def _essence(found: Object) -> Object:
    """What must differ for a write to be one: times of ownership and the version do not count."""
    metadata = {
        k: v for k, v in found["metadata"].items() if k not in ("resourceVersion", "managedFields", "generation")
    }
    owned = [{k: v for k, v in e.items() if k != "time"} for e in found["metadata"].get("managedFields") or []]
    return {**found, "metadata": metadata, "owned": owned}


def _generation_part(found: Object) -> Object:
    return {k: v for k, v in found.items() if k not in ("metadata", "status", "apiVersion", "kind")}
