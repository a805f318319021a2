"""Bakes prompt, generation settings and policy into a version's folder, so that it stands alone. Shell."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from registry.errors import InvalidPolicy, InvalidPrompt, InvalidRequest, InvalidSource
from registry.models import RegisterRequest
from registry.prompts import check_prompt_is_used, check_template, prepend_system_prompt

POLICY_FILE = "guardrails.yaml"
TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"
SIMULATION_FILE = "simulation.json"
PROMPT_FILE = "system_prompt.txt"
"""Only in simulated versions, which have no chat template."""

MAX_TEXT_BYTES = 1_000_000
"""A prompt or policy above this is surely another file."""

PLATFORM_ARGS = frozenset(
    {
        "model",
        "tokenizer",
        "revision",
        "code_revision",
        "tokenizer_revision",
        "hf_config_path",
        "chat_template",
        "generation_config",
        "served_model_name",
        "trust_remote_code",
        "host",
        "port",
        "uds",
        "api_key",
        "lora_modules",
    }
)
"""Engine arguments that would let a version answer with something that is not in its manifest, or move its port."""


@dataclass(frozen=True)
class Prompt:
    """A prompt to bake: a whole template, or the text of a system prompt."""

    text: str
    whole_template: bool


@dataclass(frozen=True)
class Ingredients:
    """What a request adds to its source, read and checked before anything is copied."""

    prompt: Prompt | None
    policy: bytes | None
    generation: Mapping[str, Any]
    engine_args: Mapping[str, str]

    @property
    def policy_sha256(self) -> str:
        """The policy's digest, empty when there is none."""
        return hashlib.sha256(self.policy).hexdigest() if self.policy is not None else ""


CheckPolicy = Callable[[str], None]
"""Raises `InvalidPolicy` for the text of a guardrail policy that can't be put in force."""


def any_mapping(text: str) -> None:
    """The least that a policy must be. Who knows the guardrails hands the stores a stricter check."""
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidPolicy(f"the policy is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(parsed, dict):
        raise InvalidPolicy(f"the policy holds {type(parsed).__name__}, a policy is a mapping (checks: ...)")


def check_baked_policy(folder: Path, check: CheckPolicy) -> None:
    """Check the policy of a version's folder, wherever it came from: it may have lain in the source.

    Raises:
        InvalidPolicy: it can't be put in force.
    """
    path = folder / POLICY_FILE
    if path.exists():
        _checked_policy(path, check)


def read_ingredients(request: RegisterRequest, check_policy: CheckPolicy = any_mapping) -> Ingredients:
    """Read and check everything that a request adds.

    Raises:
        InvalidPrompt, InvalidPolicy, InvalidRequest: a file or a setting that cannot be used.
    """
    return Ingredients(
        prompt=_read_prompt(request.prompt_file) if request.prompt_file else None,
        policy=_checked_policy(request.policy_file, check_policy) if request.policy_file else None,
        generation={_checked_key(k, "generation setting"): parse_setting(k, v) for k, v in request.generation.items()},
        engine_args=_checked_engine_args(request.engine_args),
    )


def _read_prompt(path: Path) -> Prompt:
    try:
        text = _read_small(path, InvalidPrompt).decode()
    except UnicodeDecodeError as error:
        raise InvalidPrompt(f"prompt {path} is not UTF-8 text; save it as UTF-8") from error
    if not text.strip():
        raise InvalidPrompt(f"prompt {path} is empty; write a prompt, or leave --prompt out")
    if path.suffix == ".jinja":
        check_template(text)
        return Prompt(text, whole_template=True)
    return Prompt(text.strip(), whole_template=False)


def _checked_policy(path: Path, check: CheckPolicy) -> bytes:
    content = _read_small(path, InvalidPolicy)
    try:
        check(content.decode())
    except UnicodeDecodeError as error:
        raise InvalidPolicy(f"policy {path} is not UTF-8 text; save it as UTF-8") from error
    except InvalidPolicy as error:
        raise InvalidPolicy(f"policy {path}: {error}") from error
    return content


def _read_small(path: Path, kind: type[InvalidRequest]) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise kind(f"{path} has {size} bytes, the limit is {MAX_TEXT_BYTES}; is it the right file?")
        return path.read_bytes()
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror}; check the path") from error


def _checked_key(key: str, what: str) -> str:
    plain = key.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", plain):
        raise InvalidRequest(f"{what} {key[:80]!r} is no name: write KEY=VALUE, for instance temperature=0.2")
    return plain


