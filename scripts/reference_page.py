"""Write docs/reference.md: names that are promises, read off the code that keeps them.

`python scripts/reference_page.py`; a test compares the page with what this would write.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from monitoring.measurements import RequestOutcome
from rollout.actions import Trigger
from rollout.decision import Cause
from rollout.notifications.base import Happening
from rollout.schema import json_schema
from rollout.status import Phase, Stage
from serving.admission import Reason, Rejection
from serving.mirroring import MirrorResult
from serving.openai_protocol import rejection_reply
from serving.outcomes import Cause as RetryCause
from tidegate.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"

HEAD = """\
# Reference

Names, defaults and closed sets, written by `scripts/reference_page.py` from the code that reads them. What they are for
is told by [the pages](interface.md) that use them.
"""

SETS: tuple[tuple[str, str, type[enum.StrEnum]], ...] = (
    ("`outcome`", "`tidegate_requests_total`; the request log has `rejected` besides", RequestOutcome),
    ("`cause`", "`tidegate_retries_total`: why stable or another endpoint was asked", RetryCause),
    ("`result`", "`tidegate_mirrored_requests_total`", MirrorResult),
    ("`trigger`", "`tidegate_rollbacks_total`", Trigger),
    ("`phase`", "`tidegate_rollout_phase`, `status.phase`", Phase),
    ("`stage`", "`tidegate_rollout_info`, `rollout get -o json`", Stage),
    ("`cause`", "`tidegate_rollout_cause_info`, the audit trail", Cause),
    ("`events`", "webhooks", Happening),
)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_spec(), *_settings(), *_refusals(), *_sets()])


def _table(columns: tuple[str, ...], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
    yield ""


def _spec() -> Iterator[str]:
    yield "## Rollout spec\n"
    yield "A `rollout.yaml`, and the `spec` of a ModelDeployment; `strategy` has one key. `[]` marks the fields of a"
    yield "list's items. Durations stand here in seconds; write `30s`, `5m` or `1h`.\n"
    schema = json_schema()
    yield from _table(("field", "default", "what it says"), _fields(schema, schema["$defs"], ""))


def _fields(node: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    required = set(node.get("required", ()))
    for name, field in node.get("properties", {}).items():
        inner = _referred(field, defs)
        said = str(field.get("description") or inner.get("description") or "")
        values = [f"`{value}`" for value in inner.get("enum", ())]
        one_of = f"One of {', '.join(values)}." if values else ""
        default = "required" if name in required else _default(field)
        yield f"`{path}{name}`", default, " ".join([*said.split(), *([one_of] if one_of else [])])
        yield from _fields(inner, defs, f"{path}{name}{'[]' if 'items' in field else ''}.")


def _referred(field: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The definition behind a field, or behind its items."""
    for part in (field, field.get("items") or {}, *field.get("anyOf", ())):
        if "$ref" in part:
            found: Mapping[str, Any] = defs[part["$ref"].rpartition("/")[2]]
            return found
    return {}


def _default(field: Mapping[str, Any]) -> str:
    """A default that fits a cell; of an object its own fields tell."""
    value = field.get("default")
    match value:
        case None | {} | []:
            return ""
        case bool():
            return f"`{str(value).lower()}`"
        case int() | float() | str():
            return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
        case [{"weight": _}, *_]:
            return ", ".join(f"`{step['weight']}`" for step in value) + " %"
        case [{"name": _}, *_]:
            return ", ".join(f"`{signal['name']}`" for signal in value)
        case _:
            return ""


def _settings() -> Iterator[str]:
    yield "## Settings\n"
    yield "Of the local platform and the controller: in `$TIDEGATE_HOME/config.toml`, or as `TIDEGATE_` and the name in"
    yield "capitals.\n"
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default in (None, "", (), PydanticUndefined) else f"`{_plain(default)}`"
        rows.append((f"`{name}`", shown, field.description or ""))
    yield from _table(("setting", "default", "what it says"), rows)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _refusals() -> Iterator[str]:
    yield "## Refusals of the gateway\n"
    yield "`reason` is that of `tidegate_rejections_total` and the request log; the others are what the client gets.\n"
    yield from _table(("reason", "status", "type", "code"), map(_refusal, Reason))


def _refusal(reason: Reason) -> tuple[str, ...]:
    reply = rejection_reply(Rejection(reason, ""))
    error = json.loads(reply.body)["error"]
    return f"`{reason}`", str(reply.status), f"`{error['type']}`", f"`{error['code']}`"


def _sets() -> Iterator[str]:
    yield "## Closed sets\n"
    rows = ((name, where, ", ".join(f"`{value}`" for value in values)) for name, where, values in SETS)
    yield from _table(("name", "of", "values"), rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
