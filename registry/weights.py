"""Bring a version's files to this node and verify them: `python -m registry.weights --model chat --version 1.3.0 ...`.

It runs in a container of its own before an engine starts. The folder `--into` may be a cache that outlives the pod, on
the node or on a volume: there each version lies under its manifest's digest, whole or not at all, beside the manifest.
What is there and has not been touched since it was verified is not read again, and needs no registry. Where the files
come from and with which credentials MLflow's own environment variables say (MLFLOW_TRACKING_URI, AWS_...).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from registry.errors import Damaged, InvalidRequest, RegistryError
from registry.files import OnProgress, copy_files, list_files, seal
from registry.manifest import dump_manifest, load_manifest
from registry.stores.base import RegistryStore
from registry.verification import VerifiedFolders

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
TOLD_EVERY_S = 5.0


def place(
    registry: Callable[[], RegistryStore],
    model: str,
    version: str,
    manifest_sha256: str,
    into: Path,
    report: OnProgress,
) -> Path:
    """Make sure that a version's verified files are in `into`, and return their folder.

    Args:
        registry: makes the registry; not called when the files are there.
        model: the model's name.
        version: its semantic version.
        manifest_sha256: the digest of the manifest that the files must have.
        into: the cache.
        report: told how far it is.

    Raises:
        RegistryError: they can't be had, or are not what was registered.

    """
    reference = f"{model}@{version}"
    folder, note = into / manifest_sha256, into / f"{manifest_sha256}.json"
    verified = VerifiedFolders(into / "verified")
    if folder.is_dir() and note.exists():
        try:
            manifest = load_manifest(note.read_text(encoding="utf-8"), manifest_sha256, reference)
            verified.ensure(folder, manifest, reference, on_progress=report)
        except Damaged as error:
            print(f"{error}; fetching it anew", flush=True)
        else:
            return folder
    store = registry()
    found = store.get(model, version)
    if found.manifest_sha256 != manifest_sha256:
        raise InvalidRequest(
            f"{reference} in the registry has the manifest {found.manifest_sha256[:12]}, deployed was "
            f"{manifest_sha256[:12]}: the number was registered anew; deploy it again under another number"
        )
    manifest = store.manifest(found)
    _bring(store.materialise(found, on_progress=report), folder, report)
    _write(note, dump_manifest(manifest))
    verified.ensure(folder, manifest, reference, on_progress=report)
    return folder


def _bring(source: Path, folder: Path, report: OnProgress) -> None:
    """Move or copy verified files to where they belong: under their final name only when they are whole."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        if source.is_relative_to(folder.parent):
            source.rename(unfinished)
        else:
            copy_files(list_files(source), unfinished, report)
            seal(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another pod was first, and its files have the same digest
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(file: Path, text: str) -> None:
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)


def _teller(clock: Callable[[], float]) -> OnProgress:
    told: dict[str, float] = {}

    def report(stage: str, done_bytes: int, total_bytes: int) -> None:
        now = clock()
        if now - told.get(stage, float("-inf")) >= TOLD_EVERY_S:
            told[stage] = now
            print(f"{stage}: {done_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB", flush=True)

    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 1 with one line that says why not."""
    parser = argparse.ArgumentParser(prog="python -m registry.weights", description=__doc__)
    parser.add_argument("--model", required=True, help="the registered model's name")
    parser.add_argument("--version", required=True, help="its semantic version")
    parser.add_argument("--manifest-sha256", required=True, help="the digest that its manifest must have")
    parser.add_argument("--into", type=Path, required=True, help="the folder that holds versions by their digest")
    given = parser.parse_args(arguments)

    def registry() -> RegistryStore:
        from registry.stores.mlflow import MlflowStore  # imports MLflow, for seconds; not needed where the cache has it

        uri = os.environ.get(TRACKING_VARIABLE, "")
        if not uri:
            raise InvalidRequest(f"{TRACKING_VARIABLE} is not set; give the address of the MLflow server")
        scratch = given.into / "fetched"
        return MlflowStore(uri, artifact_root=scratch / "artifacts", cache=scratch)

    try:
        given.into.mkdir(parents=True, exist_ok=True)
        report = _teller(time.monotonic)
        folder = place(registry, given.model, given.version, given.manifest_sha256, given.into, report)
    except (RegistryError, OSError) as error:
        print(f"the files of {given.model}@{given.version} are not there: {error}", flush=True)
        return 1
    shutil.rmtree(given.into / "fetched", ignore_errors=True)
    print(f"{given.model}@{given.version} is in {folder}, verified", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
