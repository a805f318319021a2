"""Who may do what: Roles and bindings, as rendered from a chart, put before every request.

A bearer token `system:serviceaccount:<namespace>:<name>` is that ServiceAccount; any other token is an administrator,
as which tests act. Who shows none is nobody and may do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
ACCOUNT = "system:serviceaccount:"
ANONYMOUS = "system:anonymous"


@dataclass(frozen=True)
class Request:
    """What is asked for, in RBAC's words."""

    verb: str
    group: str
    resource: str
    """With the subresource behind a slash."""
    namespace: str | None
    name: str


@dataclass(frozen=True)
class Grant:
    """One rule of a role, bound to a subject; in one namespace, or everywhere with None."""

    subject: str
    namespace: str | None
    rule: Object

    def allows(self, asked: Request) -> bool:
        rule = self.rule
        names = rule.get("resourceNames") or []
        # A list, a watch and a creation have no name that a rule could be held against.
        return (
            self.namespace in (None, asked.namespace)
            and bool({"*", asked.verb} & set(rule.get("verbs") or ()))
            and bool({"*", asked.group} & set(rule.get("apiGroups") or ()))
            and bool({"*", asked.resource} & set(rule.get("resources") or ()))
            and (not names or (asked.verb != "create" and asked.name in names))
        )


class Access:
    """The grants of a cluster, to ServiceAccounts."""

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self.grants = list(grants)

    def allows(self, user: str, asked: Request) -> bool:
        if user == ANONYMOUS:
            return False
        if not user.startswith(ACCOUNT):
            return True
        return any(g.subject == user and g.allows(asked) for g in self.grants)

    def revoke(self, verb: str, resource: str) -> list[Grant]:
        """Take one right from everybody; gives what `grants` was before, for putting it back."""
        before = list(self.grants)
        self.grants = [
            Grant(g.subject, g.namespace, {**g.rule, "verbs": [v for v in g.rule["verbs"] if v != verb]})
            if resource in g.rule.get("resources", ())
            else g
            for g in self.grants
        ]
        return before


def grants_in(manifests: Iterable[Object]) -> list[Grant]:
    """What a set of rendered manifests grants: its roles, as far as they are bound."""
    manifests = list(manifests)
    roles = {
        (m["kind"], m["metadata"].get("namespace", "") if m["kind"] == "Role" else "", m["metadata"]["name"]): m
        for m in manifests
        if m.get("kind") in ("Role", "ClusterRole")
    }
    found = []
    for binding in manifests:
        if binding.get("kind") not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        namespace = binding["metadata"].get("namespace") if binding["kind"] == "RoleBinding" else None
        kind, name = binding["roleRef"]["kind"], binding["roleRef"]["name"]
        role = roles.get((kind, (namespace or "") if kind == "Role" else "", name))
        for subject in binding.get("subjects") or ():
            if role is None or subject["kind"] != "ServiceAccount":
                continue
            user = f"{ACCOUNT}{subject.get('namespace', namespace)}:{subject['name']}"
            found += [Grant(user, namespace, rule) for rule in role.get("rules") or ()]
    return found
