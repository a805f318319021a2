"""Errors of the rollout engine.

RolloutError
+-- InvalidSpec            the spec can't be carried out (fix it)
+-- UnknownRollout         no rollout of that model
+-- CommandRefused         the verb makes no sense in this state (says which would)
+-- Quarantined            the digest was condemned; `ack` releases it
+-- WorkloadUnavailable    the workload layer could not be asked (retry; nothing is concluded)
+-- WorkloadRejected       the workload layer refused what was asked (fix it)
+-- InsufficientCapacity   there is no room for a new version's replicas (make room, or try again)
+-- LogConflict            another writer was first, or the leadership is lost (load again)
+-- EventLogUnavailable    the store could not be reached (retry; nothing is decided meanwhile)
+-- NotLeading             this controller does not lead (retry, perhaps at another one)
+-- ClusterError           the Kubernetes API server did not do what was asked
|   +-- ClusterUnavailable     it could not be asked, or did not let us (retry; nothing is concluded)
|   +-- ClusterConflict        the object has changed meanwhile (read again, then retry)
|   +-- ClusterRejected        it refused what was asked (fix it)
|   +-- ResourceGone           there is no such object any more
+-- UnusableStore          the store's URL or schema can't be used (fix it)
"""

from __future__ import annotations


class RolloutError(Exception):
    """Base of every error that rollout raises."""

    retryable: bool = False


class InvalidSpec(RolloutError):
    """A rollout spec that contradicts itself or what is deployed."""


class UnknownRollout(RolloutError):
    """There is no rollout of that model."""


class CommandRefused(RolloutError):
    """An operator's command that makes no sense in the present state."""


class Quarantined(RolloutError):
    """The revision was condemned on evidence and has not been acknowledged yet."""


class WorkloadUnavailable(RolloutError):
    """The workload layer could not be asked; its state is unknown, which is not the same as bad."""

    retryable = True


class WorkloadRejected(RolloutError):
    """The workload layer refused what was asked of it."""


class InsufficientCapacity(RolloutError):
    """No machine has room for the replicas of a version that should be started. Nothing was started."""

    retryable = True


class LogConflict(RolloutError):
    """The event log moved on under this writer, or a newer leader holds the fence."""

    retryable = True


class EventLogUnavailable(RolloutError):
    """The store could not be reached, or did not answer in time.

    Whether what was being written is in it is unknown: who keeps a fold of the log must read on before it acts again.
    """

    retryable = True


class NotLeading(RolloutError):
    """Something was asked of a controller that does not lead."""

    retryable = True


class ClusterError(RolloutError):
    """The Kubernetes API server did not do what was asked of it."""


class ClusterUnavailable(ClusterError):
    """It could not be asked, is overloaded or broken. What was asked may be done or not.

    `retry_after_s`: how long it asked to be left alone; 0 when it did not say.
    """

    retryable = True

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class MissingRight(ClusterUnavailable):
    """A right is missing: nothing is known of what it is about, and it heals when the right is there."""


class ClusterConflict(ClusterError):
    """The resource has changed since it was read."""

    retryable = True


class ClusterRejected(ClusterError):
    """It refused what was sent, or a right is missing."""


class UndeclaredFields(ClusterRejected):
    """The resource's definition in the cluster does not know these fields: it is older than this release.

    `fields`: the outermost ones, by name.
    """

    def __init__(self, message: str, fields: frozenset[str]) -> None:
        super().__init__(message)
        self.fields = fields


class ResourceGone(ClusterError):
    """There is no such resource any more."""


class UnusableStore(RolloutError):
    """A store that no waiting makes usable: its URL is wrong, or a newer Tidegate has written it."""
