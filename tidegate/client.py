"""A typed client of the control plane's API, for the command line, the supervisor and scripts.

What comes back is read tolerantly: a newer control plane may say more than this client knows.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidegate.errors import ControlError, ControlUnavailable
from tidegate.settings import Settings

ANSWER_TIMEOUT_S = 30.0
"""A command waits for one commit to the event log; loading a version's manifest may take seconds."""


class Reply(BaseModel):
    """Base of what the control plane says: unknown fields are ignored, missing ones have defaults."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Count(Reply):
    """Events among units."""

    events: int = 0
    n: int = 0


class SignalStatus(Reply):
    """One signal as judged now. `log_e` and the thresholds are natural logarithms."""

    name: str
    canary: Count = Count()
    stable: Count = Count()
    log_e: float = 0.0
    threshold: float = 0.0
    verdict: str = ""
    forward_log_e: float = 0.0
    forward_threshold: float = 0.0
    requests_to_decision: int | None = None


class ExposureStatus(Reply):
    """How many requests the canary has had, beside the fewest that could have shown the worst signal."""

    canary_requests: int = 0
    lower_bound: int | None = None
    first_admitted_at: float | None = None
    last_admitted_at: float | None = None


class StepStatus(Reply):
    """One step of the rollout: weight in percent, its least duration in seconds."""

    weight: int
    duration_s: float = 0.0


class RetiringStatus(Reply):
    """A revision that drains."""

    version: str
    since: float = 0.0
    deadline_at: float = 0.0
    in_flight: int | None = None


class RolloutStatus(Reply):
    """Where a model stands. `step` counts from 1 and is 0 while the canary starts."""

    model: str
    phase: str = ""
    strategy: str = "canary"
    stable: str | None = None
    canary: str | None = None
    weight: int = 0
    observed_weight: int | None = None
    step: int = 0
    steps: tuple[StepStatus, ...] = ()
    stage: str | None = None
    cause: str | None = None
    reason: str | None = ""
    waiting_for: str | None = ""
    streams_in_flight: Mapping[str, int] = Field(default_factory=dict)
    signals: tuple[SignalStatus, ...] = ()
    exposure: ExposureStatus = ExposureStatus()
    started_at: float | None = None
    updated_at: float | None = None
    actor: str | None = ""
    rollout: str | None = None
    previous: str | None = None
    warm_until: float | None = None
    retiring: tuple[RetiringStatus, ...] = ()
    quarantine: Mapping[str, str] = Field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether nothing is rolling out."""
        return self.phase in ("Healthy", "Degraded")


class DecisionReply(Reply):
    """What was decided, why, and what it does."""

    cause: str = ""
    reason: str = ""
    actions: tuple[dict[str, Any], ...] = ()


class CommandReply(Reply):
    """The control plane's answer to a command; with a dry run `plan` alone."""

    decision: DecisionReply | None = None
    plan: dict[str, Any] | None = None
    accepted_at: float | None = None
    status: RolloutStatus | None = None


class HistoryEntry(Reply):
    """One entry of the event log."""

    id: int
    at: float
    kind: str
    actor: str = ""
    cause: str | None = ""
    reason: str | None = ""
    actions: tuple[dict[str, Any], ...] = ()
    observation: dict[str, Any] | None = None
    payload: dict[str, Any] = Field(default_factory=dict)


class ReplayedDecision(Reply):
    """A recorded decision beside what today's code says to the same observation."""

    id: int
    same: bool
    recorded: dict[str, Any] = Field(default_factory=dict)
    today: dict[str, Any] | None = None


class GatewayStatus(Reply):
    """A gateway that the controller knows."""

    gateway: str
    boot: str = ""
    generation: tuple[int, int] | None = None
    connected_at: float | None = None


class RayStatus(Reply):
    """Whether the workload layer can be asked."""

    available: bool = False
    message: str = ""


class PlatformStatus(Reply):
    """The control plane's view of the platform."""

    controller: dict[str, Any] = Field(default_factory=dict)
    gateways: tuple[GatewayStatus, ...] = ()
    ray: RayStatus = RayStatus()


class ModelStatus(Reply):
    """One served model in short."""

    model: str
    stable: str | None = None
    canary: str | None = None
    phase: str = ""


R = TypeVar("R", bound=Reply)


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
        self._url = base_url
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
        params = {"evidence": str(evidence).lower()}
        return self._list(
            HistoryEntry, self._call("GET", f"/api/v1/rollouts/{model}/history", params=params), "entries"
        )

    def replay(self, model: str) -> tuple[ReplayedDecision, ...]:
        """Every recorded decision, taken again by today's code."""
        return self._list(ReplayedDecision, self._call("GET", f"/api/v1/rollouts/{model}/replay"), "decisions")

    def events(self) -> Iterator[RolloutStatus]:
        """Statuses as they change, until the control plane closes or the caller stops.

        Raises:
            ControlUnavailable: the stream broke; ask for the status and open it again.
        """
        try:
            with self._http.stream("GET", "/api/v1/events", timeout=httpx.Timeout(5.0, read=60.0)) as response:
                if response.is_error:
                    response.read()
                    raise self._refusal(response)
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        yield self._read(RolloutStatus, json.loads(line[5:]))
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise self._away(error) from error

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
    ) -> CommandReply:
        """Say an operator's verb: promote, pause, resume, abort, retry, undo, ack or rollback."""
        body = {"reason": reason, "full": full, "version": version, "dry_run": dry_run}
        return self._read(CommandReply, self._call("POST", f"/api/v1/rollouts/{model}/{verb}", body=body))

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
        return ControlUnavailable(
            f"the control plane at {self._url} {problem}; `tidegate up` starts it, "
            "`tidegate logs controller` shows why it stopped",
            code="unavailable",
        )

    def _stranger(self, problem: str) -> ControlError:
        return ControlError(
            f"what answers at {self._url} is not this version's control plane ({problem}); "
            "look who holds the port, or restart with `tidegate down` and `tidegate up`",
            code="protocol",
        )

    def _refusal(self, response: httpx.Response) -> ControlError:
        status = response.status_code
        if status == httpx.codes.UNAUTHORIZED:
            return ControlError(
                f"the control plane at {self._url} does not know this token; "
                "use the TIDEGATE_HOME that it was started with",
                code="unauthorized",
                status=status,
            )
        if status == httpx.codes.UNPROCESSABLE_ENTITY:
            return ControlError(
                f"the control plane at {self._url} does not take this request: {_complaint(response)}; "
                "if it was started by another version of Tidegate, `tidegate down` and `tidegate up`",
                code="protocol",
                status=status,
            )
        try:
            told = response.json()["error"]
            return ControlError(str(told["message"]), code=str(told.get("code", "")), status=status)
        except (ValueError, KeyError, TypeError):
            return ControlError(
                f"the control plane at {self._url} answered {status} without a reason; see `tidegate logs controller`",
                code="protocol",
                status=status,
            )


def _complaint(response: httpx.Response) -> str:
    """FastAPI's first complaint about a request that does not fit its schema."""
    try:
        first = response.json()["detail"][0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    except (ValueError, KeyError, TypeError, IndexError):
        return "no reason was given"


def user_name() -> str:
    """Who runs this, for the event log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def read_token(settings: Settings) -> str:
    """The bearer token of the local control plane; "" when there is none yet."""
    try:
        return settings.credentials_file.read_text().strip()
    except OSError:
        return ""


def connect(settings: Settings) -> ControlClient:
    """A client of the local platform's control plane."""
    return ControlClient(settings.control_url, read_token(settings))
