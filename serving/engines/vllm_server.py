"""vLLM's OpenAI server, started in a third of the time on a CPU.

    python -m serving.engines.vllm_server --listen-fd 7 --fork-engine-core -- --model DIR --port 9000 ...

What follows `--` are vLLM's own flags. As it comes, vLLM on a CPU starts three processes one after the other (API
server, engine core, worker) and each imports torch and vLLM anew: 12 to 19 s of CPU every time. Here the engine core
is *forked* from the API server once everything is imported, and holds the worker itself. Measured on two cores:
ready in 12 to 22 s instead of 63 to 99 s.
"""

from __future__ import annotations

import argparse
import gc
import os
import socket
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from serving.addresses import base_url
from serving.engines.lifeline import PARENT_PID_VARIABLE, die_with_parent, forked_children_die_with_this_process

if TYPE_CHECKING:
    from argparse import Namespace

UNUSED_BY_IMPORTS = ("sklearn", "pandas", "scipy")
"""transformers imports them merely because they are installed, for assisted generation: 3 s of CPU for nothing."""
UNUSED_BY_ENGINE = ("ray",)
"""vLLM imports it only to ask whether this is a Ray actor. It is not: it is an actor's child."""


@contextmanager
def without_packages(names: tuple[str, ...]) -> Iterator[None]:
    """Make packages look absent while others are imported; afterwards they can be imported again.

    `None` in `sys.modules` is Python's own way to say "not to be imported": ImportError, and find_spec gives None.
    """
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Importing makes millions of objects that stay: collecting among them costs a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def fork_engine_core(config: Any) -> None:  # noqa: ANN401 - vllm.config.VllmConfig
    """Have the engine core forked, with its worker inside. Call after the config was made, before the engine is.

    Two settings of vLLM, changed after its CPU platform has put them to `mp` and `spawn`:

    - the executor: `mp` gives each worker a process, so that its threads can be bound to cores. With one worker that
      shares the machine with others binding is no gain, and OMP_NUM_THREADS, which the caller sets, does the rest.
    - the start method. Forking is safe at this moment: no OpenMP pool has started (nothing was computed), and the
      event loop of the parent is not used by the child. gc.freeze keeps the inherited objects on shared pages.
    """
    config.parallel_config.distributed_executor_backend = "uni"
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    gc.collect()
    gc.freeze()


async def run(args: Namespace, sock: socket.socket, fork: bool) -> None:
    """Start the engine and serve until SIGTERM: vLLM's `run_server`, with the socket given and the fork above."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.launchers.launcher import set_ulimit, validate_api_server_args
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    validate_api_server_args(args)
    set_ulimit()
    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    if fork:
        fork_engine_core(config)
    engine = AsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=False,
        disable_log_stats=engine_args.disable_log_stats,
    )
    try:
        await engine.reset_mm_cache()
        shutdown = await entry.build_and_serve(engine, base_url(args.host, args.port), sock, args)
    finally:
        engine.shutdown(timeout=config.shutdown_timeout)
    await shutdown


ENDPOINT_VARIABLE = "TIDEGATE_OTLP_ENDPOINT"
PROTOCOL_VARIABLE = "TIDEGATE_OTLP_PROTOCOL"
"""The platform's own settings, which every process of it inherits. They change no answer, so no revision has them."""


def tracing_flags(env: MutableMapping[str, str], given: Sequence[str]) -> list[str]:
    """VLLM's flag for spans where the platform has a collector, and its variables in `env`; a version's own flag wins.

    The gateway passes on the trace as `traceparent`, so vLLM's spans become children of the gateway's attempt.
    """
    endpoint = env.get(ENDPOINT_VARIABLE, "").rstrip("/")
    if not endpoint or any(flag.partition("=")[0] == "--otlp-traces-endpoint" for flag in given):
        return []
    protocol = env.get(PROTOCOL_VARIABLE, "grpc")
    env.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol)
    env.setdefault("OTEL_SERVICE_NAME", "tidegate-engine")
    if protocol != "grpc" and not endpoint.endswith("/v1/traces"):
        endpoint += "/v1/traces"  # vLLM takes it as it is
    return ["--otlp-traces-endpoint", endpoint]


def main(argv: list[str] | None = None) -> None:
    """Parse our flags and vLLM's, then serve."""
    parser = argparse.ArgumentParser(prog="python -m serving.engines.vllm_server", description=__doc__.split("\n")[0])
    parser.add_argument("--listen-fd", type=int, required=True, help="descriptor of a bound socket")
    parser.add_argument("--fork-engine-core", action="store_true", help="one import for all processes (CPU only)")
    parser.add_argument("vllm", nargs="+", help="vLLM's own flags, after --")
    ours = parser.parse_args(argv)
    ours.vllm += tracing_flags(os.environ, ours.vllm)
    if os.environ.get(PARENT_PID_VARIABLE):
        die_with_parent()
    sock = socket.socket(fileno=ours.listen_fd)
    sock.set_inheritable(False)
    if ours.fork_engine_core:
        forked_children_die_with_this_process()
        # A child that kept the listening socket would let clients hang for the moment that it outlives its parent.
        os.register_at_fork(after_in_child=sock.close)
    with without_garbage_collection(), without_packages(UNUSED_BY_IMPORTS):
        import uvloop
        from vllm.entrypoints.launchers import cli_args
        from vllm.entrypoints.launchers.api_server import entry  # noqa: F401 - imports what serving will need
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine import async_llm, core  # noqa: F401 - core: so that the fork finds it imported

        args = cli_args.make_arg_parser(FlexibleArgumentParser()).parse_args(ours.vllm)
        cli_args.validate_parsed_serve_args(args)
    with without_packages(UNUSED_BY_ENGINE if ours.fork_engine_core else ()):
        uvloop.run(run(args, sock, ours.fork_engine_core))


if __name__ == "__main__":
    main()
