"""What a schema can't say, as rules in CEL, each with a message that names value, limit and way out. Pure.

They say what the spec's own validators say (specs.py, strategy_specs.py); tests hold the two against each other.
`self` is the value at the path where a rule stands. An API server works out beforehand what a rule costs at worst, and
refuses the whole definition where that is too much. So every list and string that is read is bounded, and:

- of an int-or-string Kubernetes before 1.34 overlooks `maxLength` and takes it for 3 MiB: rules read it only by what
  costs the same whatever its length (`double`, `duration`, `endsWith`, `type`), never by `string`, `trim` or `replace`;
- what `string` makes of a whole number has no bound at all, so no message may be joined with one.
"""

from __future__ import annotations

from collections.abc import Mapping

Rule = dict[str, str]


def _rule(rule: str, message: str = "", *, says: str = "") -> Rule:
    """A rule with a fixed message, or with one that is itself an expression."""
    return {"rule": rule, "messageExpression": says} if says else {"rule": rule, "message": message}


def seconds(value: str) -> str:
    """An expression for the whole seconds in a duration: a number, or a string with or without a unit below a day."""
    return f"({_has_unit(value)} ? double(duration({value}).getSeconds()) : double({value}))"


def _has_unit(value: str) -> str:
    units = " || ".join(f"{value}.endsWith('{unit}')" for unit in ("s", "m", "h"))
    return f"(type({value}) == string && ({units}))"


def _in_days(value: str) -> str:
    return f"(type({value}) == string && {value}.endsWith('d'))"


def _within(name: str, rule: str, limit: str, example: str) -> Rule:
    return _rule(
        rule.replace("$", "double(self)"),
        says=f"'{name} ' + string(self) + ' is out of range: {limit}; write it for instance as {example}'",
    )


# A fraction of a second and days are left to the reader of specs: no function of CEL's reads them at a fixed cost.
_ORDERED = _rule(
    f"!has(self.maxDuration) || {_in_days('self.maxDuration')} || "
    f"(has(self.duration) && {_in_days('self.duration')}) || "
    f"{seconds('self.maxDuration')} + 1.0 > (has(self.duration) ? {seconds('self.duration')} : $default)",
    says="'maxDuration ' + string(self.maxDuration) + ' is shorter than duration; raise it, or leave it out'",
)


def _ordered(default_s: str) -> Rule:
    return {**_ORDERED, "rule": _ORDERED["rule"].replace("$default", default_s)}


_SLOWDOWNS = "self.signals.filter(s, s.name in ['slow-tokens', 'slow-first-token'] && has(s.maxSlowdown))"

