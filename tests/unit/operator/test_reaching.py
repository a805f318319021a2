"""How the API server is reached: as whom, from a pod and by a kubeconfig, and times as it takes them."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from pathlib import Path

import kubernetes
import pytest
import yaml
from kubernetes.config import incluster_config

from rollout.errors import ClusterConflict, ClusterRejected, ClusterUnavailable, ResourceGone, UndeclaredFields
from rollout.operator import watcher
from rollout.operator.api import Address, token_of, translated, with_microseconds


def in_a_pod(folder: Path) -> kubernetes.client.Configuration:
    """What the official client makes of a pod's service account."""
    (folder / "token").write_text("pods-own")
    (folder / "ca.crt").write_text("a certificate")
    found = kubernetes.client.Configuration()
    incluster_config.InClusterConfigLoader(
        token_filename=str(folder / "token"),
        cert_filename=str(folder / "ca.crt"),
        environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"},
    ).load_and_set(found)
    return found


def by_kubeconfig(folder: Path, user: dict[str, str]) -> kubernetes.client.Configuration:
    context = {"name": "c", "context": {"cluster": "c", "user": "me"}}
    clusters = [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}]
    body = {"clusters": clusters, "users": [{"name": "me", "user": user}], "contexts": [context]}
    (folder / "config").write_text(yaml.safe_dump({**body, "current-context": "c"}))
    return Address(kubeconfig=folder / "config", context="c").configuration()


def test_the_token_is_found_however_the_client_keeps_it(tmp_path: Path) -> None:
    """kopf is handed this token: without it every watch would be anonymous, and refused."""
    assert token_of(in_a_pod(tmp_path)) == "pods-own"
    assert token_of(by_kubeconfig(tmp_path, {"token": "mine"})) == "mine"
    assert token_of(by_kubeconfig(tmp_path, {})) == ""


@pytest.mark.parametrize(
    "kept", [{"authorization": "Bearer old"}, {"BearerToken": "bearer old"}, {"BearerToken": "old"}]
)
def test_every_spelling_of_it(kept: dict[str, str]) -> None:
    assert token_of(kubernetes.client.Configuration(api_key=kept)) == "old"


def test_a_lease_of_a_whole_second_has_six_digits_all_the_same() -> None:
    whole = dt.datetime(2026, 11, 27, 12, 0, 0, tzinfo=dt.UTC)
    spec = kubernetes.client.V1LeaseSpec(acquire_time=whole, renew_time=whole.replace(microsecond=250))
    sent = kubernetes.client.ApiClient().sanitize_for_serialization(
        with_microseconds(kubernetes.client.V1Lease(spec=spec))
    )
    assert sent["spec"]["acquireTime"] == "2026-11-27T12:00:00.000001+00:00"
    assert sent["spec"]["renewTime"] == "2026-11-27T12:00:00.000250+00:00"


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (404, "not found", ResourceGone),
        (409, "the object has been modified", ClusterConflict),
        (410, "The provided continue parameter is too old", ClusterUnavailable),
        (429, "too many requests", ClusterUnavailable),
        (500, "etcdserver: request timed out", ClusterUnavailable),
        (500, "failed to create typed patch object (a/b): .spec.x: field not declared in schema", UndeclaredFields),
        (500, 'failed to create typed patch object (a/b): .spec.x: expected string, got "{1}"', ClusterRejected),
        (403, 'User "me" cannot patch resource', ClusterRejected),
        (422, "is invalid", ClusterRejected),
    ],
)
def test_what_an_answer_means_for_one_resource(code: int, message: str, kind: type[Exception]) -> None:
    answer = kubernetes.client.ApiException(status=code, reason="")
    answer.body = json.dumps({"message": message})
    assert type(translated(answer, "apply a/b")) is kind


def test_whoever_waits_for_the_end_of_a_watch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf waits for its flag in a thread of its own, which would keep a process that should end from ending."""

    async def ended(**_: object) -> None:
        raise OSError("the API server has gone")

    monkeypatch.setattr(watcher.kopf, "operator", ended)
    watches = watcher.Watcher(
        address=Address(), namespaces=("a",), listed=lambda *_: None, changed=lambda *_: None
    )  # fmt: skip
    with pytest.raises(OSError, match="has gone"):
        watches._watch(asyncio.new_event_loop(), ("a",))
    assert watches._over.is_set()
