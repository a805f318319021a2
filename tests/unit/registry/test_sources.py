from collections.abc import Callable
from pathlib import Path

import pytest

from registry.errors import InvalidSource, SourceUnreachable
from registry.files import silent
from registry.sources import FolderSource, HubSource, MlflowSource, SimulatedSource, fetch, parse_source
from serving.engines.sim_spec import InvalidSimUri, SimSpec, parse_sim_uri
from tests.unit.registry.tiny import write_model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/models/a", FolderSource(Path("/models/a"))),
        ("models/a", FolderSource(Path("models/a"))),
        ("hf:org/name", HubSource("org/name", None)),
        ("hf:org/name@abc", HubSource("org/name", "abc")),
        ("models:/My Model/3", MlflowSource("My Model", "3", None)),
        ("models:/chat@best", MlflowSource("chat", None, "best")),
        ("sim:?tokens=8&error_rate=0.5", SimulatedSource((("error_rate", "0.5"), ("tokens", "8")))),
        ("sim:?", SimulatedSource(())),
        ("sim:", SimulatedSource(())),
    ],
)
def test_parse(text: str, expected: object) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no known form"),
        ("s3://bucket/x", "no known form"),
        ("hf:", "names no repository"),
        ("models:/chat", "names no version"),
        ("sim:tokens=8", "no simulated source"),
        ("sim:?tokenz=8", r"no parameter 'tokenz'; it knows cache_blocks, client_error_rate"),
        ("sim:?error_rate=1.5", "0..1"),
        ("sim:?error_rate=-1", "number, 0 or more"),
        ("sim:?error_rate=nan", "number"),
        ("sim:?tokens=1.5", "whole number"),
        ("sim:?fail_load=perhaps", "0, 1, true or false"),
        ("sim:?seed=1&seed=2", "twice"),
        ("sim:?seed", "cannot be read"),
        ("sim:?tokens=100001", "over 100000"),
        ("sim:?error_rate=0.6&stall_rate=0.6", "is 1.2, over 1; lower one"),
    ],
)
def test_refusals_say_what_is_known(text: str, words: str) -> None:
    with pytest.raises(InvalidSource, match=words):
        parse_source(text)


@pytest.mark.parametrize("value", ["0", "0.5", "1", "2", "99999.5", "100001", "1000001"])
@pytest.mark.parametrize("key", sorted(SimSpec.model_fields))
def test_what_can_be_registered_is_what_the_simulated_engine_takes(key: str, value: str) -> None:
    def taken_by(read: Callable[[str], object], refusal: type[ValueError | InvalidSource]) -> bool:
        try:
            read(f"sim:?{key}={value}")
        except refusal:
            return False
        return True

    assert taken_by(parse_source, InvalidSource) == taken_by(parse_sim_uri, InvalidSimUri)


def test_the_order_of_parameters_does_not_matter() -> None:
    one, two = parse_source("sim:?seed=1&tokens=2"), parse_source("sim:?tokens=2&seed=1")
    assert isinstance(one, SimulatedSource)
    assert isinstance(two, SimulatedSource)
    assert one.uri == two.uri == "sim:?seed=1&tokens=2"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSource, match="nowhere is not a folder"):
        fetch(FolderSource(tmp_path / "nowhere"), lambda _s: (), silent)


def test_the_hubs_cache_is_used_offline_and_its_pickles_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    revision = "0123456789012345678901234567890123456789"
    repository = tmp_path / "models--org--name"
    blobs = write_model(repository / "blobs")
    (blobs / "pytorch_model.bin").write_bytes(b"\x80\x02")
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_a, **_k: str(snapshot))
    fetched = fetch(HubSource("org/name", None), lambda _s: (), silent)
    assert fetched.lineage == f"hf:org/name@{revision}"
    assert "model.safetensors" in {f.path for f in fetched.files}
    assert "pytorch_model.bin" not in {f.path for f in fetched.files}


def test_an_unreachable_hub_is_retryable_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceUnreachable, match=r"hf:org/none@main is not in the local cache"):
        fetch(HubSource("org/none", "main"), lambda _s: (), silent)
