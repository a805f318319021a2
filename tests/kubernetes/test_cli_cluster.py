"""The command line drives a cluster as it drives one machine: real commands, a real client, a real operator."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest
import yaml

from rollout.operator.api import ResourceApi
from rollout.operator.remote import Remote, resource_spec
from rollout.specs import parse_spec
from tests.kubernetes.cluster import Write
from tests.kubernetes.rig import NAMESPACE, address, operating, prepared
from tests.kubernetes.server import ApiServer
from tidegate.cli.main import run
from tidegate.cluster_client import ClusterClient

pytestmark = pytest.mark.integration


@pytest.fixture
def cluster(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    prepared(api)
    config = tmp_path / "people"
    config.write_text(yaml.safe_dump(api.kubeconfig(namespace="default")))
    monkeypatch.setenv("KUBECONFIG", str(config))
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    return api


class Shell:
    """Commands with `-n models`, and what they printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *words: str, code: int = 0, plugin: bool = False) -> str:
        argv = [*words, "-n", NAMESPACE]
        self._capsys.readouterr()
        got = await asyncio.to_thread(run, argv, plugin=plugin)
        printed = self._capsys.readouterr()
        assert got == code, printed
        return printed.out + printed.err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def emergency(tmp_path: Path, **more: object) -> str:
    file = tmp_path / "rollout.yaml"
    file.write_text(yaml.safe_dump({"emergency": True, "analysis": {"alpha": 0.02}, **more}))
    return str(file)


async def test_from_deploy_to_rollback(cluster: ApiServer, tmp_path: Path, shell: Shell) -> None:
    file = emergency(tmp_path)
    async with operating(cluster, tmp_path, token="admin") as rig:
        planned = await shell("deploy", "chat@1.0.0", "-f", file, "--dry-run")
        assert "makes modeldeployment chat" in planned
        assert cluster.cluster.find("modeldeployments", NAMESPACE, "chat") is None
        await shell("deploy", "chat@1.0.0", "-f", file, "-y", "--wait", "--timeout", "20")
        said = await shell("deploy", "chat@1.1.0", "-f", file, "-y", "--wait", "--timeout", "20")
        assert "version: 1.0.0 -> 1.1.0" in said
        assert "chat is Healthy, stable 1.1.0" in said
        assert cluster.cluster.get("modeldeployments", NAMESPACE, "chat")["spec"]["analysis"] == {"alpha": "0.02"}
        listed = await shell("rollout", "list")
        assert listed.splitlines()[1].split()[:2] == ["chat", "1.1.0"]
        said = await shell("rollback", "chat", "-y", "--reason", "riddles")
        assert "rolled back chat@1.1.0 to chat@1.0.0" in said
        await rig.until(lambda: rig.serving("1.0.0"))
        assert "riddles" in rig.controller.status("chat").reason
        told = json.loads(await shell("rollout", "get", "chat", "--json", plugin=True))
        assert (told["stable"], list(told["quarantine"])) == ("1.0.0", ["1.1.0"])
        again = emergency(tmp_path, analysis={"alpha": 0.03})
        assert "chat@1.1.0 was condemned" in await shell("deploy", "chat@1.1.0", "-f", again, "-y", code=1)
        assert "acknowledged 1 condemned" in await shell("rollout", "ack", "chat")
        await rig.until(lambda: rig.serving("1.1.0"))


async def test_verbs_of_a_rollout_under_way(cluster: ApiServer, tmp_path: Path, shell: Shell) -> None:
    file = emergency(tmp_path, emergency=False)
    async with operating(cluster, tmp_path, token="admin") as rig:
        await shell("deploy", "chat@1.0.0", "-f", file, "-y", "--wait", "--timeout", "20")
        await shell("deploy", "chat@1.1.0", "-f", file, "-y")
        await rig.until(lambda: rig.told().get("weight") == 5)
        assert "Paused" in await shell("rollout", "pause", "chat", "--reason", "lunch")
        assert "Paused" in await shell("rollout", "get", "chat")
        assert "Progressing" in await shell("rollout", "resume", "chat")
        await shell("rollout", "promote", "chat", "--full", "-y")
        await rig.until(lambda: rig.serving("1.1.0"))
        assert "tidegate: abort: no rollout of chat is active" in await shell("rollout", "abort", "chat", code=1)


async def test_what_cannot_be_is_told_in_a_line(cluster: ApiServer, tmp_path: Path, shell: Shell) -> None:
    async with operating(cluster, tmp_path, token="admin"):
        said = await shell("rollout", "get", "talk", code=1)
        assert "no ModelDeployment in namespace models is about model 'talk'" in said
        body = {"apiVersion": "tidegate.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "chat"}}
        spec = {"model": "chat", "version": "1.0.0"}
        cluster.cluster.apply(
            cluster.cluster.kind("modeldeployments"), NAMESPACE, "chat", {**body, "spec": spec}, Write("argocd")
        )
        said = await shell("deploy", "chat@2.0.0", "-y", code=1)
        assert 'conflict with "argocd"' in said
        assert "Change it where it is managed" in said
    assert "looks at this machine; on a cluster: `helm test" in await shell("doctor", code=2)
    assert "name a context" in await shell("rollout", "list", "--context", "nowhere", code=1)


async def test_nobody_leads(cluster: ApiServer, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.operator.remote.HANDLED_S", 0.1)
    said = await shell("deploy", "chat@1.0.0", "-y", code=1)
    assert "it is asked for and will be done when a controller leads" in said
    assert "no controller leads in namespace models" in await shell("rollout", "history", "chat", code=1)


def test_what_only_the_log_knows_is_asked_through_a_connection(cluster: ApiServer, tmp_path: Path) -> None:
    remote = Remote(ResourceApi(address(cluster, tmp_path, "").configuration()), NAMESPACE)
    client = ClusterClient(remote, lambda: socket.create_connection(("127.0.0.1", cluster.port)), token="t")
    assert client._call("GET", "/version")["major"] == "1"
    client.close()


def test_a_file_becomes_a_resource_without_floats() -> None:
    document = {
        "model": "chat",
        "version": "1.0.0",
        "engine": {"minReplicas": "2", "resources": {"limits": {"nvidia.com/gpu": "1"}}},
        "strategy": {"canary": {"steps": [{"weight": "5", "duration": 1.5}, {"weight": 50, "duration": 60.0}]}},
        "analysis": {"alpha": 0.00001, "signals": [{"name": "error", "maxRate": 0.05}]},
    }
    made = resource_spec(document)
    assert parse_spec(made) == parse_spec(document)
    assert made["strategy"]["canary"]["steps"] == [{"weight": 5, "duration": "1.5"}, {"weight": 50, "duration": 60}]
    assert made["analysis"]["alpha"] == "0.00001"
    assert made["engine"]["resources"]["limits"]["nvidia.com/gpu"] == "1", "a quantity stays as it was written"
