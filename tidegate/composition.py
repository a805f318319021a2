"""Which adapters the local platform is made of. Importing it costs nothing; building imports MLflow, for seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registry.models import RegisterRequest
    from registry.stores.base import RegistryStore
    from tidegate.settings import Settings


def build_registry(settings: Settings) -> RegistryStore:
    """The registry in force: MLflow, on SQLite below the home unless `tracking_uri` says otherwise."""
    from registry.stores.mlflow import MlflowStore

    return MlflowStore(
        settings.mlflow_uri,
        artifact_root=settings.home / "mlflow" / "artifacts",
        cache=settings.home / "mlflow" / "cache",
    )


def register_request(**fields: Any) -> RegisterRequest:  # noqa: ANN401 - forwarded to pydantic, which validates
    """A request to register a version, its fields checked.

    Raises:
        WrongUse: a field that can't be used, named as on the command line.
    """
    from pydantic import ValidationError

    from registry.models import RegisterRequest
    from tidegate.errors import WrongUse

    try:
        return RegisterRequest(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = first["msg"]
        if first["loc"][:1] == ("model",):
            problem = "a model's name has lower-case letters, digits and dashes, at most 63"
        raise WrongUse(f"{where} {str(first['input'])[:80]!r}: {problem}") from None
