"""The Ray Serve application of a revision: `import_path: serving.ray_app.application:build`.

A replica is light: it verifies the version's files, starts the engine as a child process on a port of its own and
looks after it. It answers only `GET {route_prefix}/-/engine`, which tells where the engine is; requests and tokens
go from the gateway to the engine directly, past Ray. The engine dies with the replica, and the replica with the engine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from pydantic import Field, ValidationError
from ray import serve

from registry.errors import Damaged, RegistryError
from registry.files import verify_folder
from registry.manifest import load_manifest
from serving.engines import pod, simulated, vllm
from serving.engines.base import EngineCommand, EngineProcess, Listener
from serving.errors import EngineStartFailed
from serving.ray_app import scaling
from serving.ray_app.asgi import Application, Receive, Scope, Send, lifespan
from serving.specs import EngineKind, Frozen, RevisionSpec

DEPLOYMENT = "engine"
"""The one deployment of every application."""
ENGINE_PATH = "/-/engine"
PERMANENT = "[permanent]"
"""At the end of a failure's line: starting the same revision again can't help."""
HEALTH_CHECK_PERIOD_S = 2.0
HEALTH_CHECK_TIMEOUT_S = 10.0
EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
START_ATTEMPTS = 3
"""Serve gives up on an application none of whose replicas ever started after so many attempts."""

logger = logging.getLogger("ray.serve")


class ApplicationArgs(Frozen):
    """What an application is built from. Capacity is not here: changing `args` makes Serve restart every replica."""

    revision: RevisionSpec
    host: str = "127.0.0.1"
    """Where engines listen; 0.0.0.0 and :: mean the address of the node that the replica runs on."""
    log_dir: Path = Path("logs")
    load_timeout_s: float = Field(default=900.0, gt=0)
    """From start until ready. Generous: large weights on a slow disk take minutes."""
    threads: int = Field(default=0, ge=0)
    """Cores that an engine may use on a CPU; 0: those that the replica may use."""
    verify: bool = True
    """Compare the version's files with its manifest. Off where whoever fetched them to this node has done so."""
    pod_dir: Path | None = None
    """Where the hooks of the replica's pod learn of its engine, and it of theirs: see serving/engines/pod.py."""


class Tuning(Frozen):
    """What may change while a replica runs (Serve's `user_config`)."""

    drain_s: float = Field(default=30.0, ge=0)
    """How long a stopping engine may finish what is in flight."""


