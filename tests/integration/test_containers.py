"""Gateway and controller as the chart starts them: its commands, files, environment, Secrets, probes and `helm test`.

Only what a container would give is put in place of it: folders below a temporary one, ports of this machine, and the
stand-in of the API server, which holds the controller to the chart's Roles.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rollout.operator.crd import definition
from rollout.operator.first_secrets import Plan, bring_about
from tests.kubernetes.server import ApiServer
from tests.ports import free_ports
from tests.postgres import Postgres
from tests.unit.helm.charts import CHART, Object, first_secrets, objects, one
from tests.unit.operator.test_first_secrets import FakeSecrets

pytestmark = pytest.mark.integration

VALUES = {"postgresql": {"enabled": True}, "gateway": {"drainDelaySeconds": 1, "drainSeconds": 5}}
START_S = 60.0
POD = "r-controller-x"


class Cluster:
    """One gateway and one controller over one store."""

    def __init__(self, folder: Path, store: str, api: ApiServer) -> None:
        self.folder = folder
        self.api = api
        self.store = store
        self.found: tuple[Object, ...] = objects(VALUES)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.public, self.admin, self.control, self.drift, self.feed = free_ports(5)
        self.secrets = self._secrets(store)
        self._prepare_cluster()

    def _prepare_cluster(self) -> None:
        """What is there when a pod starts: the definition, the Roles, the pod itself."""
        cluster = self.api.cluster
        cluster.create("namespaces", None, {"metadata": {"name": "models"}})
        cluster.create("customresourcedefinitions", None, definition())
        self.api.grant(dict(found) for found in self.found)
        template = one(self.found, "Deployment", "r-controller")["spec"]["template"]
        about = {"name": POD, "labels": dict(template["metadata"]["labels"])}
        cluster.create("pods", "models", {"metadata": about, "spec": {"containers": [{"name": "controller"}]}})
        token = "system:serviceaccount:models:r-controller"
        (self.folder / "kubeconfig").write_text(json.dumps(self.api.kubeconfig(token=token, namespace="models")))

    def _secrets(self, store: str) -> Mapping[tuple[str, str], Mapping[str, str]]:
        made = FakeSecrets()
        bring_about(Plan.model_validate(first_secrets(self.found)), made)
        made.held["models", "r-store"]["url"] = store
        return made.held

    def mount(self, name: str, spec: Mapping[str, Any]) -> Path:
        """A pod's volumes as files below a folder of its own, which stands for the root."""
        root = self.folder / name
        volumes = {v["name"]: v for v in spec["volumes"]}
        for mount in spec["containers"][0]["volumeMounts"]:
            place = root / mount["mountPath"].lstrip("/")
            place.mkdir(parents=True)
            volume = volumes[mount["name"]]
            if "configMap" in volume:
                files = one(self.found, "ConfigMap", volume["configMap"]["name"])["data"]
            elif "secret" in volume:
                held = self.secrets["models", volume["secret"]["secretName"]]
                items = volume["secret"].get("items") or [{"key": k, "path": k} for k in held]
                files = {item["path"]: held[item["key"]] for item in items}
            else:
                continue
            for file, text in files.items():
                (place / file).write_text(text)
                (place / file).chmod(0o440)
            place.chmod(0o550)  # as a mounted Secret: nothing can be made beside it
        return root

    def start_controller(self) -> None:
        """The controller, with its pod's environment."""
        spec = one(self.found, "Deployment", "r-controller")["spec"]["template"]["spec"]
        root = self.mount("controller", spec)
        env: dict[str, str] = {}
        for variable in spec["containers"][0]["env"]:
            field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            value = {"metadata.name": POD, "metadata.namespace": "models"}.get(field, variable.get("value", ""))
            env[variable["name"]] = self._here(value, root)
        env |= {"TIDEGATE_HOST": "127.0.0.1", "TIDEGATE_CONTROL_PORT": str(self.control)}
        env |= {"TIDEGATE_DRIFT_WATCH_URL": self.drift_url}
        env |= {"TIDEGATE_TRACKING_URI": "", "TIDEGATE_KUBECONFIG": str(self.folder / "kubeconfig")}
        self._start("controller", spec["containers"][0]["command"], env)

    def start_gateway(self) -> None:
        """The gateway, dialling the Service."""
        spec = one(self.found, "Deployment", "r-gateway")["spec"]["template"]["spec"]
        root = self.mount("gateway", spec)
        file = root / "etc/tidegate/gateway/gateway.json"
        config = json.loads(self._here(file.read_text(), root))
        config |= {"port": self.public, "admin_port": self.admin, "control_url": self.control_url}
        config |= {"drift_address": f"127.0.0.1:{self.feed}"}
        file.parent.chmod(0o750)
        file.chmod(0o640)
        file.write_text(json.dumps(config))
        command = [self._here(part, root) for part in spec["containers"][0]["command"]]
        env = {"TIDEGATE_GATEWAY_NAME": "r-gateway-x", "TIDEGATE_GATEWAY_HOST": "127.0.0.1",
               "TIDEGATE_GATEWAY_ADMIN_HOST": "127.0.0.1"}  # fmt: skip
        self._start("gateway", command, env)

    def start_drift(self) -> None:
        """The drift watch, on a volume of its own."""
        spec = one(self.found, "Deployment", "r-drift")["spec"]["template"]["spec"]
        root = self.mount("drift", spec)
        *command, text = spec["containers"][0]["command"]
        config = json.loads(self._here(text, root)) | {"port": self.drift, "feed_port": self.feed}
        config |= {"host": "127.0.0.1", "feed_host": "127.0.0.1"}
        self._start("drift", [*command, json.dumps(config)], {})

    def _here(self, text: str, root: Path) -> str:
        return text.replace("/etc/tidegate", f"{root}/etc/tidegate").replace("/var/lib", f"{root}/var/lib")

    def _start(self, name: str, command: list[str], env: Mapping[str, str]) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        base = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(self.folder)}
        self.processes[name] = subprocess.Popen(
            [sys.executable, *command[1:]], env=base | dict(env), cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
        )

    @property
    def control_url(self) -> str:
        return f"http://127.0.0.1:{self.control}"

    @property
    def drift_url(self) -> str:
        return f"http://127.0.0.1:{self.drift}"

    def holder(self) -> str:
        """Who holds the lease of the store; "" when nobody does."""
        with psycopg.connect(self.store) as connection:
            found = connection.execute("SELECT holder FROM lease").fetchone()
        return "" if found is None else str(found[0])

    def label(self) -> str | None:
        """The leader's label on the controller's pod."""
        (pod,) = self.api.cluster.list("pods", "models")
        found: str | None = pod["metadata"]["labels"].get("tidegate.dev/leader")
        return found

    def eventually(self, condition: Callable[[], bool]) -> None:
        """Wait for something that happens by itself."""
        deadline = time.monotonic() + START_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def until(self, name: str, url: str, status: int = 200) -> None:
        """Wait for an answer, as a probe does."""
        deadline = time.monotonic() + START_S
        while ask(url)[0] != status:
            assert self.processes[name].poll() is None, (self.folder / f"{name}.log").read_text()[-2000:]
            assert time.monotonic() < deadline, f"{url}: {ask(url)}"
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill what still runs."""
        for process in self.processes.values():
            process.kill()
            process.wait()


def ask(url: str, key: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


@pytest.fixture
def cluster(tmp_path: Path, postgres: Postgres) -> Iterator[Cluster]:
    with ApiServer() as api:
        made = Cluster(tmp_path, postgres.new_database(), api)
        try:
            yield made
        finally:
            made.stop()


def run_check(cluster: Cluster, patience_s: int) -> subprocess.CompletedProcess[str]:
    """What the pod of `helm test` does."""
    env = {"CONTROL": cluster.control_url, "GATEWAY": f"http://127.0.0.1:{cluster.public}",
           "ADMIN": f"127.0.0.1:{cluster.admin}", "DRIFT": cluster.drift_url,
           "PATIENCE_S": str(patience_s)}  # fmt: skip
    command = [sys.executable, "-I", str(CHART / "files" / "check.py")]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_fresh_release_gets_ready_passes_its_test_and_drains(cluster: Cluster) -> None:
    cluster.start_drift()
    cluster.start_controller()
    cluster.start_gateway()
    admin = f"http://127.0.0.1:{cluster.admin}"
    cluster.until("controller", cluster.control_url + "/readyz")
    cluster.until("gateway", admin + "/readyz/pod")
    checked = run_check(cluster, 20)
    assert checked.returncode == 0, checked.stdout
    # The Service selects this label, and `kubectl get lease` says who leads.
    cluster.eventually(lambda: cluster.label() == "true")
    (lease,) = cluster.api.cluster.list("leases", "models")
    assert (lease["metadata"]["name"], lease["spec"]["holderIdentity"]) == ("r-controller", POD)
    # No model is deployed: the pod may have clients, which are told so; the platform's own readiness says why not.
    status, body = ask(admin + "/readyz")
    assert status == 503
    assert "none of 0 models" in body

    # The token is an admin's; the gateways' key opens the gateways' door alone.
    token = cluster.secrets["models", "r-control"]["token"]
    key = cluster.secrets["models", "r-gateway"]["key"]
    status, body = ask(cluster.control_url + "/api/v1/status", token)
    assert status == 200
    assert [g["gateway"] for g in json.loads(body)["gateways"]] == ["r-gateway-x"]
    assert ask(cluster.control_url + "/api/v1/status", key)[0] == 403

    # The watch tells its status to the controller; a gateway that it knows has proved its key.
    drift_key = cluster.secrets["models", "r-drift"]["key"]
    assert ask(cluster.drift_url + "/status")[0] == ask(cluster.drift_url + "/status", key)[0] == 401
    status, body = ask(cluster.drift_url + "/status", drift_key)
    assert (status, json.loads(body)["streams"]) == (200, [])
    cluster.eventually(lambda: "drift-watch-connected" in (cluster.folder / "gateway.log").read_text())

    gateway, controller = cluster.processes["gateway"], cluster.processes["controller"]
    gateway.send_signal(signal.SIGTERM)
    cluster.until("gateway", admin + "/readyz/pod", 503)
    assert ask(f"http://127.0.0.1:{cluster.public}/healthz")[0] == 200, "balancers have not all seen it yet"
    assert gateway.wait(20) == 0
    controller.send_signal(signal.SIGTERM)
    assert controller.wait(20) == 0
    assert cluster.holder() == "", "the lease was given back, so that another one need not wait for its end"
    cluster.processes["drift"].send_signal(signal.SIGTERM)
    assert cluster.processes["drift"].wait(20) == 0
    assert run_check(cluster, 0).returncode == 4
    logs = "".join(path.read_text() for path in cluster.folder.glob("*.log"))
    assert token not in logs
    assert key not in logs
    assert drift_key not in logs
    assert "Traceback" not in logs
    assert [asked for asked, code in cluster.api.asked if code == 403] == [], "the chart's Roles suffice"
