"""`tidegate up`, `down`, `status`, `doctor`: the local platform."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidegate.cli import session
from tidegate.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    age,
    chosen,
    duration,
    note,
    print_data,
    print_rows,
    print_table,
)
from tidegate.errors import StartFailed, TidegateError, WrongUse

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tidegate.cli.progress import StartView
    from tidegate.runfile import PlatformState
    from tidegate.settings import Settings

POLL_S = 0.1
DEFAULT_WAIT_S = 900.0


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)
    app.command("doctor")(doctor)


def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return when the first answer can be had.")] = False,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME@VERSION", help="Serve this version instead of the bundled one; repeat."),
    ] = None,
    bare: Annotated[bool, typer.Option("--bare", help="Start without a model.")] = False,
    gateway_port: Annotated[int | None, typer.Option(help="The OpenAI address's port. Default 8000.")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port of the gateway's metrics and health. Default 8001.")
    ] = None,
    control_port: Annotated[
        int | None, typer.Option(help="Port of the console and the control plane. Default 8080.")
    ] = None,
    with_monitoring: Annotated[
        bool, typer.Option("--with-monitoring", help="Run this machine's Prometheus beside it, configured.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long to wait for the first answer.")
    ] = DEFAULT_WAIT_S,
) -> None:
    """Start the local platform and serve a model. Without --detach it stays, and Ctrl-C stops everything."""
    if bare and models:
        raise WrongUse("--bare starts without a model, --model names one; give one of them")
    for reference in models or ():
        session.parse_reference(reference)
    settings = session.settings(
        gateway_port=gateway_port, admin_port=admin_port, control_port=control_port, monitoring=with_monitoring or None
    )
    settings = _monitored(settings) if settings.monitoring else settings
    from tidegate.cli.progress import StartView
    from tidegate.launcher import launch
    from tidegate.startup import Wish

    process = launch(settings, Wish(bare=bare, models=tuple(models or ())), detach=detach)
    deadline = time.monotonic() + timeout
    view = StartView()
    if process is None:
        _already_up(settings, models or [], view, deadline)
        return
    try:
        state = _watch_start(settings, process.pid, lambda: process.poll() is None, view, deadline)
    except KeyboardInterrupt:
        view.close()
        if detach:
            note("it goes on starting; `tidegate status` shows how far it is, `tidegate down` stops it")
            raise typer.Exit(130) from None
        _stop_foreground(settings, process)
        raise typer.Exit(130) from None
    finally:
        view.close()
    _announce(settings, state)
    if not detach:
        _stay(settings, process, state)
    if state.error:
        raise StartFailed(state.error)


def _monitored(settings: Settings) -> Settings:
    """The settings with signals named prometheus/... read from the Prometheus beside us, unless another was named."""
    from tidegate.monitoring_files import prometheus_program

    if prometheus_program() is None:
        raise StartFailed(
            "monitoring needs Prometheus, and no `prometheus` is on the path; install it (`apt-get install prometheus` "
            "on Debian), or start without --with-monitoring and see `tidegate monitor export --help`"
        )
    url = settings.prometheus_url or settings.local_prometheus_url
    return settings.model_copy(update={"prometheus_url": url})


def _watch_start(
    settings: Settings, pid: int, alive: Callable[[], bool], view: StartView, deadline: float
) -> PlatformState:
    """Show the start until everything that was asked for is there, or can't be."""
    from tidegate.launcher import ended_badly
    from tidegate.runfile import Stage, read_state

    while True:
        ended = not alive()
        state = read_state(settings)
        if state is not None and state.pid == pid:
            view.show(state)
            up_once = all(p.took_s is not None or p.restarts for p in state.parts)
            if state.stage is Stage.RUNNING and state.tasks_done and up_once:
                return state
        if ended:
            raise StartFailed(ended_badly(settings, pid))
        if time.monotonic() >= deadline:
            raise StartFailed(
                "no first answer within the time given by --timeout; it goes on starting: `tidegate status`, "
                "`tidegate logs ray`; `tidegate down` stops it"
            )
        time.sleep(POLL_S)


def _already_up(settings: Settings, models: list[str], view: StartView, deadline: float) -> None:
    """Somebody else started it: wait until it is up, and say so."""
    from tidegate.launcher import running_state

    state = running_state(settings)
    if state is None:
        raise StartFailed(f"the platform in {settings.home} has just ended; try again")
    note(f"Tidegate runs already for {settings.home}, process {state.pid}")
    owner = state.identity
    try:
        state = _watch_start(settings, owner.pid, lambda: owner.alive, view, deadline)
    finally:
        view.close()
    if settings.monitoring and not any(p.name == "prometheus" for p in state.parts):
        note("it runs without Prometheus; `tidegate down`, then `tidegate up --with-monitoring`")
    if models:
        note(f"`tidegate deploy {models[0]}` rolls another version out")
    _addresses(settings)
    if state.error and not _serves_something(settings):
        raise StartFailed(state.error)


def _announce(settings: Settings, state: PlatformState) -> None:
    took = time.time() - state.started_at
    if not state.error:
        print(f"Tidegate is up after {took:.0f} s")
    _addresses(settings)


def _addresses(settings: Settings) -> None:
    rows = [
        ("OpenAI address", f"{settings.gateway_url}/v1"),
        ("console", f"{settings.control_url}/"),
        ("metrics", f"{settings.admin_url}/metrics"),
        *([("Prometheus", settings.local_prometheus_url)] if settings.monitoring else []),
        ("state and logs", str(settings.home)),
    ]
    for name, value in rows:
        print(f"  {name:<15} {value}")
    print("Next: `tidegate status`, `tidegate model register --help`, `tidegate deploy NAME@VERSION`, `tidegate down`")


