"""Entry point of `tidegate`. Light: what a command needs is imported when that command runs."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import typer

from tidegate.cli import (
    cluster,
    deploy,
    drift,
    guard,
    k8s,
    key,
    log,
    logs,
    model,
    monitor,
    platform,
    probe,
    quota,
    reach,
    rollback,
    rollout,
    schema,
    usage,
)
from tidegate.errors import TidegateError, WrongUse

app = typer.Typer(
    name="tidegate",
    help="Serve registered language models, roll new versions out on evidence, take bad ones back by themselves.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
platform.add_to(app)
app.add_typer(model.app, name="model")
deploy.add_to(app)
app.add_typer(rollout.app, name="rollout")
rollback.add_to(app)
app.add_typer(key.app, name="key")
app.add_typer(quota.app, name="quota")
app.add_typer(guard.app, name="guard")
usage.add_to(app)
schema.add_to(app)
app.add_typer(monitor.app, name="monitor")
app.add_typer(drift.app, name="drift")
app.add_typer(probe.app, name="probe")
app.add_typer(k8s.app, name="k8s")
app.add_typer(log.app, name="log")
logs.add_to(app)


def run(argv: Sequence[str] | None = None, *, plugin: bool = False) -> int:
    """Run one command line. Returns the exit code: 0, 1 for a failure, 2 for wrong use, 130 for Ctrl-C.

    Args:
        argv: the words; None means those of this process.
        plugin: as `kubectl tidegate`: every command that can drive a cluster does.
    """
    cluster.begin(always=plugin)
    if told_why := reach.refusal(sys.argv[1:] if argv is None else argv, plugin=plugin):
        print(f"tidegate: {told_why}", file=sys.stderr)
        return WrongUse.exit_code
    name = "kubectl tidegate" if plugin else "tidegate"
    try:
        code = app(args=None if argv is None else list(argv), prog_name=name, standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message()
        print(message if type(error).__name__ == "NoArgsIsHelpError" else _one_line(message), file=sys.stderr)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; nobody wants to hear of it
        return 1
    except Exception as error:
        told = exit_code_of(error)
        if told is None:
            raise
        print(_one_line(_told(error)), file=sys.stderr)
        return told
    return code if isinstance(code, int) else 0


def exit_code_of(error: Exception) -> int | None:
    """The exit code of an error of ours; None when it is not one, and therefore a defect that needs its trace."""
    if isinstance(error, TidegateError):
        return error.exit_code
    if isinstance(error, OSError):  # no room, no permission: the message names the file
        return 1
    # By name, since importing the packages that define them costs a third of a second.
    family = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if family & {"registry.errors.InvalidRequest", "rollout.errors.InvalidSpec"}:
        return 2
    ours = {"registry.errors.RegistryError", "rollout.errors.RolloutError", "serving.errors.ServingError"}
    if family & ours:
        return 1
    if "pydantic_core._pydantic_core.ValidationError" in family:
        return 2 if getattr(error, "title", "") == "Settings" else None
    return None


def _told(error: Exception) -> str:
    """What an error says. The system's own say a number first, and no way out."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower()}; check the path, its permissions and the room on its disk"
    return str(error)


def _one_line(message: str) -> str:
    return "tidegate: " + " ".join(message.split())


def print_whatever_comes() -> None:
    """Have what the terminal's encoding has no character for escaped: names of files and models may hold any."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """The console script."""
    print_whatever_comes()
    sys.exit(run())


def kubectl_main() -> None:
    """The console script `kubectl-tidegate`, which kubectl runs as `kubectl tidegate`."""
    print_whatever_comes()
    sys.exit(run(plugin=True))


if __name__ == "__main__":
    main()
