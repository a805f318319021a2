"""What happens once, when the platform starts: the bundled model is registered, models are deployed, the first answer.

Runs on a thread of the supervisor and reports through it. A failure here stops nothing that serves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.client
import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tidegate import bundled, processes
from tidegate.errors import ControlError, ControlUnavailable, StartFailed, TidegateError
from tidegate.runfile import State, TaskStatus
from tidegate.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from tidegate.client import ControlClient
    from tidegate.replies import NewKey, RolloutStatus

POLL_S = 0.25
SEED_ARGV = (sys.executable, "-m", "tidegate.bundled")
PROBE_TIMEOUT_S = 5.0
FIRST_ANSWER_TIMEOUT_S = 120.0
"""One token of a small model takes a second; a queue behind a warming engine may take longer."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What `tidegate up` asked for. Without `models` and not `bare`: the bundled model."""

    bare: bool = False
    models: tuple[str, ...] = ()

    def references(self) -> tuple[str, ...]:
        """The versions to serve, as NAME@VERSION."""
        if self.bare:
            return ()
        return tuple(self.models) or (bundled.REFERENCE,)


class Reporter(Protocol):
    """The part of the supervisor that a start needs."""

    @property
    def stopping(self) -> bool:
        """Whether it is being stopped."""
        ...

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a child."""
        ...

    def log(self, name: str) -> Path:
        """Where a child's output goes."""
        ...

    def report(self, task: TaskStatus) -> None:
        """Record how far a task is."""
        ...

    def fail(self, message: str) -> None:
        """Record why it did not get through."""
        ...

    def running(self) -> None:
        """Record that all is there."""
        ...

    def part_ready(self, name: str) -> bool:
        """Whether a part answers."""
        ...


class StopRequestedError(Exception):
    """The supervisor is being stopped; nobody wants the rest."""


