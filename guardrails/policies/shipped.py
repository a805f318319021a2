"""The policies that come with Tidegate."""

from __future__ import annotations

import enum
from importlib import resources

from guardrails.checks.base import Catalogue
from guardrails.checks.catalogue import BUILT_IN
from guardrails.policy import Policy, parse_policy


class Shipped(enum.StrEnum):
    """Their names."""

    DEFAULT = "default"
    STANDARD = "standard"
    JUDGE = "judge"


def shipped_text(name: Shipped) -> str:
    """The YAML of one, as a start for one's own."""
    return resources.files("guardrails.policies").joinpath(f"{name.value}.yaml").read_text(encoding="utf-8")


def shipped_policy(name: Shipped, catalogue: Catalogue = BUILT_IN) -> Policy:
    """One of them, read."""
    return parse_policy(shipped_text(name), catalogue)
