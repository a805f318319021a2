"""The judge of a rollout: reduced to its signals, frozen in the log, on its way to the gateways with the policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardrails.policy import Mode, parse_policy
from guardrails.verdicts import Direction, Verdict
from rollout.actions import Deployed, Start
from rollout.desired import desired_table
from rollout.errors import InvalidSpec
from rollout.judges import judge_from_file, judge_policy
from rollout.specs import RolloutSpec, parse_spec
from rollout.status import ModelStatus, apply
from serving.specs import EngineKind, RevisionSpec, digest_of_text
from serving.traffic import Role

STRICT = "schema: 1\nname: strict\nchecks: [{name: pii, direction: output, action: block}]\n"


def spec(*signals: str) -> RolloutSpec:
    named = [{"name": name} for name in ("error", *signals)]
    return parse_spec({"model": "chat", "version": "1.0.1", "analysis": {"signals": named}})


def deployed(version: str, policy: str = "") -> Deployed:
    revision = RevisionSpec(
        model="chat", version=version, manifest_sha256=digest_of_text(version), engine=EngineKind.SIMULATED,
        source="sim:", policy_sha256=digest_of_text(policy) if policy else "",
    )  # fmt: skip
    return Deployed(revision=revision, policy=policy)


def test_a_rollout_without_such_signals_has_no_judge() -> None:
    assert judge_policy(spec("repetition")) == ""


def test_the_judge_has_the_checks_that_the_signals_name_and_changes_nothing() -> None:
    judge = parse_policy(judge_policy(spec("guardrail/toxicity", "guardrail/pii")))
    assert [rule.name for rule in judge.checks] == ["toxicity", "pii"]
    assert {(r.direction, r.action, r.mode) for r in judge.checks} == {(Direction.OUTPUT, Verdict.FLAG, Mode.OBSERVE)}
    own = parse_policy(judge_policy(spec("guardrail/pii"), STRICT))
    assert [(r.action, r.mode) for r in own.checks] == [(Verdict.FLAG, Mode.OBSERVE)], "a judge never blocks"


def test_a_check_that_the_judge_lacks_and_a_judge_with_faults_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"guardrail/vibes: the judge has no check of that name .* it has .*toxicity"):
        judge_policy(spec("guardrail/vibes"))
    with pytest.raises(InvalidSpec, match="no check named 'nobody'"):
        judge_policy(spec("guardrail/pii"), "schema: 1\nname: x\nchecks: [{name: nobody}]")
    with pytest.raises(InvalidSpec, match=r"nowhere\.yaml can't be read"):
        judge_from_file(tmp_path / "nowhere.yaml")


def test_policies_and_judge_come_with_the_table_and_survive_the_log() -> None:
    judge = judge_policy(spec("guardrail/pii"))
    start = Start(rollout="r", spec=spec("guardrail/pii"), target=deployed("1.0.1", STRICT), salt="s" * 16, judge=judge)
    stored = Start.model_validate_json(start.model_dump_json())
    stable = ModelStatus(model="chat", stable=deployed("1.0.0"))
    table = desired_table([apply(stable, [stored], at=1.0, reason="", actor="")], fence=1, sequence=1, now=1.0)
    (model,) = table.models
    canary, old = model.by_role(Role.CANARY), model.by_role(Role.STABLE)
    assert canary is not None
    assert old is not None
    assert (old.policy, canary.policy, model.judge) == ("", digest_of_text(STRICT), digest_of_text(judge))
    assert table.policies == {digest_of_text(text): text for text in (STRICT, judge)}
    (before,) = desired_table([stable], fence=1, sequence=1, now=1.0).models
    assert before.judge == ""
