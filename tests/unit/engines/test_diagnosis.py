"""The line that an operator is shown when an engine did not start."""

from __future__ import annotations

import pytest

from serving.engines.diagnosis import diagnose

CASES = [
    (
        "no memory for the cache",
        [
            "(EngineCore pid=7) ERROR 11-22 05:06:06 [core.py:1] EngineCore failed to start.",
            "(EngineCore pid=7) ValueError: Available memory on node 0 (1.0/23.0 GiB) on kv cache allocation is less",
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        ],
        1,
        "Available memory on node 0",
        "lower the KV cache",
        False,
    ),
    ("killed", ["Loading safetensors"], -9, "Loading safetensors", "memory killer", False),
    (
        "a flag that vLLM does not know",
        ["usage: ...", "vllm_server.py: error: unrecognized arguments: --no-such-flag 1"],
        2,
        "unrecognized arguments: --no-such-flag",
        "engine argument",
        True,
    ),
    (
        "a value that vLLM refuses",
        [
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
            "  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len",
        ],
        1,
        "max_model_len (99999)",
        "register a new version",
        True,
    ),
    (
        "damaged weights",
        ["safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata"],
        1,
        "incomplete metadata",
        "weights are damaged",
        True,
    ),
    ("a port", ["OSError: [Errno 98] Address already in use"], 1, "Address already in use", "choose another", False),
    ("nothing at all", [], 3, "it said nothing", "see the log", False),
    ("something else", ["Traceback:", "RuntimeError: odd", "bye"], 1, "RuntimeError: odd", "see the log", False),
]


@pytest.mark.parametrize(
    ("log", "code", "line", "way_out", "permanent"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_diagnosis(log: list[str], code: int, line: str, way_out: str, permanent: bool) -> None:
    found = diagnose(log, code)
    assert line in found.line
    assert way_out in found.way_out
    assert found.permanent is permanent
    assert "\n" not in found.line


def test_how_it_ended() -> None:
    assert diagnose([], 1).ending == "exited with code 1"
    assert diagnose([], -11).ending == "was ended by signal 11"
