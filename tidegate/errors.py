"""Errors of the composition root: the command line, the supervisor, the control plane's client.

    TidegateError
    +-- WrongUse             the command can't mean anything as it was written (exit 2)
    +-- StartFailed          the local platform, or a part of it, did not come up
    +-- AlreadyRunning       another supervisor owns this home, with another configuration
    +-- NotRunning           the local platform is not up
    +-- ControlError         the control plane refused (carries its code and HTTP status)
        +-- ControlUnavailable   it did not answer at all (start it, then retry)

Each message is one line: value, limit, way out.
"""

from __future__ import annotations


class TidegateError(Exception):
    """Base of every error that the composition root raises."""

    retryable: bool = False
    exit_code: int = 1


class WrongUse(TidegateError):
    """A command line that contradicts itself or names what does not exist yet."""

    exit_code = 2


class StartFailed(TidegateError):
    """The platform or one of its parts did not come up."""


class AlreadyRunning(TidegateError):
    """Another supervisor owns this home, and what it runs differs from what was asked for."""


class NotRunning(TidegateError):
    """The local platform is not up."""


class ControlError(TidegateError):
    """The control plane refused.

    Attributes:
        code: its machine-readable reason, for instance `quarantined`.
        status: the HTTP status, 0 when there was none.
    """

    def __init__(self, message: str, code: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class ControlUnavailable(ControlError):
    """The control plane did not answer."""

    retryable = True
