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
        self.held: dict[tuple[str, str], dict[str, str]] = {}
        self.writes = 0

    def read(self, namespace: str, name: str) -> Mapping[str, str] | None:
        return self.held.get((namespace, name))

    def create(self, namespace: str, name: str, values: Mapping[str, str]) -> None:
        assert (namespace, name) not in self.held
        self.writes += 1
        self.held[namespace, name] = dict(values)

    def write(self, namespace: str, name: str, values: Mapping[str, str]) -> None:
        self.writes += 1
        self.held[namespace, name] |= values


def test_an_installation_makes_all_and_an_upgrade_touches_nothing() -> None:
    there, counter = FakeSecrets(), itertools.count()
    said = bring_about(PLAN, there, lambda how: f"{how}-{next(counter)}")
    assert there.held["models", "r-postgresql"]["url"] == "postgresql://tidegate:token-1@r-postgresql:5432/tidegate"
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
    there.held["models", "r-postgresql"] = {"password": "old"}
    bring_about(PLAN, there)
    assert there.held["models", "r-postgresql"] == {
        "password": "old",
        "url": "postgresql://tidegate:old@r-postgresql:5432/tidegate",
    }


def test_a_copy_follows_the_one_that_it_was_made_of() -> None:
    there = FakeSecrets()
    wanted = {"name": "r-ray-token", "make": {"auth_token": "token"}, "copy_to": ["team-a", "team-b"]}
    plan = Plan.model_validate({"namespace": "models", "secrets": [wanted]})
    there.held["team-b", "r-ray-token"] = {"auth_token": "of an earlier release", "else": "stays"}
    bring_about(plan, there)
    token = there.held["models", "r-ray-token"]["auth_token"]
    assert there.held["team-a", "r-ray-token"] == {"auth_token": token}
    assert there.held["team-b", "r-ray-token"] == {"auth_token": token, "else": "stays"}
    writes = there.writes
    bring_about(plan, there)
    assert there.writes == writes


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
