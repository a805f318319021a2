import io
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from registry.errors import BrokenWeights, IncompleteSource, UnsafeFile
from registry.files import list_files
from registry.inspection import inspect
from tests.unit.registry.tiny import safetensors, write_json, write_model


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def test_a_whole_model_passes(tmp_path: Path) -> None:
    inspect(list_files(write_model(tmp_path)))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.PTH", "a.ckpt", "a.pkl", "a.pickle", "a.joblib"])
def test_a_pickle_by_name_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (write_model(tmp_path) / name).write_bytes(b"anything")
    with pytest.raises(UnsafeFile, match="safe_serialization=True"):
        inspect(list_files(tmp_path))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_by_content_is_refused_whatever_its_name(tmp_path: Path, protocol: int) -> None:
    (write_model(tmp_path) / "extra.dat").write_bytes(pickle.dumps({"a": 1}, protocol))
    with pytest.raises(UnsafeFile, match=r"extra\.dat is a pickle by its content"):
        inspect(list_files(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(_zip("archive/data.pkl"), id="torch archive"),
        pytest.param(_zip("arrays.npy"), id="numpy archive"),
        pytest.param(b"PK\x03\x04 cut off", id="archive that cannot be read"),
        pytest.param(b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'shape': (1,)}", id="numpy objects"),
    ],
)
def test_wrapped_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    (write_model(tmp_path) / "notes.txt").write_bytes(content)
    with pytest.raises(UnsafeFile, match="pickle"):
        inspect(list_files(tmp_path))


def test_weights_whose_header_length_looks_like_a_pickle_pass(tmp_path: Path) -> None:
    write_model(tmp_path)
    header = b"{}".ljust(0x0280)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    inspect(list_files(tmp_path))


@pytest.mark.parametrize("name", ["modeling_custom.py", "kernel.so"])
def test_code_is_refused(tmp_path: Path, name: str) -> None:
    (write_model(tmp_path) / name).write_text("print()")
    with pytest.raises(UnsafeFile, match="architecture that vLLM knows"):
        inspect(list_files(tmp_path))


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (["config.json"], r"no config\.json"),
        (["model.safetensors"], r"no weights"),
        (["tokenizer.json"], "no a tokenizer|no tokenizer"),
        (["config.json", "model.safetensors"], r"no config\.json and no weights"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, gone: list[str], words: str) -> None:
    write_model(tmp_path)
    for name in gone:
        (tmp_path / name).unlink()
    with pytest.raises(IncompleteSource, match=words):
        inspect(list_files(tmp_path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_model(tmp_path)
    names = {"a": "model.safetensors", "b": "model-00002.safetensors"}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": names})
    with pytest.raises(IncompleteSource, match=r"1 of 2 .* first model-00002\.safetensors"):
        inspect(list_files(tmp_path))


@pytest.mark.parametrize("cut", [1, 5, 33, 100])
def test_weights_that_are_cut_off_are_refused(tmp_path: Path, cut: int) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(safetensors()[:-cut])
    with pytest.raises(BrokenWeights):
        inspect(list_files(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", id="a git-lfs pointer"),
        pytest.param(safetensors() + b"x", id="too long"),
        pytest.param(struct.pack("<Q", 2) + b"[]", id="no object"),
        pytest.param(struct.pack("<Q", 1 << 60) + b"{}", id="absurd header"),
        pytest.param(
            struct.pack("<Q", 59) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}     ' + b"1234", id="lies"
        ),
    ],
)
def test_malformed_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    (write_model(tmp_path) / "model.safetensors").write_bytes(content)
    with pytest.raises(BrokenWeights, match=r"model\.safetensors"):
        inspect(list_files(tmp_path))


def test_links_may_not_lead_out(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("x")
    model = write_model(tmp_path / "model")
    (model / "notes.txt").symlink_to(outside)
    with pytest.raises(UnsafeFile, match="leads out"):
        list_files(model)
    assert [f.path for f in list_files(model, links_within=tmp_path)].count("notes.txt") == 1


def test_linked_folders_are_refused_and_junk_is_skipped(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    for junk in (".git/config", "__pycache__/a.pyc", ".DS_Store"):
        (model / junk).parent.mkdir(exist_ok=True)
        (model / junk).write_text("x")
    assert {f.path for f in list_files(model)} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors",
        "chat_template.jinja",
    }  # fmt: skip
    (model / "sub").symlink_to(tmp_path)
    with pytest.raises(UnsafeFile, match="link to a folder"):
        list_files(model)
