"""The MLflow adapter where it differs from any other: MLflow's own client, crashes, locks, several processes."""

import multiprocessing
import shutil
import sqlite3
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from mlflow import MlflowClient

from registry.errors import (
    InvalidRequest,
    RegistryBusy,
    RegistryUnavailable,
    UnknownVersion,
    UnsafeFile,
    VersionExists,
)
from registry.models import ModelVersion, RegisterRequest
from registry.stores import mlflow as adapter
from registry.stores import mlflow_tags as tags
from registry.stores.mlflow import MlflowStore
from tests.unit.registry.tiny import TEMPLATE, safetensors, write_model


@dataclass(frozen=True)
class Home:
    path: Path
    store: MlflowStore
    client: Any

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.path / 'mlflow.db'}"

    def open(self, **options: Any) -> MlflowStore:
        return MlflowStore(self.uri, self.path / "artifacts", self.path / "cache", **options)

    def foreign(self, name: str, folder: Path, at: str = "model") -> str:
        """Register a folder the way people do with MLflow's own client."""
        if not self.client.search_registered_models(f"name='{name}'"):
            self.client.create_registered_model(name)
        experiment = self.client.get_experiment_by_name("theirs")
        number = (
            experiment.experiment_id if experiment else self.client.create_experiment("theirs", str(self.path / "t"))
        )
        run = self.client.create_run(number)
        self.client.log_artifacts(run.info.run_id, str(folder), at)
        self.client.log_metric(run.info.run_id, "accuracy", 0.75)
        source = f"{run.info.artifact_uri}/{at}"
        return str(self.client.create_model_version(name, source, run.info.run_id).version)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    path = tmp_path_factory.mktemp("home")
    uri = f"sqlite:///{path / 'mlflow.db'}"
    return Home(path, MlflowStore(uri, path / "artifacts", path / "cache"), MlflowClient(uri, uri))


def ask(home: Home, model: str, source: Path | str, **values: Any) -> ModelVersion:
    return home.store.register(RegisterRequest(model=model, source=str(source), **values))


def test_mlflows_own_client_sees_everything(home: Home, tmp_path: Path) -> None:
    made = ask(
        home, "seen", write_model(tmp_path / "m"), engine_args={"dtype": "float32"}, generation={"top_k": "5"},
        metrics={"accuracy": 0.5}, commit="abc", dataset="s3://data/train",
    )  # fmt: skip
    home.store.set_alias("seen", "production", "1.0.0")
    found = home.client.get_model_version_by_alias("seen", "production")
    assert found.tags["tidegate.semver"] == "1.0.0"
    assert found.tags["tidegate.manifest_sha256"] == made.manifest_sha256
    assert found.tags["tidegate.engine_args"] == '{"dtype": "float32"}'
    run = home.client.get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"engine.dtype": "float32", "generation.top_k": "5"}
    assert run.data.metrics == {"accuracy": 0.5}
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["train"]
    assert {f.path for f in home.client.list_artifacts(found.run_id)} == {"model", "manifest.json"}
    home.client.log_metric(found.run_id, "judged", 0.9)
    assert home.store.get("seen", "1.0.0").metrics == {"accuracy": 0.5, "judged": 0.9}


def test_what_others_registered_is_imported_at_first_sight(home: Home, tmp_path: Path) -> None:
    home.foreign("theirs", write_model(tmp_path / "a"))
    home.foreign("theirs", write_model(tmp_path / "b", seed=5))
    home.foreign("theirs", write_model(tmp_path / "c", seed=5))
    home.client.set_registered_model_alias("theirs", "best", 2)
    assert home.store.get_by_alias("theirs", "best").version == "1.1.0"
    versions = home.store.list_versions("theirs")
    assert [(v.version, v.mlflow_version) for v in versions] == [("1.1.1", "3"), ("1.1.0", "2"), ("1.0.0", "1")]
    assert versions[1].bump_reason == "imported from MLflow; against 1.0.0: the weights changed"
    assert versions[1].metrics == {"accuracy": 0.75}
    assert (home.store.materialise(versions[1]) / "model.safetensors").read_bytes() == safetensors(5)
    assert ask(home, "theirs", "models:/theirs@best", generation={"top_k": "1"}).version == "1.1.2"


