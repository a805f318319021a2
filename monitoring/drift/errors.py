"""What can go wrong around a reference or a saved state.

    DriftError
        TooFewRequests      not enough rows for what was asked; says how many there must be
        UnusableVectors     vectors of a wrong shape, or with values that are not numbers
        DamagedReference    a stored reference that can't be read, or whose digest is not that of its content
        ForeignState        a saved state that belongs to another reference
None of them is worth a retry with the same input.
"""

from __future__ import annotations


class DriftError(Exception):
    """Anything that the drift detectors refuse."""


class TooFewRequests(DriftError):
    """The window or data set is too small."""


class UnusableVectors(DriftError):
    """The vectors have a wrong shape or are not finite."""


class DamagedReference(DriftError):
    """What was stored is not a whole reference."""


class ForeignState(DriftError):
    """The state was saved with another reference."""
