"""Make .venv hold exactly what the lock files say, once: `python3.11 scripts/install.py [dev]`.

Then the gateway's hot path is compiled, where there is a C compiler (serving/gateway/compiled.py).

Standard library only: it runs before anything is installed. What was installed is noted in `.venv/tidegate-stamp.json`
by digest of the lock files, so that a second call returns at once. A marker lies beside it while pip is at work;
whoever finds the marker knows that an install was cut short, and starts over from an empty environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "tidegate-stamp.json"
UNFINISHED = VENV / "tidegate-unfinished"
LOG = VENV / "tidegate-install.log"
LOCKS = ROOT / "requirements"

RUN = (("torch-cpu.lock",), ("base.lock", "cpu.lock", "demo.lock", "compile.lock"))
"""One tuple per call of pip: it wants hashes for every requirement of a call, or for none. PyTorch comes first since
it is the one package that a machine may not be able to find."""
DEV = (("dev.lock",),)

NEEDED_BYTES = 6_000_000_000
"""Downloads in pip's cache, the environment, and room to unpack."""
REPORT_EVERY_S = 5.0

WAY_OUT = {
    r"No matching distribution found for torch==": "this machine's pip finds no CPU build of PyTorch; run "
    "`pip config set global.extra-index-url https://download.pytorch.org/whl/cpu`, then try again",
    r"No space left on device": "the disk is full; free some room, then try again",
    r"HASHES (FROM|DO NOT MATCH)|DO NOT MATCH THE HASHES": "a downloaded file is not the one that was locked; "
    "look at which index pip asks (`pip config list`), then try again",
    r"name resolution|ConnectionError|NewConnectionError|Read timed out|ConnectTimeout": "pip can't reach its package "
    "index; check the network and `pip config list`, then try again",
}


class InstallFailed(Exception):
    """Something to be told to the user in one line."""


def digest(*paths: Path) -> str:
    """Sha256 over the files' contents."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def say(text: str) -> None:
    """One line of progress."""
    print(f"  {text}", flush=True)


def locked_packages(files: tuple[str, ...]) -> int:
    """How many packages those lock files name."""
    return sum(len(re.findall(r"^[A-Za-z0-9._-]+==", (LOCKS / f).read_text(), re.MULTILINE)) for f in files)


def installed_packages() -> int:
    """How many distributions lie in the environment now."""
    return sum(1 for _ in VENV.glob("lib/python*/site-packages/*.dist-info"))


@contextlib.contextmanager
def ticking(what: str, total: int, done: Iterator[int]) -> Iterator[None]:
    """Report progress of something silent every few seconds."""
    stop = threading.Event()

    def report() -> None:
        while not stop.wait(REPORT_EVERY_S):
            say(f"{what} {next(done)}/{total}")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def counting(before: int) -> Iterator[int]:
    """How many packages were added since there were `before`."""
    while True:
        yield max(0, installed_packages() - before)


def pip(*args: str, total: int) -> None:
    """Run pip, show what it does in a few lines, keep all of it in the log."""
    command = [str(VENV / "bin/python"), "-m", "pip", "--no-input", "--disable-pip-version-check", "install"]
    command += ["--no-deps", "--progress-bar", "off", *args]
    collected, shown = 0, time.monotonic()
    tail: list[str] = []
    before = installed_packages()
    with contextlib.ExitStack() as stack, LOG.open("a") as log:
        process = stack.enter_context(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            tail = [*tail[-400:], line]
            collected += line.startswith("Collecting ")
            big = re.search(r"Downloading \S*?([A-Za-z0-9_.]+)-\d\S* \((\d{2,}\.\d|\d{3,}) MB\)", line)
            if big:
                say(f"downloading {collected}/{total}: {big[1]} ({big[2]} MB)")
                shown = time.monotonic()
            elif time.monotonic() - shown > REPORT_EVERY_S and line.startswith("Collecting "):
                say(f"downloading {collected}/{total}")
                shown = time.monotonic()
            if line.startswith("Installing collected packages"):
                stack.enter_context(ticking("unpacking", total, counting(before)))
    if process.returncode != 0:
        raise InstallFailed(explain("".join(tail)))


def explain(output: str) -> str:
    """The reason of pip's failure in one line, with the way out when it is known."""
    errors = [line.strip() for line in output.splitlines() if line.startswith("ERROR")]
    known = next((way for pattern, way in WAY_OUT.items() if re.search(pattern, output)), "")
    return f"{known or (errors[-1] if errors else 'pip failed')} (all of its output: {LOG})"


