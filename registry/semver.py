"""Semantic versions (semver.org 2.0.0) and which number a change asks for. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from registry.errors import InvalidVersion, NothingChanged, VersionExists
from registry.models import Bump, Facets

MAX_LENGTH = 64
"""A version becomes part of application and object names, which are DNS labels of at most 63 characters."""

_NUMBER = r"0|[1-9][0-9]*"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
_PATTERN = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})"
    rf"(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?",
    re.ASCII,
)


@functools.total_ordering
@dataclass(frozen=True)
class SemVer:
    """One semantic version.

    Ordered by semver's precedence; versions that differ only in build metadata, which semver leaves unordered, are
    ordered by its text so that sorting is stable and agrees with equality.

    >>> SemVer.parse("1.0.0-rc.2") < SemVer.parse("1.0.0-rc.10") < SemVer.parse("1.0.0")
    True
    """

    major: int
    minor: int
    patch: int
    prerelease: tuple[str, ...] = ()
    build: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> SemVer:
        """Read `MAJOR.MINOR.PATCH[-PRERELEASE][+BUILD]`.

        Raises:
            InvalidVersion: anything else, or more than 64 characters.
        """
        match = _PATTERN.fullmatch(text) if len(text) <= MAX_LENGTH else None
        if match is None:
            raise InvalidVersion(
                f"version {text[:80]!r} is not semantic: write MAJOR.MINOR.PATCH, for instance 1.3.0 or 1.3.0-rc.1, "
                f"at most {MAX_LENGTH} characters"
            )
        major, minor, patch, prerelease, build = match.groups()
        return cls(
            int(major),
            int(minor),
            int(patch),
            tuple(prerelease.split(".")) if prerelease else (),
            tuple(build.split(".")) if build else (),
        )

    def __str__(self) -> str:
        text = f"{self.major}.{self.minor}.{self.patch}"
        if self.prerelease:
            text += "-" + ".".join(self.prerelease)
        if self.build:
            text += "+" + ".".join(self.build)
        return text

    def __lt__(self, other: SemVer) -> bool:
        return (self.precedence, self.build) < (other.precedence, other.build)

    @property
    def core(self) -> tuple[int, int, int]:
        """Major, minor and patch."""
        return self.major, self.minor, self.patch

    @property
    def precedence(self) -> tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...]]:
        """A key that sorts as semver.org section 11 says: a prerelease before its release, numbers before words."""
        parts = tuple((False, int(p), "") if p.isdigit() else (True, 0, p) for p in self.prerelease)
        return self.core, not self.prerelease, parts


FIRST = SemVer(1, 0, 0)
"""The number of a model's first version."""


def next_version(parent: SemVer, bump: Bump, existing: Collection[SemVer]) -> SemVer:
    """The lowest free number that raises `parent` by `bump`, above everything registered on the same line.

    >>> taken = [SemVer(1, 0, 0), SemVer(1, 0, 1), SemVer(1, 1, 0)]
    >>> str(next_version(SemVer(1, 0, 0), Bump.PATCH, taken)), str(next_version(SemVer(1, 0, 0), Bump.MINOR, taken))
    ('1.0.2', '1.2.0')
    """
    known = {*existing, parent}
    match bump:
        case Bump.PATCH:
            line = [v.patch for v in known if (v.major, v.minor) == (parent.major, parent.minor)]
            return SemVer(parent.major, parent.minor, max(line) + 1)
        case Bump.MINOR:
            line = [v.minor for v in known if v.major == parent.major]
            return SemVer(parent.major, max(line) + 1, 0)
        case Bump.MAJOR:
            return SemVer(max(v.major for v in known) + 1, 0, 0)
        case _:
            assert_never(bump)


class Derived(NamedTuple):
    """A bump and, in words for people, all that changed."""

    bump: Bump
    reason: str


