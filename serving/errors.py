"""Errors of the data plane.

    ServingError
    +-- InvalidTable          a traffic table that breaks its own rules (never retryable)
    +-- StaleGeneration       a table or command older than what is in force (drop it)
    +-- EngineStartFailed     the engine process ended or never answered (fix the version, then retry)
    +-- EndpointsUnavailable  the source of endpoints could not be asked (retry; keep the last set)
    +-- UpstreamError         the engine failed while answering
        +-- ConnectFailed         no connection could be made (nothing was sent)
        +-- ConnectionLost        the connection ended before the answer did
        +-- UpstreamTimeout       nothing arrived within the time allowed

Messages name the value, the limit and the way out. They never carry the text of a prompt or an answer.
"""

from __future__ import annotations


class ServingError(Exception):
    """Base of every error that serving raises."""

    retryable: bool = False


class InvalidTable(ServingError):
    """A traffic table whose weights, roles or names contradict each other."""


class StaleGeneration(ServingError):
    """Something older than what is already in force; the sender has lost its leadership."""


class EngineStartFailed(ServingError):
    """The engine of a revision could not be started."""


class EndpointsUnavailable(ServingError):
    """The source of endpoints could not be asked; the last known set stays in use."""

    retryable = True


class UpstreamError(ServingError):
    """The engine failed while it was answering."""

    retryable = True


class ConnectFailed(UpstreamError):
    """No connection to the endpoint could be made, so the request was never sent."""


class ConnectionLost(UpstreamError):
    """The endpoint closed the connection before its answer was complete."""


class UpstreamTimeout(UpstreamError):
    """The endpoint was silent for longer than the time allowed."""

    retryable = False
