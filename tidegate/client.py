"""A typed client of the control plane's API, for the command line, the supervisor and scripts."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from rollout.probes.base import ProbeReport
from tidegate.errors import ControlError, ControlUnavailable
from tidegate.replies import (
    CommandReply,
    HistoryEntry,
    Key,
    ModelStatus,
    NewKey,
    PlatformStatus,
    Quota,
    ReplayedDecision,
    RolloutStatus,
    Usage,
)
from tidegate.settings import Settings

ANSWER_TIMEOUT_S = 30.0
"""A command waits for one commit to the event log; loading a version's manifest may take seconds."""
SILENCE_S = 60.0
"""An event stream that is silent for so long is dead: a sign of life is due every 15 s."""
HISTORY_PAGE = 2000


R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class Order:
    """The arguments of a verb."""

    reason: str = ""
    full: bool = False
    version: str | None = None
    dry_run: bool = False
    wait_s: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where a control plane is, in words, and what helps there."""

    name: str
    if_away: str
    if_key_unknown: str
    log: str


class ControlClient:
    """Talks to the control plane of one platform. Use it as a context manager.

    Args:
        base_url: where the control plane answers.
        token: the bearer token, "" for none.
        actor: who asks; goes into the event log.
        transport: for tests; None means the network.
    """

    def __init__(
        self, base_url: str, token: str = "", actor: str = "", transport: httpx.BaseTransport | None = None
    ) -> None:
        headers = {"X-Tidegate-Actor": actor or user_name()}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._place = Place(
            name=f"the control plane at {base_url}",
            if_away="`tidegate up` starts it, `tidegate logs controller` shows why it stopped",
            if_key_unknown="use the TIDEGATE_HOME that it was started with, or put your key into TIDEGATE_KEY",
            log="`tidegate logs controller`",
        )
        self._http = httpx.Client(
            base_url=base_url, headers=headers, timeout=ANSWER_TIMEOUT_S, transport=transport, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ------------------------------------------------------------------------------------------------ questions

    def healthy(self) -> bool:
        """Whether it answers at all."""
        try:
            return self._http.get("/healthz", timeout=2.0).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def platform(self) -> PlatformStatus:
        """The controller, the gateways it knows, and Ray."""
        return self._read(PlatformStatus, self._call("GET", "/api/v1/status"))

    def models(self) -> tuple[ModelStatus, ...]:
        """Every model that is deployed or was."""
        return self._list(ModelStatus, self._call("GET", "/api/v1/models"), "models")

    def rollouts(self) -> tuple[RolloutStatus, ...]:
        """The status of every model."""
        return self._list(RolloutStatus, self._call("GET", "/api/v1/rollouts"), "rollouts")

    def rollout(self, model: str) -> RolloutStatus:
        """The status of one model."""
        return self._read(RolloutStatus, self._call("GET", f"/api/v1/rollouts/{model}"))

    def history(self, model: str, *, evidence: bool = False) -> tuple[HistoryEntry, ...]:
        """The event log of one model in order; with `evidence` also what gateways reported."""
        found: tuple[HistoryEntry, ...] = ()
        after: object = 0
        while after is not None:
            params = {"evidence": str(evidence).lower(), "after": str(after), "limit": str(HISTORY_PAGE)}
            page = self._call("GET", f"/api/v1/rollouts/{model}/history", params=params)
            found += self._list(HistoryEntry, page, "entries")
            after = page.get("next_after")
        return found

    def replay(self, model: str) -> tuple[ReplayedDecision, ...]:
        """Every recorded decision, taken again by today's code."""
        return self._list(ReplayedDecision, self._call("GET", f"/api/v1/rollouts/{model}/replay"), "decisions")

    def events(self, model: str | None = None) -> Iterator[RolloutStatus]:
        """Statuses as they change, the present ones first, until the control plane closes or the caller stops.

        Args:
            model: whom to follow; None means every model.

        Raises:
            ControlUnavailable: the stream broke; open it again, it begins with what is then.
        """
        params = {} if model is None else {"model": model}
        timeout = httpx.Timeout(5.0, read=SILENCE_S)
        try:
            with self._http.stream("GET", "/api/v1/events", params=params, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise self._refusal(response)
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        yield self._read(RolloutStatus, json.loads(line[5:]))
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise self._away(error) from error

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the rollout spec that this control plane takes."""
        return self._call("GET", "/api/v1/schema")

    # ------------------------------------------------------------------------------------------- keys and usage

    def create_key(self, **fields: Any) -> NewKey:  # noqa: ANN401 - forwarded; the control plane validates
        """Make a key; the fields are those of `POST /api/v1/keys`."""
        body = {name: value for name, value in fields.items() if value is not None}
        return self._read(NewKey, self._call("POST", "/api/v1/keys", body=body))

    def keys(self) -> tuple[Key, ...]:
        """Every key, oldest first, revoked and expired ones too."""
        return self._list(Key, self._call("GET", "/api/v1/keys"), "keys")

    def revoke_key(self, key_id: str) -> Key:
        """Revoke a key; again does nothing."""
        found = self._call("POST", f"/api/v1/keys/{quote(key_id, safe='')}/revoke")
        return self._read(Key, found.get("record"))

    def quotas(self) -> tuple[Quota, ...]:
        """What the keys of each namespace may use together."""
        return self._list(Quota, self._call("GET", "/api/v1/quotas"), "quotas")

    def set_quota(self, namespace: str, **limits: int | None) -> Quota:
        """Set all limits of a namespace; None means no limit. The names are those of `PUT /api/v1/quotas/NAMESPACE`."""
        found = self._call("PUT", f"/api/v1/quotas/{quote(namespace, safe='*')}", body=limits)
        return self._read(Quota, found.get("quota"))

    def remove_quota(self, namespace: str) -> Quota:
        """Let a namespace have no quota; returns the one it had."""
        found = self._call("DELETE", f"/api/v1/quotas/{quote(namespace, safe='*')}")
        return self._read(Quota, found.get("quota"))

    def usage(self, *, since: float, until: float | None = None, key: str = "", model: str = "") -> Usage:
        """Usage between two times (seconds since the epoch; None means now), summed by key, model and version."""
        given = {"since": since, "until": until, "key": key or None, "model": model or None}
        params = {name: str(value) for name, value in given.items() if value is not None}
        return self._read(Usage, self._call("GET", "/api/v1/usage", params=params))

    # ------------------------------------------------------------------------------------------------ request log

    def request(self, request_id: str) -> dict[str, Any]:
        """One logged request, by the id that its client or its engine was told."""
        found: dict[str, Any] = self._call("GET", f"/api/v1/requests/{quote(request_id, safe='')}")["request"]
        return found

    def requests(self, **wanted: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - forwarded; the control plane validates
        """The newest logged requests that are wanted, oldest first; the arguments of `GET /api/v1/requests`."""
        params = {name: str(value) for name, value in wanted.items() if value not in (None, "")}
        found: list[dict[str, Any]] = self._call("GET", "/api/v1/requests", params=params)["requests"]
        return found

    def erase_user(self, user: str) -> int:
        """Take a user's requests out of the log; how many lines that were."""
        return int(self._call("POST", "/api/v1/requests/erase", body={"user": user})["erased"])

    # ----------------------------------------------------------------------------------------------------- drift

    def drift(self) -> dict[str, Any]:
        """What the drift watch last knew."""
        found: dict[str, Any] = self._call("GET", "/api/v1/drift")["drift"]
        return found

    def acknowledge_drift(self, model: str, stream: str | None, reason: str) -> bool:
        """Acknowledge a model's alarms; False when the watch does not run and will take it in when it does."""
        body = {"model": model, "stream": stream, "reason": reason}
        return bool(self._call("POST", "/api/v1/drift/ack", body=body)["taken_in"])

    # ---------------------------------------------------------------------------------------------------- probes

    def probe_report(self, model: str, version: str) -> ProbeReport | None:
        """What bias probes last showed of a version, None when it was never probed."""
        try:
            found = self._call("GET", f"/api/v1/probes/{quote(model, safe='')}/{quote(version, safe='')}")
        except ControlError as error:
            if error.code == "not_probed":
                return None
            raise
        return self._read(ProbeReport, found.get("report"))

    def keep_probe_report(self, report: ProbeReport) -> None:
        """Keep what they showed now."""
        path = f"/api/v1/probes/{quote(report.model, safe='')}/{quote(report.version, safe='')}"
        self._call("PUT", path, body=report.model_dump(mode="json"))

    # ------------------------------------------------------------------------------------------------- commands

    def deploy(self, spec: Mapping[str, Any], *, reason: str = "", dry_run: bool = False) -> CommandReply:
        """Ask for a rollout. `spec` is the camelCase document of `rollout.yaml`."""
        params = {"dryRun": "true"} if dry_run else {}
        body = {"spec": dict(spec), "reason": reason}
        return self._read(CommandReply, self._call("POST", "/api/v1/rollouts", params=params, body=body))

    def command(
        self,
        model: str,
        verb: str,
        *,
        reason: str = "",
        full: bool = False,
        version: str | None = None,
        dry_run: bool = False,
        wait_s: float = 0.0,
    ) -> CommandReply:
        """Say an operator's verb: promote, pause, resume, abort, retry, undo, ack or rollback.

        With `wait_s`, a rollback or an abort waits so long for the gateways to confirm that traffic has left.
        """
        return self._say(model, verb, Order(reason, full, version, dry_run, wait_s))

    def _say(self, model: str, verb: str, order: Order) -> CommandReply:
        return self._read(CommandReply, self._call("POST", f"/api/v1/rollouts/{model}/{verb}", body=asdict(order)))

    # -------------------------------------------------------------------------------------------------- the wire

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, params=params, json=body)
        except httpx.HTTPError as error:
            raise self._away(error) from error
        if response.is_error:
            raise self._refusal(response)
        try:
            found = response.json()
        except ValueError as error:
            raise self._stranger("it does not speak JSON") from error
        if not isinstance(found, dict):
            raise self._stranger(f"it sent a {type(found).__name__}, not an object")
        return found

    def _read(self, kind: type[R], found: object) -> R:
        try:
            return kind.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise self._stranger(f"{where}: {first['msg']}") from error

    def _list(self, kind: type[R], found: Mapping[str, Any], key: str) -> tuple[R, ...]:
        return tuple(self._read(kind, item) for item in found.get(key, ()))

    def _away(self, error: Exception) -> ControlUnavailable:
        problem = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "does not answer"
        return ControlUnavailable(f"{self._place.name} {problem}; {self._place.if_away}", code="unavailable")

    def _stranger(self, problem: str) -> ControlError:
        return ControlError(
            f"{self._place.name} is not of this version ({problem}); look who holds the port, or restart what is older",
            code="protocol",
        )

    def _refusal(self, response: httpx.Response) -> ControlError:
        status = response.status_code
        try:
            told = response.json()["error"]
            message, code = str(told["message"]), str(told.get("code", ""))
            if status == httpx.codes.UNAUTHORIZED and code in ("unauthorized", "unknown_key"):
                message = f"{self._place.name} does not know this key; {self._place.if_key_unknown}"
            return ControlError(message, code=code, status=status)
        except (ValueError, KeyError, TypeError):
            return ControlError(
                f"{self._place.name} answered {status} without a reason; see {self._place.log}",
                code="protocol",
                status=status,
            )


def user_name() -> str:
    """Who runs this, for the event log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def read_token(settings: Settings) -> str:
    """The key in `$TIDEGATE_KEY`, else the bearer token of the local control plane; "" when there is none yet."""
    if key := os.environ.get("TIDEGATE_KEY", "").strip():
        return key
    try:
        return settings.credentials_file.read_text().strip()
    except OSError:
        return ""


def connect(settings: Settings) -> ControlClient:
    """A client of the local platform's control plane."""
    return ControlClient(settings.control_url, read_token(settings))
