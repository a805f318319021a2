"""How a person names a version: `chat`, `chat@1.3.0`, `chat@production`. Pure."""

from __future__ import annotations

import re

from registry.errors import InvalidRequest, InvalidVersion
from registry.models import Frozen, ModelName
from registry.semver import SemVer

MODEL_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""The pattern of `models.ModelName`, for those that have plain text in hand."""

_ALIAS = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,62}")


class Reference(Frozen):
    """A model and one of: an exact version, an alias, neither (what `production` points to)."""

    model: ModelName
    version: str | None = None
    alias: str | None = None


def is_model_name(text: str) -> bool:
    """Whether Tidegate can serve a model of this name (MLflow allows more names than DNS does)."""
    return MODEL_NAME.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Read `NAME`, `NAME@VERSION` or `NAME@ALIAS`.

    >>> parse_reference("chat@1.3.0").version, parse_reference("chat@candidate").alias
    ('1.3.0', 'candidate')

    Raises:
        InvalidVersion: it is none of the three.
    """
    name, at, rest = text.partition("@")
    if not is_model_name(name):
        raise InvalidVersion(
            f"model name {name[:80]!r} is not usable: lower-case letters, digits and dashes, at most 63 characters"
        )
    if not at:
        return Reference(model=name)
    if rest[:1].isdigit():
        return Reference(model=name, version=str(SemVer.parse(rest)))
    if _ALIAS.fullmatch(rest):
        return Reference(model=name, alias=rest)
    raise InvalidVersion(f"{text[:120]!r} names no version: write NAME@VERSION (chat@1.3.0) or NAME@ALIAS")


def check_alias(alias: str) -> None:
    """Check that a name can be an alias: a letter, then letters, digits, dashes and underscores; not a version.

    MLflow keeps `v1` and the like, and `latest`, for itself.

    Raises:
        InvalidRequest: it cannot.
    """
    if not _ALIAS.fullmatch(alias) or re.fullmatch(r"[vV][0-9]+", alias) or alias.lower() == "latest":
        raise InvalidRequest(
            f"alias {alias[:80]!r} cannot be used: a letter first, then letters, digits, - and _, at most 63, "
            "and neither latest nor v1, v2, ..., which MLflow keeps for itself"
        )
