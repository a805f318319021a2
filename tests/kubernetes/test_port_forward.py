"""What a command line asks the controller of a cluster: HTTP through the API server, as kubelets speak port-forward."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from websocket import ABNF, WebSocket

from rollout.errors import ClusterUnavailable
from rollout.operator import forward as forwarding
from rollout.operator.api import Address, ResourceApi
from rollout.operator.forward import open_controller
from rollout.operator.remote import Remote
from tests.integration.control_rig import TOKEN, running
from tests.kubernetes.faults import Trouble
from tests.kubernetes.rig import NAMESPACE, prepared
from tests.kubernetes.server import ApiServer
from tests.unit.tidegate.test_cli_drift import ALARM
from tidegate.cli.main import run
from tidegate.cluster_client import ClusterClient
from tidegate.errors import ControlError, ControlUnavailable

pytestmark = pytest.mark.integration
LABELS = {"app.kubernetes.io/component": "controller", "tidegate.dev/leader": "true"}
PERSON = "system:serviceaccount:models:person"
Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Watch:
    """A drift watch with an alarm that does not take anything in just now."""

    def status(self) -> Mapping[str, Any]:
        one = {"statistic": 3.1e6, "threshold": 2e6, "active": True, "alarms": 1}
        stream = {"model": "chat", "stream": "all", "seen": 500, "detectors": {"embedding": one}, "alarms": [ALARM],
                  "reference": {"built_at": time.time() - 90}}  # fmt: skip
        return {"written_at": time.time(), "streams": [stream], "requests": []}

    def acknowledge(self, model: str, stream: str | None, by: str, reason: str) -> bool:
        return False


def with_leader(api: ApiServer, namespace: str = NAMESPACE) -> ApiServer:
    prepared(api)
    if namespace != NAMESPACE:
        api.cluster.create("namespaces", None, {"metadata": {"name": namespace}})
    api.cluster.create("pods", namespace, {"metadata": {"name": "r-controller-0", "labels": LABELS}})
    return api


def kubeconfig_of(api: ApiServer, folder: Path, user: str = "admin", cluster: Any = None) -> Path:
    file = folder / f"kubeconfig-{user[-6:]}"
    said = api.kubeconfig(user, NAMESPACE)
    if cluster is not None:
        said["clusters"][0]["cluster"] = {"server": api.url, **cluster}
    file.write_text(yaml.safe_dump(said))
    return file


def client_of(api: ApiServer, folder: Path, user: str = "admin") -> ClusterClient:
    address = Address(kubeconfig=kubeconfig_of(api, folder, user), context="stand-in")
    remote = Remote(ResourceApi(address.configuration()), NAMESPACE)
    return ClusterClient(remote, lambda: open_controller(address, NAMESPACE), token="t")


@contextlib.asynccontextmanager
async def pod(api: ApiServer, answering: Answering) -> AsyncIterator[None]:
    """What listens on the controller's port."""
    server = await asyncio.start_server(answering, "127.0.0.1", 0)
    api.kubelet.ports[NAMESPACE, "r-controller-0", 8080] = server.sockets[0].getsockname()[:2]
    try:
        yield
    finally:
        server.close()


