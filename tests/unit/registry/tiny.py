"""Fake models of a few hundred bytes: everything a registry looks at, nothing an engine could run."""

import json
import struct
from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '</>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def safetensors(seed: int = 0, tensors: int = 2, floats: int = 4) -> bytes:
    """A valid safetensors file."""
    size = 4 * floats
    header = {
        f"layer.{i}": {"dtype": "F32", "shape": [floats], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(tensors)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    data = bytes((seed + i) % 256 for i in range(tensors * size))
    return struct.pack("<Q", len(text)) + text + data


def write_model(folder: Path, *, seed: int = 0, template: str | None = TEMPLATE, **config: object) -> Path:
    """A folder that passes inspection. `config` overrides keys of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "dtype": "float32"}
    write_json(folder / "config.json", {**described, "transformers_version": "5.0.0", **config})
    write_json(folder / "generation_config.json", {"temperature": 0.7, "eos_token_id": 2})
    write_json(folder / "tokenizer.json", {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}}})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "model.safetensors").write_bytes(safetensors(seed))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def edit_json(path: Path, **values: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})
