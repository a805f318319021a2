"""The rules as Prometheus reads them. `python -m monitoring.rules.document` renews the file in this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from monitoring.rules.alerts import Alert, alert_rules
from monitoring.rules.recording import recording_rules
from monitoring.slo import ServiceLevels

RUNBOOKS = "docs/runbooks"
"""Where runbooks are unless told otherwise: in the project's own tree."""

RULES_FILE = Path(__file__).with_name("tidegate.rules.yml")


def _alert(alert: Alert, runbooks: str) -> dict[str, Any]:
    labels = {"severity": alert.severity.value} | ({"kind": alert.kind} if alert.kind else {})
    return {
        "alert": alert.name,
        "expr": alert.expr,
        **({"for": alert.hold} if alert.hold else {}),
        "labels": labels,
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{runbooks.rstrip('/')}/{alert.name}.md",
        },
    }


def rules_document(levels: ServiceLevels, runbooks: str = RUNBOOKS) -> dict[str, Any]:
    """The rule file as plain data.

    Args:
        levels: What is promised.
        runbooks: A folder or an address that `runbook_url` begins with.
    """
    recorded = [{"record": r.record, "expr": r.expr} for r in recording_rules(levels)]
    alerts = [_alert(a, runbooks) for a in alert_rules(levels)]
    return {
        "groups": [
            {"name": "tidegate-recording", "interval": "30s", "rules": recorded},
            {"name": "tidegate-alerts", "interval": "30s", "rules": alerts},
        ]
    }


def rules_text(levels: ServiceLevels, runbooks: str = RUNBOOKS) -> str:
    """The rule file."""
    head = "# Written by monitoring/rules; `python -m monitoring.rules.document` renews it.\n"
    return head + yaml.safe_dump(rules_document(levels, runbooks), sort_keys=False, width=10_000, allow_unicode=True)


if __name__ == "__main__":
    RULES_FILE.write_text(rules_text(ServiceLevels()), encoding="utf-8")
