"""The Secrets that a release makes for itself: `python -m rollout.operator.first_secrets PLAN.json`. Shell.

A Job of the chart runs it. What is missing is made from chance; what is there stays, so that nothing is ever rotated by
accident. Chosen over values (they end in the release's record and in shell histories) and over Helm's `lookup` with
`randAlphaNum` (empty under `helm template` and Argo CD, where every synchronisation would make a new password). No
value is ever printed.
"""

from __future__ import annotations

import base64
import enum
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol, assert_never

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from serving.keys import ID_CHARS, write_key

REQUEST_TIMEOUT_S = 10.0
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Entry = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,253}$")]


class Make(enum.StrEnum):
    """How a value comes about."""

    TOKEN = "token"  # noqa: S105 - the kind, no token
    """256 bits of chance, in characters that need no escape in a URL."""
    GATEWAY_KEY = "gateway-key"
    """An API key as serving/keys.py writes it."""


class SecretPlan(BaseModel):
    """One Secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    make: Mapping[Entry, Make]
    compose: Mapping[Entry, str] = Field(default={}, description="Text in which {entry} stands for another entry.")
    copy_to: tuple[Name, ...] = Field(default=(), description="Further namespaces that need the very same one.")


class Plan(BaseModel):
    """Everything that a release needs and nobody has brought."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespace: Name
    labels: Mapping[str, str] = {}
    secrets: tuple[SecretPlan, ...]


class Secrets(Protocol):
    """The Secrets of a cluster, as far as the plan goes."""

    def read(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """What one holds; None when there is none of that name."""
        ...

    def create(self, namespace: str, name: str, values: Mapping[str, str]) -> None:
        """Make one."""
        ...

    def write(self, namespace: str, name: str, values: Mapping[str, str]) -> None:
        """Write entries of one; the others stay."""
        ...


def missing(plan: SecretPlan, found: Mapping[str, str] | None, fresh: Callable[[Make], str]) -> dict[str, str]:
    """The entries that a Secret lacks, with values. Pure but for `fresh`.

    Composed ones are made of what is there, so that a password that was found is the one in the URL.

    Raises:
        KeyError: a composed entry names one that is not made.
    """
    there = dict(found or {})
    new = {entry: fresh(how) for entry, how in plan.make.items() if entry not in there}
    there |= new
    for entry, text in plan.compose.items():
        if entry not in there:
            new[entry] = text.format_map(there)
    return new


def fresh_value(how: Make) -> str:
    """A new value from the kernel's chance."""
    match how:
        case Make.TOKEN:
            return secrets.token_urlsafe(32)
        case Make.GATEWAY_KEY:
            key_id = "".join(secrets.choice(ALPHABET) for _ in range(ID_CHARS))
            return write_key(key_id, secrets.token_urlsafe(32))
        case _:
            assert_never(how)


def bring_about(plan: Plan, there: Secrets, fresh: Callable[[Make], str] = fresh_value) -> list[str]:
    """Make what is missing; returns what was done, for people, without any value."""
    said: list[str] = []
    for wanted in plan.secrets:
        found = there.read(plan.namespace, wanted.name)
        new = missing(wanted, found, fresh)
        said.append(_write(there, plan.namespace, wanted.name, found, new))
        values = dict(found or {}) | new
        for namespace in wanted.copy_to:
            copy = there.read(namespace, wanted.name)
            differs = {e: v for e, v in values.items() if (copy or {}).get(e) != v}
            said.append(_write(there, namespace, wanted.name, copy, differs))
    return said


def _write(there: Secrets, namespace: str, name: str, found: Mapping[str, str] | None, new: dict[str, str]) -> str:
    place = f"secret {namespace}/{name}"
    if found is None:
        there.create(namespace, name, new)
        return f"{place}: made, with {', '.join(sorted(new))}"
    if new:
        there.write(namespace, name, new)
        return f"{place}: {', '.join(sorted(new))} written, the rest left as it was"
    return f"{place}: complete, left as it was"


class ClusterSecrets:
    """The Secrets as the API server has them."""

    def __init__(self, api: client.CoreV1Api, labels: Mapping[str, str]) -> None:
        self._api = api
        self._labels = dict(labels)

    def read(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """See `Secrets.read`."""
        try:
            found = self._api.read_namespaced_secret(name, namespace, _request_timeout=REQUEST_TIMEOUT_S)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return {entry: base64.b64decode(value).decode() for entry, value in (found.data or {}).items()}

    def create(self, namespace: str, name: str, values: Mapping[str, str]) -> None:
        """See `Secrets.create`."""
        about = client.V1ObjectMeta(name=name, labels=self._labels)
        body = client.V1Secret(metadata=about, data=_encoded(values))
        self._api.create_namespaced_secret(namespace, body, _request_timeout=REQUEST_TIMEOUT_S)

    def write(self, namespace: str, name: str, values: Mapping[str, str]) -> None:
        """See `Secrets.write`."""
        body = {"data": _encoded(values)}
        self._api.patch_namespaced_secret(name, namespace, body, _request_timeout=REQUEST_TIMEOUT_S)


def _encoded(values: Mapping[str, str]) -> dict[str, str]:
    return {entry: base64.b64encode(value.encode()).decode() for entry, value in values.items()}


def main(arguments: Sequence[str]) -> int:
    """The process. Returns 0, 1 when the API server refuses, 2 for a plan that can't be read."""
    try:
        plan = Plan.model_validate(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    except (IndexError, OSError, ValueError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        print(f"first_secrets: the plan can't be read ({told}); name the file that the chart mounts", file=sys.stderr)
        return 2
    config.load_incluster_config()  # type: ignore[no-untyped-call]
    try:
        said = bring_about(plan, ClusterSecrets(client.CoreV1Api(), plan.labels))
    except ApiException as error:
        print(f"first_secrets: the API server says {error.status} {error.reason}; see the Job's Role", file=sys.stderr)
        return 1
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
