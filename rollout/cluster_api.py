"""The Kubernetes API as the adapters need it: read, list, apply, delete, with the errors told apart. Shell.

The official client blocks, so every call runs in a thread of its own pool. It is used below its typed methods: objects
come and go as plain JSON, so that a field which a newer server adds is not in the way.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from rollout.errors import ClusterRejected, ClusterUnavailable, MissingRight

Object = dict[str, Any]

FIELD_MANAGER = "tidegate"
UNTYPED = "failed to create typed patch object"
"""What a server-side apply is answered, with 500, whose object does not fit the schema: an older KubeRay's, say."""
NOT_DECLARED = "field not declared in schema"
NO_NAMESPACE = re.compile(r'^namespaces "[^"]+" not found$')
"""What is answered, with 404, to whoever would make something in a namespace that is gone."""
APPLY = "application/apply-patch+yaml"
PAGE = 500
TIMEOUT_S = (3.0, 20.0)
"""To connect, and to answer."""
THREADS = 8
MESSAGE_LIMIT = 500


def connected(configuration: client.Configuration) -> ClusterApi:
    """The API server of a configuration, which says where it is and who we are."""
    configuration.retries = False  # who asks knows how often
    configuration.connection_pool_maxsize = THREADS
    return ClusterApi(client.ApiClient(configuration))


class ClusterApi:
    """Plain JSON in and out of one API server."""

    def __init__(self, api_client: client.ApiClient, *, timeout_s: tuple[float, float] = TIMEOUT_S) -> None:
        """Take a configured client.

        Args:
            api_client: the official client's.
            timeout_s: how long connecting and answering may take.
        """
        self._client = api_client
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="kubernetes")

    async def get(self, path: str) -> Object | None:
        """One object, or None when there is no such object (or no such kind)."""
        return await self._run("GET", path)

    async def every(self, path: str, *, labels: str = "", fields: str = "") -> list[Object]:
        """All objects of a collection; a listing whose pages have expired is begun anew, once.

        Raises:
            ClusterUnavailable: it could not be listed; nothing follows from that.

        """
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        query = {"limit": str(PAGE), **{k: v for k, v in selectors.items() if v}}
        try:
            return await self._pages(path, query)
        except _Expired:
            return await self._pages(path, {k: v for k, v in query.items() if k != "limit"})

    async def _pages(self, path: str, query: Mapping[str, str]) -> list[Object]:
        found: list[Object] = []
        more: Mapping[str, str] = {}
        while True:
            page = await self._run("GET", path, {**query, **more})
            if page is None:
                raise ClusterUnavailable(f"the cluster knows nothing at {path}; is what defines it installed?")
            found += page.get("items") or ()
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return found
            more = {"continue": token}

    async def apply(self, path: str, body: Mapping[str, Any]) -> Object:
        """Server-side apply with our field manager: what we write is ours, whoever wrote it before.

        Raises:
            ClusterRejected: the server refused the object.
            ClusterUnavailable: it may have been written or not.

        """
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        written = await self._run("PATCH", path, query, dict(body), APPLY)
        if written is None:
            raise ClusterUnavailable(f"the cluster knows nothing at {path}; is what defines it installed?")
        return written

    async def patch(self, path: str, operations: Sequence[Mapping[str, Any]]) -> None:
        """Change a few fields of an object by a JSON patch; one that is gone needs no change.

        Raises:
            ClusterRejected: a test among the operations failed, or the server refused the result.
            ClusterUnavailable: it may have been written or not.

        """
        query = {"fieldManager": FIELD_MANAGER}
        await self._run("PATCH", path, query, [dict(o) for o in operations], "application/json-patch+json")

    async def delete(self, path: str, uid: str) -> None:
        """Delete exactly this object, its dependents first; one that is gone already is gone."""
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        await self._run("DELETE", path, {}, options, "application/json")

    def close(self) -> None:
        """Let the threads and connections go."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()  # type: ignore[no-untyped-call]

    async def _run(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,  # noqa: ANN401 - JSON of any shape
        content_type: str = "",
    ) -> Object | None:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._call, method, path, query or {}, body, content_type)

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,  # noqa: ANN401 - JSON of any shape
        content_type: str,
    ) -> Object | None:
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if content_type else {})
        request = self._client.param_serialize(
            method, path, query_params=list(query.items()), header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            response = self._client.call_api(*request, _request_timeout=self._timeout_s)
            text = bytes(response.read())  # type: ignore[no-untyped-call]
        except ApiException as error:  # from below the client's own status handling
            raise ClusterUnavailable(f"the API server did not answer: {error.reason}") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterUnavailable(f"the API server can't be reached: {type(error).__name__}") from None
        return _judged(method, path, int(response.status), text)


class _Expired(ClusterUnavailable):
    """The pages of a listing are no longer there."""


def _judged(method: str, path: str, code: int, text: bytes) -> Object | None:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = {}
    message = str(found.get("message") or "")[:MESSAGE_LIMIT] if isinstance(found, dict) else ""
    if code == 404 and method == "PATCH" and NO_NAMESPACE.match(message):
        raise ClusterRejected(
            f"the API server refused {path.rpartition('/')[2]}: {message}; make it, or deploy elsewhere"
        )
    if code == 404:
        return None
    if code < 300 and isinstance(found, dict):
        return found
    if code == 410:
        raise _Expired(f"410 from the API server: {message}")
    # What admission refuses (a quota, a policy, a namespace that is going) is 403 too; a missing right names the user.
    missing_right = code == 401 or (code == 403 and (not message or " cannot " in message))
    at_fault = code in (400, 405, 413, 415, 422) or UNTYPED in message or (code == 403 and not missing_right)
    if at_fault and method != "GET":  # who only reads has sent nothing that could be
        hint = "; its definition in the cluster is older than this release needs" if NOT_DECLARED in message else ""
        raise ClusterRejected(f"the API server refused {path.rpartition('/')[2]}: {message}{hint}")
    if code in (401, 403):
        raise MissingRight(f"not allowed ({code}): {message or path}; grant it to the controller's service account")
    raise ClusterUnavailable(f"the API server answered {code} to {method} {path}: {message}")
