"""The Secrets that a release makes: once, never anew, and never shown."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from rollout.operator.first_secrets import Make, Plan, bring_about, fresh_value, main, missing
from serving.keys import split_key

PLAN = Plan.model_validate(
    {
        "namespace": "models",
        "secrets": [
            {"name": "r-control", "make": {"token": "token"}},
            {
                "name": "r-postgresql",
                "make": {"password": "token"},
                "compose": {"url": "postgresql://tidegate:{password}@r-postgresql:5432/tidegate"},
            },
        ],
    }
)


class FakeSecrets:
    def __init__(self) -> None:
        self.held: dict[str, dict[str, str]] = {}
        self.writes = 0

    def read(self, name: str) -> Mapping[str, str] | None:
        return self.held.get(name)

    def create(self, name: str, values: Mapping[str, str]) -> None:
        assert name not in self.held
        self.writes += 1
        self.held[name] = dict(values)

    def add(self, name: str, values: Mapping[str, str]) -> None:
        assert not self.held[name].keys() & values.keys()
        self.writes += 1
        self.held[name] |= values


def test_an_installation_makes_all_and_an_upgrade_touches_nothing() -> None:
    there, counter = FakeSecrets(), itertools.count()
    said = bring_about(PLAN, there, lambda how: f"{how}-{next(counter)}")
    assert there.held["r-postgresql"]["url"] == "postgresql://tidegate:token-1@r-postgresql:5432/tidegate"
    before = {name: dict(values) for name, values in there.held.items()}
    writes = there.writes
    again = bring_about(PLAN, there)
    assert there.held == before
    assert there.writes == writes
    assert all("left as it was" in line for line in again)
    for value in itertools.chain.from_iterable(values.values() for values in before.values()):
        assert value not in " ".join(said + again)


def test_a_newer_charts_entry_is_added_beside_the_old_ones() -> None:
    there = FakeSecrets()
    there.held["r-postgresql"] = {"password": "old"}
    bring_about(PLAN, there)
    assert there.held["r-postgresql"] == {
        "password": "old",
        "url": "postgresql://tidegate:old@r-postgresql:5432/tidegate",
    }


def test_what_is_made_is_long_enough_and_different_each_time() -> None:
    key = split_key(fresh_value(Make.GATEWAY_KEY))
    assert key is not None
    assert len(key[1]) >= 32
    assert len({fresh_value(Make.TOKEN) for _ in range(8)}) == 8
    assert len(fresh_value(Make.TOKEN)) >= 32


def test_a_composed_entry_that_names_nothing_is_a_defect_of_the_chart() -> None:
    plan = PLAN.secrets[1].model_copy(update={"compose": {"url": "{pasword}"}})
    with pytest.raises(KeyError):
        missing(plan, None, fresh_value)


def test_a_plan_with_what_nobody_knows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate({"namespace": "models", "secrets": [{"name": "x", "make": {"a": "dice"}}]})
    file = tmp_path / "plan.json"
    file.write_text('{"namespace": "models", "secrets": [], "rotate": true}')
    assert main([str(file)]) == 2
    assert "the plan can't be read" in capsys.readouterr().err