class Replica:
    """Supervises one engine; Serve makes one per replica, in a process of its own."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._args = ApplicationArgs.model_validate(args)
        self._tuning = Tuning()
        self._engine: EngineProcess | None = None
        self._watch: asyncio.Task[None] | None = None
        await self._start()

    async def _start(self) -> None:
        spec = self._args.revision
        host = ray.util.get_node_ip_address() if self._args.host in EVERYWHERE else self._args.host
        # Serve's loop for user code runs in a thread that lives as long as the process, so the engine's lifeline holds.
        self._engine = engine = EngineProcess(
            f"{spec.engine} engine of {spec.model}@{spec.version}",
            command_for(self._args),
            host=host,
            log_file=self._args.log_dir / f"engine-{spec.application}-{os.getpid()}.log",
        )
        try:
            await engine.start()
            # The engine imports for seconds before it reads a weight; verifying meanwhile costs no time.
            if self._args.verify:
                await asyncio.to_thread(verify, spec)
            waited_s = await engine.wait_ready(self._args.load_timeout_s, progress=_progress(engine.name))
        except EngineStartFailed as error:
            engine.kill()
            raise EngineStartFailed(str(error)) from None
        except BaseException:
            engine.kill()
            raise
        if self._args.pod_dir is not None:
            pod.announce(self._args.pod_dir, engine.url, engine.boot)
        logger.info("%s is ready at %s after %.1f s", engine.name, engine.url, waited_s)
        self._watch = asyncio.create_task(self._die_with_engine())

    async def _die_with_engine(self) -> None:
        """End this process when the engine ends: Serve sees a dead actor at once, a sick one after three checks."""
        assert self._engine is not None
        line = await self._engine.ended_by_itself()
        logger.error("%s", line)
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
        os._exit(1)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Take over changed settings; called by Serve after the start and whenever `user_config` changes."""
        self._tuning = Tuning.model_validate(config)

    async def check_health(self) -> None:
        """Fail when the engine does not answer `/health` (Serve replaces the replica after three failures)."""
        if self._engine is None or not await self._engine.healthy():
            raise RuntimeError("the engine does not answer /health")

    def __serve_build_asgi_app__(self) -> Application:
        """The application that Serve runs on the replica's port; a function, since uvicorn takes methods for ASGI 2."""

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await lifespan(receive, send)
            elif scope["type"] == "http":
                known = scope["method"] in ("GET", "HEAD") and scope["path"].endswith(ENGINE_PATH)
                body = self._whereabouts() if known else {"error": f"only GET {ENGINE_PATH} is answered here"}
                headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
                await send({"type": "http.response.start", "status": 200 if known else 404, "headers": headers})
                await send({"type": "http.response.body", "body": json.dumps(body).encode()})

        return application

    def _whereabouts(self) -> dict[str, Any]:
        assert self._engine is not None
        spec = self._args.revision
        leaving = self._args.pod_dir is not None and pod.is_leaving(self._args.pod_dir)
        return {
            "url": self._engine.url,
            "boot": self._engine.boot,
            "engine": spec.engine.value,
            "application": spec.application,
            "model": spec.model,
            "version": spec.version,
            "digest": spec.digest,
            "ready": self._engine.alive(),
            "draining": leaving,
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve hands to the scaling policy: requests never pass this replica, so only the engine knows."""
        load = None if self._engine is None else await asyncio.to_thread(pod.load_of, self._engine.url)
        return {scaling.LOAD: float(load or 0)}

    async def __del__(self) -> None:
        """Called by Serve when it stops the replica: let the engine finish what is in flight, then end it."""
        if self._watch:
            self._watch.cancel()
        if self._engine:
            await self._engine.stop(self._tuning.drain_s)


def build(args: dict[str, Any]) -> serve.Application:
    """Make the application; called by Serve with the `args` of its configuration.

    Raises:
        EngineStartFailed: the arguments are not valid.
    """
    try:
        parsed = ApplicationArgs.model_validate(args)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise EngineStartFailed(f"application argument {where}: {first['msg']} {PERMANENT}") from error
    spec = parsed.revision
    deployment = serve.deployment(
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": 0, "num_gpus": _gpus(spec)},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=START_ATTEMPTS,
    )(serve.ingress()(Replica))
    return deployment.bind(parsed.model_dump(mode="json"))


def command_for(args: ApplicationArgs) -> Callable[[Listener], EngineCommand]:
    """How the engine of a revision is started, once its port is known."""
    spec = args.revision
    match spec.engine:
        case EngineKind.SIMULATED:
            return lambda listener: simulated.command(spec, listener)
        case EngineKind.VLLM:
            limit = vllm.context_limit(Path(spec.source))
            threads = args.threads or len(os.sched_getaffinity(0))
            return lambda listener: vllm.command(spec, listener, limit, threads)
        case EngineKind.EXTERNAL:
            raise EngineStartFailed(
                f"{spec.model}@{spec.version} is served by somebody else's workload; nothing starts here {PERMANENT}"
            )


def verify(spec: RevisionSpec) -> None:
    """Compare every file of a version with its manifest, which lies beside the version's folder.

    Raises:
        EngineStartFailed: a file is missing, changed or unexpected; one line.
    """
    if spec.engine is not EngineKind.VLLM:
        return
    folder = Path(spec.source)
    manifest_file = folder.parent / "manifest.json"
    reference = f"{spec.model}@{spec.version}"
    if not manifest_file.exists():
        logger.warning("%s has no %s, so its files are not verified", reference, manifest_file)
        return
    try:
        manifest = load_manifest(manifest_file.read_text(encoding="utf-8"), spec.manifest_sha256, reference)
        verify_folder(folder, manifest, reference)
    except Damaged as error:
        raise EngineStartFailed(f"{error} {PERMANENT}") from error
    except (RegistryError, OSError, UnicodeDecodeError) as error:
        raise EngineStartFailed(f"the files of {reference} in {folder} can't be verified: {error}") from error


def _gpus(spec: RevisionSpec) -> int:
    if spec.accelerator == "cpu" or spec.engine is EngineKind.SIMULATED:
        return 0
    sizes = (spec.engine_args.get(key) or "1" for key in ("tensor_parallel_size", "pipeline_parallel_size"))
    first, second = (int(size) for size in sizes)
    return first * second


def _progress(name: str) -> Callable[[float], None]:
    def tell(waited_s: float) -> None:
        if int(waited_s) % 10 == 0:
            logger.info("%s is loading, %.0f s so far", name, waited_s)

    return tell
