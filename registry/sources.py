"""Where a version's bytes come from: reading a source's notation (pure) and fetching it (shell)."""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never
from urllib.parse import parse_qsl

from registry.errors import InvalidSource, SourceUnreachable
from registry.files import OnProgress, SourceFile, list_files

SIM_FAULTS = ("client_error_rate", "error_rate", "stall_rate", "truncate_rate")
"""Rates of what replaces an answer: at most one of them happens to a request, so they may not add up to more than 1."""
SIM_RATES = frozenset(
    {*SIM_FAULTS, "toxic_rate", "pii_rate", "gibberish_rate", "refusal_rate", "repeat_rate", "length_rate"}
)
SIM_AMOUNTS = frozenset({"ttft_ms", "prefill_us_per_token", "itl_ms", "load_s"})
SIM_COUNTS = frozenset({"tokens", "cache_blocks", "die_after", "seed"})
SIM_FLAGS = frozenset({"fail_load"})
SIM_KEYS = SIM_RATES | SIM_AMOUNTS | SIM_COUNTS | SIM_FLAGS
SIM_LIMITS = {"tokens": 100_000, "cache_blocks": 1_000_000, "prefill_us_per_token": 1_000_000}
"""What the simulated engine takes at most, where it is not 1 (a rate) or without a bound."""