class Startup:
    """Carries out a wish."""

    def __init__(self, settings: Settings, reporter: Reporter, wish: Wish) -> None:
        self._settings = settings
        self._reporter = reporter
        self._wish = wish
        self._register = TaskStatus(name="registry", title="registry")
        self._serve = [TaskStatus(name=f"model:{r}", title=f"model {r}") for r in wish.references()]

    def begin(self) -> None:
        """Announce what will be done, and do it on a thread."""
        if bundled.REFERENCE in self._wish.references():
            self._reporter.report(self._register)
        for task in self._serve:
            self._reporter.report(task)
        threading.Thread(target=self._run, name="startup", daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(StopRequestedError):
            try:
                if bundled.REFERENCE in self._wish.references():
                    self._do(self._register, self._ensure_registered)
                self._wait_for_parts()
                for task, reference in zip(self._serve, self._wish.references(), strict=True):
                    self._do(task, functools.partial(self._ensure_served, task, reference))
                self._reporter.running()
            except TidegateError as error:
                self._give_up(str(error))
            except Exception as error:
                self._give_up(f"{type(error).__name__}: {error}; see `tidegate logs supervisor`")
                raise

    def _give_up(self, message: str) -> None:
        for task in (self._register, *self._serve):
            if task.state is State.WAITING and (task is not self._register or self._register.since):
                task.state = State.STOPPED
                self._reporter.report(task)
        self._reporter.fail(message)
        self._reporter.running()

    def _do(self, task: TaskStatus, work: Callable[[], None]) -> None:
        started = time.monotonic()
        task.state, task.since = State.STARTING, time.time()
        self._reporter.report(task)
        try:
            work()
        except Exception as error:
            task.state, task.took_s, task.message = State.FAILED, time.monotonic() - started, str(error)
            self._reporter.report(task)
            raise
        task.state, task.took_s = State.READY, time.monotonic() - started
        self._reporter.report(task)

    def _say(self, task: TaskStatus, message: str) -> None:
        if task.message != message:
            task.message = message
            self._reporter.report(task)

    def _pause(self) -> None:
        if self._reporter.stopping:
            raise StopRequestedError
        time.sleep(POLL_S)

    # ------------------------------------------------------------------------------------------------ registering

    def _ensure_registered(self) -> None:
        if bundled.is_registered(self._settings):
            self._say(self._register, f"{bundled.REFERENCE} is registered")
            return
        # A process of its own: torch and MLflow would stay in the supervisor's memory for ever.
        log = self._reporter.log("registry")
        processes.rotate_log(log)
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with log.open("ab") as errors:
            child = subprocess.Popen(
                SEED_ARGV,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._reporter.environment("registry"),
                start_new_session=True,
            )
        assert child.stdout is not None
        last = ""
        for line in child.stdout:
            last = line.decode(errors="replace").strip() or last
            self._say(self._register, last)
        if child.wait() != 0:
            if self._reporter.stopping:
                raise StopRequestedError
            reason = last.removeprefix("error: ") or "it wrote nothing"
            raise StartFailed(f"the bundled model could not be registered: {reason} (tidegate logs registry)")

    # ---------------------------------------------------------------------------------------------------- serving

    def _wait_for_parts(self) -> None:
        while not all(self._reporter.part_ready(name) for name in ("controller", "gateway")):
            self._pause()

    def _ensure_served(self, task: TaskStatus, reference: str) -> None:
        from tidegate.client import connect  # httpx costs a quarter of a second, which Ray can use better

        model, _, version = reference.partition("@")
        with connect(self._settings) as client:
            while not self._is_served(client, model, version, exactly=reference in self._wish.models):
                self._say(task, f"asking for {reference}")
                if self._deploy(client, model, version):
                    break
                self._pause()
            self._wait_for_answer(task, client, model)

    def _is_served(self, client: ControlClient, model: str, version: str, *, exactly: bool) -> bool:
        """Whether the model has a version already, or with `exactly` this one."""
        # Before it leads, a controller has not read its log and knows of no model: asked then, a start would
        # deploy the bundled version over whatever serves.
        while not self._leads(client):
            self._pause()
        status = self._status(client, model)
        known = {status.stable, status.canary} - {None} if status is not None else set()
        return version in known if exactly else bool(known)

    def _leads(self, client: ControlClient) -> bool:
        try:
            return bool(client.platform().controller.get("leads", True))
        except ControlUnavailable:
            return False

    def _deploy(self, client: ControlClient, model: str, version: str) -> bool:
        """Ask for a rollout; False when the control plane can't be asked just now."""
        try:
            client.deploy({"model": model, "version": version}, reason="asked for by `tidegate up`")
        except ControlError as error:
            if not (error.retryable or error.status == http.HTTPStatus.SERVICE_UNAVAILABLE):
                raise
            return False
        return True

    def _status(self, client: ControlClient, model: str) -> RolloutStatus | None:
        while True:
            try:
                return client.rollout(model)
            except ControlUnavailable:
                self._pause()  # the supervisor is bringing it back
            except ControlError as error:
                if error.status == http.HTTPStatus.NOT_FOUND:
                    return None
                if error.status != http.HTTPStatus.SERVICE_UNAVAILABLE:
                    raise
                self._pause()

    def _wait_for_answer(self, task: TaskStatus, client: ControlClient, model: str) -> None:
        # Where the gateway wants keys, the start has one of its own for as long as it takes.
        made = self._own_key(client)
        try:
            self._until_answered(task, client, model, made.key if made is not None else "")
        finally:
            if made is not None:
                with contextlib.suppress(ControlError):  # it expires by itself
                    client.revoke_key(made.record.id)

    def _own_key(self, client: ControlClient) -> NewKey | None:
        if self._settings.auth == "none":
            return None
        return client.create_key(name="the start of the platform", expires_in="1h")

    def _until_answered(self, task: TaskStatus, client: ControlClient, model: str, key: str) -> None:
        while True:
            # Each request before there is an engine is a failure to the service levels, and four a second are a page.
            if can_answer(self._settings, model) and first_answer(self._settings, model, key):
                self._say(task, "")
                return
            status = self._status(client, model)
            if status is not None:
                if status.phase == "Degraded" and status.stable is None:
                    raise StartFailed(f"{model} can't be served: {status.reason or 'no reason was given'}")
                self._say(task, status.waiting_for or status.reason or "starting")
            self._pause()


def can_answer(settings: Settings, model: str) -> bool:
    """Whether the gateway has a ready endpoint of this model."""
    connection = http.client.HTTPConnection(settings.host, settings.admin_port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        found = json.loads(connection.getresponse().read())["models"].get(model, {})
        return any(revision["ready"] for revision in found.values())
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False
    finally:
        connection.close()


def first_answer(settings: Settings, model: str, key: str = "") -> bool:
    """Whether the gateway gives a true answer of this model: one token."""
    connection = _connection(settings)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        response = connection.getresponse()
        return response.status == http.HTTPStatus.OK and bool(json.loads(response.read()).get("choices"))
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _connection(settings: Settings) -> http.client.HTTPConnection:
    """To our own gateway; over TLS its own certificate is all that is trusted, by whatever name."""
    url = urllib.parse.urlsplit(settings.own_gateway_url)
    host, port = url.hostname or "127.0.0.1", url.port or settings.gateway_port
    if settings.tls_cert_file is None:
        return http.client.HTTPConnection(host, port, timeout=FIRST_ANSWER_TIMEOUT_S)
    trust = ssl.create_default_context(cafile=str(settings.tls_cert_file))
    trust.check_hostname = False
    return http.client.HTTPSConnection(host, port, timeout=FIRST_ANSWER_TIMEOUT_S, context=trust)