def parse_setting(key: str, value: str) -> Any:  # noqa: ANN401 - any JSON value
    """A setting as typed: JSON where it is JSON (`0.2`, `true`, `[1, 2]`), else text.

    Raises:
        InvalidRequest: NaN and Infinity, which JSON does not have.
    """

    def refuse(constant: str) -> None:
        raise InvalidRequest(f"generation setting {key}={constant} is no number; give a finite one")

    try:
        return json.loads(value, parse_constant=refuse)
    except ValueError:
        return value


def _checked_engine_args(given: Mapping[str, str]) -> dict[str, str]:
    args = {_checked_key(k, "engine argument"): v for k, v in given.items()}
    for key in sorted(PLATFORM_ARGS & args.keys()):
        raise InvalidRequest(
            f"engine argument {key} is the platform's own: a version answers only from its manifest; leave it out"
        )
    return args


def bake(folder: Path, ingredients: Ingredients) -> None:
    """Apply a request's ingredients to a copied source.

    Raises:
        InvalidPrompt: the model's chat template cannot take the prompt.
        InvalidSource: a JSON file of the source cannot be read.
    """
    if ingredients.prompt is not None:
        if ingredients.prompt.whole_template:
            _replace_template(folder, ingredients.prompt.text)
        else:
            _bake_system_prompt(folder, ingredients.prompt.text)
    if ingredients.generation:
        path = folder / GENERATION_FILE
        settings = read_json(path) if path.exists() else {}
        _write_json(path, {**settings, **ingredients.generation})
    if ingredients.policy is not None:
        (folder / POLICY_FILE).write_bytes(ingredients.policy)


def bake_simulation(folder: Path, parameters: Mapping[str, str], ingredients: Ingredients) -> None:
    """Write the folder of a simulated version: its parameters, and the ingredients beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / SIMULATION_FILE, dict(parameters))
    if ingredients.prompt is not None:
        (folder / PROMPT_FILE).write_text(ingredients.prompt.text, encoding="utf-8")
    if ingredients.generation:
        _write_json(folder / GENERATION_FILE, dict(ingredients.generation))
    if ingredients.policy is not None:
        (folder / POLICY_FILE).write_bytes(ingredients.policy)


def _replace_template(folder: Path, template: str) -> None:
    """One template rules: the others, wherever they live, go."""
    for name in ("tokenizer_config.json", "processor_config.json"):
        path = folder / name
        if path.exists() and "chat_template" in (config := read_json(path)):
            del config["chat_template"]
            _write_json(path, config)
    (folder / "chat_template.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")


def _bake_system_prompt(folder: Path, prompt: str) -> None:
    """Bake into every template of the model, since which one is used depends on the request (tools, for one)."""
    baked = 0
    for path in (folder / TEMPLATE_FILE, *sorted((folder / "additional_chat_templates").glob("*.jinja"))):
        if path.exists():
            path.write_text(_baked(_read_template(path), prompt), encoding="utf-8")
            baked += 1
    for name in ("tokenizer_config.json", "processor_config.json", "chat_template.json"):
        path = folder / name
        if path.exists() and (config := read_json(path)).get("chat_template"):
            config["chat_template"] = _baked_value(config["chat_template"], prompt)
            _write_json(path, config)
            baked += 1
    if not baked:
        raise InvalidPrompt(
            "the model has no chat template to bake a system prompt into; give a whole template, as a file that "
            "ends in .jinja"
        )


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidSource(f"{path.name} is not UTF-8 text; save it as UTF-8") from error


def _baked_value(value: Any, prompt: str) -> Any:  # noqa: ANN401 - text, a list of named templates or a mapping
    if isinstance(value, str):
        return _baked(value, prompt)
    if isinstance(value, list):
        return [{**entry, "template": _baked(entry["template"], prompt)} for entry in value]
    if isinstance(value, dict):
        return {name: _baked(template, prompt) for name, template in value.items()}
    raise InvalidPrompt(f"the model's chat_template is a {type(value).__name__}; give a whole template as .jinja")


def _baked(template: str, prompt: str) -> str:
    result = prepend_system_prompt(template, prompt)
    check_prompt_is_used(result, prompt)
    return result


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the source.

    Raises:
        InvalidSource: it is not JSON, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidSource(f"{path.name} is not JSON ({error}); mend it and try again") from error
    if not isinstance(value, dict):
        raise InvalidSource(f"{path.name} holds no JSON object; mend it and try again")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
