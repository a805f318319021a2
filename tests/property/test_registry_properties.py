"""What must hold for any version, any prompt and any damage."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from registry.errors import Damaged
from registry.files import build_manifest, verify_folder
from registry.manifest import dump_manifest, load_manifest, manifest_digest
from registry.models import Bump, Manifest
from registry.prompts import prepend_system_prompt, render
from registry.semver import SemVer, next_version
from registry.verification import VerifiedFolders
from tests.unit.registry.tiny import TEMPLATE, write_model

numbers = st.integers(min_value=0, max_value=30)
words = st.from_regex(r"\A[0-9]*[a-z-][0-9a-z-]{0,4}\Z").filter(bool)
identifiers = st.lists(st.one_of(numbers.map(str), words), max_size=3).map(tuple)
versions = st.builds(SemVer, numbers, numbers, numbers, identifiers, st.lists(words, max_size=2).map(tuple))


@given(versions)
def test_text_and_back(version: SemVer) -> None:
    assume(len(str(version)) <= 64)
    assert SemVer.parse(str(version)) == version


@given(versions, versions, versions)
def test_the_order_is_total(a: SemVer, b: SemVer, c: SemVer) -> None:
    assert (a < b) + (a == b) + (a > b) == 1
    if a <= b <= c:
        assert a <= c
    if a.core < b.core:
        assert a < b
    if a.core == b.core and a.prerelease and not b.prerelease:
        assert a < b


@given(versions, st.lists(versions, max_size=6), st.sampled_from(Bump))
def test_the_next_version_is_free_and_higher(parent: SemVer, existing: list[SemVer], bump: Bump) -> None:
    found = next_version(parent, bump, existing)
    assert found not in existing
    assert found > parent
    assert not found.prerelease
    same = {Bump.PATCH: 2, Bump.MINOR: 1, Bump.MAJOR: 0}[bump]
    assert found.core[:same] == parent.core[:same]


@given(st.text(min_size=1))
@example("{% endif %}{{ 7*7 }}{# #}-%}")
@example("\\n\\u0041 ' \" \r\n \x00 😀")
@settings(deadline=None)
def test_any_prompt_reaches_the_model_as_it_was_written(prompt: str) -> None:
    baked = prepend_system_prompt(TEMPLATE, prompt)
    text = render(baked, [{"role": "user", "content": "Hi"}])
    assert text == f"<system>{prompt}</><user>Hi</><assistant>"


@pytest.fixture(scope="module")
def original() -> Iterator[tuple[Path, Manifest]]:
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model")
        (model / "sub").mkdir()
        (model / "sub" / "notes.txt").write_text("hello")
        yield model, build_manifest(model)


def _copy(original: Path, folder: str) -> Path:
    return Path(shutil.copytree(original, Path(folder) / "copy"))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_damage_is_found_and_named(original: tuple[Path, Manifest], data: st.DataObject) -> None:
    source, manifest = original
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy(source, folder)
        victim = data.draw(st.sampled_from(manifest.files))
        path = copy / victim.path
        content = bytearray(path.read_bytes())
        match data.draw(st.sampled_from(["flip", "cut", "grow", "missing", "extra"])):
            case "flip":
                at = data.draw(st.integers(0, len(content) - 1))
                content[at] ^= 1 << data.draw(st.integers(0, 7))
                path.write_bytes(content)
            case "cut":
                path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
            case "grow":
                path.write_bytes(content + b"\0")
            case "missing":
                path.unlink()
            case _:
                path = path.with_name(data.draw(words).strip("-") + "x")
                assume(not path.exists())
                path.write_bytes(b"")
        with pytest.raises(Damaged) as caught:
            verify_folder(copy, manifest, "chat@1.0.0")
        assert caught.value.path == path.relative_to(copy).as_posix()
        assert "chat@1.0.0" in str(caught.value)


def test_an_untouched_folder_passes_and_is_read_once(original: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = original
    stages: list[str] = []
    verified = VerifiedFolders(tmp_path)

    def ensure(force: bool = False) -> int:
        stages.clear()
        verified.ensure(folder, manifest, "x", force=force, on_progress=lambda s, _d, _t: stages.append(s))
        return len(stages)

    assert ensure() > 0
    assert ensure() == 0
    assert ensure(force=True) > 0


def test_a_write_with_its_time_put_back_is_still_seen(original: tuple[Path, Manifest], tmp_path: Path) -> None:
    import os

    copy, manifest = _copy(original[0], str(tmp_path)), original[1]
    verified = VerifiedFolders(tmp_path / "notes")
    verified.ensure(copy, manifest, "x")
    path = copy / "model.safetensors"
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(Damaged, match=r"model\.safetensors"):
        verified.ensure(copy, manifest, "x")


def test_a_changed_manifest_is_found(original: tuple[Path, Manifest]) -> None:
    text, digest = dump_manifest(original[1]), manifest_digest(original[1])
    assert load_manifest(text, digest, "x") == original[1]
    with pytest.raises(Damaged):
        load_manifest(text.replace("hello", "x").replace('"size_bytes":5', '"size_bytes":6'), digest, "x")
    with pytest.raises(Damaged):
        load_manifest("", digest, "x")
