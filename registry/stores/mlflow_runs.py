"""The MLflow run behind each registered version: its artifacts, parameters, metrics and lineage. Shell."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from registry.files import Meter, OnProgress, list_files, total_bytes
from registry.models import RegisterRequest
from registry.stores.mlflow_client import Mlflow, NotFound, local_path
from registry.stores.mlflow_tags import MODEL, PENDING, READY, STATE

EXPERIMENT = "tidegate"
MODEL_PATH = "model"
"""Where a version's folder lies among its run's artifacts; `manifest.json` lies beside it."""


@dataclass(frozen=True)
class Run:
    """A run that is being filled. `local` is its artifact folder when that is on this machine."""

    run_id: str
    model_uri: str
    local: Path | None


class Runs:
    """Opens, fills and discards the runs of registrations."""

    def __init__(self, mlflow: Mlflow, artifact_root: Path, *, exclusive: bool) -> None:
        self._mlflow = mlflow
        self._client = mlflow.client
        self._root = artifact_root
        self._exclusive = exclusive

    def open(self, request: RegisterRequest) -> Run:
        """A run marked as pending, so that a crash leaves something that can be recognised and swept."""
        tags = {STATE: PENDING, MODEL: request.model, "mlflow.runName": f"register {request.model}"}
        if request.commit:
            tags["mlflow.source.git.commit"] = request.commit
        made: Any = self._mlflow.ask(self._client.create_run, self._experiment(), tags=tags)
        uri = str(made.info.artifact_uri).rstrip("/")
        return Run(made.info.run_id, f"{uri}/{MODEL_PATH}", local_path(uri))

    def _experiment(self) -> str:
        known: Any = self._mlflow.ask(self._client.get_experiment_by_name, EXPERIMENT)
        if known is not None:
            if known.lifecycle_stage != "active":
                self._mlflow.ask(self._client.restore_experiment, known.experiment_id)
            return str(known.experiment_id)
        # A tracking server keeps artifacts its own way; for a bare database we say where.
        location = str(self._root) if self._exclusive else None
        return str(self._mlflow.ask(self._client.create_experiment, EXPERIMENT, artifact_location=location))

    def upload(self, run: Run, folder: Path, on_progress: OnProgress) -> None:
        """Send a staged folder to where the tracking server keeps artifacts, file by file."""
        files = list_files(folder)
        meter = Meter("store", total_bytes(files), on_progress)
        for file in files:
            parent = str(Path(MODEL_PATH, file.path).parent)
            self._mlflow.ask(self._client.log_artifact, run.run_id, str(file.real), parent)
            meter.add(file.size_bytes)

    def describe(self, run: Run, request: RegisterRequest, reference: str, manifest: str) -> None:
        """Write parameters, metrics, dataset and manifest into the run, for MLflow's UI, and finish it."""
        now_ms = int(time.time() * 1000)
        named = {f"engine.{k}": v for k, v in request.engine_args.items()}
        named |= {f"generation.{k}": v for k, v in request.generation.items()}
        self._mlflow.ask(
            self._client.log_batch,
            run.run_id,
            metrics=[Metric(k, v, now_ms, 0) for k, v in request.metrics.items()],
            params=[Param(k, v) for k, v in named.items()],
            tags=[RunTag("mlflow.runName", reference)],
        )
        if request.dataset:
            self._mlflow.ask(self._client.log_inputs, run.run_id, datasets=[_dataset(request.dataset)])
        self._mlflow.ask(self._client.log_text, run.run_id, manifest, "manifest.json")
        self._mlflow.ask(self._client.set_terminated, run.run_id, "FINISHED")

    def settle(self, run_id: str) -> None:
        """Mark a run as that of a ready version: no sweep touches it any more."""
        self._mlflow.ask(self._client.set_tag, run_id, STATE, READY)

    def metrics(self, run_id: str | None) -> Mapping[str, float]:
        """A run's metrics as they are now: evaluations may be added after registration."""
        if run_id is None:
            return {}
        try:
            found: Any = self._mlflow.ask(self._client.get_run, run_id)
        except NotFound:
            return {}
        return dict(found.data.metrics)

    def note(self, run_id: str, name: str, metrics: Mapping[str, float], cases: str) -> None:
        """Add an evaluation to a run: metrics `name.metric`, and the cases as an artifact of this moment."""
        now_ms = int(time.time() * 1000)
        told = [Metric(f"{name}.{metric}", value, now_ms, 0) for metric, value in metrics.items()]
        if cases:
            self._mlflow.ask(self._client.log_text, run_id, cases, f"evaluations/{name}-{now_ms}.jsonl")
        self._mlflow.ask(self._client.log_batch, run_id, metrics=told)

    def discard(self, run_id: str, local: Path | None) -> None:
        """Delete a run and, where they are ours to delete, its artifacts."""
        if local is not None and local.is_relative_to(self._root):
            shutil.rmtree(local, ignore_errors=True)
        self._mlflow.ask(self._client.set_terminated, run_id, "FAILED")
        self._mlflow.ask(self._client.delete_run, run_id)

    def sweep(self, model: str, ready: Collection[str | None], older_than_ms: int) -> None:
        """Discard what registrations of a model that never ended left behind.

        `ready` are the runs of ready versions: one of them that is still marked as pending lost only its last step.
        """
        known: Any = self._mlflow.ask(self._client.get_experiment_by_name, EXPERIMENT)
        if known is None or known.lifecycle_stage != "active":
            return
        wanted = f"tags.`{STATE}` = '{PENDING}' and tags.`{MODEL}` = '{model}'"
        runs: Any = self._mlflow.ask(self._client.search_runs, [known.experiment_id], wanted)
        for run in runs:
            if run.info.run_id in ready:
                self.settle(run.info.run_id)
            elif run.info.start_time <= older_than_ms:
                self.discard(run.info.run_id, local_path(run.info.artifact_uri))

    def discard_by_id(self, run_id: str) -> None:
        """Discard a run of which only the id is known; one that is gone already is gone."""
        try:
            run: Any = self._mlflow.ask(self._client.get_run, run_id)
        except NotFound:
            return
        self.discard(run_id, local_path(run.info.artifact_uri))


def _dataset(uri: str) -> DatasetInput:
    digest = hashlib.sha256(uri.encode()).hexdigest()[:12]
    name = uri.rstrip("/").rsplit("/", 1)[-1][:200] or "dataset"
    dataset = Dataset(name=name, digest=digest, source_type="uri", source=json.dumps({"uri": uri}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
