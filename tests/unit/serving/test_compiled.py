"""Compiled code is used only for the sources that it was made from, and as a whole. Building it is not tried here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from serving.gateway import compiled


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with sources and a build of them; nothing of it imported."""
    for module in compiled.MODULES:
        source = tmp_path / (module.replace(".", "/") + ".py")
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(f"'''{module}'''\n")
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(compiled, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, compiled._Finder)])
    monkeypatch.setattr(sys, "modules", {n: m for n, m in sys.modules.items() if n not in compiled.MODULES})
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    built = tmp_path / "build" / "compiled" / compiled.digest() / "serving"
    built.mkdir(parents=True)
    (built / f"limits{compiled.SUFFIX}").touch()
    return tmp_path


def test_a_build_of_these_sources_is_used(tree: Path) -> None:
    assert compiled.use()
    assert compiled.in_use()
    finder = sys.meta_path[0]
    spec = finder.find_spec("serving.limits", None)
    assert spec is not None
    assert spec.origin == str(next(tree.rglob(f"*{compiled.SUFFIX}")))
    assert finder.find_spec("serving.knobs", None) is None


@pytest.mark.parametrize("module", ["serving.limits", "monitoring.quality", "serving.gateway.pipeline"])
def test_an_edit_is_never_answered_by_older_code(tree: Path, module: str) -> None:
    source = tree / (module.replace(".", "/") + ".py")
    source.write_text(source.read_text() + "\n")
    assert not compiled.use()
    assert not compiled.in_use()


def test_what_it_only_looks_at_counts_too(tree: Path) -> None:
    (tree / "serving" / "traffic.py").write_text("changed = True\n")
    assert not compiled.use()


def test_it_is_not_used_once_a_part_was_imported(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serving.queueing", sys)
    assert not compiled.use()


def test_it_can_be_switched_off(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SWITCH, "0")
    assert not compiled.use()


def test_every_module_of_the_list_is_there() -> None:
    root = Path(compiled.__file__).resolve().parents[2]
    assert [m for m in compiled.MODULES if not (root / (m.replace(".", "/") + ".py")).is_file()] == []
