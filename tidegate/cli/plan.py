"""What `tidegate deploy` is about to do, in lines for people. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.cli.output import duration

if TYPE_CHECKING:
    from rollout.specs import RolloutSpec
    from rollout.strategy_specs import AbStrategy, BlueGreenStrategy, CanaryStrategy, ShadowStrategy
    from tidegate.replies import RolloutStatus


def plan_lines(spec: RolloutSpec, before: RolloutStatus | None, plan: dict[str, Any]) -> list[str]:
    """What is there, what would change, how it would go, and how to get back."""
    stable = before.stable if before is not None else None
    lines = [f"plan for {spec.model}", f"  stable now   {stable or 'none'}", f"  new          {spec.version}"]
    lines += [f"  changes      {change}" for change in _changes(plan)]
    if before is not None and before.canary is not None:
        lines.append(f"  supersedes   {before.canary}, which is at {before.weight} %")
    if stable is None:
        lines.append("  traffic      all of it as soon as it answers, since nothing else serves")
    elif spec.emergency:
        lines.append("  traffic      EMERGENCY: all of it as soon as it answers, no steps, no evidence")
    else:
        lines += _course(spec)
    replicas = spec.engine.min_replicas
    count = f"{replicas} replica{'s' if replicas > 1 else ''}"
    lines.append(f"  capacity     {count} beside stable's, image {spec.engine.image}")
    if stable is not None:
        lines.append(f"  way back     {stable} stays warm for {duration(spec.rollback_window)} after the end")
    return lines


def _course(spec: RolloutSpec) -> list[str]:
    """How it goes from nothing to everything, by strategy, and what judges it."""
    strategy = spec.strategy
    if strategy.canary is not None:
        lines = [_canary(strategy.canary)]
    elif strategy.blue_green is not None:
        lines = _blue_green(strategy.blue_green)
    elif strategy.shadow is not None:
        lines = _shadow(strategy.shadow)
    elif strategy.ab is not None:
        lines = _ab(strategy.ab)
    else:
        raise AssertionError("a spec names one strategy")
    signals = ", ".join(f"{s.name}{'' if s.gating else ' (takes back only)'}" for s in spec.analysis.signals)
    return [
        f"  strategy     {strategy.name}",
        *lines,
        f"  signals      {signals}",
        f"  alpha        {spec.analysis.alpha:g}: the chance of ever taking back a healthy version",
    ]


def _canary(canary: CanaryStrategy) -> str:
    steps = " -> ".join(f"{s.weight} % for {duration(s.duration)}" for s in canary.shifting_steps)
    soak = f" -> soak at {100 - canary.holdback_percent} % for {duration(canary.soak)}" if canary.soaks else ""
    return f"  steps        {steps}{soak} -> 100 %, each until the evidence suffices"


def _blue_green(plan: BlueGreenStrategy) -> list[str]:
    preview = f"{duration(plan.preview_duration)}" + (
        f" and {plan.preview_requests} testers' requests" if plan.preview_requests else ""
    )
    switch = "all traffic in one switch" if plan.auto_switch else "pause; `tidegate rollout promote` switches"
    return [
        f"  preview      no traffic but that of {len(plan.testers)} tester rules, for {preview}",
        f"  smoke suite  {len(plan.smoke)} cases",
        f"  then         {switch}, watched and taken back by itself",
    ]


def _shadow(plan: ShadowStrategy) -> list[str]:
    return [
        f"  mirror       {plan.mirror_percent} % of stable's requests, answers compared and never returned",
        f"  until        {duration(plan.duration)} and {plan.pairs} pairs; then {plan.on_passed}",
    ]


def _ab(plan: AbStrategy) -> list[str]:
    safety = "taken back by itself when a signal fails" if plan.safety else "nothing takes it back but you"
    return [
        f"  split        {plan.weight} % of sessions, for {plan.sessions} sessions; {safety}",
        "  then         a report of each signal's effect; you decide",
    ]


def _changes(plan: dict[str, Any]) -> list[str]:
    """What the control plane tells of the difference between stable and new, as far as it can."""
    told = plan.get("changes")
    if isinstance(told, str):
        return [told]
    if isinstance(told, list):
        return [str(change) for change in told]
    bump, why = plan.get("bump"), plan.get("bump_reason")
    return [f"{bump}: {why}" if bump and why else str(bump or why)] if bump or why else []
