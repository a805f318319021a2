"""How a gateway runs guardrails: the policy where a version brings none, where models run, how much is observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.addresses import host_and_port


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """One gateway's guardrails. What a policy says is the policy's; this is what they may cost here."""

    default_policy: str = "default"
    """Where a version brings none: `default` (observes), `standard` (protects), `none`, or the path of a YAML file."""
    models: Literal["threads", "service"] = "threads"
    """`threads`: in this process, some 150 MB once a policy needs one. `service`: in the Ray Serve application
    `tidegate-guardrails`, which batches for all gateways and scales by itself, or where `service` says."""
    service: str = ""
    """Of a service that is none of our Ray's (`serving.guard_service`): `HOST:PORT`, a name with an address for each
    replica. Only with `models: service`."""
    threads: int = 1
    """Calls of models that run at once in this process; each takes a core while it runs."""
    batch_texts: int = 16
    """Texts in one call of a model at most."""
    waiting_texts: int = 256
    """Texts that may wait for models. With half as many waiting, requests that need them are refused before an engine
    is asked."""
    observe_share: float = 0.02
    """The most of this process's time that observing may take; what doesn't fit is not observed."""
    observe_waiting: int = 64
    """Answers that wait to be observed."""
    judge_share: float = 0.2
    """The same for judging a rollout's answers; there it decides how many are judged, not how."""
    judge_slots: int = 128
    """Requests that are to be judged and are not yet: whether there is room is decided at admission, so that it can't
    depend on the answer."""
    judge_within_s: float = 30.0
    """An answer not judged by then is not judged: no outcome waits for longer."""

    def __post_init__(self) -> None:
        if self.service:
            host_and_port(self.service)
            if self.models != "service":
                raise ValueError(
                    f"guard.service is {self.service!r} and guard.models {self.models!r}; say `service` there"
                )