def compile_bytecode() -> None:
    """Compile on all cores; pip itself would do it on one, and the first start would wait for it otherwise."""
    say("compiling bytecode")
    command = [str(VENV / "bin/python"), "-m", "compileall", "-q", "-j", "0", str(VENV / "lib")]
    with LOG.open("a") as log:  # some packages ship templates that are no valid Python: not an error
        subprocess.run(command, stdout=log, stderr=log, check=False)


def read_stamp() -> dict[str, str]:
    """What is known to be installed; nothing when that can't be told."""
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    usable = stamp.get("venv") == str(VENV) and os.access(VENV / "bin/python", os.X_OK)
    return stamp if usable else {}


def write_stamp(stamp: dict[str, str]) -> None:
    """Note what is installed, all at once or not at all."""
    temporary = STAMP.with_suffix(".new")
    temporary.write_text(json.dumps(stamp | {"venv": str(VENV)}, indent=1) + "\n")
    temporary.replace(STAMP)


def create_venv() -> None:
    """Make the environment, anew when an install was cut short or the tree has moved."""
    config = VENV / "pyvenv.cfg"
    moved = STAMP.exists() and not read_stamp()
    if config.exists() and not UNFINISHED.exists() and not moved:
        return
    free = shutil.disk_usage(ROOT).free
    if free < NEEDED_BYTES:
        limit = NEEDED_BYTES / 1e9
        raise InstallFailed(f"{free / 1e9:.1f} GB free on this disk, {limit:.0f} GB needed; free some room, try again")
    say("an earlier install was cut short, starting over" if UNFINISHED.exists() else f"creating {VENV.name}")
    try:
        venv.create(VENV, clear=True, with_pip=True)
    except (subprocess.CalledProcessError, OSError) as error:
        shutil.rmtree(VENV, ignore_errors=True)
        raise InstallFailed(f"no virtual environment could be made ({error}); is python3.11-venv there?") from error


def install_packages(name: str, calls: tuple[tuple[str, ...], ...], stamp: dict[str, str]) -> None:
    """Bring one group of lock files in, unless it is there."""
    files = tuple(file for call in calls for file in call)
    wanted = digest(*(LOCKS / file for file in files))
    if stamp.get(name) == wanted:
        return
    size = "about 1 GB to download, 4 GB on disk; a few minutes" if name == "run" else "a few seconds"
    say(f"installing {locked_packages(files)} packages ({size})")
    started = time.monotonic()
    UNFINISHED.touch()
    for call in calls:
        arguments = [part for file in call for part in ("-r", str(LOCKS / file))]
        pip("--no-compile", *arguments, total=locked_packages(call))
    compile_bytecode()
    stamp[name] = wanted
    write_stamp(stamp)
    UNFINISHED.unlink()
    say(f"installed in {time.monotonic() - started:.0f} s")


def install_project(stamp: dict[str, str]) -> None:
    """Put the project itself in, as an editable install, and again when its metadata changed."""
    wanted = digest(ROOT / "pyproject.toml")
    if stamp.get("project") == wanted:
        return
    pip("--no-build-isolation", "--editable", ".", total=1)
    stamp["project"] = wanted
    write_stamp(stamp)


def compile_hot_path() -> None:
    """Compile what every request passes, where there is a C compiler. Without it the sources run as they are."""
    command = [str(VENV / "bin/python"), "-m", "serving.gateway.compiled"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    known = subprocess.run([*command, "--state"], cwd=ROOT, env=environment, capture_output=True, check=False)
    if known.returncode == 0:
        return
    say("compiling the gateway's hot path (half a minute to two)")
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason was given").splitlines()[-1]
        say(f"{reason}; the gateway runs from its sources, which takes about half as much CPU again")
    else:
        say(f"compiled in {time.monotonic() - started:.0f} s")


def main() -> int:
    """Install what is missing; `dev` adds the developers' tools."""
    with Path(__file__).open() as this:
        fcntl.flock(this, fcntl.LOCK_EX)  # two `make` at once: the second waits, then finds all done
        try:
            create_venv()
            stamp = read_stamp()
            install_packages("run", RUN, stamp)
            if "dev" in sys.argv[1:]:
                install_packages("dev", DEV, stamp)
            install_project(stamp)
            compile_hot_path()
        except InstallFailed as error:
            print(f"install: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("install: interrupted; the next try starts over", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