def test_the_layout_of_the_transformers_flavour_is_flattened(home: Home, tmp_path: Path) -> None:
    flavour = tmp_path / "flavour"
    model = write_model(flavour / "model", seed=3)
    tokenizer = flavour / "components" / "tokenizer"
    tokenizer.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (model / name).rename(tokenizer / name)
    (flavour / "MLmodel").write_text("flavors: {transformers: {}}")
    (flavour / "requirements.txt").write_text("transformers")
    home.foreign("flavoured", flavour)
    made = home.store.get("flavoured", "1.0.0")
    folder = home.store.materialise(made, verify=True)
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    (folder / "config.json").unlink()
    assert (home.store.materialise(made) / "config.json").exists(), "a damaged copy is fetched again"


def test_what_cannot_be_served_is_left_out_with_its_reason(home: Home, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02")
    number = home.foreign("unsafe", model)
    home.client.set_registered_model_alias("unsafe", "best", number)
    assert home.store.list_versions("unsafe") == ()
    assert "pickle" in home.client.get_model_version("unsafe", number).tags["tidegate.import_error"]
    with pytest.raises(UnsafeFile, match=r"pytorch_model\.bin"):
        home.store.get_by_alias("unsafe", "best")
    with pytest.raises(UnknownVersion, match="MLflow's 1 cannot be served: pytorch_model"):
        home.store.get("unsafe", "1.0.0")


@pytest.mark.parametrize("stage", ["stage", "describe", "_create", "_settle", "settle"])
def test_a_registration_that_died_leaves_nothing_in_the_way(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """As after kill -9: nothing is cleaned up on the way out."""
    model = "crash" + stage.replace("_", "-")
    source = write_model(tmp_path / "m")

    def die(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    where: Any = {"stage": adapter, "describe": adapter.Runs, "settle": adapter.Runs}.get(stage, adapter.MlflowStore)
    with monkeypatch.context() as patched:
        patched.setattr(where, stage, die)
        patched.setattr(adapter.Runs, "discard_by_id", lambda *_args: None)
        with pytest.raises(KeyboardInterrupt):
            ask(home, model, source)
    if stage == "settle":  # all but the last note was made: the version is there
        assert home.store.get(model, "1.0.0").version == "1.0.0"
        assert ask(home, model, source, version="1.0.1").version == "1.0.1"
        home.store.verify(home.store.get(model, "1.0.0"))
        return
    assert model not in home.store.list_models()
    if stage == "_settle":
        assert home.store.list_versions(model) == ()
        assert len(home.client.search_model_versions(f"name='{model}'")) == 1
    made = ask(home, model, source)
    assert made.version == "1.0.0"
    assert [v.tags[tags.STATE] for v in home.client.search_model_versions(f"name='{model}'")] == [tags.READY]
    experiment = home.client.get_experiment_by_name("tidegate").experiment_id
    runs = home.client.search_runs([experiment], f"tags.`{tags.MODEL}` = '{model}'")
    assert [r.info.status for r in runs] == ["FINISHED"]


def test_two_machines_one_number(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a common lock, the version that MLflow made first wins, and the other side is told."""
    source = write_model(tmp_path / "m")
    settle = adapter.MlflowStore._settle
    rival = {tags.SEMVER: "1.0.0", tags.STATE: tags.PENDING}
    home.client.create_registered_model("race")
    first = home.client.create_model_version("race", str(source), tags=rival)
    monkeypatch.setattr(adapter.MlflowStore, "_sweep", lambda *_args: None)
    with pytest.raises(RegistryBusy, match="is being registered by somebody else"):
        ask(home, "race", source)

    def late(self: MlflowStore, *args: Any) -> None:
        home.client.set_model_version_tag("race", str(first.version), tags.STATE, tags.READY)
        settle(self, *args)

    monkeypatch.setattr(adapter.MlflowStore, "_settle", late)
    with pytest.raises(VersionExists, match="by somebody else just now"):
        ask(home, "race", source)
    assert len(home.client.search_model_versions("name='race'")) == 1


def _register_in_child(uri: str, root: str, source: str, results: "multiprocessing.Queue[str]") -> None:
    store = MlflowStore(uri, Path(root) / "artifacts", Path(root) / "cache")
    try:
        results.put(store.register(RegisterRequest(model="many", source=source, version="1.0.0")).version)
    except VersionExists:
        results.put("exists")


def test_two_processes_one_number(home: Home, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [
        context.Process(target=_register_in_child, args=(home.uri, str(home.path), str(source), results))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    got = sorted(results.get(timeout=60) for _ in children)
    for child in children:
        child.join(timeout=60)
    assert got == ["1.0.0", "exists"]
    assert [v.version for v in home.store.list_versions("many")] == ["1.0.0"]


def test_a_locked_database_is_busy_not_broken(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    text = sqlalchemy.text
    impatient = types.SimpleNamespace(text=lambda t: text(t.replace("busy_timeout = 20000", "busy_timeout = 50")))
    monkeypatch.setattr("mlflow.store.db.utils.sql", impatient)  # 20 s is written into MLflow
    store = home.open(busy_timeout_s=1)
    store.register(RegisterRequest(model="locked", source="sim:?seed=1"))
    other = sqlite3.connect(home.path / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(RegistryBusy, match=r"mlflow\.db is locked by another process") as caught:
            store.list_versions("locked")
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert caught.value.retryable
    assert len(store.list_versions("locked")) == 1


def test_a_held_lock_is_waited_for_within_bounds(home: Home, tmp_path: Path) -> None:
    store = home.open(lock_timeout_s=0.1)
    with home.store._mlflow.lock("held"), pytest.raises(RegistryBusy, match=r"holds held for more than 0\.1 s"):
        store.register(RegisterRequest(model="held", source="sim:?seed=1"))


def test_a_database_that_is_none_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, " * 100)
    with pytest.raises(RegistryUnavailable, match=r"could not be used.*file is not a database"):
        MlflowStore(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "a", tmp_path / "c", busy_timeout_s=1)


def test_a_changed_tag_is_found(home: Home, tmp_path: Path) -> None:
    made = ask(home, "tagged", write_model(tmp_path / "m"))
    home.client.set_model_version_tag("tagged", made.mlflow_version, "tidegate.manifest", '{"files":[]}')
    with pytest.raises(adapter.RegistryError, match=r"the manifest of tagged@1\.0\.0 has digest"):
        home.store.materialise(made)


def test_a_metric_that_mlflow_does_not_take_is_the_callers_fault(home: Home) -> None:
    with pytest.raises(InvalidRequest, match="MLflow refused a value"):
        ask(home, "metric", "sim:?seed=1", metrics={"a$b": 1.0})
    assert "metric" not in home.store.list_models()


def test_names_that_dns_does_not_allow_are_left_alone(home: Home, tmp_path: Path) -> None:
    home.foreign("Their Model", write_model(tmp_path / "m"))
    assert "Their Model" not in home.store.list_models()
    assert ask(home, "ours", "models:/Their Model/1").version == "1.0.0"


@pytest.mark.integration
def test_a_real_transformers_model_logged_by_mlflow_is_imported(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("mlflow.transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.LlamaForCausalLM(config)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", chat_template=TEMPLATE)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    mlflow.set_tracking_uri(home.uri)
    mlflow.set_registry_uri(home.uri)
    experiment = mlflow.create_experiment("real", (tmp_path / "real").as_uri())
    with mlflow.start_run(experiment_id=experiment):
        mlflow.transformers.log_model(
            {"model": model, "tokenizer": tokenizer}, name="m", task="text-generation", registered_model_name="real",
            pip_requirements=["transformers"],
        )  # fmt: skip
    made = home.store.get("real", "1.0.0")
    (tmp_path / "prompt.txt").write_text('Be "brief" {{ 你好 }} 😀')
    baked = ask(home, "real", "models:/real/1", prompt_file=tmp_path / "prompt.txt")
    assert (made.bump_reason, baked.version) == ("imported from MLflow; the first version", "1.0.1")
    folder = home.store.materialise(baked)
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    asked = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert asked == '<system>Be "brief" {{ 你好 }} 😀</><user>Hi</><assistant>'
    transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_a_version_without_its_artifacts_is_damaged_not_a_traceback(home: Home, tmp_path: Path) -> None:
    made = ask(home, "gone", write_model(tmp_path / "m"))
    shutil.rmtree(made.location)
    with pytest.raises(adapter.RegistryError, match="are gone from"):
        home.store.materialise(made)
