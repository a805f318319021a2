"""Errors of the registry.

    RegistryError
    +-- InvalidRequest        what was asked for makes no sense (fix the command)
    |   +-- InvalidVersion        not a semantic version, or not a reference NAME@VERSION
    |   +-- InvalidPrompt         a prompt that cannot be baked into the chat template
    |   +-- InvalidPolicy         a guardrail policy that can't be put in force
    |   +-- NothingChanged        no bump can be derived: the version would answer like its parent
    +-- InvalidSource         the source cannot become a version (fix the source)
    |   +-- UnsafeFile            a pickle, code, or a link that leads out of the source
    |   +-- IncompleteSource      no weights, no configuration or no tokenizer
    |   +-- BrokenWeights         a safetensors file that is cut off or malformed
    |   +-- SourceUnreachable     the source's home did not answer (retryable)
    +-- UnknownModel          no registered model of that name
    +-- UnknownVersion        the model has no such version or alias
    +-- VersionExists         a version never changes once registered
    +-- Damaged               a registered file is not what its manifest says
    +-- NoSpace               the disk cannot hold the copy
    +-- RegistryBusy          locked by somebody else (retryable)
    +-- RegistryUnavailable   the registry or its artifacts could not be reached (retryable)

Messages name the value, the limit and the way out. They never carry the text of a prompt.
"""

from __future__ import annotations

from typing import ClassVar


class RegistryError(Exception):
    """Base of every error that the registry raises. `retryable`: the same call may succeed later."""

    retryable: ClassVar[bool] = False


class InvalidRequest(RegistryError):
    """What was asked for makes no sense; nothing was changed."""


class InvalidVersion(InvalidRequest):
    """Text that is neither a semantic version nor a reference to a version."""


class InvalidPrompt(InvalidRequest):
    """A prompt that cannot be baked into the model's chat template."""


class InvalidPolicy(InvalidRequest):
    """A guardrail policy that cannot be read."""


class NothingChanged(InvalidRequest):
    """The new version would answer exactly as its parent does, so no bump can be derived."""


class InvalidSource(RegistryError):
    """A source that cannot become a version."""


class UnsafeFile(InvalidSource):
    """A file that could run code when it is loaded, or a link that leads out of the source."""


class IncompleteSource(InvalidSource):
    """A source without weights, configuration or tokenizer."""


class BrokenWeights(InvalidSource):
    """A safetensors file that is cut off or malformed."""


class SourceUnreachable(InvalidSource):
    """The place that holds the source did not answer."""

    retryable = True


class UnknownModel(RegistryError):
    """No registered model of that name."""


class UnknownVersion(RegistryError):
    """The model has no such version or alias."""


class VersionExists(RegistryError):
    """The version is registered already, and a version never changes."""


class Damaged(RegistryError):
    """A registered file is not what its manifest says; the version must not be served.

    `path` is the file's path inside the version; `expected` and `found` are digests, sizes or "missing"/"no file".
    """

    def __init__(self, message: str, *, path: str = "", expected: str = "", found: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.expected = expected
        self.found = found


class NoSpace(RegistryError):
    """The disk cannot hold the copy that a registration makes."""


class RegistryBusy(RegistryError):
    """Somebody else holds the registry's lock or its database."""

    retryable = True


class RegistryUnavailable(RegistryError):
    """The registry, its database or its artifacts could not be reached."""

    retryable = True
