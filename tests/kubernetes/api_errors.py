"""What the API server says when it refuses: a `Status` object, word for word what clients look for."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """A request that ends with a `Status` instead of an object."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }


def not_found(what: str, name: str) -> Refused:
    return Refused(404, "NotFound", f'{what} "{name}" not found', name=name, kind=what)


def already_exists(what: str, name: str) -> Refused:
    return Refused(409, "AlreadyExists", f'{what} "{name}" already exists', name=name, kind=what)


def conflict(what: str, name: str, why: str = "") -> Refused:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    return Refused(409, "Conflict", f'Operation cannot be fulfilled on {what} "{name}": {why}', name=name, kind=what)


def invalid(kind: str, name: str, causes: list[tuple[str, str]]) -> Refused:
    """422 with one cause per field."""
    said = [f"{field}: {message}" for field, message in causes]
    text = said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    return Refused(
        422,
        "Invalid",
        f'{kind} "{name}" is invalid: {text}',
        name=name,
        kind=kind,
        causes=[{"reason": "FieldValueInvalid", "message": message, "field": field} for field, message in causes],
    )


def bad_request(message: str) -> Refused:
    return Refused(400, "BadRequest", message)


def gone(message: str = "The resourceVersion for the provided watch is too old.") -> Refused:
    return Refused(410, "Expired", message)


def forbidden(user: str, verb: str, resource: str, group: str, namespace: str | None, name: str) -> Refused:
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    return Refused(
        403,
        "Forbidden",
        f'{resource} "{name}" is forbidden: User "{user}" cannot {verb} resource "{resource}" in API group "{group}" '
        f"{where}",
        name=name,
        kind=resource,
    )
