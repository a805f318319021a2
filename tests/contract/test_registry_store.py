"""What every registry adapter must do. The stores are shared by all tests, so each test takes a model of its own."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.errors import (
    Damaged,
    IncompleteSource,
    InvalidRequest,
    InvalidSource,
    InvalidVersion,
    NothingChanged,
    UnknownModel,
    UnknownVersion,
    UnsafeFile,
    VersionExists,
)
from registry.manifest import manifest_digest
from registry.models import Alias, Bump, ModelVersion, RegisterRequest, SourceKind
from registry.promotion import Moment, alias_moves
from registry.prompts import render
from registry.stores.base import RegistryStore, apply_moves, find, policy_file
from registry.stores.memory import MemoryStore
from registry.stores.mlflow import MlflowStore
from tests.unit.registry.tiny import edit_json, safetensors, write_model

Register = Callable[..., ModelVersion]
_serial = itertools.count()


@pytest.fixture(scope="module", params=["memory", "mlflow"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryStore]:
    home = tmp_path_factory.mktemp(request.param)
    if request.param == "memory":
        yield MemoryStore(home)
    else:
        yield MlflowStore(f"sqlite:///{home / 'mlflow' / 'mlflow.db'}", home / "mlflow" / "artifacts", home / "cache")


@pytest.fixture
def model() -> str:
    return f"chat-{next(_serial)}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source")


@pytest.fixture
def register(store: RegistryStore, model: str, source: Path) -> Register:
    def register(**values: object) -> ModelVersion:
        return store.register(RegisterRequest.model_validate({"model": model, "source": str(source), **values}))

    return register


def test_a_version_comes_back_as_it_was_registered(
    store: RegistryStore, register: Register, model: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text("checks: {}")
    made = register(
        engine_args={"max-model-len": "2048"},
        generation={"temperature": "0.2"},
        metrics={"accuracy": 0.5},
        dataset="s3://data/train",
        commit="abc123",
        policy_file=tmp_path / "policy.yaml",
    )
    assert made.reference == f"{model}@1.0.0"
    assert made.kind is SourceKind.FOLDER
    assert made.engine_args == {"max_model_len": "2048"}
    assert made.generation == {"temperature": "0.2"}
    assert made.metrics == {"accuracy": 0.5}
    assert made.lineage.model_dump() == {
        "commit": "abc123", "dataset": "s3://data/train", "parent_version": None, "source": str(source),
    }  # fmt: skip
    assert len(made.policy_sha256) == 64
    assert store.get(model, "1.0.0") == made
    assert store.list_versions(model) == (made,)
    assert model in store.list_models()


def test_the_folder_stands_alone_and_its_source_may_go(
    store: RegistryStore, register: Register, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text("Be brief.")
    (tmp_path / "policy.yaml").write_text("checks: {}")
    made = register(prompt_file=tmp_path / "prompt.txt", policy_file=tmp_path / "policy.yaml")
    (source / "model.safetensors").write_bytes(b"changed afterwards")
    folder = store.materialise(made)
    assert manifest_digest(store.manifest(made)) == made.manifest_sha256
    assert (folder / "model.safetensors").read_bytes() == safetensors()
    asked = render((folder / "chat_template.jinja").read_text(), [{"role": "user", "content": "Hi"}])
    assert asked == "<system>Be brief.</><user>Hi</><assistant>"
    policy = policy_file(folder)
    assert policy is not None
    assert policy.read_text() == "checks: {}"
    assert store.policy_text(made) == "checks: {}"
    store.verify(made)


def test_numbers_follow_what_changed(
    store: RegistryStore, register: Register, model: str, source: Path, tmp_path: Path
) -> None:
    register()
    (tmp_path / "prompt.txt").write_text("Be brief.")
    prompted = register(prompt_file=tmp_path / "prompt.txt")
    (source / "model.safetensors").write_bytes(safetensors(seed=9))
    trained = register(prompt_file=tmp_path / "prompt.txt")
    edit_json(source / "config.json", hidden_size=16)
    rebuilt = register(generation={"top_k": "5"})
    assert [v.version for v in (prompted, trained, rebuilt)] == ["1.0.1", "1.1.0", "2.0.0"]
    assert [v.bump for v in (prompted, trained, rebuilt)] == [Bump.PATCH, Bump.MINOR, Bump.MAJOR]
    assert prompted.bump_reason == "against 1.0.0: the prompt changed"
    assert rebuilt.bump_reason == (
        "against 1.1.0: the architecture changed; the prompt changed; "
        "the generation settings changed (top_k: default -> 5)"
    )
    assert rebuilt.lineage.parent_version == "1.1.0"
    assert [v.version for v in store.list_versions(model)] == ["2.0.0", "1.1.0", "1.0.1", "1.0.0"]


def test_a_fix_of_what_serves_is_a_patch_of_it(store: RegistryStore, register: Register, model: str) -> None:
    register()
    register(generation={"top_k": "1"}, version="1.1.0")
    store.set_alias(model, Alias.PRODUCTION, "1.0.0")
    assert register(generation={"top_k": "2"}).version == "1.0.1"
    assert register(generation={"top_k": "3"}, parent="1.1.0").version == "1.1.1"
    with pytest.raises(UnknownVersion, match=r"parent .*@9\.0\.0 is not registered; registered are 1\.1\.1, 1\.1\.0"):
        register(parent="9.0.0")


def test_nothing_changed_is_refused_and_leaves_nothing(store: RegistryStore, register: Register, model: str) -> None:
    made = register()
    with pytest.raises(NothingChanged, match=f"{model}@1.0.0 and the new version are the same"):
        register()
    assert store.list_versions(model) == (made,)
    assert register(bump=Bump.MINOR).version == "1.1.0"
    assert register(version="3.0.0-rc.1").version == "3.0.0-rc.1"


def test_a_version_never_changes(store: RegistryStore, register: Register, model: str, source: Path) -> None:
    made = register(version="1.0.0")
    (source / "model.safetensors").write_bytes(safetensors(seed=9))
    with pytest.raises(VersionExists, match="never changes"):
        register(version="1.0.0")
    assert store.list_versions(model) == (made,)


def test_a_simulated_version_is_a_version_like_any(store: RegistryStore, register: Register, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("checks: {}")
    made = register(source="sim:?tokens=8&error_rate=0.5", policy_file=tmp_path / "policy.yaml")
    assert made.kind is SourceKind.SIMULATED
    assert made.location == "sim:?error_rate=0.5&tokens=8"
    assert policy_file(store.materialise(made, verify=True)) is not None
    changed = register(source="sim:?tokens=9", policy_file=tmp_path / "policy.yaml")
    assert (changed.version, changed.bump_reason) == ("1.1.0", "against 1.0.0: the weights changed")
    assert changed.manifest_sha256 != made.manifest_sha256


def test_aliases_move_and_go(store: RegistryStore, register: Register, model: str) -> None:
    register()
    register(generation={"top_k": "1"})
    apply_moves(store, model, alias_moves(Moment.HEALTHY, "1.0.0", {}))
    apply_moves(store, model, alias_moves(Moment.DEPLOYED, "1.0.1", {"production": "1.0.0"}))
    store.set_alias(model, "candidate", "1.0.1")
    assert store.get(model, "1.0.1").aliases == ("candidate",)
    assert find(store, f"{model}@candidate").version == "1.0.1"
    assert find(store, model).version == "1.0.0", "a bare name is what serves"
    assert find(store, f"{model}@1.0.1").version == "1.0.1"
    apply_moves(store, model, alias_moves(Moment.HEALTHY, "1.0.1", {"production": "1.0.0", "candidate": "1.0.1"}))
    assert [v.aliases for v in store.list_versions(model)] == [("production",), ()]
    store.set_alias(model, "candidate", None)
    with pytest.raises(UnknownVersion, match=r"no alias 'candidate' \(its aliases: production\)"):
        store.get_by_alias(model, "candidate")
    with pytest.raises(UnknownVersion):
        store.set_alias(model, "mine", "9.9.9")
    with pytest.raises(InvalidRequest):
        store.set_alias(model, "v1", "1.0.0")


def test_what_is_not_there_is_named_with_what_is(store: RegistryStore, register: Register, model: str) -> None:
    with pytest.raises(UnknownModel, match="tidegate model register"):
        store.list_versions(model)
    with pytest.raises(UnknownModel):
        store.get(model, "1.0.0")
    with pytest.raises(UnknownModel):
        store.get_by_alias(model, "production")
    register()
    with pytest.raises(UnknownVersion, match=r"has no version 2\.0\.0; registered are 1\.0\.0"):
        store.get(model, "2.0.0")
    with pytest.raises(InvalidVersion):
        store.get(model, "latest")


@pytest.mark.parametrize("damage", ["flip", "missing", "extra"])
def test_damage_is_found_before_a_version_is_served(store: RegistryStore, register: Register, damage: str) -> None:
    made = register()
    folder = store.materialise(made)
    weights = folder / "model.safetensors"
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.chmod(0o644)
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "a.txt").write_text("planted")
    for verify in (False, True):
        with pytest.raises(Damaged, match="is damaged") as caught:
            store.materialise(made, verify=verify)
        assert caught.value.path == ("a.txt" if damage == "extra" else "model.safetensors")
    with pytest.raises(Damaged):
        register(source=f"models:/{made.model}/{made.mlflow_version}", version="1.2.0")


def test_a_refused_source_leaves_nothing(store: RegistryStore, register: Register, model: str, source: Path) -> None:
    (source / "optimizer.pt").write_bytes(b"\x80\x04")
    with pytest.raises(UnsafeFile):
        register()
    (source / "optimizer.pt").unlink()
    (source / "model.safetensors").unlink()
    with pytest.raises(IncompleteSource, match="no weights"):
        register()
    with pytest.raises(InvalidSource, match="not a folder"):
        register(source=str(source / "nowhere"))
    assert model not in store.list_models()


def test_a_version_of_the_registry_can_be_a_source(
    store: RegistryStore, register: Register, model: str, tmp_path: Path
) -> None:
    first = register()
    store.set_alias(model, "best", "1.0.0")
    (tmp_path / "prompt.txt").write_text("Be brief.")
    second = register(source=f"models:/{model}@best", prompt_file=tmp_path / "prompt.txt")
    assert (second.version, second.lineage.source) == ("1.0.1", f"models:/{model}@best")
    third = register(source=f"models:/{model}/{first.mlflow_version}", generation={"top_k": "1"})
    assert "model.safetensors" in {p.name for p in store.materialise(third).iterdir()}
    simulated = register(source="sim:?seed=1")
    for missing in (f"models:/{model}@none", f"models:/{model}/99", f"models:/{model}/{simulated.mlflow_version}"):
        with pytest.raises(InvalidSource):
            register(source=missing)


def test_progress_is_told_in_bytes(store: RegistryStore, model: str, source: Path) -> None:
    told: list[tuple[str, int, int]] = []
    store.register(RegisterRequest(model=model, source=str(source)), lambda *step: told.append(step))
    total = sum(f.stat().st_size for f in source.iterdir())
    assert ("copy", 0, total) in told
    assert ("copy", total, total) in told


def test_an_evaluation_stands_beside_the_version_and_a_later_one_takes_its_place(
    store: RegistryStore, register: Register, model: str
) -> None:
    made = register(metrics={"accuracy": 0.5})
    store.note_evaluation(made, "feedback", {"up": 3.0, "down": 1.0}, '{"inputs": 1}\n')
    store.note_evaluation(made, "feedback", {"up": 4.0, "down": 1.0}, "")
    assert store.get(model, "1.0.0").metrics == {"accuracy": 0.5, "feedback.up": 4.0, "feedback.down": 1.0}
    store.verify(made)
    with pytest.raises(UnknownVersion):
        store.note_evaluation(made.model_copy(update={"version": "9.0.0", "mlflow_version": "99"}), "x", {"a": 1.0}, "")
