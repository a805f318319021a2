"""Remembers which folders were verified, so that asking again costs a listing and not a reading. Shell."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

from registry.errors import RegistryError
from registry.files import OnProgress, list_files, silent, verify_folder
from registry.manifest import manifest_digest
from registry.models import Manifest


class VerifiedFolders:
    """Verifies folders against manifests and keeps a note of each success.

    A note holds size, inode, modification and change time of every file. The change time is set by the kernel alone,
    so a file that was written to and then given its old modification time back is still seen. `force` reads every
    byte again, which also finds what a failing disk did.
    """

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def ensure(
        self, folder: Path, manifest: Manifest, reference: str, *, force: bool = False, on_progress: OnProgress = silent
    ) -> None:
        """Verify a folder unless a note says that it was verified as it is now.

        Raises:
            Damaged: see `files.verify_folder`.
        """
        note = self._notes / f"{_key(folder, manifest)}.json"
        if not force and (now := _stamp(folder)) is not None and _read(note) == now:
            return
        note.unlink(missing_ok=True)
        before = _stamp(folder)
        verify_folder(folder, manifest, reference, on_progress)
        if before is not None and before == _stamp(folder):
            _write(note, before)


def _key(folder: Path, manifest: Manifest) -> str:
    where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return f"{manifest_digest(manifest)[:32]}-{where}"


def _stamp(folder: Path) -> str | None:
    """One line for the state of a folder, or None when it cannot be listed."""
    try:
        stats = [(f.path, f.real.stat()) for f in list_files(folder)]
    except (OSError, RegistryError):
        return None
    return json.dumps([(p, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for p, s in stats])


def _read(note: Path) -> str | None:
    try:
        return note.read_text(encoding="utf-8")
    except OSError:
        return None


def _write(note: Path, text: str) -> None:
    """Write a note whole or not at all; without notes everything works, only slower."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False, encoding="utf-8") as file:
            file.write(text)
        os.replace(file.name, note)
