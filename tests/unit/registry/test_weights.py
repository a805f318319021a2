"""Weights on a node: fetched once, verified always, without a registry where the cache has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry import weights
from registry.errors import Damaged, InvalidRequest, RegistryUnavailable
from registry.files import silent
from registry.models import RegisterRequest
from registry.stores.base import RegistryStore
from registry.stores.memory import MemoryStore
from tests.unit.registry.tiny import write_model


@pytest.fixture
def store(tmp_path: Path) -> RegistryStore:
    return MemoryStore(tmp_path / "registry")


@pytest.fixture
def version(store, tmp_path):
    return store.register(RegisterRequest(model="chat", source=str(write_model(tmp_path / "source")), version="1.0.0"))


def place(store, version, into, sha256=None):
    return weights.place(
        lambda: store, version.model, version.version, sha256 or version.manifest_sha256, into, silent
    )  # fmt: skip


def away():
    raise RegistryUnavailable("the registry is away")


def test_what_was_fetched_needs_no_registry_again(store, version, tmp_path):
    into = tmp_path / "models"
    folder = place(store, version, into)
    assert folder == into / version.manifest_sha256
    assert (folder / "config.json").exists()
    again = weights.place(away, "chat", "1.0.0", version.manifest_sha256, into, silent)
    assert again == folder
    assert not [p for p in into.iterdir() if p.name.startswith(".")], "nothing unfinished is left"


def test_a_damaged_cache_is_fetched_anew(store, version, tmp_path):
    into = tmp_path / "models"
    file = place(store, version, into) / "config.json"
    right = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(b"{}" + right[2:])
    with pytest.raises(RegistryUnavailable):
        weights.place(away, "chat", "1.0.0", version.manifest_sha256, into, silent)
    assert (place(store, version, into) / "config.json").read_bytes() == right


def test_a_number_that_was_registered_anew_is_not_served(store, version, tmp_path):
    with pytest.raises(InvalidRequest, match="registered anew"):
        place(store, version, tmp_path / "models", sha256="0" * 64)


def test_a_damaged_registry_is_not_served(store, version, tmp_path):
    file = store.materialise(version) / "config.json"
    file.chmod(0o644)
    file.write_bytes(b"[" + file.read_bytes()[1:])
    with pytest.raises(Damaged):
        place(store, version, tmp_path / "models")
    assert not (tmp_path / "models" / version.manifest_sha256).exists()


def test_the_command_line_says_in_one_line_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(weights.TRACKING_VARIABLE, raising=False)
    given = ["--model", "chat", "--version", "1.0.0", "--manifest-sha256", "0" * 64, "--into", str(tmp_path / "m")]
    assert weights.main(given) == 1
    assert "MLFLOW_TRACKING_URI is not set" in capsys.readouterr().out
