"""What reviewers would otherwise have to look for: the shape of the tree, and what must never be in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.source_tree import PACKAGES, ROOT, modules, project_files, text_files

MAX_LINES = 600
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
UNSIZED = {"requirements"}
"""Folders of generated files."""

HERE = str(Path(__file__).relative_to(ROOT))


@pytest.mark.parametrize("package", PACKAGES)
def test_package_inits_are_empty(package: str) -> None:
    full = [str(p) for p in modules(package) if p.name == "__init__.py" and p.read_text().strip()]
    assert not full, "importing a package must cost nothing and do nothing"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_a_package_is_a_package(package: str) -> None:
    bare = {p.parent for p in modules(package) if not (p.parent / "__init__.py").exists()}
    migrations = ROOT / "rollout/event_log/migrations"  # scripts that alembic loads by path
    assert not {p for p in bare if p != migrations and migrations not in p.parents}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


def test_no_file_is_too_long() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in project_files() if p.suffix == ".py"}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_modules_say_what_they_are_for() -> None:
    paths = (p.relative_to(ROOT) for p in project_files() if p.suffix == ".py")
    assert [str(p) for p in paths if VAGUE_NAMES & {part.removesuffix(".py") for part in p.parts}] == []


FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w.~:}-])/(?:opt|work|root|Users)/",
    "a package index or its options": r"pythonhosted|pypi\.org|npmjs\.|/simple\b|--(?:extra-)?index-url|--find-links",
    "work left undone": r"\b(?:TODO|FIXME|XXX|HACK)\b",
    "a merge conflict": r"^(?:<{7}|>{7}) ",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_in_the_tree_is(what: str) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in text_files().items()
        if name != HERE
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(FORBIDDEN[what], line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of somebody's machine", "find_links = /opt/wheels"),
        ("a path of somebody's machine", '"/root/.tidegate"'),
        ("a package index or its options", "--index-url https://example.org"),
        ("work left undone", "# TODO: later"),
    ],
)
def test_those_patterns_see_what_they_are_for(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)


def documents() -> list[str]:
    return [name for name in text_files() if name.endswith(".md")]


def anchors(markdown: str) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    titles = re.findall(r"^#+ +(.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", documents())
def test_links_of_documents_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file.read_text())):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", documents())
def test_documents_name_only_targets_that_make_has(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE))
    assert named <= targets