HUB_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "README.md", "LICENSE*")
"""What is fetched from the hub: never its pickles, however many a repository holds."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FORMS = "a folder, hf:ID[@REV], models:/NAME/VERSION, models:/NAME@ALIAS or sim:?k=v"


@dataclass(frozen=True)
class FolderSource:
    """A folder on this machine."""

    folder: Path


@dataclass(frozen=True)
class HubSource:
    """A repository of the Hugging Face hub, or of its local cache."""

    repository: str
    revision: str | None


@dataclass(frozen=True)
class MlflowSource:
    """A version that is registered in MLflow, by number or by alias."""

    name: str
    version: str | None
    alias: str | None


@dataclass(frozen=True)
class SimulatedSource:
    """Parameters of the simulated engine."""

    parameters: tuple[tuple[str, str], ...]

    @property
    def uri(self) -> str:
        """The one way to write these parameters: sorted."""
        return "sim:?" + "&".join(f"{k}={v}" for k, v in self.parameters)


Source = FolderSource | HubSource | MlflowSource | SimulatedSource


def parse_source(text: str) -> Source:
    """Read a source's notation. Pure.

    Raises:
        InvalidSource: it is none of the known forms, or a `sim:` parameter is unknown or out of range.
    """
    if text.startswith("sim:"):
        return _parse_simulated(text)
    if text.startswith("hf:"):
        repository, _, revision = text.removeprefix("hf:").partition("@")
        if not _HUB_ID.fullmatch(repository):
            raise InvalidSource(f"{text!r} names no repository of the hub: write hf:OWNER/NAME or hf:OWNER/NAME@REV")
        return HubSource(repository, revision or None)
    if text.startswith("models:"):
        return _parse_mlflow(text)
    if not text or re.match(r"[a-z][a-z0-9+.-]+:", text):
        raise InvalidSource(f"source {text[:120]!r} is of no known form: it is {_FORMS}")
    return FolderSource(Path(text).expanduser())


def _parse_mlflow(text: str) -> MlflowSource:
    match = re.fullmatch(r"models:/([^/@]+)(?:/([0-9]+)|@([^/@]+))", text)
    if match is None:
        raise InvalidSource(f"{text!r} names no version in MLflow: write models:/NAME/VERSION or models:/NAME@ALIAS")
    return MlflowSource(*match.groups())


def _parse_simulated(text: str) -> SimulatedSource:
    if not text.startswith("sim:?") and text != "sim:":
        raise InvalidSource(f"{text!r} is no simulated source: write sim:?ttft_ms=50&tokens=64")
    try:
        pairs = parse_qsl(text.removeprefix("sim:").removeprefix("?"), keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        if text not in {"sim:", "sim:?"}:
            raise InvalidSource(f"{text!r} cannot be read: write sim:?ttft_ms=50&tokens=64") from error
        pairs = []
    for key, value in pairs:
        _check_parameter(key, value)
    if len(dict(pairs)) != len(pairs):
        raise InvalidSource(f"{text!r} gives a parameter twice; give each once")
    if (faults := sum(float(value) for key, value in pairs if key in SIM_FAULTS)) > 1 + 1e-9:
        raise InvalidSource(f"sim: {' + '.join(SIM_FAULTS)} is {faults:g}, over 1; lower one")
    return SimulatedSource(tuple(sorted(pairs)))


def _check_parameter(key: str, value: str) -> None:
    if key not in SIM_KEYS:
        raise InvalidSource(f"sim: has no parameter {key!r}; it knows {', '.join(sorted(SIM_KEYS))}")
    if key in SIM_FLAGS:
        if value not in {"0", "1", "true", "false"}:
            raise InvalidSource(f"sim: {key}={value} must be 0, 1, true or false")
        return
    number = float(value) if re.fullmatch(r"[0-9]+(\.[0-9]+)?([eE]-?[0-9]{1,2})?", value) else None
    if number is None or (key in SIM_COUNTS and not value.isdigit()):
        raise InvalidSource(f"sim: {key}={value} must be a {'whole ' if key in SIM_COUNTS else ''}number, 0 or more")
    if key in SIM_RATES and number > 1:
        raise InvalidSource(f"sim: {key}={value} is a rate and must lie in 0..1")
    if number > (most := SIM_LIMITS.get(key, number)):
        raise InvalidSource(f"sim: {key}={value} is over {most}; give at most that")


@dataclass(frozen=True)
class Fetched:
    """A source that lies on this disk: its files, and where exactly they came from."""

    files: tuple[SourceFile, ...]
    lineage: str


FetchMlflow = Callable[[MlflowSource], tuple[SourceFile, ...]]
"""Given by the store: the files of an MLflow version, under the paths that an engine expects."""


def fetch(
    source: FolderSource | HubSource | MlflowSource, fetch_mlflow: FetchMlflow, on_progress: OnProgress
) -> Fetched:
    """Bring a source onto this disk, where it is not yet.

    Raises:
        InvalidSource: there is no such folder, repository or version.
        SourceUnreachable: the hub did not answer and its cache does not hold the repository.
    """
    match source:
        case FolderSource(folder):
            if not folder.is_dir():
                raise InvalidSource(f"source {folder} is not a folder; a source is {_FORMS}")
            return Fetched(tuple(list_files(folder)), str(folder.resolve()))
        case HubSource():
            return _fetch_hub(source, on_progress)
        case MlflowSource():
            on_progress("fetch", 0, 0)
            at = f"/{source.version}" if source.version else f"@{source.alias}"
            return Fetched(fetch_mlflow(source), f"models:/{source.name}{at}")
        case _:
            assert_never(source)


def _fetch_hub(source: HubSource, on_progress: OnProgress) -> Fetched:
    on_progress("fetch", 0, 0)
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise InvalidSource("hf: sources need huggingface_hub; install the cpu or gpu extra, which bring it") from error
    errors = hub.errors
    named = f"hf:{source.repository}" + (f"@{source.revision}" if source.revision else "")
    try:
        snapshot = Path(
            hub.snapshot_download(source.repository, revision=source.revision, allow_patterns=list(HUB_PATTERNS))
        )
    except errors.GatedRepoError as error:
        raise InvalidSource(f"{named} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise InvalidSource(f"{named} is not on the hub (or is private): check its name and revision") from error
    except (OSError, errors.OfflineModeIsEnabled) as error:
        raise SourceUnreachable(
            f"{named} is not in the local cache and the hub was not reached ({type(error).__name__}); "
            "go online once, or give a folder"
        ) from error
    listed = list_files(snapshot, links_within=snapshot.parents[1])
    files = tuple(f for f in listed if any(fnmatch.fnmatch(f.path, pattern) for pattern in HUB_PATTERNS))
    return Fetched(files, f"hf:{source.repository}@{snapshot.name}")
