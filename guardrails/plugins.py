"""Checks of others: packages that name a `CheckKind` under the entry point group `tidegate.checks`.

[project.entry-points."tidegate.checks"]
no-shouting = "my_package.shouting:NO_SHOUTING"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from guardrails.checks.base import Catalogue, CheckKind
from guardrails.checks.catalogue import BUILT_IN
from guardrails.errors import UnknownCheck

GROUP = "tidegate.checks"


def installed_catalogue(found: tuple[EntryPoint, ...] | None = None) -> Catalogue:
    """The built-in kinds and those of installed packages.

    Raises:
        UnknownCheck: a package's entry point can't be loaded, is no `CheckKind`, or takes a name that is taken.
    """
    kinds = dict(BUILT_IN)
    for entry in tuple(entry_points(group=GROUP)) if found is None else found:
        try:
            kind = entry.load()
        except Exception as error:
            raise UnknownCheck(
                f"the check {entry.name!r} ({entry.value}) can't be loaded: {type(error).__name__};"
                " mend or uninstall its package"
            ) from error
        if not isinstance(kind, CheckKind):
            raise UnknownCheck(f"{entry.value} is a {type(kind).__name__}, not a CheckKind; see docs/guardrails.md")
        if kind.name in kinds:
            raise UnknownCheck(
                f"the check {kind.name!r} ({entry.value}) takes a name that is taken; give it another one"
            )
        kinds[kind.name] = kind
    return kinds
