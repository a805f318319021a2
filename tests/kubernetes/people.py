"""People who run their own Deployments and Services, over the stand-in's cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rollout.engine_specs import EngineSpec, WorkloadRef
from rollout.workloads.base import Workload, WorkloadPort, WorkloadStatus
from serving.specs import object_name
from tests.kubernetes.cluster import Cluster, Write
from tests.kubernetes.gateways import an_endpoint_slice

Object = dict[str, Any]
BY, STATUS = Write(manager="people"), Write(manager="deployment-controller", subresource="status")


class People:
    """They keep one Deployment per revision, with as many replicas as they are told; `tick` brings up one pod each."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.broken: set[str] = set()

    def informed(self, port: WorkloadPort) -> WorkloadPort:
        """The port, with people who make beforehand what it is going to be pointed to."""
        return _Informed(self, port)

    def keep(self, wanted: Mapping[str, int]) -> None:
        for found in self.cluster.list("deployments", self.namespace):
            if found["metadata"]["name"] not in wanted:
                self.cluster.delete("deployments", self.namespace, found["metadata"]["name"])
                self.cluster.delete("endpointslices", self.namespace, f"{found['metadata']['name']}-abcde")
        for name, replicas in wanted.items():
            found = self.cluster.find("deployments", self.namespace, name)
            body = {"metadata": {"name": name}, "spec": {"replicas": replicas}}
            if found is None:
                self.cluster.create("deployments", self.namespace, body, BY)
                self.cluster.create("endpointslices", self.namespace, an_endpoint_slice(name, []), BY)
            elif found["spec"]["replicas"] != replicas:
                kind = self.cluster.kind("deployments")
                self.cluster.update(kind, self.namespace, name, {**found, "spec": {"replicas": replicas}}, BY)

    def tick(self) -> None:
        for found in self.cluster.list("deployments", self.namespace):
            name, wanted = found["metadata"]["name"], found["spec"]["replicas"]
            ready = int(found.get("status", {}).get("readyReplicas", 0))
            status: Object = {"readyReplicas": min(ready + 1, wanted)}
            if name in self.broken:
                why = {"reason": "ProgressDeadlineExceeded", "message": "simulated failure to load"}
                status = {"readyReplicas": 0, "conditions": [{"type": "Progressing", "status": "False", **why}]}
            kind, slices = self.cluster.kind("deployments"), self.cluster.kind("endpointslices")
            self.cluster.update(kind, self.namespace, name, {**found, "status": status}, STATUS)
            pods = [f"{name}-{number}" for number in range(status["readyReplicas"])]
            self.cluster.update(slices, self.namespace, f"{name}-abcde", an_endpoint_slice(name, pods), BY)


class _Informed:
    def __init__(self, people: People, port: WorkloadPort) -> None:
        self._people = people
        self._port = port

    async def apply(self, desired: Sequence[Workload]) -> None:
        self._people.keep({object_name(w.application): w.replicas for w in desired})
        await self._port.apply([pointed(w) for w in desired])

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        return await self._port.observe()

    async def shortage(self, wanted: Workload) -> str:
        return await self._port.shortage(pointed(wanted))

    async def close(self) -> None:
        await self._port.close()


def pointed(workload: Workload) -> Workload:
    """The same revision, in a Deployment that somebody else runs."""
    ref = WorkloadRef(name=object_name(workload.application))
    return workload.model_copy(update={"engine": EngineSpec(workload_ref=ref)})