RULES: Mapping[str, tuple[Rule, ...]] = {
    "model": (
        _rule(
            "self == oldSelf",
            says="'model ' + oldSelf + ' cannot become ' + self + '; make a ModelDeployment of its own for it'",
        ),
    ),
    "engine": (
        _rule(
            "!has(self.maxReplicas) || self.maxReplicas >= (has(self.minReplicas) ? self.minReplicas : 1)",
            "maxReplicas is below minReplicas; raise it, or leave it out",
        ),
        _rule(
            "!has(self.capacity) || self.capacity != 'replace' || (has(self.minReplicas) && self.minReplicas >= 2)",
            "capacity: replace needs minReplicas of at least 2, with one there is none to give; raise it, or use surge",
        ),
        _rule(
            "!has(self.capacity) || self.capacity != 'replace' || !has(self.maxReplicas) || !has(self.minReplicas) || "
            "self.maxReplicas <= self.minReplicas",
            "capacity: replace moves replicas between two versions, so their number is fixed; leave maxReplicas out, "
            "or use surge",
        ),
        _rule(
            "!has(self.queueName) || (!has(self.capacity) || self.capacity != 'replace') && (!has(self.maxReplicas) || "
            "self.maxReplicas <= (has(self.minReplicas) ? self.minReplicas : 1))",
            "queueName: Kueue admits a fixed number of replicas; leave maxReplicas out and use capacity: surge",
        ),
        _rule(
            "!has(self.workloadRef) || !(has(self.resources) || has(self.nodeSelector) || has(self.tolerations) || "
            "has(self.queueName) || has(self.weights) || has(self.maxReplicas) || has(self.capacity))",
            "workloadRef points to a workload that is not ours to shape; set resources, nodeSelector, tolerations, "
            "queueName, weights, maxReplicas and capacity there, and leave them out here",
        ),
    ),
    "engine.tolerations[]": (
        _rule(
            "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            "a toleration without a key tolerates everything, and must say so: operator: Exists",
        ),
        _rule(
            "!has(self.value) || !has(self.operator) || self.operator != 'Exists'",
            "operator Exists takes no value; leave one of the two out",
        ),
        _rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds belongs to the effect NoExecute; leave it out, or set the effect",
        ),
    ),
    "engine.weights.cache": (
        _rule(
            "!(has(self.hostPath) && has(self.persistentVolumeClaim))",
            "cache: hostPath and persistentVolumeClaim exclude each other; give one",
        ),
    ),
    "strategy": (
        _rule(
            "[has(self.canary), has(self.blueGreen), has(self.shadow), has(self.ab)].filter(x, x).size() <= 1",
            "strategy names more than one of canary, blueGreen, shadow and ab; keep one",
        ),
    ),
    "strategy.canary": (
        _rule(
            "!has(self.steps) || self.steps.map(s, s.weight).isSorted() && "
            "self.steps.all(s, self.steps.exists_one(o, o.weight == s.weight))",
            "the weights of steps must rise; a lower or equal weight after a higher one is refused, put them in order",
        ),
        _rule(
            "!has(self.steps) || self.steps.size() >= 1",
            "steps is empty; give at least one, for instance [{weight: 10, duration: 1m}], or leave it out",
        ),
    ),
    "strategy.canary.steps[]": (_ordered("30.0"),),
    "strategy.shadow": (_ordered("60.0"),),
    "strategy.blueGreen": (
        _rule(
            "!has(self.previewRequests) || (has(self.testers) && self.testers.size() > 0)",
            "previewRequests without testers cannot be reached; give testers, or leave it out",
        ),
    ),
    "strategy.blueGreen.smoke[]": (
        _rule(
            "has(self.prompt) != has(self.messages)",
            says="'smoke case ' + self.name + ': give a prompt or messages, one of the two'",
        ),
    ),
    "analysis": (
        _rule(
            f"!has(self.signals) || {_SLOWDOWNS}.all(a, {_SLOWDOWNS}.all(b, "
            "double(a.maxSlowdown) == double(b.maxSlowdown)))",
            "maxSlowdown differs between latency signals; gateways measure all against one factor, give one value",
        ),
    ),
    "analysis.alpha": (_within("alpha", "$ > 0.0 && $ <= 0.2", "above 0, at most 0.2", '"0.01"'),),
    "analysis.beta": (_within("beta", "$ > 0.0 && $ <= 0.2", "above 0, at most 0.2", '"0.05"'),),
    "analysis.signals[]": (
        _rule(
            "self.name.startsWith('prometheus/') == has(self.prometheus)",
            says="'signal ' + self.name + ': queries belong to signals named prometheus/<name>, and those need them: "
            "prometheus: {events: ..., total: ...}'",
        ),
        _rule(
            "!has(self.maxSlowdown) || self.name in ['slow-tokens', 'slow-first-token'] || "
            "double(self.maxSlowdown) == 1.25",
            says="'signal ' + self.name + ': maxSlowdown is for slow-first-token and slow-tokens only; leave it out'",
        ),
    ),
    "analysis.signals[].share": (_within("share", "$ > 0.0", "above 0", '"0.5"'),),
    "analysis.signals[].maxRate": (_within("maxRate", "$ > 0.0 && $ < 1.0", "above 0, below 1", '"0.05"'),),
    "analysis.signals[].maxRatio": (_within("maxRatio", "$ > 1.0", "above 1", '"1.5"'),),
    "analysis.signals[].maxSlowdown": (_within("maxSlowdown", "$ >= 1.0 && $ <= 10.0", "from 1 to 10", '"1.25"'),),
}
"""By path in the spec; `[]` stands for the items of a list."""

TESTER = _rule(
    "has(self.header) == has(self.value) && has(self.header) != has(self.key)",
    "a tester is a header with its value, or the id of a key; give one of the two",
)


def rules_at(path: str) -> tuple[Rule, ...]:
    """The rules for one place in the spec."""
    if path.endswith(".testers[]"):
        return (TESTER,)
    return RULES.get(path, ())
