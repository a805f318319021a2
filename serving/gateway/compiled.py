"""The hot path compiled to machine code: build it, and import it in place of its sources (docs/adr/0008).

    python -m serving.gateway.compiled            builds it, if it is not there; needs mypy and a C compiler
    python -m serving.gateway.compiled --state    says whether it is there

What is built lies in a folder named after a digest of everything it was made from: sources, recipe, interpreter. It is
used only where that digest is the one of the sources at hand, so an edit is never answered by code that was compiled
before it; the sources then run as they are, more slowly, until it is built again. `TIDEGATE_COMPILED=0` runs the
sources in any case. Behaviour is the same either way, and the tests run over both.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

MODULES = (
    "monitoring.aggregates",
    "monitoring.instruments",
    "monitoring.languages",
    "monitoring.measurements",
    "monitoring.quality",
    "monitoring.refusals",
    "monitoring.tracing.context",
    "monitoring.tracing.records",
    "monitoring.tracing.sampling",
    "serving.admission",
    "serving.affinity",
    "serving.answer_form",
    "serving.endpoints",
    "serving.gateway.answer_heads",
    "serving.gateway.app",
    "serving.gateway.attempts",
    "serving.gateway.connection",
    "serving.gateway.exchange",
    "serving.gateway.express",
    "serving.gateway.forwarding",
    "serving.gateway.gatekeeper",
    "serving.gateway.guarded_way",
    "serving.gateway.http_parsing",
    "serving.gateway.http_server",
    "serving.gateway.judging",
    "serving.gateway.keyring",
    "serving.gateway.latency",
    "serving.gateway.ledger",
    "serving.gateway.observing",
    "serving.gateway.overseeing",
    "serving.gateway.pipeline",
    "serving.gateway.recorder",
    "serving.gateway.request_ids",
    "serving.gateway.running",
    "serving.gateway.seams",
    "serving.gateway.sessions",
    "serving.gateway.traffic_state",
    "serving.gateway.trail",
    "serving.gateway.transcript",
    "serving.gateway.units",
    "serving.gateway.upstream",
    "serving.gateway.usage",
    "serving.limits",
    "serving.openai_protocol",
    "serving.queueing",
    "serving.rate_limits",
    "serving.scoring",
    "serving.sightings",
    "serving.streaming",
)
"""What a request passes. All of it is compiled together, into one library, and used as a whole or not at all."""

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
READ = (
    "guardrails/prompts.py",
    "monitoring/*.py",
    "monitoring/drift/features.py",
    "monitoring/tracing/*.py",
    "serving/*.py",
    "serving/gateway/*.py",
    "serving/request_log/frames.py",
)
"""The sources that the digest is taken over: the modules above, and whatever else of ours they see."""

KEPT_BUILDS = 3
BUILD_WITHIN_S = 600.0
SWITCH = "TIDEGATE_COMPILED"
_CONFIG = """[mypy]
plugins = pydantic.mypy
ignore_missing_imports = true
[mypy-httptools.*]
follow_imports = skip
"""
_RECIPE = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from mypyc.build import mypycify
from setuptools import Distribution
from setuptools.command.build_ext import build_ext

class build_on_all_cores(build_ext):
    def build_extensions(self):
        one, pool = self.compiler.compile, ThreadPoolExecutor(os.cpu_count())
        def each(sources, **rest):
            biggest_first = sorted(sources, key=os.path.getsize, reverse=True)
            objects = dict(zip(biggest_first, pool.map(lambda s: one([s], **rest), biggest_first)))
            return [o for s in sources for o in objects[s]]
        self.compiler.compile = each
        super().build_extensions()

config, target, work, *paths = sys.argv[1:]
extensions = mypycify(
    ["--config-file", config, *paths], opt_level="2", debug_level="0", multi_file=True, target_dir=work
)
for extension in extensions:  # nobody else's functions can take the place of ours, so calls of them are direct
    extension.extra_compile_args += ["-fno-semantic-interposition", "-fvisibility=hidden", "-fno-plt"]
    extension.extra_link_args += ["-Wl,-Bsymbolic", "-Wl,-z,now"] if sys.platform == "linux" else []
command = build_on_all_cores(Distribution({"name": "tidegate-hot-path", "ext_modules": extensions}))
command.build_lib, command.build_temp = target, work
command.ensure_finalized()
command.run()
"""


