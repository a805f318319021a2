"""Which commands reach a cluster, how, and what to do instead of the others. Pure; docs/kubernetes.md has the table."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence


class Reach(enum.StrEnum):
    """What a command does when a cluster is meant."""

    RESOURCES = "resources"
    """Reads and writes ModelDeployments; what only the event log knows it asks of the controller."""
    CONTROLLER = "controller"
    """Asks the leading controller through a port-forward, with the key in `$TIDEGATE_KEY`."""
    ANYWHERE = "anywhere"
    """Needs no platform: does the same whether there is a cluster or not."""
    MACHINE = "machine"
    """Is about the platform of this machine, and is refused when a cluster is meant."""


_REGISTRY = "asks the registry that TIDEGATE_TRACKING_URI names, wherever the platform is"
_NO_PLATFORM = "needs no platform"
_DRIFT = (
    "works on the files of this machine's drift watch; on a cluster: "
    "`kubectl exec deploy/RELEASE-drift -- tidegate drift reference ...`"
)
_REPLAY = "asks this machine's gateway; `tidegate log export` from the cluster and port-forward its gateway"
_PROBE = (
    "asks this machine's gateway; on a cluster, where probes.enabled is set: `kubectl exec deploy/RELEASE-probes -- "
    "tidegate probe run NAME@VERSION`"
)

COMMANDS: Mapping[str, tuple[Reach, str]] = {
    **dict.fromkeys(
        ("deploy", "rollback", "rollout get", "rollout status", "rollout list", "rollout promote", "rollout pause",
         "rollout resume", "rollout retry", "rollout abort", "rollout undo", "rollout ack", "rollout history",
         "rollout explain", "rollout replay"),
        (Reach.RESOURCES, ""),
    ),
    **dict.fromkeys(
        ("key create", "key list", "key revoke", "quota set", "quota list", "quota remove", "usage",
         "log show", "log list", "log export", "log erase", "probe show", "drift status", "drift explain", "drift ack"),
        (Reach.CONTROLLER, ""),
    ),
    **dict.fromkeys(
        ("model register", "model list", "model show", "model alias", "model verify"), (Reach.ANYWHERE, _REGISTRY)
    ),
    **dict.fromkeys(("guard test", "guard eval", "schema"), (Reach.ANYWHERE, _NO_PLATFORM)),
    "monitor export": (Reach.ANYWHERE, f"{_NO_PLATFORM}; on a cluster the chart brings what it writes"),
    "k8s render": (Reach.ANYWHERE, f"{_NO_PLATFORM}, and no cluster: it prints what Helm would apply"),
    "up": (Reach.MACHINE, "starts a platform on this machine; on a cluster: `helm install`, see docs/kubernetes.md"),
    "down": (Reach.MACHINE, "stops this machine's platform; on a cluster: `helm uninstall`, see docs/kubernetes.md"),
    "status": (
        Reach.MACHINE,
        "tells of the platform on this machine; on a cluster: `tidegate rollout list -n NAMESPACE` tells of models, "
        "`kubectl get pods -l app.kubernetes.io/name=tidegate` of processes",
    ),
    "doctor": (Reach.MACHINE, "looks at this machine; on a cluster: `helm test RELEASE`"),
    "logs": (
        Reach.MACHINE,
        "shows logs on this machine; on a cluster: `kubectl logs -l app.kubernetes.io/component=controller`",
    ),
    **dict.fromkeys(
        ("drift reference build", "drift reference refresh", "drift reference show", "drift reference list",
         "drift reference remove"),
        (Reach.MACHINE, _DRIFT),
    ),
    "probe run": (Reach.MACHINE, _PROBE),
    "log replay": (Reach.MACHINE, _REPLAY),
}  # fmt: skip
"""Every command: how it reaches a cluster, and for those that don't, why and what does."""

_OTHER_N = frozenset({"logs", "k8s render"})
"""Commands whose own `-n` means something else."""


def refusal(argv: Sequence[str], *, plugin: bool) -> str | None:
    """Why a command line can't be meant so, or None.

    >>> refusal(["doctor", "--context", "prod"], plugin=False)
    '`tidegate doctor` looks at this machine; on a cluster: `helm test RELEASE`'
    """
    command = _command(argv)
    if command is None:
        return None
    reach, why = COMMANDS[command]
    named = _names_a_cluster(argv, but_n=command in _OTHER_N)
    if (reach is Reach.MACHINE and (named or plugin)) or (reach is Reach.ANYWHERE and named):
        return f"`tidegate {command}` {why}"
    return None


def _command(argv: Sequence[str]) -> str | None:
    words = [word for word in argv[:3] if not word.startswith("-")]
    tried = (" ".join(words[:count]) for count in range(len(words), 0, -1))
    return next((found for found in tried if found in COMMANDS), None)


def _names_a_cluster(argv: Sequence[str], *, but_n: bool) -> bool:
    flags = {word.partition("=")[0] for word in argv}
    return not flags.isdisjoint({"--context", "--release-namespace", *(() if but_n else ("-n", "--namespace"))})
