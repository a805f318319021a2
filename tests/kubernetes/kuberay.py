"""KubeRay 1.6 as far as a RayService's life goes, over the stand-in's cluster and in virtual time.

Read in the operator's source (rayservice_controller.go, pod.go, validation.go): a cluster is made as pending and
becomes active once its application runs; the hash that decides about a new cluster leaves out the workers' numbers,
which therefore reach no running cluster; Serve's configuration is sent to the running one; the old cluster goes after
a delay (here: one tick). Nodes schedule by GPUs alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from tests.kubernetes.cluster import Cluster, Write, copied
from tests.kubernetes.definitions import RAY_CLUSTERS, RAY_SERVICES

Object = dict[str, Any]

BY = Write(manager="kuberay-operator")
STATUS = Write(manager="kuberay-operator", subresource="status")
FOREGROUND = "foregroundDeletion"
LABEL_1035 = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
SECRET_KINDS = ("secretRef", "secretKeyRef")


class KubeRay:
    """The operator, the kubelets and Ray together; `tick` lets all of them do one step."""

    def __init__(self, cluster: Cluster, *, load_ticks: int = 2) -> None:
        self.cluster = cluster
        for definition in (RAY_SERVICES, RAY_CLUSTERS):
            if cluster.find("customresourcedefinitions", None, definition["metadata"]["name"]) is None:
                cluster.create("customresourcedefinitions", None, definition)
        self.load_ticks = load_ticks
        self.failing: dict[str, str] = {}
        """Applications that can't load, with Serve's message."""
        self.unpullable: set[str] = set()
        """Images."""
        self.checks_secrets = False
        self.away = False
        self.dead: dict[str, list[str]] = {}
        """Replicas that died, by application: what the dashboard tells."""
        self._stopped: set[str] = set()
        """Pods (by uid) in which Serve has stopped the replica."""
        self._age: dict[str, int] = {}
        self._number = 0

    # -- one step --------------------------------------------------------------------------------------------------

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            for pod in self.cluster.list("pods"):
                self._kubelet(pod)
            if not self.away:
                for service in self.cluster.list("rayservices"):
                    self._reconcile(service)

    def _reconcile(self, service: Object) -> None:
        meta = service["metadata"]
        if meta.get("deletionTimestamp"):
            return self._collect(service)
        complaint = validated(service)
        if complaint:
            refused = {"type": "Ready", "status": "False", "reason": "ValidationFailed", "message": complaint}
            service.setdefault("status", {})["conditions"] = [refused]
            self.cluster.update(self.cluster.kind("rayservices"), meta["namespace"], meta["name"], service, STATUS)
            return None
        if FOREGROUND not in (meta.get("finalizers") or ()):
            # What the API server itself does on a deletion in the foreground, prepared here.
            meta.setdefault("finalizers", []).append(FOREGROUND)
            kind = self.cluster.kind("rayservices")
            service = self.cluster.update(kind, meta["namespace"], meta["name"], service, BY)
        status = service.setdefault("status", {})
        active, pending = (status.setdefault(k, {}) for k in ("activeServiceStatus", "pendingServiceStatus"))
        wanted = cluster_hash(service)
        newest = pending or active
        if newest.get("hash") != wanted:
            self._delete_pods(meta["namespace"], pending.get("rayClusterName"))
            self._number += 1
            pending.clear()
            pending |= {"rayClusterName": f"{meta['name']}-{self._number:05d}", "hash": wanted}
            self._make_cluster(service, pending["rayClusterName"])
        for which in (pending, active):
            if which.get("rayClusterName"):
                self._scale(service, which)
                self._serve(service, which)
        if pending and _app(pending).get("status") == "RUNNING":
            old = active.get("rayClusterName")
            if old:
                status["going"] = {"rayClusterName": old}
            status["activeServiceStatus"], status["pendingServiceStatus"] = copied(pending), {}
        elif status.get("going"):
            self._delete_pods(meta["namespace"], status.pop("going")["rayClusterName"])
        status["observedGeneration"] = meta["generation"]
        ready = len(self._ready(meta["namespace"], status["activeServiceStatus"].get("rayClusterName")))
        status["numServeEndpoints"] = ready
        reason = "NonZeroServeEndpoints" if ready else "Initializing"
        status["conditions"] = [{"type": "Ready", "status": "True" if ready else "False", "reason": reason}]
        self.cluster.update(self.cluster.kind("rayservices"), meta["namespace"], meta["name"], service, STATUS)
        return None

    def _collect(self, service: Object) -> None:
        meta = service["metadata"]
        left = [
            p for p in self.cluster.list("pods", meta["namespace"]) if p["metadata"]["labels"].get("of") == meta["name"]
        ]
        for pod in left:
            if not pod["metadata"].get("deletionTimestamp"):
                self.cluster.delete("pods", meta["namespace"], pod["metadata"]["name"])
        if not left:
            for made in self.cluster.list("rayclusters", meta["namespace"]):
                if made["metadata"]["name"].startswith(f"{meta['name']}-"):
                    self.cluster.delete("rayclusters", meta["namespace"], made["metadata"]["name"])
            meta["finalizers"] = [f for f in meta.get("finalizers", ()) if f != FOREGROUND]
            self.cluster.update(self.cluster.kind("rayservices"), meta["namespace"], meta["name"], service, BY)

    # -- pods ------------------------------------------------------------------------------------------------------

    def _make_cluster(self, service: Object, name: str) -> None:
        meta = service["metadata"]
        spec = copied(service["spec"]["rayClusterConfig"])
        body = {"metadata": {"name": name, "labels": meta["labels"]}, "spec": spec}
        self.cluster.create("rayclusters", meta["namespace"], body, BY)
        self._make_pod(service, name, "head", service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"])

    def _make_pod(self, service: Object, cluster: str, kind: str, template: Object) -> None:
        self._number += 1
        labels = {**template["metadata"]["labels"], "ray.io/cluster": cluster, "ray.io/node-type": kind}
        pod = {
            "metadata": {
                "name": f"{cluster}-{kind}-{self._number:05d}",
                "labels": {**labels, "of": service["metadata"]["name"]},
                "annotations": template["metadata"].get("annotations") or {},
                "finalizers": ["tests.dev/kubelet"],
            },
            "spec": copied(template["spec"]),
        }
        self.cluster.create("pods", service["metadata"]["namespace"], pod, BY)

    def _kubelet(self, pod: Object) -> None:
        meta = pod["metadata"]
        where, name = meta["namespace"], meta["name"]
        pods = self.cluster.kind("pods")
        if "of" not in (meta.get("labels") or {}):
            return
        if meta.get("deletionTimestamp"):
            self.cluster.update(pods, where, name, {**pod, "metadata": {**meta, "finalizers": []}}, BY)
            return
        status = self._pod_status(pod)
        if not pod["spec"].get("nodeName") and status.pop("node", None):
            pod["spec"]["nodeName"] = self._node_for(pod)
            pod = self.cluster.update(pods, where, name, pod, BY)
        self.cluster.update(pods, where, name, {**pod, "status": status}, STATUS)

    def _pod_status(self, pod: Object) -> Object:
        uid = pod["metadata"]["uid"]
        containers = pod["spec"]["containers"]
        node = pod["spec"].get("nodeName") or self._node_for(pod)
        if node is None:
            why = f"0/{len(self.cluster.list('nodes'))} nodes are available: Insufficient nvidia.com/gpu."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
            return {"phase": "Pending", "conditions": [condition]}
        bound = {"type": "PodScheduled", "status": "True"}
        about = {containers[0]["image"], pod["metadata"]["labels"].get("tidegate.dev/version")}
        if not self._age.get(uid) and not self.unpullable.isdisjoint(about):  # what runs has its image
            waiting = {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{containers[0]["image"]}"'}
            return _pending(containers[0], waiting, bound)
        missing = self._missing_secret(pod)
        if missing:
            waiting = {"reason": "CreateContainerConfigError", "message": f'secret "{missing}" not found'}
            return _pending(containers[0], waiting, bound)
        self._age[uid] = self._age.get(uid, 0) + 1
        ready = self._age[uid] > self.load_ticks and not self._fails(pod) and uid not in self._stopped
        state = {"name": containers[0]["name"], "ready": ready, "restartCount": 0, "state": {"running": {}}}
        conditions = [bound, {"type": "Ready", "status": str(ready)}]
        return {"phase": "Running", "node": True, "conditions": conditions, "containerStatuses": [state]}

    def _fails(self, pod: Object) -> bool:
        revision = pod["metadata"]["labels"].get("tidegate.dev/revision", "")
        return pod["metadata"]["labels"]["ray.io/node-type"] == "worker" and any(
            a.endswith(revision) for a in self.failing
        )

    def _missing_secret(self, pod: Object) -> str:
        if not self.checks_secrets:
            return ""
        for container in (*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]):
            named = [e.get("secretRef", {}).get("name") for e in container.get("envFrom") or ()]
            for name in filter(None, named):
                if self.cluster.find("secrets", pod["metadata"]["namespace"], name) is None:
                    return name
        return ""

    def _node_for(self, pod: Object) -> str | None:
        """A node with as many free GPUs as the pod wants; `node` where the cluster has no nodes at all."""
        nodes = self.cluster.list("nodes")
        if not nodes:
            return "node"
        wanted = _gpus(pod)
        for node in nodes:
            name = node["metadata"]["name"]
            if node["spec"].get("unschedulable"):
                continue
            taken = sum(_gpus(p) for p in self.cluster.list("pods") if p["spec"].get("nodeName") == name)
            if int(node["status"]["allocatable"].get("nvidia.com/gpu", 0)) - taken >= wanted:
                return name
        return None

    def _scale(self, service: Object, which: Object) -> None:
        """As many workers as the cluster was made with, or as Ray's autoscaler finds that Serve needs."""
        where, name = service["metadata"]["namespace"], which["rayClusterName"]
        config = self.cluster.get("rayclusters", where, name)["spec"]
        group = config["workerGroupSpecs"][0]
        count = group["replicas"]
        if config["enableInTreeAutoscaling"]:
            count = min(max(group["minReplicas"], replicas_of(service)), group["maxReplicas"])
        workers = [p for p in self._pods(where, name) if p["metadata"]["labels"]["ray.io/node-type"] == "worker"]
        alive = [p for p in workers if not p["metadata"].get("deletionTimestamp")]
        for _ in range(count - len(alive)):
            self._make_pod(service, name, "worker", group["template"])
        named = (group.get("scaleStrategy") or {}).get("workersToDelete") or ()
        going = sorted(
            alive, key=lambda p: (p["metadata"]["name"] not in named, self._age.get(p["metadata"]["uid"], 0))
        )
        for pod in going[: max(len(alive) - count, 0)]:
            self.cluster.delete("pods", where, pod["metadata"]["name"])
        which["rayClusterStatus"] = {
            "desiredWorkerReplicas": count,
            "minWorkerReplicas": group["minReplicas"],
            "maxWorkerReplicas": group["maxReplicas"],
        }
        # Serve runs one replica in each pod, in as many as it is told to; the newest stop first.
        oldest = sorted(alive, key=lambda p: -self._age.get(p["metadata"]["uid"], 0))
        self._stopped -= {p["metadata"]["uid"] for p in oldest}
        self._stopped |= {p["metadata"]["uid"] for p in oldest[replicas_of(service) :]}

    def _serve(self, service: Object, which: Object) -> None:
        config = json.loads(service["spec"]["serveConfigV2"])["applications"][0]
        ready = len(self._ready(service["metadata"]["namespace"], which["rayClusterName"]))
        status, message = "DEPLOYING", ""
        if config["name"] in self.failing:
            status, message = "DEPLOY_FAILED", f"serving.errors.EngineStartFailed: {self.failing[config['name']]}"
        elif ready >= replicas_of(service) or _app(which).get("status") == "RUNNING":
            status = "RUNNING"
        deployment = {"status": "HEALTHY" if status == "RUNNING" else "UPDATING", "message": message}
        which["applicationStatuses"] = {
            config["name"]: {"status": status, "message": message, "serveDeploymentStatuses": {"engine": deployment}}
        }

    def _pods(self, namespace: str, cluster: str) -> list[Object]:
        return self.cluster.list("pods", namespace, labels=f"ray.io/cluster={cluster}")

    def _ready(self, namespace: str, cluster: str | None) -> list[Object]:
        return [
            p
            for p in (self._pods(namespace, cluster) if cluster else ())
            if p["metadata"]["labels"]["ray.io/node-type"] == "worker"
            and not p["metadata"].get("deletionTimestamp")
            and any(c["type"] == "Ready" and c["status"] == "True" for c in p.get("status", {}).get("conditions", ()))
        ]

    def _delete_pods(self, namespace: str, cluster: str | None) -> None:
        for pod in self._pods(namespace, cluster) if cluster else ():
            self.cluster.delete("pods", namespace, pod["metadata"]["name"])
        if cluster and self.cluster.find("rayclusters", namespace, cluster) is not None:
            self.cluster.delete("rayclusters", namespace, cluster)

    # -- what happens to it ----------------------------------------------------------------------------------------

    def lose_node(self, node: str) -> None:
        """Spot loss: the node and the pods on it are gone without a word."""
        self.cluster.delete("nodes", None, node)
        pods = self.cluster.kind("pods")
        for pod in self.cluster.list("pods"):
            if pod["spec"].get("nodeName") == node:
                meta = {**pod["metadata"], "finalizers": []}
                self.cluster.update(pods, meta["namespace"], meta["name"], {**pod, "metadata": meta}, BY)
                self.cluster.delete("pods", meta["namespace"], meta["name"])


