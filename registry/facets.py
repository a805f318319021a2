"""Reads a version's facets (what its number depends on) from its folder. Shell: it reads a few small files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from registry.baking import GENERATION_FILE, POLICY_FILE, PROMPT_FILE, SIMULATION_FILE, TEMPLATE_FILE, read_json
from registry.manifest import canonical_json, digest_of
from registry.models import Facets, Manifest

_WEIGHT_KEYS = ("dtype", "torch_dtype", "quantization_config")
"""Keys of config.json that tell how the weights are to be read: they belong to the weights."""

_NOISE_KEYS = ("transformers_version", "_name_or_path", "_commit_hash", "_attn_implementation_autoset", "use_cache")
"""Keys of config.json that say who wrote it, not what it is."""

_TOKENIZER_NOISE = ("chat_template", "name_or_path", "transformers_version", "is_local", "_commit_hash")

_TOKENIZER_NAMES = frozenset(
    {
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tekken.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "preprocessor_config.json",
    }
)


def compute_facets(folder: Path, manifest: Manifest, engine_args: Mapping[str, str]) -> Facets:
    """The facets of a version's folder.

    Weights are compared by their bytes, config.json by its meaning: without notes on who wrote it, and with the
    number format counted as part of the weights. README and the like decide no answer and count for nothing.

    Raises:
        InvalidSource: a JSON file cannot be read.
    """
    if (folder / SIMULATION_FILE).exists():
        parameters = _read(folder, SIMULATION_FILE)
        return _with_common(folder, manifest, engine_args, architecture="simulated", weights=digest_of(parameters))
    config = _read(folder, "config.json")
    formats = {k: config.pop(k) for k in _WEIGHT_KEYS if k in config}
    for key in _NOISE_KEYS:
        config.pop(key, None)
    ends = (".safetensors", ".safetensors.index.json", "adapter_config.json")
    weights = _digests(manifest, lambda p: p.endswith(ends))
    return _with_common(
        folder,
        manifest,
        engine_args,
        architecture=digest_of(config),
        weights=digest_of([weights, formats]),
    )


def _with_common(
    folder: Path, manifest: Manifest, engine_args: Mapping[str, str], *, architecture: str, weights: str
) -> Facets:
    tokenizer_config = _read(folder, "tokenizer_config.json")
    templates = [tokenizer_config.get("chat_template"), _read(folder, "processor_config.json").get("chat_template")]
    tokenizer = {k: v for k, v in tokenizer_config.items() if k not in _TOKENIZER_NOISE}
    vocabulary = _digests(manifest, lambda p: p in _TOKENIZER_NAMES or p.endswith(".tiktoken"))
    prompts = _digests(
        manifest,
        lambda p: p in {TEMPLATE_FILE, "chat_template.json", PROMPT_FILE} or p.startswith("additional_chat_templates/"),
    )
    generation = _read(folder, GENERATION_FILE)
    generation.pop("transformers_version", None)
    generation.pop("_from_model_config", None)
    policy = manifest.by_path().get(POLICY_FILE)
    return Facets(
        architecture=architecture,
        weights=weights,
        tokenizer=digest_of([vocabulary, tokenizer]) if vocabulary or tokenizer else "",
        prompt=digest_of([prompts, templates]) if prompts or any(templates) else "",
        policy=policy.sha256 if policy else "",
        generation={k: _as_text(v) for k, v in generation.items()},
        engine_args=dict(engine_args),
    )


def _digests(manifest: Manifest, wanted: Callable[[str], bool]) -> list[tuple[str, str]]:
    return [(f.path, f.sha256) for f in manifest.files if wanted(f.path)]


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return read_json(path) if path.exists() else {}
