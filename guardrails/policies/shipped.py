"""The policies that come with Tidegate."""

from __future__ import annotations

import enum
from pathlib import Path

from guardrails.checks.base import Catalogue
from guardrails.checks.catalogue import BUILT_IN
from guardrails.policy import Policy, parse_policy


class Shipped(enum.StrEnum):
    """Their names."""

    DEFAULT = "default"
    STANDARD = "standard"
    JUDGE = "judge"


def shipped_file(name: Shipped) -> Path:
    """Where one lies, as a start for one's own."""
    return Path(__file__).with_name(f"{name.value}.yaml")


def shipped_text(name: Shipped) -> str:
    """The YAML of one."""
    return shipped_file(name).read_text(encoding="utf-8")


def shipped_policy(name: Shipped, catalogue: Catalogue = BUILT_IN) -> Policy:
    """One of them, read."""
    return parse_policy(shipped_text(name), catalogue)
