"""How to start vLLM for a revision: a pure translation of its engine arguments into flags and environment.

Nothing here imports vLLM; the program that does is `serving.engines.vllm_server`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from serving.engines.base import EngineCommand, Listener
from serving.errors import EngineStartFailed
from serving.specs import RevisionSpec

CONTEXT_LIMIT_TOKENS = 4096
"""Longest context on a CPU unless the version says otherwise: a longer one makes prefills of minutes possible."""
KVCACHE_GIB = "1"
"""Room for the KV cache on a CPU, in GiB, unless the version sets VLLM_CPU_KVCACHE_SPACE."""
CPU_FLAGS: Mapping[str, str] = {"enforce_eager": "", "max_num_seqs": "64", "distributed_executor_backend": "uni"}
"""Eager: compiling takes minutes on two cores. 64 sequences: more only adds latency. `uni`: see vllm_server."""
FLAGS: Mapping[str, str] = {"load_format": "safetensors", "disable_uvicorn_access_log": "", "shutdown_timeout": "3600"}
"""For every device: never a pickle, no line per request in the log, and SIGTERM lets requests finish.

Whoever sends SIGTERM decides when to kill, so vLLM's own limit (in seconds) is out of the way.
"""
ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOG_STATS_INTERVAL": "60",
    "PYTHONUNBUFFERED": "1",
}
"""What does not depend on the version nor on the device."""
SPIN_COUNT = "5000"
"""How long an OpenMP thread on a CPU spins for the others before it sleeps, in turns of a loop (GOMP_SPINCOUNT).

libgomp's default of about 300,000 is best on an idle machine and ruinous as soon as anything else wants a core, which
on a platform is always; never to spin costs on every layer. Output tokens/s of a 135M model in float32, two threads on
two cores, alone / at 16 requests, best case: default 17 / 138, 5000 21 / 138, passive 12 / 103, one thread 17 / 98;
with both cores busy otherwise: default 0.8 / 6, passive 7 / 50; with load of 3 to 5 (medians): default 8 / 113,
5000 18 / 92, passive 8 / 90, one thread 15 / 92.
"""

KVCACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
OURS = frozenset(
    {
        "model",
        "served_model_name",
        "host",
        "port",
        "uds",
        "api_key",
        "root_path",
        "ssl_keyfile",
        "ssl_certfile",
        "ssl_ca_certs",
    }
)
"""Flags that the platform sets: addresses and names are not a version's business."""
REFUSED = frozenset(
    {
        "trust_remote_code",
        "tool_parser_plugin",
        "reasoning_parser_plugin",
        "io_processor_plugin",
        "logits_processors",
        "middleware",
        "worker_cls",
        "worker_extension_cls",
        "scheduler_cls",
        "model_class_overrides",
        "config",
        "download_dir",
        "enable_log_requests",
        "enable_log_outputs",
        "allowed_local_media_path",
    }
)
"""Flags that would run code from the version's folder, read other files, or write prompts into the log."""
LOAD_FORMATS = frozenset({"safetensors", "auto", "dummy", "fastsafetensors", "runai_streamer"})


def context_limit(folder: Path) -> int | None:
    """The longest context that a model folder declares, in tokens; None when it doesn't say.

    Raises:
        EngineStartFailed: there is no readable config.json.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EngineStartFailed(
            f"{path} can't be read ({error}); a version holds one, with safetensors and a tokenizer [permanent]"
        ) from error
    found = config.get("max_position_embeddings") or (config.get("text_config") or {}).get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def command(spec: RevisionSpec, listener: Listener, model_limit: int | None, threads: int) -> EngineCommand:
    """Translate a revision into the command that starts its engine.

    Args:
        spec: The revision; `engine_args` win over the defaults of this module.
        listener: Where the engine will listen.
        model_limit: What `context_limit` found, in tokens.
        threads: Cores that the engine may use on a CPU.

    Raises:
        EngineStartFailed: an argument is refused; the message says which.
    """
    given = {key.lower().replace("-", "_").lstrip("_"): value for key, value in spec.engine_args.items()}
    kvcache = given.pop(KVCACHE_VARIABLE.lower(), KVCACHE_GIB)
    _refuse(spec, given, kvcache)
    flags = dict(FLAGS)
    env = dict(ENVIRONMENT)
    ours: list[str] = []
    if spec.accelerator == "cpu":
        limit = min(model_limit or CONTEXT_LIMIT_TOKENS, CONTEXT_LIMIT_TOKENS)
        flags |= {**CPU_FLAGS, "max_model_len": str(limit)}
        env |= {KVCACHE_VARIABLE: kvcache, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": SPIN_COUNT}
        ours.append("--fork-engine-core")
    flags |= given
    argv = [sys.executable, "-m", "serving.engines.vllm_server", "--listen-fd", str(listener.fd), *ours, "--"]
    argv += ["--model", spec.source, "--served-model-name", spec.model]
    argv += ["--host", listener.host, "--port", str(listener.port)]
    for key in sorted(flags):
        argv.append("--" + key.replace("_", "-"))
        if flags[key]:
            argv.append(flags[key])
    return EngineCommand(tuple(argv), env)


def _refuse(spec: RevisionSpec, given: Mapping[str, str], kvcache: str) -> None:
    who = f"vllm engine of {spec.model}@{spec.version}"
    if taken := sorted(given.keys() & OURS):
        raise EngineStartFailed(f"{who}: engine argument {taken[0]!r} is set by the platform; leave it out [permanent]")
    if refused := sorted(given.keys() & REFUSED):
        raise EngineStartFailed(
            f"{who}: engine argument {refused[0]!r} is never passed on, since it can run code of the version or log "
            "prompts; leave it out [permanent]"
        )
    load_format = given.get("load_format", "safetensors")
    if load_format not in LOAD_FORMATS:
        raise EngineStartFailed(f"{who}: load_format={load_format!r} may read pickles; use safetensors [permanent]")
    if not kvcache.isdigit() or int(kvcache) < 1:
        raise EngineStartFailed(f"{who}: {KVCACHE_VARIABLE}={kvcache!r}; give whole GiB, at least 1 [permanent]")
