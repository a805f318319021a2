"""MLflow's client, made quiet, with its errors told apart and locked databases asked again. Shell."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

import sqlalchemy.exc
import tenacity

from registry.errors import InvalidRequest, RegistryBusy, RegistryError, RegistryUnavailable
from registry.stores.mlflow_tags import Stored

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 take minutes to say that a server is away
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
for _name, _value in QUIET.items():  # read by mlflow while it is imported, so this cannot wait for a function
    os.environ.setdefault(_name, _value)

import mlflow.artifacts  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

T = TypeVar("T")

NOT_FOUND = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"})
LOCK_POLL_S = 0.05


class NotFound(Exception):
    """MLflow does not have what was asked for; callers turn it into UnknownModel or UnknownVersion."""


def local_path(uri: str) -> Path | None:
    """The path that a `file:` URI or a bare path names; None for everything that lies elsewhere."""
    parts = urlparse(uri)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return Path(unquote(parts.path))
    return Path(uri) if parts.scheme == "" else None


class Mlflow:
    """MLflow's client behind one door: every call is translated and, where the database was locked, repeated.

    Args:
        tracking_uri: as MLflow takes it.
        lock_folder: where locks between processes of this machine are kept.
        busy_timeout_s: how long a locked database is asked again.
        lock_timeout_s: how long to wait for another registration of the same model.

    """

    def __init__(self, tracking_uri: str, lock_folder: Path, *, busy_timeout_s: float, lock_timeout_s: float) -> None:
        self.uri = tracking_uri
        self._locks = lock_folder
        self._busy_timeout_s = busy_timeout_s
        self._lock_timeout_s = lock_timeout_s
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs what it also raises
        with self.lock("schema"):  # two processes must not create the tables at once
            self.client: Any = self.ask(MlflowClient, tracking_uri, tracking_uri)
            self.ask(self.client.search_experiments, max_results=1)
            self.ask(self.client.search_registered_models, max_results=1)

    def ask(self, call: Callable[..., T], *args: object, **kwargs: object) -> T:
        """Call MLflow.

        Raises:
            NotFound: MLflow has no such thing.
            RegistryBusy: the database stayed locked for too long.
            InvalidRequest: a name or value that MLflow does not take, for instance a metric's.
            RegistryUnavailable: anything else that went wrong behind MLflow's door.
        """
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_delay(self._busy_timeout_s),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
            retry=tenacity.retry_if_exception_type(RegistryBusy),
            reraise=True,
        )
        result: T = retrying(self._once, call, *args, **kwargs)
        return result

    def _once(self, call: Callable[..., T], *args: object, **kwargs: object) -> T:
        try:
            return call(*args, **kwargs)
        except RegistryError:
            raise
        except MlflowException as error:
            raise self._translated(error, getattr(error, "error_code", "")) from error
        except (OSError, sqlalchemy.exc.SQLAlchemyError) as error:
            raise self._translated(error, "") from error

    def _translated(self, error: Exception, code: str) -> Exception:
        text = " ".join(str(error).split())
        if code in NOT_FOUND:
            return NotFound(text)
        if code == "INVALID_PARAMETER_VALUE":
            return InvalidRequest(f"MLflow refused a value: {text[:300]}; change it and try again")
        if "database is locked" in text or "database table is locked" in text:
            return RegistryBusy(
                f"the registry's database {self.uri} is locked by another process "
                f"for more than {self._busy_timeout_s:g} s; try again, or end what holds it"
            )
        return RegistryUnavailable(
            f"MLflow at {self.uri} could not be used: {text[:300]}; check that it is there and that its disk has room"
        )

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock against every other process of this machine; the kernel frees it when its holder dies.

        Raises:
            RegistryBusy: somebody else held it for too long.
        """
        self._locks.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._locks / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + self._lock_timeout_s
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise RegistryBusy(
                        f"another registration holds {name} for more than {self._lock_timeout_s:g} s; "
                        "wait for it to end and try again"
                    )
                time.sleep(LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def versions(self, model: str) -> list[Stored]:
        """All of MLflow's versions of a model, oldest first, whatever their state."""
        found: list[Any] = []
        token = None
        while True:
            page: Any = self.ask(
                self.client.search_model_versions, f"name='{model}'", max_results=200, page_token=token
            )
            found.extend(page)
            token = page.token
            if not token:
                return sorted((to_stored(v) for v in found), key=lambda s: int(s.number))

    def aliases(self, model: str) -> dict[str, str]:
        """Alias to MLflow's version number.

        Raises:
            NotFound: no such model.
        """
        registered: Any = self.ask(self.client.get_registered_model, model)
        return {alias: str(number) for alias, number in registered.aliases.items()}

    def artifact_uri(self, name: str, number: str) -> str:
        """Where a version's artifacts lie (never `models:/`)."""
        return str(self.ask(self.client.get_model_version_download_uri, name, number))

    def download(self, uri: str, into: Path) -> Path:
        """Copy artifacts from wherever they lie into a folder of ours."""
        into.mkdir(parents=True, exist_ok=True)
        return Path(self.ask(mlflow.artifacts.download_artifacts, uri, dst_path=str(into), tracking_uri=self.uri))


def to_stored(version: Any) -> Stored:  # noqa: ANN401 - mlflow is untyped
    """One of MLflow's model versions as ours."""
    return Stored(
        name=version.name,
        number=str(version.version),
        source=version.source or "",
        run_id=version.run_id or None,
        created_ms=int(version.creation_timestamp or 0),
        tags=dict(version.tags or {}),
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
