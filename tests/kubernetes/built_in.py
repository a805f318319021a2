"""What an API server checks of every object's metadata, and of the built-in kinds that are written here.

Word for word no copy: the rules of apimachinery's `ValidateObjectMeta` and of the kinds' own validation, as far as
something of ours could break them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

Object = dict[str, Any]
Causes = Iterator[tuple[str, str]]

SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
LABEL_1035 = re.compile(r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
LABEL_KEY = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")
MICRO_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)$")
"""Go reads it by the layout 2006-01-02T15:04:05.000000Z07:00, so six digits and neither fewer nor none."""
ANNOTATIONS_BYTES = 256 * 1024


def complaints(plural: str, found: Object) -> list[tuple[str, str]]:
    """What is wrong with an object, as (field, message)."""
    said = [*_metadata(found.get("metadata") or {})]
    if plural in KINDS:
        said += KINDS[plural](found)
    return said


def _metadata(meta: Object) -> Causes:
    name = str(meta.get("name") or "")
    if len(name) > 253 or not SUBDOMAIN.match(name):
        yield "metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 subdomain'
    for key, value in (meta.get("labels") or {}).items():
        if not LABEL_KEY.match(key):
            yield "metadata.labels", f'Invalid value: "{key}": name part must consist of alphanumeric characters'
        if not isinstance(value, str) or not LABEL_VALUE.match(value):
            yield "metadata.labels", f'Invalid value: "{value}": a valid label must be at most 63 of these characters'
    noted = meta.get("annotations") or {}
    if any(not isinstance(value, str) for value in noted.values()):
        yield "metadata.annotations", "Invalid value: not a string"
    elif sum(len(k.encode()) + len(v.encode()) for k, v in noted.items()) > ANNOTATIONS_BYTES:
        yield "metadata.annotations", "Too long: may not be more than 262144 bytes"
    if sum(bool(owner.get("controller")) for owner in meta.get("ownerReferences") or ()) > 1:
        yield "metadata.ownerReferences", "Invalid value: only one reference can have Controller set to true"


def _service(found: Object) -> Causes:
    if not LABEL_1035.match(found["metadata"]["name"]):
        yield "metadata.name", f'Invalid value: "{found["metadata"]["name"]}": a DNS-1035 label'


def _lease(found: Object) -> Causes:
    spec = found.get("spec") or {}
    for field in ("acquireTime", "renewTime"):
        if spec.get(field) is not None and not MICRO_TIME.match(str(spec[field])):
            yield f"spec.{field}", f'parsing time "{spec[field]}" as "2006-01-02T15:04:05.000000Z07:00": cannot parse'
    lasts = spec.get("leaseDurationSeconds")
    if lasts is not None and (not isinstance(lasts, int) or lasts <= 0):
        yield "spec.leaseDurationSeconds", f"Invalid value: {lasts}: must be greater than 0"


def _event(found: Object) -> Causes:
    about = found.get("involvedObject") or {}
    if about.get("namespace", "") != found["metadata"].get("namespace"):
        yield (
            "involvedObject.namespace",
            f'Invalid value: "{about.get("namespace", "")}": does not match event.namespace',
        )
    if found.get("eventTime") is not None and not MICRO_TIME.match(str(found["eventTime"])):
        yield "eventTime", f'parsing time "{found["eventTime"]}" as "2006-01-02T15:04:05.000000Z07:00": cannot parse'
    for field in ("firstTimestamp", "lastTimestamp"):
        if found.get(field) is not None and not TIME.match(str(found[field])):
            yield field, f'parsing time "{found[field]}" as "2006-01-02T15:04:05Z07:00": cannot parse'


def _budget(found: Object) -> Causes:
    spec = found.get("spec") or {}
    if ("minAvailable" in spec) == ("maxUnavailable" in spec):
        yield "spec", "Invalid value: minAvailable and maxUnavailable cannot be both set"


KINDS: dict[str, Callable[[Object], Causes]] = {
    "services": _service,
    "leases": _lease,
    "events": _event,
    "poddisruptionbudgets": _budget,
}