class NotBuilt(Exception):
    """It could not be compiled; the sources run as they are."""


def digest() -> str:
    """Of all that the compiled code is made from."""
    found = hashlib.sha256(f"{sys.implementation.cache_tag} {SUFFIX} {_CONFIG} {_RECIPE} {MODULES}".encode())
    for pattern in READ:
        for path in sorted(ROOT.glob(pattern)):
            found.update(b"%b\0" % path.name.encode() + path.read_bytes())
    return found.hexdigest()[:24]


def _home() -> Path:
    """Where builds are kept: in the working tree, or in the environment that the package was installed into."""
    return ROOT / "build" / "compiled" if (ROOT / "pyproject.toml").exists() else Path(sys.prefix) / "tidegate-compiled"


class _Finder(MetaPathFinder):
    """Finds the compiled modules, and the library that holds them all."""

    def __init__(self, folder: Path) -> None:
        self._files = {
            ".".join(f.relative_to(folder).parts).removesuffix(SUFFIX): f for f in folder.rglob(f"*{SUFFIX}")
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        file = self._files.get(fullname)
        if file is None:
            return None
        loader = importlib.machinery.ExtensionFileLoader(fullname, str(file))
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)


def use() -> bool:
    """Import the hot path compiled from now on, if it was built from these sources; before any of it is imported.

    Returns:
        Whether it will be. Not when a part of it was imported already: compiled and plain parts don't fit together.
    """
    if in_use():
        return True
    if os.environ.get(SWITCH) == "0" or any(name in sys.modules for name in MODULES):
        return False
    folder = _home() / digest()
    if not folder.is_dir():
        return False
    sys.meta_path.insert(0, _Finder(folder))
    return True


def in_use() -> bool:
    """Whether the hot path is imported compiled."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def build() -> Path:
    """Compile the hot path, if that was not done yet. Two at once: the second waits for the first.

    Returns:
        The folder that holds it.

    Raises:
        NotBuilt: there is no compiler or no mypy, or compiling failed.
    """
    home = _home()
    folder = home / digest()
    if folder.is_dir():
        return folder
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(os.environ.get("CC", compiler)) is None and shutil.which("cc") is None:
        raise NotBuilt(f"no C compiler ({compiler}) was found; install gcc, then try again")
    if importlib.util.find_spec("mypyc") is None:
        raise NotBuilt("mypy is not installed here; `pip install mypy`, then try again")
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _compile(home, folder)
            _forget_old(home, folder)
    return folder


def _compile(home: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".work-", dir=home) as name:
        work = Path(name)
        (work / "mypy.ini").write_text(_CONFIG)
        (work / "recipe.py").write_text(_RECIPE)
        paths = [module.replace(".", "/") + ".py" for module in MODULES]
        places = [str(work / "mypy.ini"), str(work / "out"), str(work / "c")]
        command = [sys.executable, str(work / "recipe.py"), *places, *paths]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=BUILD_WITHIN_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise NotBuilt(f"compiling took longer than {BUILD_WITHIN_S:.0f} s") from None
        if done.returncode:
            (home / "failed.log").write_text(done.stdout + done.stderr)
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise NotBuilt(f"compiling failed ({last}); all of its output: {home / 'failed.log'}")
        (work / "out").rename(folder)  # all at once or not at all


def _forget_old(home: Path, newest: Path) -> None:
    """Keep a few builds, for switching between branches."""
    builds = sorted((p for p in home.iterdir() if p.is_dir() and p.name[0] != "."), key=lambda p: p.stat().st_mtime)
    for old in [p for p in builds if p != newest][: -(KEPT_BUILDS - 1)]:
        shutil.rmtree(old, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 1 where it is not built."""
    parser = argparse.ArgumentParser(prog="python -m serving.gateway.compiled", description=__doc__)
    parser.add_argument("--state", action="store_true", help="only say whether it is built for these sources")
    if parser.parse_args(arguments).state:
        folder = _home() / digest()
        print(f"{folder}: {'built' if folder.is_dir() else 'not built, so the sources run as they are'}")
        return 0 if folder.is_dir() else 1
    began = time.monotonic()
    try:
        folder = build()
    except NotBuilt as e:
        print(f"hot path not compiled: {e}", file=sys.stderr)
        return 1
    print(f"{folder}: built ({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
