"""The project's own files, for the tests beside this file."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("serving", "registry", "rollout", "monitoring", "guardrails", "console", "tidegate")


def project_files() -> list[Path]:
    """Every file that is or would be committed; all but hidden folders and caches when this is no git clone."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("\0")
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        skipped = {".venv", ".git", "__pycache__", "build", "dist"}
        paths = [p for p in ROOT.rglob("*") if not skipped & set(p.relative_to(ROOT).parts)]
    return sorted(p for p in paths if p.is_file())


def text_files() -> dict[str, str]:
    """The text of every project file that is text, by path below the root."""
    texts = {}
    for path in project_files():
        try:
            texts[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return texts


def modules(package: str) -> list[Path]:
    """Every Python file of a package."""
    return sorted((ROOT / package).rglob("*.py"))
