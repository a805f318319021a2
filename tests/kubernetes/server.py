"""The API server stand-in: real HTTP on loopback in front of a Cluster.

    with ApiServer() as api:
        kubernetes.client.ApiClient(kubernetes.client.Configuration(host=api.url))

It runs in a thread of its own, so synchronous and asynchronous clients can talk to it alike, and a test can take it
away (`api.away()`), cut its watches or make it answer badly (`api.faults`).
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import re
import ssl
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import trustme
import yaml
from aiohttp import web

from tests.kubernetes.api_errors import NO_PAGE, Refused, bad_request, forbidden, gone, invalid
from tests.kubernetes.cluster import Cluster, Write
from tests.kubernetes.faults import Asked, Fault, Faults, Trouble, refusal
from tests.kubernetes.kinds import Kind
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.patches import json_patch, merge_patch, set_at_path
from tests.kubernetes.rbac import ACCOUNT, ANONYMOUS, Access, Request, grants_in
from tests.kubernetes.routes import Route, discovery, open_api, route, scale_of, table
from tests.kubernetes.selectors import matches

Object = dict[str, Any]

BOOKMARK_EVERY_S = 0.5
KEPT_CONTINUATIONS = 100
PATCHES = (
    "application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)  # fmt: skip
POLICIES = ("Foreground", "Background", "Orphan")
VALIDATIONS = ("", "Ignore", "Strict", "Warn")


class ApiServer:
    """A Cluster behind HTTP."""

    def __init__(self, cluster: Cluster | None = None, authority: trustme.CA | None = None) -> None:
        """With an `authority` it speaks HTTPS, with a certificate of that."""
        self.cluster = cluster or Cluster()
        self.kubelet = Kubelet()
        self._authority = authority
        self.faults = Faults()
        self.access = Access()
        self.asked: list[tuple[Asked, int]] = []
        """Every request with the code it was answered with (0: the connection was cut)."""
        self._continued: dict[str, tuple[str, list[Object]]] = {}
        self._watches: dict[int, web.Request] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api-server", daemon=True)
        self._runner: web.AppRunner | None = None
        self.port = 0

    # -- life --

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._hang_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    @property
    def url(self) -> str:
        return f"{'https' if self._authority else 'http'}://127.0.0.1:{self.port}"

    async def _listen(self) -> None:
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        secure = None
        if self._authority is not None:
            secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._authority.issue_cert("127.0.0.1").configure_cert(secure)
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=secure)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def _hang_up(self) -> None:
        if self._runner is not None:
            for connection in tuple(self._runner.server.connections if self._runner.server else ()):
                if connection.transport is not None:
                    connection.transport.abort()
            await self._runner.cleanup()
            self._runner = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens, and every connection there was is broken."""
        self.leave()
        try:
            yield
        finally:
            self.come_back()

    def leave(self) -> None:
        self._run(self._hang_up())

    def come_back(self) -> None:
        self._run(self._listen())

    def cut_watches(self) -> None:
        """Break every watch that is open."""

        async def cut() -> None:
            for request in tuple(self._watches.values()):
                if request.transport is not None:
                    request.transport.abort()

        self._run(cut())

    def grant(self, manifests: Iterable[Object]) -> None:
        """Hold ServiceAccounts to the roles in these manifests."""
        self.access.grants += grants_in(manifests)

    def writes(self, but: Iterable[str] = ("events", "leases")) -> list[Asked]:
        """The writes that were asked for, but for those to some resources."""
        return [a for a, _ in self.asked if a.writes and a.resource not in set(but)]

    def kubeconfig(self, token: str = "admin", namespace: str = "default") -> Object:
        """A kubeconfig with one context, `stand-in`."""
        server: Object = {"server": self.url}
        if self._authority is not None:
            server["certificate-authority-data"] = base64.b64encode(self._authority.cert_pem.bytes()).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stand-in",
            "clusters": [{"name": "stand-in", "cluster": server}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [
                {"name": "stand-in", "context": {"cluster": "stand-in", "user": "me", "namespace": namespace}}
            ],
        }

    # -- one request --

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        watch = request.query.get("watch") in ("true", "1")
        asked = Asked(request.method, request.path, "", "", None, "")
        code = 0
        try:
            found = discovery(self.cluster, request.path) or open_api(self.cluster, request.path)
            if found is not None and request.method == "GET":
                if fault := self.faults.strike(Asked("GET", request.path, "discover", "", None, "")):
                    await self._struck(fault, request)
                code = 200
                return _json(found)
            to = route(self.cluster, request.method, request.path, watch=watch)
            body = await self._body(request)
            name = (
                to.name or ((body or {}).get("metadata") or {}).get("name", "") if isinstance(body, dict) else to.name
            )
            asked = Asked(
                request.method, request.path, to.verb, to.resource, to.namespace, name, _user(request),
                request.headers.get("User-Agent", ""), _manager(request),
            )  # fmt: skip
            answer = await self._admit_and_do(asked, to, body, request)
            code = answer.status
        except Refused as refused:
            code = refused.code
            headers = {"Retry-After": str(refused.details["retryAfterSeconds"])} if code == 429 else {}
            if refused.message == NO_PAGE:
                return web.Response(status=404, text=NO_PAGE)
            return _json(refused.status(), code, headers)
        else:
            return answer
        finally:
            self.asked.append((asked, code))

    async def _admit_and_do(self, asked: Asked, to: Route, body: Any, request: web.Request) -> web.StreamResponse:
        self._authorize(asked, to, body, request)
        fault = self.faults.strike(asked)
        if fault is not None and fault.trouble is not Trouble.LOST_ANSWER:
            await self._struck(fault, request)
        if to.verb == "watch":
            return await self._watch(to, request)
        if to.subresource == "portforward":
            self.cluster.get(to.kind, to.namespace, to.name)
            return await self.kubelet.forward(request, to.namespace or "", to.name)
        answer = self._done(to, body, request)
        if fault is not None:
            await self._struck(fault, request)
        return answer

    async def _struck(self, fault: Fault, request: web.Request) -> None:
        answer = refusal(fault)
        if answer is not None:
            raise answer
        if request.transport is not None:
            request.transport.abort()
        raise Refused(503, "ServiceUnavailable", "the connection was cut")

    def _authorize(self, asked: Asked, to: Route, body: Any, request: web.Request) -> None:
        user = asked.user
        verbs = [asked.verb]
        if to.subresource == "portforward":
            verbs.append("create")  # since 1.35 a WebSocket needs both
        if asked.verb == "patch" and _content_type(request) == "application/apply-patch+yaml" and not to.subresource:
            verbs += [] if self.cluster.find(to.kind, to.namespace, to.name) else ["create"]
        for verb in verbs:
            name = to.name or _field_name(request)
            if not self.access.allows(user, Request(verb, to.kind.group, to.resource, to.namespace, name)):
                raise forbidden(user, verb, to.resource, to.kind.group, to.namespace, to.name)
        self._authorize_owners(user, to, body)

    def _authorize_owners(self, user: str, to: Route, body: Any) -> None:
        """Who holds up an owner's deletion must have a right over it (OwnerReferencesPermissionEnforcement)."""
        owners = ((body if isinstance(body, dict) else {}).get("metadata") or {}).get("ownerReferences") or ()
        for owner in owners:
            kind = next((k for k in self.cluster.kinds.values() if k.kind == owner["kind"]), None)
            if kind is None or not owner.get("blockOwnerDeletion"):
                continue
            finalizers = f"{kind.plural}/finalizers"
            asked = Request("update", kind.group, finalizers, to.namespace, owner["name"])
            if not self.access.allows(user, asked):
                raise forbidden(user, "update", finalizers, kind.group, to.namespace, owner["name"])

    async def _body(self, request: web.Request) -> Any:
        raw = await request.read()
        if not raw:
            return None
        try:
            return yaml.safe_load(raw) if "yaml" in _content_type(request) and raw[:1] != b"{" else json.loads(raw)
        except (ValueError, yaml.YAMLError) as error:
            raise bad_request(f"the body can't be read: {error}") from None

    def _done(self, to: Route, body: Any, request: web.Request) -> web.Response:
        cluster = self.cluster
        write = Write(
            manager=_manager(request),
            subresource=to.subresource,
            dry_run=request.query.get("dryRun") == "All",
            strictness=request.query.get("fieldValidation", "Warn"),
        )
        if to.subresource == "scale":
            return self._scale(to, body, request, write)
        match to.verb:
            case "list":
                return self._list(to, request)
            case "get":
                return self._one(to.kind, cluster.get(to.kind, to.namespace, to.name), request)
            case "create":
                return _json(cluster.create(to.kind, to.namespace, body, write), 201)
            case "update":
                return _json(cluster.update(to.kind, to.namespace, to.name, body, write))
            case "patch":
                return self._patch(to, body, request, write)
            case "delete":
                policy = (body or {}).get("propagationPolicy", "Background")
                if policy not in POLICIES:
                    known = ", ".join(json.dumps(one) for one in (*POLICIES, "nil"))
                    why = f'Unsupported value: "{policy}": supported values: {known}'
                    raise invalid("DeleteOptions.meta.k8s.io", "", [("propagationPolicy", why)])
                if write.dry_run:
                    return _json(cluster.get(to.kind, to.namespace, to.name))
                return _json(cluster.delete(to.kind, to.namespace, to.name, body))
        for found in cluster.list(to.kind, to.namespace, **_selectors(request)):
            cluster.delete(to.kind, found["metadata"].get("namespace"), found["metadata"]["name"], body)
        return _json({"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}})

    def _patch(self, to: Route, body: Any, request: web.Request, write: Write) -> web.Response:
        cluster, how = self.cluster, _content_type(request)
        if causes := list(_wrong_options(request, how)):
            raise invalid("PatchOptions.meta.k8s.io", "", causes)
        if how == "application/apply-patch+yaml":
            force = request.query.get("force") == "true"
            there = cluster.find(to.kind, to.namespace, to.name) is not None
            return _json(cluster.apply(to.kind, to.namespace, to.name, body, write, force=force), 200 if there else 201)
        if how == "application/json-patch+json":
            return _json(cluster.patch(to.kind, to.namespace, to.name, lambda o: json_patch(o, body), write))
        if how == "application/merge-patch+json" or (
            how == "application/strategic-merge-patch+json" and not to.kind.custom
        ):
            return _json(cluster.patch(to.kind, to.namespace, to.name, lambda o: merge_patch(o, body), write))
        taken = [t for t in PATCHES if not (to.kind.custom and "strategic" in t)]
        raise Refused(
            415,
            "UnsupportedMediaType",
            f"the body of the request was in an unknown format - accepted media types include: {', '.join(taken)}",
        )

    def _scale(self, to: Route, body: Any, request: web.Request, write: Write) -> web.Response:
        found = self.cluster.get(to.kind, to.namespace, to.name)
        scale = scale_of(to.kind, found)
        if to.verb == "get":
            return _json(scale)
        if to.verb == "patch":
            scale = json_patch(scale, body) if isinstance(body, list) else merge_patch(scale, body)
        else:
            scale = body

        def scaled(live: Object) -> Object:
            set_at_path(live, (to.kind.scale or {})["specReplicasPath"], scale["spec"]["replicas"])
            return live

        return _json(
            scale_of(to.kind, self.cluster.patch(to.kind, to.namespace, to.name, scaled, Write(write.manager)))
        )

    def _one(self, kind: Kind, found: Object, request: web.Request) -> web.Response:
        return _json(table(kind, [found], self._age) if _wants_table(request) else found)

    def _age(self, since: str) -> str:
        then = datetime.datetime.fromisoformat(since).timestamp()
        return f"{int(self.cluster.clock() - then)}s"

    def _list(self, to: Route, request: web.Request) -> web.Response:
        limit = int(request.query.get("limit") or 0)
        if token := request.query.get("continue"):
            if token not in self._continued:
                if not re.fullmatch(r"[0-9a-f]{32}", token):
                    raise bad_request(f"invalid continue token: continue key is not valid: {token}")
                raise gone("The provided continue parameter is too old to display a consistent list result.")
            version, items = self._continued.pop(token)
        else:
            with self.cluster.lock:
                version = str(self.cluster.version)
                items = self.cluster.list(to.kind, to.namespace, **_selectors(request))
        metadata: Object = {"resourceVersion": version}
        if limit and len(items) > limit:
            metadata |= {"continue": uuid.uuid4().hex, "remainingItemCount": len(items) - limit}
            self._continued[metadata["continue"]] = (version, items[limit:])
            while len(self._continued) > KEPT_CONTINUATIONS:
                self._continued.pop(next(iter(self._continued)))
            items = items[:limit]
        if _wants_table(request):
            return _json({**table(to.kind, items, self._age), "metadata": metadata})
        return _json(
            {"kind": f"{to.kind.kind}List", "apiVersion": to.kind.api_version, "metadata": metadata, "items": items}
        )

    def forget_continuations(self) -> None:
        """The pages of lists that are being read are gone: 410."""
        self._continued.clear()

    # -- watching --

    async def _watch(self, to: Route, request: web.Request) -> web.StreamResponse:
        selectors = _selectors(request)
        cluster = self.cluster
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        woken = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is there to be woken
                self._loop.call_soon_threadsafe(woken.set)

        cluster.listeners.add(wake)
        self._watches[id(request)] = request
        try:
            with cluster.lock:
                version, first = self._beginning(to, request, selectors)
            await answer.prepare(request)
            for event in first:
                await answer.write(event)
            await self._follow(answer, to, request, selectors, version, woken)
        except (ConnectionError, ConnectionResetError):
            pass
        finally:
            cluster.listeners.discard(wake)
            self._watches.pop(id(request), None)
        return answer

    def _beginning(self, to: Route, request: web.Request, selectors: dict[str, str]) -> tuple[int, list[bytes]]:
        asked = request.query.get("resourceVersion", "")
        initial = request.query.get("sendInitialEvents") == "true"
        if asked not in ("", "0") and not initial:
            if not asked.isdigit():
                why = f'strconv.ParseUint: parsing "{asked}": invalid syntax'
                raise Refused(500, "", f'resourceVersion: Invalid value: "{asked}": {why}')
            return int(asked), []
        here = self.cluster.list(to.kind, to.namespace, **selectors)
        first = [_event("ADDED", found) for found in here]
        if initial:
            first.append(_bookmark(to.kind, self.cluster.version, ended=True))
        return self.cluster.version, first

    async def _follow(
        self, answer: web.StreamResponse, to: Route, request: web.Request, selectors: dict[str, str], version: int,
        woken: asyncio.Event,
    ) -> None:  # fmt: skip
        ends = self._loop.time() + float(request.query.get("timeoutSeconds") or 1800)
        bookmarks = request.query.get("allowWatchBookmarks") in ("true", "1")
        while self._loop.time() < ends and request.transport is not None and not request.transport.is_closing():
            woken.clear()
            try:
                with self.cluster.lock:
                    now, changes = self.cluster.version, list(self.cluster.changes_since(to.kind, version))
            except Refused as refused:
                await answer.write(_event("ERROR", refused.status()))
                return
            for change in changes:
                if event := _seen(change, to, selectors):
                    await answer.write(event)
            version = now
            wait_s = min(BOOKMARK_EVERY_S, max(0.0, ends - self._loop.time()))
            try:
                await asyncio.wait_for(woken.wait(), wait_s)
            except TimeoutError:
                if bookmarks:
                    await answer.write(_bookmark(to.kind, version))


def _seen(change: Any, to: Route, selectors: dict[str, str]) -> bytes | None:
    """The event by which a watch with these selectors learns of a change: what leaves the selection is deleted."""

    def inside(found: Object | None) -> bool:
        if found is None or to.namespace not in (None, found["metadata"].get("namespace")):
            return False
        return matches(found, selectors["labels"], selectors["fields"])

    shown = {**change.after, "apiVersion": to.kind.api_version, "kind": to.kind.kind}
    before, after = inside(change.before), inside(change.after)
    if change.what == "DELETED":
        return _event("DELETED", shown) if before or after else None
    if after:
        return _event("MODIFIED" if before else "ADDED", shown)
    return _event("DELETED", shown) if before else None


def _event(what: str, found: Object) -> bytes:
    return json.dumps({"type": what, "object": found}).encode() + b"\n"


def _bookmark(kind: Kind, version: int, *, ended: bool = False) -> bytes:
    metadata: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if ended:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return _event("BOOKMARK", {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata})


def _json(body: Object, code: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=code, text=json.dumps(body), content_type="application/json", headers=headers)


def _selectors(request: web.Request) -> dict[str, str]:
    return {"labels": request.query.get("labelSelector", ""), "fields": request.query.get("fieldSelector", "")}


def _wrong_options(request: web.Request, how: str) -> Iterator[tuple[str, str]]:
    """What is wrong with the query of a patch."""
    applied, query = how == "application/apply-patch+yaml", request.query
    if applied and not query.get("fieldManager"):
        yield "fieldManager", "Required value: is required for apply patch"
    if len(query.get("fieldManager", "")) > 128:
        yield "fieldManager", "Too long: may not be more than 128 bytes"
    if query.get("fieldValidation", "") not in VALIDATIONS:
        known = ", ".join(json.dumps(one) for one in VALIDATIONS)
        yield "fieldValidation", f'Unsupported value: "{query["fieldValidation"]}": supported values: {known}'
    if query.get("force") and not applied:
        yield "force", "Forbidden: may not be specified for non-apply patch"


def _content_type(request: web.Request) -> str:
    return request.headers.get("Content-Type", "application/json").partition(";")[0].strip()


def _wants_table(request: web.Request) -> bool:
    return "as=Table" in request.headers.get("Accept", "")


def _user(request: web.Request) -> str:
    """Whose token came along; the scheme is read without regard to case, and who shows none is nobody."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        # Without TLS kubectl keeps its token to itself, so here it is taken at its word.
        return "admin" if request.headers.get("User-Agent", "").startswith("kubectl/") else ANONYMOUS
    return token if token.startswith(ACCOUNT) else "admin"


def _manager(request: web.Request) -> str:
    """The field manager: as given, or the first word of the user agent as the API server takes it."""
    return request.query.get("fieldManager") or request.headers.get("User-Agent", "unknown").split("/")[0]


def _field_name(request: web.Request) -> str:
    """A list or watch of one name by a field selector may be allowed by that name."""
    for term in request.query.get("fieldSelector", "").split(","):
        if term.startswith("metadata.name="):
            return term.removeprefix("metadata.name=").lstrip("=")
    return ""
