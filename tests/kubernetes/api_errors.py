"""What the API server says when it refuses: a `Status` object, word for word what clients look for."""

from __future__ import annotations

from typing import Any

NO_PAGE = "404 page not found\n"
"""What is answered, as plain text, where there is no such resource at all."""
NO_RESOURCE = "the server could not find the requested resource"
"""What is answered where the API server's own group has no such resource."""


class Refused(Exception):
    """A request that ends with a `Status` instead of an object."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> dict[str, Any]:
        told = {"message": self.message, "reason": self.reason, "details": self.details, "code": self.code}
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        return status | {part: value for part, value in told.items() if value}


def _about(what: str, name: str) -> dict[str, Any]:
    """The details of a resource or kind that is written with its group: `leases.coordination.k8s.io`."""
    kind, _, group = what.partition(".")
    return {k: v for k, v in (("name", name), ("group", group), ("kind", kind)) if v}


def not_found(what: str, name: str) -> Refused:
    return Refused(404, "NotFound", f'{what} "{name}" not found', **_about(what, name))


def already_exists(what: str, name: str) -> Refused:
    return Refused(409, "AlreadyExists", f'{what} "{name}" already exists', **_about(what, name))


def conflict(what: str, name: str, why: str = "") -> Refused:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    return Refused(409, "Conflict", f'Operation cannot be fulfilled on {what} "{name}": {why}', **_about(what, name))


REASONS = {
    "Required value": "FieldValueRequired",
    "Forbidden": "FieldValueForbidden",
    "Unsupported value": "FieldValueNotSupported",
    "Duplicate value": "FieldValueDuplicate",
    "Too long": "FieldValueTooLong",
}


def invalid(kind: str, name: str, causes: list[tuple[str, str]]) -> Refused:
    """422 with one cause per field; `kind` with its group."""
    said = [f"{field}: {message}" for field, message in causes]
    text = said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    return Refused(
        422,
        "Invalid",
        f'{kind} "{name}" is invalid: {text}',
        **_about(kind, name),
        causes=[
            {"reason": REASONS.get(message.partition(":")[0], "FieldValueInvalid"), "message": message, "field": field}
            for field, message in causes
        ],
    )


def bad_request(message: str) -> Refused:
    return Refused(400, "BadRequest", message)


def gone(message: str = "The resourceVersion for the provided watch is too old.") -> Refused:
    return Refused(410, "Expired", message)


def forbidden(user: str, verb: str, resource: str, group: str, namespace: str | None, name: str) -> Refused:
    """403 for want of a right; `name` is the one in the URL, which a list and a creation have not."""
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    what = resource.partition("/")[0] + (f".{group}" if group else "")
    named = f' "{name}"' if name else ""
    return Refused(
        403,
        "Forbidden",
        f'{what}{named} is forbidden: User "{user}" cannot {verb} resource "{resource}" in API group "{group}" {where}',
        **_about(what, name),
    )
