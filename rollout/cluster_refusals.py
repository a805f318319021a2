"""What to do about what admission refuses: quotas, policies, a namespace that goes. Pure."""

from __future__ import annotations


def way_out(message: str) -> str:
    """The way out, by the API server's words.

    >>> way_out('pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1')
    'raise the ResourceQuota of the namespace, or ask for less (engine.resources, minReplicas)'
    """
    if "exceeded quota" in message:
        return "raise the ResourceQuota of the namespace, or ask for less (engine.resources, minReplicas)"
    if "failed quota" in message:  # one that limits a resource wants every pod to name it
        return "the namespace's ResourceQuota wants what it names in engine.resources"
    if "LimitRange" in message or "usage per" in message:
        return "correct engine.resources, or the namespace's LimitRange"
    if "violates PodSecurity" in message:
        return "the namespace's Pod Security level forbids it: a cache on the node's disk needs `privileged`"
    if "being terminated" in message:
        return "the namespace is being deleted; deploy into another one"
    return "put right what it names, and it goes on by itself"
