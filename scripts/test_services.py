"""See to it that the servers which the tests start are installed: PostgreSQL and Prometheus, of Debian's packages.

    python scripts/test_services.py            # installs what is missing where it can, else says what to do

Needs nothing but Python. It installs only as root where there is apt-get, and exits 0 in any case: tests that need a
missing server are skipped with the same advice, and fail in continuous integration (where `CI` is set).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SERVICES = {"postgresql": ("initdb", "/usr/lib/postgresql/*/bin"), "prometheus": ("prometheus", "/usr/bin")}
"""By package: the program that the tests look for, and where it is beside the path."""

NO_SERVER = Path("/usr/sbin/policy-rc.d")
"""Debian asks this script before it starts what it has installed; 101 means no."""


def missing() -> list[str]:
    """Packages whose program is not there."""
    return [package for package, (program, folder) in SERVICES.items() if not _there(program, folder)]


def _there(program: str, folder: str) -> bool:
    beside = Path(folder.split("*")[0])
    pattern = folder[len(str(beside)) + 1 :]
    found = beside.glob(f"{pattern}/{program}") if "*" in folder else [beside / program]
    return shutil.which(program) is not None or any(path.exists() for path in found)


def install(packages: list[str]) -> bool:
    """Install packages without starting their servers; False when that failed."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    made = not NO_SERVER.exists()
    if made:
        NO_SERVER.write_text("#!/bin/sh\nexit 101\n")
        NO_SERVER.chmod(0o755)
    try:
        commands = (
            ["apt-get", "update", "-q"],
            ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages],
        )
        return all(subprocess.run(command, env=environment, check=False).returncode == 0 for command in commands)
    finally:
        if made:
            NO_SERVER.unlink(missing_ok=True)


def main() -> int:
    """Install what is missing, or say how."""
    packages = missing()
    if not packages:
        return 0
    named = " ".join(packages)
    if os.geteuid() == 0 and shutil.which("apt-get") is not None:
        sys.stdout.write(f"installing {named} for the tests\n")
        sys.stdout.flush()
        if install(packages) and not missing():
            return 0
        sys.stderr.write(f"installing {named} failed; ")
    sys.stderr.write(f"tests that need {named} will be skipped, or fail where CI is set. `apt-get install {named}`\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
