"""Runs revisions as RayServices of KubeRay's, one each. The shell around rayservice.py and rayservice_status.py.

The whole set is compared with what the cluster has; what is as wanted is not written. Objects are found by their
labels, in the namespaces of the release alone, and an object of the same name that is somebody else's is never touched.

A namespace that may not be read (it was deleted, and its Role with it) is out of sight by itself: nothing is done there
and nothing concluded, and the others go on. It is looked at again each time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.cluster_api import ClusterApi, Object
from rollout.engine_specs import Capacity
from rollout.errors import ClusterRejected, ClusterUnavailable, MissingRight, WorkloadRejected, WorkloadUnavailable
from rollout.workloads.base import CALM, Owner, Workload, WorkloadState, WorkloadStatus
from rollout.workloads.engine_pods import NODE_TYPE, EngineCluster
from rollout.workloads.ray_dashboards import RayDashboards
from rollout.workloads.rayservice import (
    MADE_OF,
    MANAGED_BY,
    MANAGER,
    RELEASE,
    bounds_of,
    budget,
    contains,
    rayservice,
    resized,
)
from rollout.workloads.rayservice_status import application_of, spare_pods, status_of_service
from rollout.workloads.room import Room, fits_given, room_for
from rollout.workloads.serve_account import Deaths
from serving.specs import object_name

log = logging.getLogger(__name__)

DASHBOARD_PORT = 8265
LOOK_ALWAYS = 50
LOOK_PER_MODEL_S = 0.01
LOOK_MOST_S = 15.0
"""A look lists every object of the release. Up to 50 revisions it is taken whenever it is asked for; while hundreds are
all ready, a hundredth of a second further apart for each more."""


class KubeRayWorkloads:
    """WorkloadPort over RayServices."""

    def __init__(
        self,
        api: ClusterApi,
        cluster: EngineCluster,
        namespaces: Sequence[str],
        *,
        owner_of: Callable[[str], Owner | None] = lambda _: None,
        dashboards: RayDashboards | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            api: the API server.
            cluster: what all revisions have in common.
            namespaces: where engines may live.
            owner_of: the object that asked for a model, by the model's name, as it is now.
            dashboards: who asks Ray; without, nothing is known of replicas that died inside a pod.
            monotonic: seconds.
        """
        self._api = api
        self._cluster = cluster
        self._namespaces = tuple(dict.fromkeys(namespaces))
        self._owner_of = owner_of
        self._dashboards = dashboards
        self._labels = f"{MANAGED_BY}={MANAGER},{RELEASE}={cluster.release}"
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._applied: tuple[Workload, ...] | None = None
        """The set that was found to be as wanted, without a write; None after anything else."""
        self._applied_at = self._seen_at = float("-inf")
        self._listed: _Listed | None = None
        """What `apply` has listed and not written to, for the look that follows it."""
        self._deaths = Deaths()
        self._refused: dict[str, str] = {}
        self._spare: dict[str, list[str]] = {}
        """By application: pods whose engine has stopped, as they were seen last."""
        self._seen: dict[str, WorkloadStatus] = {}
        self._room_unknown = False
        self._wanted: Mapping[str, Workload] | None = None
        """What is wanted, by application; None while nobody has said so."""
        self._closed: dict[tuple[str, str], str] = {}
        """Why a collection of a namespace may not be read, by its plural and the namespace."""
        self._made: dict[str, tuple[tuple[Workload, Owner | None, str], Object]] = {}
        self.writes = 0
        """How many objects were written or deleted, for tests and metrics."""

    async def apply(self, desired: Sequence[Workload]) -> None:
        """Make the RayServices equal to `desired`. One that is refused holds up no other. See `WorkloadPort`."""
        wanted = {w.application: w for w in desired}
        async with self._lock:
            self._wanted, given = wanted, tuple(desired)
            if given == self._applied and self._is_fresh(self._applied_at):
                return
            self._applied, before = None, self.writes
            try:
                live, budgets = await asyncio.gather(self._services(), self._every("policy/v1", "poddisruptionbudgets"))
                known = {application_of(service): service for service in live.objects}
                guards = {(b["metadata"]["namespace"], b["metadata"]["name"]): b for b in budgets.objects}
                closed = live.closed | budgets.closed
                works: list[tuple[str, Awaitable[None]]] = [
                    (a, self._want(w, known.get(a), guards.get((w.namespace, object_name(a)))))
                    for a, w in wanted.items()
                    if w.namespace not in closed
                ]
                works += [(a, self._drop(service)) for a, service in known.items() if a not in wanted]
            except ClusterUnavailable as error:
                raise WorkloadUnavailable(str(error)) from error
            results = await asyncio.gather(*(work for _, work in works), return_exceptions=True)
            self._made = {a: made for a, made in self._made.items() if a in wanted}
            if self.writes == before and not any(results):
                self._applied, self._applied_at, self._listed = given, self._monotonic(), live
        failed = {a: r for (a, _), r in zip(works, results, strict=True) if isinstance(r, BaseException)}
        self._refused = {a: str(r) for a, r in failed.items() if isinstance(r, ClusterRejected)}
        for defect in failed.values():
            if not isinstance(defect, ClusterRejected | ClusterUnavailable):
                raise defect
        if self._refused:
            raise WorkloadRejected("; ".join(self._refused.values()))
        if failed:
            raise WorkloadUnavailable("; ".join(map(str, failed.values())))

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        """Tell what the cluster says of every revision of the release. See `WorkloadPort`."""
        calm = bool(self._seen) and all(s.state in CALM for s in self._seen.values())
        if calm and self._applied is not None and self._is_fresh(self._seen_at):
            return self._seen
        listed, self._listed = self._listed, None
        try:
            pods = await self._every("v1", "pods")
            services = listed if listed is not None else await self._services()
        except ClusterUnavailable as error:
            raise WorkloadUnavailable(str(error)) from error
        unknown = self._out_of_sight(pods.closed | services.closed)
        named = {application_of(s): s for s in services.objects if s["metadata"]["namespace"] not in pods.closed}
        details = await self._ask(named)
        mine = _by_service(pods.objects)
        self._deaths.keep({*named, *unknown})
        found = {
            a: status_of_service(service, mine.get(_key(service), ()), details.get(a), self._deaths)
            for a, service in named.items()
        }
        self._spare = {a: spare_pods(service, mine.get(_key(service), ())) for a, service in named.items()}
        for application, message in self._refused.items():
            missing = WorkloadStatus(application=application, state=WorkloadState.MISSING)
            seen = found.get(application, missing)
            found[application] = seen.model_copy(update={"message": seen.message or message})
        found |= unknown
        self._seen, self._seen_at = found, self._monotonic()
        return found

    def _is_fresh(self, at: float) -> bool:
        """Whether what was seen then will do while all is calm: with hundreds of models looks are further apart."""
        more = max(0, len(self._seen) - LOOK_ALWAYS)
        return self._monotonic() - at < min(LOOK_MOST_S, more * LOOK_PER_MODEL_S)

    async def shortage(self, wanted: Workload) -> str:
        """Compare what the replicas would ask for with what the nodes have left. See `WorkloadPort`."""
        engine = wanted.engine
        if not engine.check_room or engine.queue_name is not None:  # a queue admits by its own book
            return ""
        try:
            nodes, pods = await asyncio.gather(
                self._api.every("/api/v1/nodes"),
                self._api.every("/api/v1/pods", fields="status.phase!=Succeeded,status.phase!=Failed"),
            )
        except ClusterUnavailable as error:
            if not self._room_unknown:
                log.warning("room on the nodes is not checked before a rollout: %s", error)
            self._room_unknown = True
            return ""
        self._room_unknown = False
        if any(_belongs(pod, wanted) for pod in pods):
            return ""
        group = rayservice(wanted, self._cluster, None)["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
        given = [pod for pod in pods if _gives_way(pod, wanted)]
        if engine.capacity is Capacity.REPLACE and given:
            first, every = fits_given(group["template"], engine, nodes, pods, given)
            return _too_little_given(wanted, first, every, gives=len(given) > 1)
        return _shortage(wanted, room_for(group["template"], engine, nodes, pods))

    async def close(self) -> None:
        """Close the connections; what runs goes on running."""
        if self._dashboards is not None:
            await self._dashboards.close()

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _services(self) -> _Listed:
        listed = await self._every("ray.io/v1", "rayservices")
        return _Listed([s for s in listed.objects if application_of(s)], listed.closed)

    async def _every(self, api_version: str, plural: str) -> _Listed:
        paths = [collection(api_version, plural, namespace) for namespace in self._namespaces]
        listed = await asyncio.gather(
            *(self._api.every(path, labels=self._labels) for path in paths), return_exceptions=True
        )
        parts = dict(zip(self._namespaces, listed, strict=True))
        closed = {n: str(part) for n, part in parts.items() if isinstance(part, MissingRight)}
        if len(closed) == len(parts):  # then it is no single namespace's matter
            closed = {}
        self._note_closed(plural, closed)
        found: list[Object] = []
        for namespace, part in parts.items():
            if namespace in closed:
                continue
            if isinstance(part, BaseException):
                raise part
            found += part
        return _Listed(found, frozenset(closed))

    def _note_closed(self, plural: str, closed: Mapping[str, str]) -> None:
        """Remember which namespaces may not be read, and say so once for each, and when it is over."""
        before = {namespace for _, namespace in self._closed}
        kept = {key: why for key, why in self._closed.items() if key[0] != plural}
        self._closed = kept | {(plural, namespace): why for namespace, why in closed.items()}
        after = {namespace for _, namespace in self._closed}
        for namespace in sorted(after - before):
            log.warning("%s", _closed_message(namespace, closed[namespace]))
        for namespace in sorted(before - after):
            log.info("namespace %s can be read again", namespace)

    def _out_of_sight(self, closed: Collection[str]) -> dict[str, WorkloadStatus]:
        """What is to be said of everything wanted in namespaces that may not be read."""
        if closed and self._wanted is None:
            why = next(_closed_message(n, w) for (_, n), w in self._closed.items() if n in closed)
            raise WorkloadUnavailable(f"{why}; it is not known yet what is wanted there")
        reasons = {namespace: why for (_, namespace), why in self._closed.items()}
        return {
            a: WorkloadStatus(
                application=a,
                state=WorkloadState.UNKNOWN,
                message=_closed_message(w.namespace, reasons.get(w.namespace, "")),
            )
            for a, w in (self._wanted or {}).items()
            if w.namespace in closed
        }

    async def _ask(self, services: Mapping[str, Object]) -> Mapping[str, Mapping[str, Any]]:
        if self._dashboards is None:
            return {}
        urls = {
            a: f"http://{s['metadata']['name']}-head-svc.{s['metadata']['namespace']}.svc:{DASHBOARD_PORT}"
            for a, s in services.items()
            if (s.get("status") or {}).get("activeServiceStatus", {}).get("rayClusterName")
        }
        return await self._dashboards.ask(urls, self._seen)

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _want(self, workload: Workload, live: Object | None, protected: Object | None) -> None:
        if workload.namespace not in self._namespaces:
            raise ClusterRejected(
                f"{workload.application} should live in namespace {workload.namespace or '(none)'}, which this release "
                f"does not watch ({', '.join(self._namespaces)}); add it to watch_namespaces"
            )
        if live is not None and live["metadata"].get("deletionTimestamp"):
            return  # of the same name and on its way out; it is made anew when it is gone
        record = ((live or {}).get("metadata", {}).get("annotations") or {}).get(MADE_OF) or ""
        wanted = self._manifest(workload, record)
        name = object_name(workload.application)
        path = f"{collection('ray.io/v1', 'rayservices', workload.namespace)}/{name}"
        if live is None:
            await self._not_somebody_elses(path)
        if live is None or not contains(live, wanted):
            self.writes += 1
            live = await self._api.apply(path, wanted)
        if change := resized(workload, live, self._spare.get(workload.application, ())):
            self.writes += 1
            cluster, operations = change
            where = collection("ray.io/v1", "rayclusters", workload.namespace)
            await self._api.patch(f"{where}/{cluster}", operations)
        guard = budget(workload, self._cluster, str(live["metadata"]["uid"]))
        if protected is None or not contains(protected, guard):
            self.writes += 1
            where = collection("policy/v1", "poddisruptionbudgets", workload.namespace)
            await self._api.apply(f"{where}/{name}", guard)

    def _manifest(self, workload: Workload, made_of: str) -> Object:
        """The object of a workload; made anew only where workload, owner or what it was made of are other ones."""
        asked = (workload, self._owner_of(workload.revision.model), made_of)
        known = self._made.get(workload.application)
        if known is not None and known[0] == asked:
            return known[1]
        made = rayservice(workload, self._cluster, asked[1], made_of)
        self._made[workload.application] = (asked, made)
        return made

    async def _drop(self, service: Object) -> None:
        meta = service["metadata"]
        if not meta.get("deletionTimestamp"):
            self.writes += 1
            where = collection("ray.io/v1", "rayservices", meta["namespace"])
            await self._api.delete(f"{where}/{meta['name']}", meta["uid"])

    async def _not_somebody_elses(self, path: str) -> None:
        there = await self._api.get(path)
        if there is None:
            return
        labels = there["metadata"].get("labels") or {}
        if labels.get(MANAGED_BY) != MANAGER or labels.get(RELEASE) != self._cluster.release:
            whose = labels.get(RELEASE) or labels.get(MANAGED_BY) or "somebody else"
            raise ClusterRejected(
                f"RayService {there['metadata']['namespace']}/{there['metadata']['name']} belongs to {whose}, not to "
                f"release {self._cluster.release}; remove it, or deploy into another namespace"
            )


@dataclass(frozen=True, slots=True)
class _Listed:
    """The release's objects of one kind, and the namespaces of which nothing can be told."""

    objects: list[Object]
    closed: frozenset[str]


def _closed_message(namespace: str, why: str) -> str:
    return (
        f"namespace {namespace} can't be read, so nothing is started, stopped or judged there ({why}); if it was "
        "deleted take it out of watchNamespaces, else `helm upgrade` puts its Role back"
    )


def collection(api_version: str, plural: str, namespace: str) -> str:
    """The path of a namespaced collection.

    >>> collection("v1", "pods", "a"), collection("ray.io/v1", "rayservices", "a")
    ('/api/v1/namespaces/a/pods', '/apis/ray.io/v1/namespaces/a/rayservices')
    """
    root = "apis" if "/" in api_version else "api"
    return f"/{root}/{api_version}/namespaces/{namespace}/{plural}"


def _key(found: Object) -> tuple[str, str, str]:
    """What a RayService and its pods have in common."""
    labels = found["metadata"].get("labels") or {}
    model, revision = str(labels.get("tidegate.dev/model")), str(labels.get("tidegate.dev/revision"))
    return str(found["metadata"]["namespace"]), model, revision


def _by_service(pods: Iterable[Object]) -> Mapping[tuple[str, str, str], list[Object]]:
    found: dict[tuple[str, str, str], list[Object]] = {}
    for pod in pods:
        found.setdefault(_key(pod), []).append(pod)
    return found


def _belongs(pod: Object, workload: Workload) -> bool:
    """Whether a pod of this very revision runs already: then its room is taken, by itself."""
    return _key(pod) == (workload.namespace, workload.revision.model, workload.revision.digest[:8])


def _gives_way(pod: Object, workload: Workload) -> bool:
    """Whether a pod is an engine of another revision of the same model."""
    namespace, model, revision = _key(pod)
    labels = pod["metadata"].get("labels") or {}
    other = (namespace, model) == (workload.namespace, workload.revision.model)
    return other and revision != workload.revision.digest[:8] and labels.get(NODE_TYPE) == "worker"


def _too_little_given(wanted: Workload, first: Room, every: Room, *, gives: bool) -> str:
    """Why what stable gives is not enough for `capacity: replace`; empty when it is."""
    name, count = f"{wanted.revision.model}@{wanted.revision.version}", wanted.replicas
    out = "free or add a node, or let engine.resources ask for what one replica of the present version has"
    if first.fits < 1:
        where = "where stable gives one replica" if gives else "beside stable, which keeps its only replica"
        return (
            f"{name} finds no room {where} (capacity: replace): "
            f"{first.scarce or 'a node that it may use'} is scarce; {out}"
        )
    if every.fits < count:
        return (
            f"{name} needs room for {count} replicas, and where stable gives all of its (capacity: replace) there is "
            f"room for {every.fits}: {every.scarce} is scarce; {out}, or lower minReplicas"
        )
    return ""


def _shortage(wanted: Workload, room: Room) -> str:
    count = max(bounds_of(wanted)[0], wanted.replicas)
    if room.fits >= count:
        return ""
    name = f"{wanted.revision.model}@{wanted.revision.version}"
    if room.nodes == 0:
        return (
            f"{name} needs {count} replicas, and no node is ready, has the labels of engine.nodeSelector and has no "
            "taint beyond engine.tolerations; correct these, or add a node"
        )
    return (
        f"{name} needs room for {count} replicas, and the {room.nodes} nodes it may use have room for {room.fits}: "
        f"{room.scarce} is scarce; free or add a node, use capacity: replace (stable gives its replicas one by one), "
        "or set checkRoom: false where a node autoscaler brings machines"
    )
