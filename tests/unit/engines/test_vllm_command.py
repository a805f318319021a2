"""What a revision's engine arguments become on vLLM's command line."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from serving.engines import vllm
from serving.engines.base import ABSENT, PROJECT_ROOT, EngineCommand, Listener, engine_environment
from serving.engines.vllm_server import tracing_flags
from serving.errors import EngineStartFailed
from serving.specs import EngineKind, RevisionSpec


class FakeSocket(socket.socket):
    def fileno(self) -> int:
        return 7


LISTENER = Listener("127.0.0.1", 9000, FakeSocket())


def spec(accelerator: str = "cpu", **engine_args: str) -> RevisionSpec:
    return RevisionSpec(
        model="chat",
        version="1.2.0",
        manifest_sha256="a" * 64,
        engine=EngineKind.VLLM,
        source="/models/chat",
        engine_args=engine_args,
        accelerator=accelerator,
    )


def flags(command: EngineCommand) -> dict[str, str]:
    rest = list(command.argv[command.argv.index("--") + 1 :])
    found: dict[str, str] = {}
    while rest:
        name = rest.pop(0)
        found[name] = rest.pop(0) if rest and not rest[0].startswith("--") else ""
    return found


def test_defaults_on_a_cpu() -> None:
    command = vllm.command(spec(), LISTENER, model_limit=8192, threads=2)
    assert command.argv[1:6] == ("-m", "serving.engines.vllm_server", "--listen-fd", "7", "--fork-engine-core")
    assert flags(command) == {
        "--model": "/models/chat",
        "--served-model-name": "chat",
        "--host": "127.0.0.1",
        "--port": "9000",
        "--disable-uvicorn-access-log": "",
        "--distributed-executor-backend": "uni",
        "--enforce-eager": "",
        "--load-format": "safetensors",
        "--max-model-len": "4096",
        "--max-num-seqs": "64",
        "--shutdown-timeout": "3600",
    }
    assert command.env["OMP_NUM_THREADS"] == "2"
    assert command.env["GOMP_SPINCOUNT"] == "5000"
    assert command.env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert command.env["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        ({"dtype": "float32"}, "--dtype", "float32"),
        ({"max_model_len": "2048"}, "--max-model-len", "2048"),
        ({"max-model-len": "1024"}, "--max-model-len", "1024"),
        ({"max_num_seqs": "8"}, "--max-num-seqs", "8"),
        ({"enable_prefix_caching": ""}, "--enable-prefix-caching", ""),
        ({"load_format": "dummy"}, "--load-format", "dummy"),
    ],
)
def test_arguments_of_the_version_win(args: dict[str, str], name: str, value: str) -> None:
    assert flags(vllm.command(spec(**args), LISTENER, 8192, 2))[name] == value


@pytest.mark.parametrize(("limit", "expected"), [(2048, "2048"), (131072, "4096"), (None, "4096")])
def test_context_is_capped(limit: int | None, expected: str) -> None:
    assert flags(vllm.command(spec(), LISTENER, limit, 2))["--max-model-len"] == expected


def test_the_cache_size_goes_into_the_environment() -> None:
    command = vllm.command(spec(VLLM_CPU_KVCACHE_SPACE="4"), LISTENER, 2048, 2)
    assert command.env["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert not any("kvcache" in part.lower() for part in command.argv)


def test_a_gpu_keeps_vllms_own_ways() -> None:
    command = vllm.command(spec("nvidia-l4", tensor_parallel_size="2"), LISTENER, 131072, 2)
    found = flags(command)
    assert "--fork-engine-core" not in command.argv
    assert found["--tensor-parallel-size"] == "2"
    assert found.keys().isdisjoint({"--enforce-eager", "--max-model-len", "--distributed-executor-backend"})
    assert command.env.keys().isdisjoint({"OMP_NUM_THREADS", "GOMP_SPINCOUNT", "VLLM_CPU_KVCACHE_SPACE"})


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"trust_remote_code": ""}, "trust_remote_code"),
        ({"trust-remote-code": ""}, "trust_remote_code"),
        ({"--trust-remote-code": ""}, "trust_remote_code"),
        ({"tool_parser_plugin": "/x.py"}, "tool_parser_plugin"),
        ({"enable_log_requests": ""}, "enable_log_requests"),
        ({"port": "1"}, "set by the platform"),
        ({"served_model_name": "other"}, "set by the platform"),
        ({"load_format": "pt"}, "pickles"),
        ({"VLLM_CPU_KVCACHE_SPACE": "lots"}, "at least 1"),
    ],
)
def test_what_is_refused(args: dict[str, str], says: str) -> None:
    with pytest.raises(EngineStartFailed, match=says) as caught:
        vllm.command(spec(**args), LISTENER, 2048, 2)
    assert str(caught.value).endswith("[permanent]")
    assert "chat@1.2.0" in str(caught.value)


def test_context_limit_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 8192}))
    assert vllm.context_limit(tmp_path) == 8192
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 512}}))
    assert vllm.context_limit(tmp_path) == 512
    (tmp_path / "config.json").write_text("{}")
    assert vllm.context_limit(tmp_path) is None


def test_a_folder_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(EngineStartFailed, match=r"config\.json"):
        vllm.context_limit(tmp_path)


def test_an_engine_does_not_inherit_rays_environment() -> None:
    inherited = {"RAY_ADDRESS": "x", "OMP_NUM_THREADS": "1", "HOME": "/h", "PYTHONPATH": f"{ABSENT}:/extra"}
    env = engine_environment(inherited, EngineCommand(("x",), {"OMP_NUM_THREADS": "2"}), parent_pid=42)
    assert env == {
        "HOME": "/h",
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": f"{PROJECT_ROOT}:/extra",
        "TIDEGATE_PARENT_PID": "42",
    }


class TestTracing:
    """vLLM's spans join the platform's traces; a version's own flag wins."""

    def test_without_a_collector_nothing_is_added(self):
        env: dict[str, str] = {"TIDEGATE_OTLP_ENDPOINT": ""}
        assert tracing_flags(env, ["--model", "m"]) == []
        assert env == {"TIDEGATE_OTLP_ENDPOINT": ""}

    def test_the_platforms_collector_is_told_in_its_protocol(self):
        env = {"TIDEGATE_OTLP_ENDPOINT": "http://c:4318", "TIDEGATE_OTLP_PROTOCOL": "http/protobuf"}
        assert tracing_flags(env, []) == ["--otlp-traces-endpoint", "http://c:4318/v1/traces"]
        assert env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
        assert tracing_flags({"TIDEGATE_OTLP_ENDPOINT": "http://c:4317"}, []) == [
            "--otlp-traces-endpoint",
            "http://c:4317",
        ]

    def test_a_versions_own_flag_wins(self):
        env = {"TIDEGATE_OTLP_ENDPOINT": "http://c:4317"}
        assert tracing_flags(env, ["--otlp-traces-endpoint", "http://other:4317"]) == []
        assert tracing_flags(env, ["--otlp-traces-endpoint=http://other:4317"]) == []
