import json
from pathlib import Path

import pytest

from registry.baking import bake, read_ingredients
from registry.errors import InvalidPolicy, InvalidPrompt, InvalidRequest
from registry.facets import compute_facets
from registry.files import build_manifest
from registry.models import Bump, Facets, RegisterRequest
from registry.prompts import render
from registry.semver import derive_bump
from tests.unit.registry.tiny import TEMPLATE, edit_json, safetensors, write_json, write_model

ASK = [{"role": "user", "content": "Hi"}]
OWN = [{"role": "system", "content": "Mine"}, *ASK]


def _request(**values: object) -> RegisterRequest:
    return RegisterRequest.model_validate({"model": "chat", "source": "x", **values})


def _bake(folder: Path, tmp_path: Path, prompt: str, name: str = "prompt.txt") -> None:
    (tmp_path / name).write_text(prompt)
    bake(folder, read_ingredients(_request(prompt_file=tmp_path / name)))


def test_a_system_prompt_is_baked_before_the_template(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    _bake(model, tmp_path, 'Be "brief" {{ x }} {% if %} \\ 你好 😀\nalways\n')
    template = (model / "chat_template.jinja").read_text()
    assert render(template, ASK) == ('<system>Be "brief" {{ x }} {% if %} \\ 你好 😀\nalways</><user>Hi</><assistant>')
    assert render(template, OWN) == "<system>Mine</><user>Hi</><assistant>", "a client's own system prompt wins"
    assert render(template, []) == '<system>Be "brief" {{ x }} {% if %} \\ 你好 😀\nalways</><assistant>'


def test_the_rest_of_the_template_is_left_alone(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", template="\n  start" + TEMPLATE)
    _bake(model, tmp_path, "P")
    assert render((model / "chat_template.jinja").read_text(), OWN) == render("\n  start" + TEMPLATE, OWN)


def test_templates_inside_tokenizer_config_are_baked_all(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", template=None)
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "T" + TEMPLATE}]
    edit_json(model / "tokenizer_config.json", chat_template=named)
    _bake(model, tmp_path, "P")
    baked = json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
    assert [render(t["template"], ASK) for t in baked] == [
        "<system>P</><user>Hi</><assistant>",
        "T<system>P</><user>Hi</><assistant>",
    ]


def test_a_whole_template_replaces_every_other(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    edit_json(model / "tokenizer_config.json", chat_template=TEMPLATE)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATE)
    _bake(model, tmp_path, "{% generation %}whole{% endgeneration %}", "mine.jinja")
    assert (model / "chat_template.jinja").read_text() == "{% generation %}whole{% endgeneration %}"
    assert "chat_template" not in json.loads((model / "tokenizer_config.json").read_text())
    assert not (model / "additional_chat_templates").exists()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        pytest.param(None, "has no chat template", id="none"),
        pytest.param("{{ messages[-1]['content'] }}", "ignores system prompts", id="ignored"),
        pytest.param(
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
            "refuses a system prompt .no system role",
            id="refused, as by Gemma",
        ),
    ],
)
def test_a_prompt_that_would_not_reach_the_model_is_refused(tmp_path: Path, template: str | None, words: str) -> None:
    model = write_model(tmp_path / "m", template=template)
    with pytest.raises(InvalidPrompt, match=words):
        _bake(model, tmp_path, "P")


def test_bad_prompts_and_policies_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bad.jinja").write_text("line\n{% if %}")
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(InvalidPrompt, match="is empty"):
        read_ingredients(_request(prompt_file=tmp_path / "empty.txt"))
    with pytest.raises(InvalidPrompt, match="line 2"):
        read_ingredients(_request(prompt_file=tmp_path / "bad.jinja"))
    with pytest.raises(InvalidPrompt, match="cannot be read: No such file"):
        read_ingredients(_request(prompt_file=tmp_path / "none.txt"))
    with pytest.raises(InvalidPolicy, match="holds list, a policy is a mapping"):
        read_ingredients(_request(policy_file=tmp_path / "list.yaml"))
    with pytest.raises(InvalidPolicy, match="is not YAML"):
        read_ingredients(_request(policy_file=tmp_path / "broken.yaml"))


@pytest.mark.parametrize("arg", ["trust-remote-code", "chat_template", "port"])
def test_engine_arguments_that_are_the_platforms_are_refused(arg: str) -> None:
    with pytest.raises(InvalidRequest, match="platform's own"):
        read_ingredients(_request(engine_args={arg: ""}))


def test_generation_settings_are_merged_as_numbers(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    settings = {"temperature": "0.2", "do-sample": "true", "name": "x", "top_k": "5"}
    bake(model, read_ingredients(_request(generation=settings)))
    assert json.loads((model / "generation_config.json").read_text()) == {
        "temperature": 0.2, "do_sample": True, "name": "x", "top_k": 5, "eos_token_id": 2,
    }  # fmt: skip
    with pytest.raises(InvalidRequest, match="finite"):
        read_ingredients(_request(generation={"temperature": "NaN"}))


def _facets(folder: Path) -> Facets:
    return compute_facets(folder, build_manifest(folder), {})


@pytest.mark.parametrize(
    ("edit", "bump"),
    [
        pytest.param(lambda m: edit_json(m / "config.json", hidden_size=16), Bump.MAJOR, id="architecture"),
        pytest.param(lambda m: edit_json(m / "tokenizer.json", version="2"), Bump.MAJOR, id="tokenizer"),
        pytest.param(lambda m: edit_json(m / "tokenizer_config.json", bos="x"), Bump.MAJOR, id="tokenizer settings"),
        pytest.param(lambda m: (m / "model.safetensors").write_bytes(safetensors(9)), Bump.MINOR, id="weights"),
        pytest.param(lambda m: edit_json(m / "config.json", dtype="float16"), Bump.MINOR, id="number format"),
        pytest.param(lambda m: (m / "chat_template.jinja").write_text("x"), Bump.PATCH, id="template"),
        pytest.param(lambda m: edit_json(m / "tokenizer_config.json", chat_template="x"), Bump.PATCH, id="inner"),
        pytest.param(lambda m: edit_json(m / "generation_config.json", temperature=1), Bump.PATCH, id="generation"),
        pytest.param(lambda m: (m / "guardrails.yaml").write_text("a: 1"), Bump.PATCH, id="policy"),
        pytest.param(lambda m: edit_json(m / "config.json", transformers_version="6"), None, id="who wrote it"),
        pytest.param(lambda m: (m / "README.md").write_text("x"), None, id="a readme"),
    ],
)
def test_facets_of_files(tmp_path: Path, edit: object, bump: Bump | None) -> None:
    before = _facets(write_model(tmp_path / "m"))
    assert callable(edit)
    edit(tmp_path / "m")
    after = _facets(tmp_path / "m")
    assert (derive_bump(before, after).bump if before != after else None) is bump


def test_a_simulated_versions_parameters_are_its_weights(tmp_path: Path) -> None:
    write_json(tmp_path / "simulation.json", {"seed": "1"})
    before = _facets(tmp_path)
    write_json(tmp_path / "simulation.json", {"seed": "2"})
    assert derive_bump(before, _facets(tmp_path)).bump is Bump.MINOR