def derive_bump(old: Facets, new: Facets) -> Derived:
    """Which part of the number a change asks for, and why.

    Architecture or tokenizer: MAJOR (clients' token counts and limits move). Weights of the same architecture:
    MINOR. Prompt, generation settings, engine arguments or policy: PATCH. The strongest wins; the reason names all,
    strongest first.

    Raises:
        NothingChanged: the new version would answer exactly as the old one does.
    """
    changes: list[Derived] = []
    if old.architecture != new.architecture:
        changes.append(Derived(Bump.MAJOR, "the architecture changed"))
    if old.tokenizer != new.tokenizer:
        changes.append(Derived(Bump.MAJOR, "the tokenizer changed"))
    if old.weights != new.weights:
        changes.append(Derived(Bump.MINOR, "the weights changed"))
    if old.prompt != new.prompt:
        changes.append(Derived(Bump.PATCH, _presence("the prompt", old.prompt, new.prompt)))
    if settings := _differences(old.generation, new.generation):
        changes.append(Derived(Bump.PATCH, f"the generation settings changed ({settings})"))
    if settings := _differences(old.engine_args, new.engine_args):
        changes.append(Derived(Bump.PATCH, f"the engine arguments changed ({settings})"))
    if old.policy != new.policy:
        changes.append(Derived(Bump.PATCH, _presence("the guardrail policy", old.policy, new.policy)))
    if not changes:
        raise NothingChanged(
            "nothing that decides answers changed: architecture, tokenizer, weights, prompt, generation settings, "
            "engine arguments and policy are all the same; change one of them, or force a number with --bump or "
            "--version"
        )
    return Derived(changes[0].bump, "; ".join(change.reason for change in changes))


def _presence(what: str, old: str, new: str) -> str:
    if not old:
        return f"{what} was added"
    return f"{what} changed" if new else f"{what} was removed"


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    return ", ".join(f"{k}: {_shown(old.get(k))} -> {_shown(new.get(k))}" for k in keys)


def _shown(value: str | None, limit: int = 40) -> str:
    if value is None:
        return "default"
    return value if len(value) <= limit else value[: limit - 3] + "..."


class Numbered(NamedTuple):
    """The number of a version that is about to be registered; `bump` is None where nothing was compared."""

    version: SemVer
    bump: Bump | None
    reason: str


def number_version(
    *,
    model: str,
    version: SemVer | None,
    bump: Bump | None,
    new: Facets,
    parent: tuple[SemVer, Facets] | None,
    existing: Collection[SemVer],
) -> Numbered:
    """Number a new version: by hand (`version`), by a given `bump`, or by what changed against `parent`.

    Raises:
        VersionExists: `version` is taken.
        NothingChanged: neither `version` nor `bump` is given, and nothing changed.
    """
    refuse_taken(model, version, existing)
    if parent is None:
        return Numbered(version or FIRST, None, "the first version" if version is None else "the number was given")
    number, facets = parent
    try:
        derived = derive_bump(facets, new)
    except NothingChanged as error:
        if version is None and bump is None:
            raise NothingChanged(f"{model}@{number} and the new version are the same: {error}") from error
        derived = None
    seen = f"against {number}: {derived.reason if derived else 'nothing that decides answers changed'}"
    if version is not None:
        return Numbered(version, derived.bump if derived else None, f"the number was given; {seen}")
    if bump is not None:
        return Numbered(next_version(number, bump, existing), bump, f"the bump was given; {seen}")
    assert derived is not None
    return Numbered(next_version(number, derived.bump, existing), derived.bump, seen)


def refuse_taken(model: str, version: SemVer | None, existing: Collection[SemVer]) -> None:
    """Refuse a number that is taken.

    Raises:
        VersionExists: a version never changes once registered.
    """
    if version is not None and version in existing:
        raise VersionExists(
            f"{model}@{version} is registered already, and a version never changes; the highest is {max(existing)}: "
            "take another number, or leave it out and let --bump auto find one"
        )
