"""Which adapters a platform is made of. Importing it costs nothing; building imports MLflow, for seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

DRIFT_TIMEOUT_S = 3.0

if TYPE_CHECKING:
    from pathlib import Path

    from registry.models import RegisterRequest
    from registry.stores.base import RegistryStore
    from rollout.accounts.base import AccountStore
    from rollout.actions import Deployed
    from rollout.analysis.ledger import EvidenceIncrement
    from rollout.control_api.plane import ControlPlane
    from rollout.controller import Controller
    from rollout.gates import Gate, Reasons
    from rollout.observe import ProviderPoller
    from rollout.operator.api import Address
    from rollout.operator.election import Election
    from rollout.operator.leader_label import LeaderLabel
    from rollout.operator.running import Operator
    from rollout.probes.base import ProbeReports
    from rollout.smoke_runner import SmokeRunner
    from rollout.specs import RolloutSpec
    from rollout.traffic_routers.gateway import GatewayRouter
    from tidegate.settings import Settings


def build_registry(settings: Settings) -> RegistryStore:
    """The registry in force: MLflow, on SQLite below the home unless `tracking_uri` says otherwise."""
    from registry.stores.mlflow import MlflowStore

    return MlflowStore(
        settings.mlflow_uri,
        artifact_root=settings.home / "mlflow" / "artifacts",
        cache=settings.home / "mlflow" / "cache",
        check_policy=_check_policy,
    )


def _check_policy(text: str) -> None:
    """Refuse a guardrail policy that no gateway could put in force, with every fault and its place in the file."""
    from guardrails.errors import GuardrailError
    from guardrails.plugins import installed_catalogue
    from guardrails.policy import parse_policy
    from registry.errors import InvalidPolicy

    try:
        parse_policy(text, installed_catalogue())
    except GuardrailError as error:
        raise InvalidPolicy(str(error)) from None


def build_smoke_runner(settings: Settings, accounts: AccountStore, holder: str, now: float) -> SmokeRunner:
    """What asks candidates their smoke suites, through our own gateway.

    Where the gateway wants keys it has one of its own, made anew at each start: it may name versions, and nothing else.
    """
    import hashlib
    import secrets
    import ssl

    import httpx

    from rollout.smoke_runner import CASE_TIMEOUT_S, SmokeRunner
    from serving.keys import EVERYWHERE, ID_CHARS, KeyRecord, Scope, hash_secret, write_key

    headers: dict[str, str] = {}
    if settings.auth == "keys":
        key_id, secret = hashlib.sha256(holder.encode()).hexdigest()[:ID_CHARS], secrets.token_urlsafe(32)
        scopes = frozenset({Scope.INFERENCE, Scope.PIN_VERSION})
        name = "the control plane's smoke suites"
        accounts.put_key(
            KeyRecord(
                id=key_id,
                secret_sha256=hash_secret(secret),
                name=name,
                namespace=EVERYWHERE,
                scopes=scopes,
                created_at=now,
            )
        )
        headers["authorization"] = f"Bearer {write_key(key_id, secret)}"
    trust: ssl.SSLContext | bool = True
    if settings.tls_cert_file is not None:
        trust = ssl.create_default_context(cafile=str(settings.tls_cert_file))
        trust.check_hostname = False  # it is asked by its address, and its own certificate is all that is trusted
    client = httpx.AsyncClient(timeout=CASE_TIMEOUT_S, follow_redirects=False, verify=trust, trust_env=False)
    return SmokeRunner(settings.own_gateway_url, lambda: headers, client)


def build_poller(settings: Settings, controller: Controller, router: GatewayRouter) -> ProviderPoller | None:
    """What reads signals named prometheus/..., or None where no Prometheus is named: then they hold."""
    import secrets
    import time

    from monitoring.providers.prometheus import PrometheusAddress, PrometheusProvider
    from rollout.observe import ProviderPoller, polled
    from tidegate.errors import WrongUse

    if not settings.prometheus_url:
        return None
    try:
        file = settings.prometheus_token_file
        token = file.read_text().strip() if file is not None else None
        provider = PrometheusProvider(PrometheusAddress(settings.prometheus_url, bearer_token=token))
    except (OSError, ValueError) as error:
        raise WrongUse(f"prometheus_url, prometheus_token_file: {error}") from None

    def book(model: str, increment: EvidenceIncrement) -> None:
        if controller.leads:  # the leadership may have gone while the store was asked
            controller.on_measured(model, increment)

    return ProviderPoller(
        provider,
        wanted=lambda: polled(controller.statuses) if controller.leads else (),
        applied=lambda: router.view().applied,
        sink=book,
        boot=secrets.token_hex(8),
        clock=time.time,
        monotonic=time.monotonic,
    )


def build_drift_gate(settings: Settings, controller: Controller) -> Gate:
    """What asks the drift watch for rollouts that have the signal drift/input; without a watch they hold."""
    import time
    from collections.abc import Mapping

    import httpx

    from rollout.drift_gate import DRIFT, DriftUnavailable, drift_reasons

    client = httpx.AsyncClient(timeout=DRIFT_TIMEOUT_S, trust_env=False)

    async def read() -> Mapping[str, Any]:
        if not settings.drift:
            raise DriftUnavailable(
                "the drift watch is off; switch it on (drift = true in config.toml, on a cluster drift.enabled), or "
                "leave the signal out"
            )
        try:
            headers = settings.drift_key_headers
            found = (await client.get(settings.drift_url, headers=headers)).raise_for_status().json()
        except (httpx.HTTPError, ValueError, OSError) as error:
            raise DriftUnavailable(
                f"the drift watch at {settings.drift_url} does not answer ({type(error).__name__}); "
                "see `tidegate status`, or its pod's log"
            ) from None
        assert isinstance(found, dict)
        return found

    return _gate(drift_reasons(read, time.time), DRIFT, controller)


def build_bias_gate(reports: ProbeReports, controller: Controller) -> Gate:
    """What reads the reports of bias probes, for rollouts that have the signal probe/bias."""
    from collections.abc import Mapping

    from rollout.bias_gate import PROBE, bias_reasons

    def gaps(model: str, version: str) -> Mapping[str, float] | None:
        report = reports.load(model, version)
        return None if report is None else {f"{gap.attribute}.{gap.measure}": gap.mean for gap in report.found}

    return _gate(bias_reasons(gaps), PROBE, controller)


def _gate(reasons: Reasons, family: str, controller: Controller) -> Gate:
    """A gate that asks and books while its controller leads."""
    import secrets
    import time

    from rollout.gates import Gate, gated

    def book(model: str, increment: EvidenceIncrement) -> None:
        if controller.leads:
            controller.on_measured(model, increment)

    return Gate(
        reasons,
        source=family,
        wanted=lambda: gated(controller.statuses, family) if controller.leads else (),
        sink=book,
        boot=secrets.token_hex(8),
        clock=time.time,
    )


def build_operator(settings: Settings, controller: Controller, plane: ControlPlane) -> Operator | None:
    """What carries ModelDeployments out, or None on the local platform, where nobody writes them.

    Raises:
        ClusterError: there is no usable way to the cluster.
    """
    if settings.platform != "kubernetes":
        return None
    import time

    from rollout.operator.running import Operator

    async def resolve(spec: RolloutSpec, namespace: str) -> Deployed:
        _, deployed = await plane.versions.resolve(spec, namespace)
        return deployed

    return Operator(
        controller=controller,
        resolve=resolve,
        aim=plane.aim,
        address=cluster_address(settings),
        namespaces=settings.watched_namespaces,
        instance=settings.pod_name,
        clock=time.time,
        monotonic=time.monotonic,
        judge=plane.versions.judge,
    )


def build_election(settings: Settings) -> Election | None:
    """Who of the release's controllers tries to lead, or None on the local platform, where there is one.

    Raises:
        ClusterError: there is no usable way to the cluster.
    """
    if settings.platform != "kubernetes":
        return None
    import time

    from rollout.operator.api import ResourceApi
    from rollout.operator.election import Election

    return Election(
        ResourceApi(cluster_address(settings).configuration(), user_agent="tidegate-election"),
        namespace=settings.namespace,
        name=f"{settings.release}-controller",
        holder=settings.pod_name,
        clock=time.time,
        monotonic=time.monotonic,
    )


def build_leader_label(settings: Settings, controller: Controller) -> LeaderLabel | None:
    """What keeps the label by which the release's Service finds this process, or None on the local platform.

    Raises:
        ClusterError: there is no usable way to the cluster.
    """
    if settings.platform != "kubernetes":
        return None
    from rollout.operator.leader_label import leader_label

    return leader_label(
        cluster_address(settings).configuration(),
        namespace=settings.namespace,
        release=settings.release,
        me=settings.pod_name,
        leads=lambda: controller.leads,
    )


def cluster_address(settings: Settings) -> Address:
    """How the cluster is reached."""
    from rollout.operator.api import Address

    return Address(kubeconfig=settings.kubeconfig, context=settings.kube_context)


def policy_path(given: Path) -> Path:
    """The file of a policy that is named as on the command line: a path, or the name of one that comes along."""
    from guardrails.policies.shipped import Shipped, shipped_file

    named = str(given)
    return shipped_file(Shipped(named)) if named in set(Shipped) and not given.exists() else given


def register_request(**fields: Any) -> RegisterRequest:  # noqa: ANN401 - forwarded to pydantic, which validates
    """A request to register a version, its fields checked.

    Raises:
        WrongUse: a field that can't be used, named as on the command line.
    """
    from pydantic import ValidationError

    from registry.models import RegisterRequest
    from tidegate.errors import WrongUse

    if fields.get("policy_file") is not None:
        fields["policy_file"] = policy_path(fields["policy_file"])
    try:
        return RegisterRequest(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = first["msg"]
        if first["loc"][:1] == ("model",):
            problem = "a model's name has lower-case letters, digits and dashes, at most 63"
        raise WrongUse(f"{where} {str(first['input'])[:80]!r}: {problem}") from None
