"""The data plane's OpenAPI document: sound by itself, and true of the routes that there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis

from serving.openai_protocol import Operation, operation_of
from serving.openapi import document


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_it_is_a_valid_document() -> None:
    schemathesis.openapi.from_dict(document()).validate()


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    made = document()
    names = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert set(references(made)) == names


def test_it_names_every_route_that_has_an_operation_of_its_own() -> None:
    paths = document()["paths"]
    described = {operation_of(path) for path in paths if path.startswith("/v1/")}
    assert described == set(Operation)  # OTHER: the model list
    assert "/healthz" in paths


ASKING = [p for p, item in document()["paths"].items() if "post" in item and p != "/v1/feedback"]


def test_what_may_go_wrong_with_a_vote_is_written_down() -> None:
    statuses = document()["paths"]["/v1/feedback"]["post"]["responses"].keys()
    assert {"200", "400", "401", "403", "404", "409", "413", "415", "503"} == statuses


@pytest.mark.parametrize("path", ASKING)
def test_what_may_go_wrong_is_written_down(path: str) -> None:
    statuses = document()["paths"][path]["post"]["responses"].keys()
    assert {"200", "400", "401", "403", "404", "413", "415", "429", "502", "503", "504"} <= statuses