def replicas_of(service: Object) -> int:
    options = json.loads(service["spec"]["serveConfigV2"])["applications"][0]["deployments"][0]
    return int(options.get("num_replicas") or options["autoscaling_config"]["min_replicas"])


def cluster_hash(service: Object) -> str:
    """What decides about a new cluster: GenerateHashWithoutReplicasAndWorkersToDelete."""
    config = copied(service["spec"]["rayClusterConfig"])
    for group in config["workerGroupSpecs"]:
        for muted in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(muted, None)
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]


def validated(service: Object) -> str:
    """What the operator's own validation says of a RayService; empty when it takes it."""
    name, config = service["metadata"]["name"], service["spec"]["rayClusterConfig"]
    if len(name) > 47 or not LABEL_1035.match(name):
        return f"RayService name should be a valid DNS1035 label: {name}"
    if config.get("authOptions", {}).get("mode") == "token":
        major, minor = (int(part) for part in config.get("rayVersion", "0.0").split(".")[:2])
        if (major, minor) < (2, 52):
            return "authOptions.mode is 'token' but minimum Ray version is 2.52.0"
    head = config["headGroupSpec"]["template"]["spec"]
    names = {e["name"] for e in head["containers"][0].get("env") or ()}
    if names & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_enable_autoscaler_v2"}:
        return "environment"
    for group in config["workerGroupSpecs"]:
        if not 0 <= group["minReplicas"] <= group["maxReplicas"] or "labels" in group["rayStartParams"]:
            return "worker group"
        if config["enableInTreeAutoscaling"] and group["template"]["spec"].get("restartPolicy") not in (None, "Never"):
            return "restartPolicy"
    return ""


def a_node(name: str, gpus: int = 8, **labels: str) -> Object:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "16", "memory": "64Gi", "pods": "110", "nvidia.com/gpu": str(gpus)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _app(which: Object) -> Object:
    return next(iter((which.get("applicationStatuses") or {}).values()), {})


def _gpus(pod: Object) -> int:
    return sum(
        int(c.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0)) for c in pod["spec"]["containers"]
    )


def _pending(container: Object, waiting: Object, bound: Object) -> Object:
    state = {"name": container["name"], "image": container["image"], "state": {"waiting": waiting}}
    return {"phase": "Pending", "conditions": [bound], "containerStatuses": [state], "node": True}