def saying(*parts: bytes, length: int | None = None) -> Answering:
    """An HTTP answer in parts, after the whole request was read; `length` other than what comes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"content-length: " in head.lower():
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        size = sum(map(len, parts)) if length is None else length
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % size)
        for part in parts:
            writer.write(part)
            await writer.drain()
        writer.close()

    return answer


async def asked(client: ClusterClient, path: str = "/api/v1/status", body: Any = None) -> dict[str, Any]:
    return await asyncio.to_thread(client._call, "POST" if body else "GET", path, body=body)


@pytest.mark.parametrize("secure", [False, True], ids=["HTTP", "HTTPS"])
async def test_large_answers_and_large_questions_pass_whole(tmp_path: Path, secure: bool) -> None:
    text = "x" * (8 << 20)
    answer = json.dumps({"text": text}).encode()
    with ApiServer(authority=trustme.CA() if secure else None) as api:
        with_leader(api)
        client = client_of(api, tmp_path)
        async with pod(api, saying(*(answer[i : i + 100_000] for i in range(0, len(answer), 100_000)))):
            for body in (None, {"spec": "y" * 300_000}):
                assert (await asked(client, body=body))["text"] == text
        assert api.kubelet.forwards == 2


@pytest.mark.parametrize(
    ("cluster", "passes"),
    [({"insecure-skip-tls-verify": True}, True), ({}, False)],
    ids=["not to be checked", "of nobody that is known"],
)
async def test_a_certificate_is_checked_unless_the_kubeconfig_says_otherwise(
    tmp_path: Path, cluster: dict[str, Any], passes: bool
) -> None:
    with ApiServer(authority=trustme.CA()) as api:
        address = Address(kubeconfig=kubeconfig_of(with_leader(api), tmp_path, cluster=cluster), context="stand-in")
        async with pod(api, saying(b"{}")):
            dial = asyncio.to_thread(forwarding.forward, address.configuration(), NAMESPACE, "r-controller-0", 8080)
            if passes:
                (await dial).close()
            else:
                with pytest.raises(ClusterUnavailable, match="SSLCertVerificationError"):
                    await dial


def test_a_message_in_parts_is_one_message_and_a_ping_is_answered() -> None:
    """So a proxy between the kubelet and us may send it."""
    ours, theirs = socket.socketpair()
    with theirs:
        for fin, opcode, data in (
            (1, ABNF.OPCODE_BINARY, b"\x00" + (8080).to_bytes(2, "little")),
            (0, ABNF.OPCODE_BINARY, b"\x00first, "),
            (1, ABNF.OPCODE_PING, b"there?"),
            (1, ABNF.OPCODE_CONT, b"second"),
            (1, ABNF.OPCODE_CLOSE, b""),
        ):
            theirs.sendall(ABNF(fin, 0, 0, 0, opcode, 0, data).format())
        line = WebSocket()
        line.sock, line.connected = ours, True
        connection = forwarding.PodConnection(line, 8080, "models/r-controller-0")
        with connection.makefile() as received:
            assert received.read() == b"first, second"
        connection.close()
        assert theirs.recv(1)[0] & 0x0F == ABNF.OPCODE_PONG


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def slammed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()


# what the pod does -> the kind of error, what its message says
BROKEN: dict[str, tuple[Answering, str]] = {
    "it never answers": (silent, "the controller in namespace models did not answer in time; `kubectl logs -n models"),
    "it hangs up at once": (slammed, "the controller in namespace models does not answer; `kubectl logs -n models"),
    "it ends in the middle": (
        saying(b'{"half": "of i', length=100),
        "the controller in namespace models does not answer",
    ),
    "it is something else": (saying(b"<html>"), "is not of this version (it does not speak JSON)"),
}


@pytest.mark.parametrize(("answering", "told"), BROKEN.values(), ids=BROKEN)
async def test_a_pod_that_does_not_answer_well_is_told_and_hangs_nobody(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answering: Answering, told: str
) -> None:
    monkeypatch.setattr(forwarding, "SILENT_S", 0.2)
    client = client_of(with_leader(api), tmp_path)
    async with pod(api, answering):
        with pytest.raises(ControlError) as caught:
            await asked(client)
    assert told in str(caught.value)


async def test_what_the_kubelet_and_the_api_server_say_is_said(api: ApiServer, tmp_path: Path) -> None:
    client = client_of(with_leader(api), tmp_path)
    with pytest.raises(ControlUnavailable, match=r"can't forward to port 8080: .*connection refused"):
        await asked(client)  # nothing listens there
    reading = {"apiGroups": [""], "resources": ["pods", "pods/portforward"], "verbs": ["get", "list"]}
    api.grant(
        [
            {"kind": "Role", "metadata": {"name": "reader", "namespace": NAMESPACE}, "rules": [reading]},
            {
                "kind": "RoleBinding",
                "metadata": {"name": "reader", "namespace": NAMESPACE},
                "roleRef": {"kind": "Role", "name": "reader"},
                "subjects": [{"kind": "ServiceAccount", "name": "person", "namespace": NAMESPACE}],
            },
        ]
    )
    person = client_of(api, tmp_path, PERSON)
    with pytest.raises(ControlError, match=r'cannot create resource "pods/portforward".*the table of rights'):
        await asked(person)
    api.faults.plan(Trouble.UNAVAILABLE, lambda a: a.resource == "pods/portforward")
    with pytest.raises(ControlUnavailable, match="r-controller-0: the server is currently unable to handle"):
        await asked(client)
    with api.away(), pytest.raises(ControlUnavailable, match="does not answer"):
        await asked(client)
    api.cluster.delete(api.cluster.kind("pods"), NAMESPACE, "r-controller-0")
    with pytest.raises(ControlUnavailable, match=r"no controller leads in namespace models.*--release-namespace"):
        await asked(client)


async def test_the_commands_that_ask_the_controller_of_a_cluster(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real control plane behind the port; its release is in another namespace than the models."""
    config = tmp_path / "config"
    config.write_text(yaml.safe_dump(with_leader(api, "platform").kubeconfig(namespace="default")))
    monkeypatch.setenv("KUBECONFIG", str(config))
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))

    async def shell(*words: str, code: int = 0, plugin: bool = False) -> str:
        capsys.readouterr()
        got = await asyncio.to_thread(run, [*words, "--release-namespace", "platform"], plugin=plugin)
        printed = capsys.readouterr()
        assert got == code, printed
        return printed.out + printed.err

    async with running(namespaced=True, drift=Watch()) as rig:
        await rig.serve_first()
        port = int(rig.url.rpartition(":")[2])
        api.kubelet.ports["platform", "r-controller-0", 8080] = ("127.0.0.1", port)
        told = await shell("rollout", "history", "chat", "-n", "models", code=1)
        assert "the controller in namespace platform does not know this key; put one into TIDEGATE_KEY" in told
        monkeypatch.setenv("TIDEGATE_KEY", TOKEN)
        assert "chat@1.0.0" in await shell("rollout", "history", "chat", "-n", "models")
        assert "chat@1.0.0 is ready" in await shell("rollout", "explain", "chat", "-n", "models")
        assert "come out the same today" in await shell("rollout", "replay", "chat", "--context", "stand-in")
        key = (await shell("key", "create", "site", "-n", "team-b", "-o", "name")).split()[0]
        assert key in await shell("key", "list", "-n", "team-b", plugin=True)
        assert "9 requests/min" in await shell("quota", "set", "team-b", "--rpm", "9")
        assert [q.namespace for q in rig.controller.accounting.quotas()] == ["team-b"]
        assert "team-b" in await shell("quota", "list")
        await shell("quota", "remove", "team-b")
        assert f"revoked site ({key})" in await shell("key", "revoke", "site")
        assert "nothing was asked" in await shell("usage")
        assert "ALARM" in await shell("drift", "status")
        assert "page by embedding" in await shell("drift", "explain", "chat")
        assert "is not watched; see `tidegate drift status" in await shell("drift", "explain", "ledger", code=1)
        assert "it will take this in when it starts\nacknowledged: chat" in "\n".join(
            reversed((await shell("drift", "ack", "chat", "--reason", "seen")).strip().split("\n"))
        )
        assert "`tidegate drift reference list` works on the files" in await shell("drift", "reference", "list", code=2)
