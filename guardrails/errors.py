"""Errors of the guardrails.

    GuardrailError
    +-- InvalidPolicy          a policy with faults; all of them are listed (fix the policy)
    +-- UnknownCheck           a plug-in or policy named a check that is not there
    +-- CheckFailed            a check could not be run; its verdict is `error`
        +-- CheckUnavailable       the service behind it could not be reached, or its circuit is open (retryable)
        +-- CheckTimedOut          no answer within its time budget (retryable)
        +-- CheckOverloaded        too many texts are waiting for it (retryable)
        +-- NonsenseAnswer         it answered something that is no verdict

Messages name the value, the limit and the way out. They never carry the text that was checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class GuardrailError(Exception):
    """Base of every error that the guardrails raise. `retryable`: the same call may succeed later."""

    retryable: ClassVar[bool] = False


class InvalidPolicy(GuardrailError):
    """A policy with faults. `faults` has one line for each, beginning with the place in the file."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("the guardrail policy is not valid: " + "; ".join(self.faults))


class UnknownCheck(GuardrailError):
    """A check of that name is not there."""


class CheckFailed(GuardrailError):
    """A check could not be run, so nothing is known about the text."""


class CheckUnavailable(CheckFailed):
    """The service behind the check could not be reached."""

    retryable = True


class CheckTimedOut(CheckFailed):
    """The check did not answer within its time budget."""

    retryable = True


class CheckOverloaded(CheckFailed):
    """Too many texts are waiting for the check."""

    retryable = True


class NonsenseAnswer(CheckFailed):
    """The check answered something that is no verdict."""
