"""A way to the controller's API through the API server: a port-forward to the pod that leads. Shell; blocks."""

from __future__ import annotations

import socket
from typing import Any

from kubernetes import client
from kubernetes import stream as _stream

from rollout.errors import ClusterUnavailable
from rollout.operator.api import Address, asked

LEADER = "app.kubernetes.io/component=controller,tidegate.dev/leader=true"
CONTROL_PORT = 8080

stream: Any = _stream
"""Its functions carry no types."""


def open_controller(address: Address, namespace: str) -> socket.socket:
    """A connection to the API of the controller that leads in a namespace.

    Raises:
        ClusterError: there is none, or it can't be reached.

    """
    core: Any = client.CoreV1Api(client.ApiClient(address.configuration()))
    pods = asked(
        lambda: core.list_namespaced_pod(namespace, label_selector=LEADER, _request_timeout=(5.0, 15.0)).items,
        f"look for the controller in {namespace}",
    )
    if not pods:
        raise ClusterUnavailable(
            f"no controller leads in namespace {namespace}; name the release's namespace with -n, or look at "
            f"`kubectl get pods -n {namespace} -l app.kubernetes.io/component=controller`"
        )
    name = pods[0].metadata.name
    forward = asked(
        lambda: stream.portforward(
            core.connect_get_namespaced_pod_portforward, name, namespace, ports=str(CONTROL_PORT)
        ),
        f"forward a port of {namespace}/{name}",
    )
    found: socket.socket = forward.socket(CONTROL_PORT)
    return found
