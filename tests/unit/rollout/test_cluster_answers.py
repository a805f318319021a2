"""What an API server's answers mean for the adapters: whether one object is at fault, or all must wait."""

from __future__ import annotations

import json

import pytest

from rollout.cluster_api import _judged
from rollout.errors import ClusterRejected, ClusterUnavailable

RIGHT = (
    'rayservices.ray.io "chat" is forbidden: User "system:serviceaccount:models:r-controller" cannot patch resource '
    '"rayservices" in API group "ray.io" in the namespace "team-a"'
)
QUOTA = 'rayservices.ray.io "chat" is forbidden: exceeded quota: count, requested: count/rayservices.ray.io=1'
GOING = (
    'rayservices.ray.io "chat" is forbidden: unable to create new content in namespace team-a because it is being '
    "terminated"
)
POLICY = 'admission webhook "policy.example.com" denied the request: images must come from our registry'
UNDECLARED = (
    "failed to create typed patch object (team-a/chat; ray.io/v1, Kind=RayService): "
    ".spec.rayClusterConfig.authOptions.secretName: field not declared in schema"
)
TYPE = (
    "failed to create typed patch object (team-a/chat; ray.io/v1, Kind=RayService): .spec.x: expected string, got &{1}"
)


@pytest.mark.parametrize(
    ("code", "message", "kind", "told"),
    [
        (403, RIGHT, ClusterUnavailable, "grant it to the controller's service account"),
        (401, "Unauthorized", ClusterUnavailable, "not allowed"),
        (403, QUOTA, ClusterRejected, "exceeded quota.*; raise the ResourceQuota of the namespace, or ask for less"),
        (403, GOING, ClusterRejected, "being terminated; the namespace is being deleted; deploy into another one"),
        (403, POLICY, ClusterRejected, "images must come from our registry; put right what it names"),
        (400, POLICY, ClusterRejected, "images must come from our registry"),
        (500, UNDECLARED, ClusterRejected, "older than this release needs"),
        (500, TYPE, ClusterRejected, "expected string"),
        (500, "etcdserver: request timed out", ClusterUnavailable, "answered 500"),
        (409, "Apply failed with 1 conflict", ClusterUnavailable, "answered 409"),
        (429, "too many requests", ClusterUnavailable, "answered 429"),
        (410, "The provided continue parameter is too old", ClusterUnavailable, "410"),
    ],
)
def test_what_an_answer_means(code: int, message: str, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        _judged(
            "PATCH",
            "/apis/ray.io/v1/namespaces/team-a/rayservices/chat",
            code,
            json.dumps({"message": message}).encode(),
        )


@pytest.mark.parametrize("code", [400, 403, 405, 422])
def test_nothing_that_is_only_read_is_at_fault(code: int) -> None:
    """What stands between us and the server may refuse in words of its own; taken for an object's fault, a listing that
    is refused ended the controller.
    """
    with pytest.raises(ClusterUnavailable, match="access denied"):
        _judged("GET", "/api/v1/namespaces/team-a/pods", code, b'{"message": "RBAC: access denied"}')
