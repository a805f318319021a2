"""The API server through the official client: how it is reached, and what its answers mean to us. Shell.

The client blocks, so that whoever lives in an event loop calls it in a thread. Nothing is tried again here: who asks
knows how often and after how long.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from kubernetes import client
from kubernetes import config as _config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from rollout.cluster_api import UNTYPED
from rollout.errors import (
    ClusterConflict,
    ClusterError,
    ClusterRejected,
    ClusterUnavailable,
    ResourceGone,
    UndeclaredFields,
)
from rollout.operator.names import API_VERSION, GROUP, KIND, PLURAL, VERSION
from rollout.operator.resource import Key

CONNECT_S = 5.0
ANSWER_S = 15.0
PAGE = 250
"""Resources per page of a listing."""

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"

T = TypeVar("T")

config: Any = _config
"""Its functions carry no types."""


@dataclass(frozen=True)
class Address:
    """How to reach a cluster: from inside a pod, or by a kubeconfig and one of its contexts."""

    kubeconfig: Path | None = None
    """None: the pod's own service account where there is one, else `$KUBECONFIG` or `~/.kube/config`."""
    context: str | None = None

    def configuration(self) -> client.Configuration:
        """The client's configuration, read anew: tokens of service accounts change every hour.

        Raises:
            ClusterRejected: there is no usable configuration.

        """
        found = client.Configuration()
        try:
            if self.kubeconfig is None and self.context is None:
                try:
                    config.load_incluster_config(client_configuration=found)
                except ConfigException:
                    config.load_kube_config(config_file=self._file(), client_configuration=found)
            else:
                config.load_kube_config(config_file=self._file(), context=self.context, client_configuration=found)
        except (ConfigException, OSError, ValueError) as error:
            raise ClusterRejected(
                f"no usable kubeconfig ({str(error).splitlines()[0]}); set KUBECONFIG, or name a context that "
                "`kubectl config get-contexts` lists with --context"
            ) from None
        found.retries = False
        return found

    def _file(self) -> str | None:
        """The kubeconfig as it is named now: the client reads `$KUBECONFIG` only when it is imported."""
        return str(self.kubeconfig) if self.kubeconfig is not None else os.environ.get("KUBECONFIG") or None

    def default_namespace(self) -> str:
        """The namespace of the context, else `default`."""
        try:
            contexts, active = config.list_kube_config_contexts(self._file())
        except (ConfigException, OSError):
            return "default"
        chosen = next((c for c in contexts if c["name"] == self.context), active)
        return str(chosen["context"].get("namespace") or "default")


