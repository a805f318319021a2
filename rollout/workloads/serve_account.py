"""How Ray Serve's account of an application is read (`GET /api/serve/applications/`). Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from rollout.workloads.base import WorkloadState, WorkloadStatus
from rollout.workloads.serve_config import DEPLOYMENT

MESSAGE_LIMIT = 600
"""Longest message of a status, in characters."""
REPLICAS_REMEMBERED = 1000

_OUR_LINE = re.compile(r"EngineStartFailed: (?P<line>.*)")
_EXCEPTION_LINE = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Failed): .+$", re.M)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
PERMANENT = "[permanent]"


class Deaths:
    """Which replicas have died, by application: Serve tells only of the recent ones."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}

    def of(self, application: str) -> int:
        """How many are known."""
        return len(self._known.get(application, ()))

    def note(self, application: str, details: Mapping[str, Any]) -> int:
        """Remember those that an account names; returns how many are known now."""
        dead = self._known.setdefault(application, set())
        if len(dead) < REPLICAS_REMEMBERED:
            deployment = (details.get("deployments") or {}).get(DEPLOYMENT) or {}
            dead.update(str(r.get("replica_id")) for r in deployment.get("recent_dead_replicas") or ())
        return len(dead)

    def keep(self, applications: Collection[str]) -> None:
        """Forget every other application."""
        for gone in self._known.keys() - set(applications):
            del self._known[gone]


def status_of(name: str, details: Mapping[str, Any], deaths: Deaths) -> WorkloadStatus:
    """What Serve says of one application, in our words."""
    deployment = (details.get("deployments") or {}).get(DEPLOYMENT) or {}
    dead = deaths.note(name, details)
    ready = sum(r.get("state") == "RUNNING" for r in deployment.get("replicas") or ())
    text = "\n".join(filter(None, (deployment.get("message"), details.get("message"))))
    target = int(deployment.get("target_num_replicas") or 0)
    state = state_of(str(details.get("status")), ready, target, text, restarted=bool(dead))
    message = "" if state is WorkloadState.READY else telling_line(text)
    return WorkloadStatus(application=name, state=state, ready_replicas=ready, restarts=dead, message=message)


def state_of(status: str, ready: int, target: int, text: str, *, restarted: bool) -> WorkloadState:
    """The state behind one of Serve's words for it.

    Args:
        status: Serve's word.
        ready: how many replicas answer.
        target: how many there should be.
        text: what Serve says of it.
        restarted: whether one has died before.

    """
    match status:
        case "DELETING":
            return WorkloadState.STOPPING
        case "DEPLOY_FAILED":
            # With a replica left that answers, traffic need not be taken from it.
            return WorkloadState.DEGRADED if ready else WorkloadState.FAILED
        case "RUNNING" if ready >= max(target, 1):
            return WorkloadState.READY
        case "RUNNING" | "UNHEALTHY":
            return WorkloadState.DEGRADED
        case _ if ready == 0 and PERMANENT in text:
            # Serve would try again; the engine has said that this can't help.
            return WorkloadState.FAILED
        case _:
            return WorkloadState.DEGRADED if ready and restarted else WorkloadState.STARTING


def telling_line(text: str) -> str:
    r"""The one line of a message of Serve's that an operator needs: ours if it is there, else the last exception.

    >>> telling_line("Traceback...\nserving.errors.EngineStartFailed: no memory left [permanent]\nmore")
    'no memory left'
    """
    clean = _COLOURS.sub("", text)
    ours = [m.group("line") for m in _OUR_LINE.finditer(clean)]
    if ours:
        line = ours[-1]
    else:
        found = _EXCEPTION_LINE.findall(clean)
        lines = clean.strip().splitlines()
        line = found[-1] if found else (lines[-1] if lines else "")
    return line.removesuffix(PERMANENT).strip()[:MESSAGE_LIMIT]