def _stay(settings: Settings, process: subprocess.Popen[bytes], state: PlatformState) -> None:
    """Foreground: until Ctrl-C, or until the supervisor ends."""
    if state.error:
        note(f"tidegate: {state.error}")
        if not _serves_something(settings):
            _stop_foreground(settings, process)
            raise typer.Exit(1)
    note("Ctrl-C stops it")
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _stop_foreground(settings, process)
        return
    if code != 0:
        from tidegate.launcher import ended_badly

        raise StartFailed(ended_badly(settings, process.pid))


def _serves_something(settings: Settings) -> bool:
    from tidegate.client import connect

    try:
        with connect(settings) as client:
            return any(m.stable for m in client.models())
    except TidegateError:
        return False


def _stop_foreground(settings: Settings, process: subprocess.Popen[bytes]) -> None:
    note("stopping; Ctrl-C again doesn't wait for open streams")
    process.terminate()
    while True:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            continue
        break
    from tidegate.launcher import stop

    stop(settings, lambda _state: None)


def down(
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="After this everything left is killed.")
    ] = 75.0,
) -> None:
    """Stop the local platform: the gateway first, which lets streams finish for 30 s, then the controller and Ray."""
    settings = session.settings()
    from tidegate.cli.progress import StopView
    from tidegate.launcher import stop

    view = StopView()
    started = time.monotonic()
    try:
        ran = stop(settings, view.show, timeout)
    finally:
        view.close()
    print(f"stopped in {time.monotonic() - started:.1f} s" if ran else "nothing was running")


def status(output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Show the processes of the local platform, its addresses and its models. Exit code 1 when it is not up."""
    output = chosen(output, as_json)
    settings = session.running_settings()
    from tidegate.runfile import read_state

    state = read_state(settings)
    if state is not None and not state.alive:
        state = None
    models, problem = _models(settings) if state is not None else ([], "")
    if output in (Format.JSON, Format.YAML):
        print_data(_status_data(settings, state, models, problem), output)
    elif output is Format.NAME:
        for part in state.parts if state else ():
            print(part.name)
    elif state is None:
        print(f"not running (home {settings.home}); `tidegate up` starts it")
    else:
        _print_status(settings, state, models, problem)
    if state is None:
        raise typer.Exit(1)


def _models(settings: Settings) -> tuple[list[dict[str, Any]], str]:
    from tidegate.client import connect

    try:
        with connect(settings) as client:
            return [m.model_dump(mode="json") for m in client.models()], ""
    except TidegateError as error:
        return [], str(error)


def _status_data(
    settings: Settings, state: PlatformState | None, models: list[dict[str, Any]], problem: str
) -> dict[str, Any]:
    return {
        "running": state is not None,
        "stage": state.stage if state else "stopped",
        "error": state.error if state else "",
        "home": str(settings.home),
        "processes": [_process_data(state, p) for p in range(len(state.parts))] if state else [],
        "tasks": [t.model_dump(mode="json") for t in state.tasks] if state else [],
        "addresses": {
            "gateway": f"{settings.gateway_url}/v1",
            "admin": settings.admin_url,
            "control": settings.control_url,
        },
        "models": models,
        "control_problem": problem,
    }


def _process_data(state: PlatformState, index: int) -> dict[str, Any]:
    part = state.parts[index]
    return {
        "name": part.name,
        "pid": part.pid,
        "state": part.state,
        "restarts": part.restarts,
        "uptime_s": round(time.time() - part.since, 1) if part.pid else None,
        "rss_bytes": _rss_bytes(part.pid, part.pid_started_at),
        "message": part.message,
    }


def _rss_bytes(pid: int | None, started_at: float | None) -> int | None:
    """Memory of a process and its descendants; shared pages are counted once per process."""
    import psutil

    from tidegate.processes import Identity, family

    if pid is None or started_at is None:
        return None
    total = 0
    for process in family(Identity(pid, started_at)):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def _print_status(settings: Settings, state: PlatformState, models: list[dict[str, Any]], problem: str) -> None:
    rows: list[list[object]] = [["supervisor", state.pid, state.stage, "-", age(state.started_at), "-", state.error]]
    for index in range(len(state.parts)):
        data = _process_data(state, index)
        rss = f"{data['rss_bytes'] / 2**20:.0f} MiB" if data["rss_bytes"] else "-"
        up_for = duration(data["uptime_s"]) if data["uptime_s"] is not None else "-"
        rows.append([data["name"], data["pid"], data["state"], data["restarts"], up_for, rss, data["message"]])
    print_table(["process", "pid", "state", "restarts", "up for", "memory", "message"], rows)
    print()
    for task in state.tasks:
        if task.state != "ready":
            print(f"{task.title}: {task.state} {task.message}")
    _addresses(settings)
    print()
    if problem:
        note(f"tidegate: {problem}")
        return
    print_rows(
        Format.TABLE,
        data=models,
        names=[],
        columns=["model", "stable", "canary", "phase"],
        rows=[[m["model"], m["stable"], m["canary"], m["phase"]] for m in models],
        empty="no model is deployed; `tidegate deploy NAME@VERSION` deploys one",
    )


def doctor(output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Check this machine: what is missing, and how to get it. Exit code 1 when something would stop `tidegate up`."""
    output = chosen(output, as_json)
    settings = session.settings()
    from tidegate import doctor as examination

    checks = examination.judge(examination.gather(settings))
    if output in (Format.TABLE, Format.WIDE):
        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 160).print(examination.as_table(checks))
    elif output is Format.NAME:
        for check in checks:
            print(check.name)
    else:
        print_data(examination.as_json(checks), output)
    if examination.worst(checks) is examination.Verdict.FAIL:
        raise typer.Exit(1)