def token_of(configuration: client.Configuration) -> str:
    """The bearer token that a configuration stands for, without its scheme; empty when it has none.

    Not by a name in `api_key`: that name, and how the scheme is spelt, differ between the client's versions and between
    a pod's account and a kubeconfig.
    """
    settings: Any = configuration.auth_settings()
    scheme, _, token = str((settings.get("BearerToken") or {}).get("value") or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else scheme


def with_microseconds(lease: client.V1Lease) -> client.V1Lease:
    """The Lease with times that an API server reads.

    It wants six digits behind the second; of a whole second the client writes none, be it ours or one that was read.
    """
    spec = lease.spec
    if spec is not None:
        spec.acquire_time, spec.renew_time = _fractional(spec.acquire_time), _fractional(spec.renew_time)
    return lease


def _fractional(at: dt.datetime | None) -> dt.datetime | None:
    return at.replace(microsecond=1) if at is not None and at.microsecond == 0 else at


def asked(call: Callable[[], T], what: str) -> T:
    """Make one call, its failures translated.

    Raises:
        ClusterError: the kind that says what to do about it.

    """
    try:
        return call()
    except ApiException as error:
        raise translated(error, what) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        cause = getattr(error, "reason", None) or error
        raise ClusterUnavailable(f"{what}: the API server does not answer ({type(cause).__name__})") from None


def translated(error: ApiException, what: str) -> ClusterError:
    """What an answer means."""
    code, told = int(error.status or 0), _message(error)
    if code == 404:
        return ResourceGone(f"{what}: {told}")
    if code == 409:
        return ClusterConflict(f"{what}: {told}")
    if UNTYPED in told:  # code 500, though it is the object that is at fault
        way_out = "the definition may be older than this release: kubectl apply --server-side -f helm/tidegate/crds/"
        fields = frozenset(re.findall(r"\.(?:spec|status)\.(\w+)[^\n]*field not declared in schema", told))
        return UndeclaredFields(f"{what}: {told}; {way_out}", fields) if fields else ClusterRejected(f"{what}: {told}")
    if code in (0, 410, 429) or code >= 500:  # 410: the pages of a listing have expired, which is begun anew
        after = str((error.headers or {}).get("Retry-After", "") or "")
        return ClusterUnavailable(f"{what}: {told}", float(after) if after.isdigit() else 0.0)
    if code in (401, 403):
        return ClusterRejected(f"{what}: {told}; see the table of rights in docs/kubernetes.md")
    return ClusterRejected(f"{what}: {told}")


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body or "")["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"


class ResourceApi:
    """The calls that are made, each once, each with a time limit. Blocks."""

    def __init__(self, configuration: client.Configuration, *, user_agent: str = "tidegate") -> None:
        """Connect lazily; `configuration` as `Address.configuration` gives it."""
        self._api: Any = client.ApiClient(configuration)
        self._api.user_agent = user_agent
        self._objects: Any = client.CustomObjectsApi(self._api)
        self._core: Any = client.CoreV1Api(self._api)
        self._leases: Any = client.CoordinationV1Api(self._api)
        self._limits = (CONNECT_S, ANSWER_S)

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def list_all(self, namespaces: tuple[str, ...]) -> list[dict[str, Any]]:
        """Every ModelDeployment in these namespaces."""
        return [body for namespace in namespaces for body in self._pages(namespace)]

    def _pages(self, namespace: str) -> Iterator[dict[str, Any]]:
        token: str | None = None
        while True:
            page = self._page(namespace, token)
            yield from page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return

    def _page(self, namespace: str, token: str | None) -> dict[str, Any]:
        call = self._objects.list_namespaced_custom_object
        where, limits = (GROUP, VERSION, namespace, PLURAL), {"limit": PAGE, "_request_timeout": self._limits}
        more = {"_continue": token} if token else {}
        return asked(lambda: dict(call(*where, **limits, **more)), f"list {PLURAL} in {namespace}")

    def get(self, key: Key) -> dict[str, Any]:
        """One ModelDeployment."""
        where = (GROUP, VERSION, key.namespace, PLURAL, key.name)
        call = self._objects.get_namespaced_custom_object
        return asked(lambda: dict(call(*where, _request_timeout=self._limits)), f"get {key.namespace}/{key.name}")

    def apply(
        self, key: Key, content: Mapping[str, Any], *, manager: str, uid: str = "", force: bool = False,
        status: bool = False, metadata: Mapping[str, Any] | None = None, dry_run: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Server-side apply of a ModelDeployment or its status. With `uid` never of one that was made anew."""
        named: dict[str, Any] = {"name": key.name, "namespace": key.namespace, **(metadata or {})}
        if uid:
            named["uid"] = uid
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": named, **content}
        objects = self._objects
        call = objects.patch_namespaced_custom_object_status if status else objects.patch_namespaced_custom_object
        more = {"dry_run": "All"} if dry_run else {}

        def sent() -> dict[str, Any]:
            # Read by ourselves: the client knows no body for 201, which an apply that makes something answers.
            answer = call(
                GROUP,
                VERSION,
                key.namespace,
                PLURAL,
                key.name,
                body,
                field_manager=manager,
                force=force,
                field_validation="Strict",
                _content_type=APPLY,
                _request_timeout=self._limits,
                _preload_content=False,
                **more,
            )
            return dict(json.loads(answer.data))

        return asked(sent, f"apply {'the status of ' if status else ''}{key.namespace}/{key.name}")

    def annotate(self, key: Key, annotations: Mapping[str, str | None], *, manager: str) -> dict[str, Any]:
        """Set annotations, or with None take them away."""
        return self.change_metadata(key, {"annotations": dict(annotations)}, manager=manager)

    def change_metadata(self, key: Key, metadata: Mapping[str, Any], *, manager: str) -> dict[str, Any]:
        """Change metadata by a merge patch; with a `resourceVersion` among it only if nobody else has meanwhile."""
        body = {"metadata": dict(metadata)}
        call = self._objects.patch_namespaced_custom_object
        where = (GROUP, VERSION, key.namespace, PLURAL, key.name)
        return asked(
            lambda: dict(call(*where, body, field_manager=manager, _content_type=MERGE, _request_timeout=self._limits)),
            f"change the metadata of {key.namespace}/{key.name}",
        )

    def delete(self, key: Key) -> None:
        """Delete a ModelDeployment, which goes once its finalizers are off; one that is gone is gone."""
        call = self._objects.delete_namespaced_custom_object
        where = (GROUP, VERSION, key.namespace, PLURAL, key.name)
        try:
            asked(lambda: call(*where, _request_timeout=self._limits), f"delete {key.namespace}/{key.name}")
        except ResourceGone:
            return

    def post_event(self, namespace: str, event: Mapping[str, Any]) -> None:
        """Post an Event; one that is there already is the same one."""
        try:
            asked(
                lambda: self._core.create_namespaced_event(namespace, event, _request_timeout=self._limits),
                f"post an event in {namespace}",
            )
        except ClusterConflict:
            return

    def read_lease(self, namespace: str, name: str) -> client.V1Lease | None:
        """A Lease, or None when there is none."""
        try:
            found: client.V1Lease = asked(
                lambda: self._leases.read_namespaced_lease(name, namespace, _request_timeout=self._limits),
                f"read lease {namespace}/{name}",
            )
        except ResourceGone:
            return None
        return found

    def create_lease(self, namespace: str, lease: client.V1Lease) -> client.V1Lease:
        """Make a Lease."""
        call = self._leases.create_namespaced_lease
        made: client.V1Lease = asked(
            lambda: call(namespace, with_microseconds(lease), _request_timeout=self._limits),
            f"create a lease in {namespace}",
        )
        return made

    def replace_lease(self, namespace: str, name: str, lease: client.V1Lease) -> client.V1Lease:
        """Write a Lease that must not have changed since it was read."""
        call = self._leases.replace_namespaced_lease
        written: client.V1Lease = asked(
            lambda: call(name, namespace, with_microseconds(lease), _request_timeout=self._limits),
            f"renew lease {namespace}/{name}",
        )
        return written
