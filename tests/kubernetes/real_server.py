"""A real API server for tests: kube-apiserver and etcd on loopback, as controller-runtime's envtest runs them.

Where the two programs are, the environment says: `KUBEBUILDER_ASSETS` names a folder with both, or
`TIDEGATE_TEST_KUBE_APISERVER` and `TIDEGATE_TEST_ETCD` name them one by one. Nothing is downloaded. There are no nodes
and no controllers: whoever needs a pod to run or an owner's dependents to go does that itself. With a
kube-controller-manager beside the server (`TIDEGATE_TEST_KUBE_CONTROLLER_MANAGER`) the latter happen by themselves.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import trustme
import yaml

from tests.kubernetes.real_objects import RealObjects
from tests.ports import free_ports

Object = dict[str, Any]

START_S = 60.0
ADMIN = "token-of-the-administrator"
MISSING = (
    "no kube-apiserver and etcd: set KUBEBUILDER_ASSETS to a folder with both, as `setup-envtest use -p path` prints "
    "it, or TIDEGATE_TEST_KUBE_APISERVER and TIDEGATE_TEST_ETCD to the two files"
)


def programs() -> tuple[str, str]:
    """The paths of kube-apiserver and etcd; a test that asks without them is skipped."""
    folder = os.environ.get("KUBEBUILDER_ASSETS", "")
    found = []
    for name, variable in (("kube-apiserver", "TIDEGATE_TEST_KUBE_APISERVER"), ("etcd", "TIDEGATE_TEST_ETCD")):
        path = os.environ.get(variable) or (str(Path(folder) / name) if folder else "")
        if not path:
            pytest.skip(MISSING)
        if not os.access(path, os.X_OK):
            pytest.fail(f"{path} is no program that can be run; {MISSING}")
        found.append(path)
    return found[0], found[1]


class RealServer:
    """The two processes, and ways to them.

    Args:
        folder: for data, certificates and logs.
        also: further arguments for kube-apiserver.

    """

    def __init__(self, folder: Path, *also: str) -> None:
        self._also = also
        self._program, self._etcd_program = programs()
        self._folder = folder
        self._etcd_port, self._peer_port, self.port = free_ports(3)
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._manager: subprocess.Popen[bytes] | None = None
        self.authority = folder / "ca.crt"
        self._write_files()
        self.objects = RealObjects(self.client(ADMIN))

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def _write_files(self) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(self.authority)
        certificate.private_key_pem.write_to_path(self._folder / "server.key")
        certificate.cert_chain_pems[0].write_to_path(self._folder / "server.crt")
        (self._folder / "tokens.csv").write_text(f'{ADMIN},admin,admin,"system:masters"\n')

    def __enter__(self) -> Self:
        self._etcd = self._started(
            "etcd", self._etcd_program,
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--advertise-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--listen-peer-urls=http://127.0.0.1:{self._peer_port}",
        )  # fmt: skip
        try:
            self.come_back()
            self._manage()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._manager, self._server, self._etcd):
            if process is not None:
                process.kill()
                process.wait()
        self.objects.close()

    def come_back(self) -> None:
        """Start the API server, and wait until it is ready."""
        keys = [f"--service-account-{what}-file={self._folder / 'server.key'}" for what in ("key", "signing-key")]
        self._server = self._started(
            "kube-apiserver", self._program,
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self._folder / 'server.crt'}",
            f"--tls-private-key-file={self._folder / 'server.key'}",
            f"--cert-dir={self._folder}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            *keys,
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",  # it would hold up every pod until a controller made accounts
            *self._also,
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        with self.client(ADMIN) as client:
            while True:
                with suppress(httpx.HTTPError):
                    if client.get("/readyz").status_code == 200:
                        return
                if self._server.poll() is not None or time.monotonic() > deadline:
                    told = (self._folder / "kube-apiserver.log").read_text()[-2000:]
                    raise AssertionError(f"kube-apiserver did not get ready:\n{told}")
                time.sleep(0.1)

    def leave(self) -> None:
        """Kill the API server as `kill -9` does. What it had written, etcd has."""
        assert self._server is not None
        self._server.kill()
        self._server.wait()

    def _manage(self) -> None:
        program = os.environ.get("TIDEGATE_TEST_KUBE_CONTROLLER_MANAGER")
        if program:
            config = self._folder / "manager.kubeconfig"
            config.write_text(yaml.safe_dump(self.kubeconfig()))
            self._manager = self._started(
                "kube-controller-manager", program, f"--kubeconfig={config}", "--leader-elect=false",
                f"--service-account-private-key-file={self._folder / 'server.key'}",
            )  # fmt: skip

    def _started(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)

    # -- what is there --

    @property
    def version(self) -> str:
        """As the server tells it: `v1.33.1`."""
        with self.client(ADMIN) as client:
            return str(client.get("/version").json()["gitVersion"])

    @property
    def minor(self) -> int:
        return int(self.version.split(".")[1])

    def define(self, body: Object) -> None:
        """Install a definition, and wait until its resources can be asked for."""
        name = body["metadata"]["name"]
        if self.objects.find("customresourcedefinitions", None, name) is None:
            self.objects.create("customresourcedefinitions", None, body)
        spec = body["spec"]
        path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        deadline = time.monotonic() + START_S
        with self.client(ADMIN) as client:
            while client.get(path).status_code != 200:
                assert time.monotonic() < deadline, f"{name} is not served: {client.get(path).text}"
                time.sleep(0.05)

    def install(self, manifests: Iterable[Mapping[str, Any]], *kinds: str) -> None:
        """Make these objects, of these kinds only."""
        for found in manifests:
            if found["kind"] in kinds:
                self.objects.create(self.objects.kind(found["kind"]), found["metadata"].get("namespace"), dict(found))

    # -- ways in --

    def client(self, token: str) -> httpx.Client:
        """Plain HTTPS, as whom a token stands for."""
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"},
            verify=ssl.create_default_context(cafile=str(self.authority)),
            timeout=20,
            trust_env=False,
        )

    def token(self, namespace: str, account: str, lasts_s: int = 3600) -> str:
        """What a pod of this ServiceAccount would be given (TokenRequest)."""
        with self.client(ADMIN) as client:
            answer = client.post(
                f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token",
                json={
                    "apiVersion": "authentication.k8s.io/v1",
                    "kind": "TokenRequest",
                    "spec": {"expirationSeconds": lasts_s, "audiences": ["https://kubernetes.default.svc"]},
                },
            )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["status"]["token"])

    def kubeconfig(self, token: str = ADMIN, namespace: str = "default") -> Object:
        """A kubeconfig with one context, `real`."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "real",
            "clusters": [
                {"name": "real", "cluster": {"server": self.url, "certificate-authority": str(self.authority)}}
            ],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "me", "namespace": namespace}}],
        }
