"""Write the chart's copy of the rules, with marks in place of what values may change: `python scripts/chart_rules.py`.

`templates/monitoring.yaml` puts the numbers in. The marks are found by making the rules for levels that nobody has, so
a rule that is written another way can't be missed: a test makes the rules of several levels both ways.
"""

from __future__ import annotations

from pathlib import Path

from monitoring.rules.document import RUNBOOKS, rules_text
from monitoring.slo import BURN_ALERTS, Availability, FirstToken, ServiceLevels

FILE = Path(__file__).parent.parent / "helm" / "tidegate" / "files" / "tidegate.rules.yml"

AVAILABILITY, FIRST_TOKEN, WITHIN_S = 0.876543, 0.765431, 7.5
"""Numbers that occur nowhere else in the rules."""


def marks() -> dict[str, str]:
    """Each text that depends on a value, and the mark for it."""
    found = {
        f"promised for {AVAILABILITY * 100:g} %": "promised for @@availability@@ %",
        f"promised for {FIRST_TOKEN * 100:g} %": "promised for @@firstToken@@ %",
        f"within {WITHIN_S:g} s": "within @@seconds@@ s",
        f'le="{WITHIN_S!r}"': 'le="@@bucket@@"',
        f"{RUNBOOKS}/": "@@runbooks@@/",
    }
    for alert in BURN_ALERTS:
        for name, objective in (("availability", AVAILABILITY), ("firstToken", FIRST_TOKEN)):
            found[f"> {alert.threshold(objective):g} "] = f"> @@{name} {alert.factor:g}@@ "
    return found


def marked() -> str:
    """The rules with marks."""
    first_token = FirstToken(objective=FIRST_TOKEN, within_s=WITHIN_S)
    levels = ServiceLevels(availability=Availability(objective=AVAILABILITY), first_token=first_token)
    text = rules_text(levels)
    for given, mark in marks().items():
        if given not in text:
            raise ValueError(f"{given!r} is not in the rules any more; look at what they say in its place")
        text = text.replace(given, mark)
    return text


if __name__ == "__main__":
    FILE.write_text(marked(), encoding="utf-8")
