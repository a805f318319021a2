"""What the guardrails' rules cost: each on 1,000 characters of English and Chinese, all together, and per chunk of a stream.

    python -m benchmarks.guardrails_rules              # about a minute
    python -m benchmarks.guardrails_rules --quick
    python -m benchmarks.guardrails_rules --json

Everything runs on one core, in this process. `all` is all rules of the standard policy on one text, readings made anew; a
single check's figure is with its readings already made, so `readings` stands beside them. A stream has chunks of four
characters, as tokens of English are long, or two of Chinese.
"""

# ruff: noqa: E501 - sample texts
from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from guardrails.checks.base import Check, Context
from guardrails.checks.catalogue import BUILT_IN
from guardrails.enforcement import ActiveCheck, activate
from guardrails.normalise import View
from guardrails.pipeline import AT_ONCE
from guardrails.policies.shipped import Shipped, shipped_policy
from guardrails.streaming import StreamGuard
from guardrails.verdicts import Direction

CHARACTERS = 1_000
LIMIT_MS = 1.5
ENGLISH = (
    "The harbour was quiet when the ferry came in at 7.45, and nobody on the quay seemed to notice it. What are the rules"
    " for moving a boat at night? You can write to the office, or simply show the captain your ticket (number 20391). It"
    " costs about 12.50 in all; the price has been the same since 1998. Please start with the introduction, then explain"
    " how the gates work, and do not forget the example in section 3.2. "
)
CHINESE = (
    "渡轮在七点四十五分靠岸的时候，港口非常安静，码头上似乎没有人注意到它。夜里移动船只有哪些规定？你可以写信给办公室，"
    "也可以把票（编号20391）拿给船长看。总共大约12.5元，从1998年起价格就没有变过。请先写一段介绍，然后说明闸门是怎样工作的，"
    "不要忘记第3.2节里的例子。今天天气很好，我们吃完饭以后沿着河边散步，顺便讨论了一下新的Python程序。"
)
TEXTS = {"en": (ENGLISH * 10)[:CHARACTERS], "zh": (CHINESE * 10)[:CHARACTERS]}
CHUNK = {"en": 4, "zh": 2}
OPTIONS = {
    "banned-words": {
        "words": ["damnation", "kill yourself", "傻逼", "去死吧", *(f"listed word {n}" for n in range(200))]
    },
    "patterns": {"patterns": [r"PRJ-[0-9]{4,8}", r"项目[0-9]{1,4}号"]},
}


@dataclass(frozen=True)
class Figure:
    """One line of the table, in milliseconds of this thread's own time: what else the machine does is not in it."""

    language: str
    what: str
    p50_ms: float
    p99_ms: float
    limit_ms: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the median is over the limit."""
        return self.limit_ms is not None and self.p50_ms > self.limit_ms


def measured(language: str, what: str, work: Callable[[], object], rounds: int, limit: float | None = None) -> Figure:
    """The median and the 99th percentile of many calls, after a warm-up."""
    for _ in range(max(3, rounds // 10)):
        work()
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        times.append((time.thread_time() - start) * 1e3)
    times.sort()
    return Figure(language, what, times[rounds // 2], times[math.ceil(rounds * 0.99) - 1], limit)


def each_check(language: str, text: str, rounds: int) -> list[Figure]:
    """Every rule by itself, its readings already made."""
    figures = [measured(language, "readings", lambda: View(text).words, rounds)]
    for kind in BUILT_IN.values():
        if kind.build is None:
            continue
        check = kind.build(kind.options.model_validate(OPTIONS.get(kind.name, {})))
        view = View(text)
        context = Context(Direction.OUTPUT)
        check.examine(view, context)

        def examine(check: Check = check, view: View = view, context: Context = context) -> None:
            check.examine(view, context)
            check.unfinished_from(view)

        figures.append(measured(language, kind.name, examine, rounds))
    return figures


def all_together(language: str, text: str, rounds: int) -> list[Figure]:
    """The rules of the standard policy: on a prompt and an answer that are there at once, and on a stream."""
    active = activate(shipped_policy(Shipped.STANDARD))

    def rules(direction: Direction) -> list[ActiveCheck]:
        return [check for check in active.checks(direction) if not check.is_model]

    def at_once(direction: Direction) -> None:
        guard = StreamGuard(active.policy, rules(direction), Context(direction), stretch=AT_ONCE)
        guard.feed(text, 0.0)
        guard.finish(0.0)

    size = CHUNK[language]
    chunks = [text[at : at + size] for at in range(0, len(text), size)]

    def streamed() -> None:
        guard = StreamGuard(active.policy, rules(Direction.OUTPUT), Context(Direction.OUTPUT))
        for chunk in chunks:
            guard.feed(chunk, 0.0)
        guard.finish(0.0)

    whole = measured(language, f"stream of {len(chunks)} chunks", streamed, max(10, rounds // 5))
    per_chunk = Figure(language, "stream, per chunk", whole.p50_ms / len(chunks), whole.p99_ms / len(chunks))
    return [
        measured(language, "all, prompt", lambda: at_once(Direction.INPUT), rounds, LIMIT_MS),
        measured(language, "all, answer", lambda: at_once(Direction.OUTPUT), rounds, LIMIT_MS),
        whole,
        per_chunk,
    ]


def main() -> int:
    """Measure and print; exit code 1 when all rules together take longer than they may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    given = parser.parse_args()
    rounds = 60 if given.quick else 600
    figures = [
        figure
        for language, text in TEXTS.items()
        for make in (each_check, all_together)
        for figure in make(language, text, rounds)
    ]
    if given.json:
        sys.stdout.write(json.dumps([asdict(figure) for figure in figures]) + "\n")
    else:
        table = Table(title=f"Rules of the guardrails on {CHARACTERS} characters, milliseconds")
        for column in ("language", "what", "p50", "p99", "limit"):
            table.add_column(column, justify="left" if column in ("language", "what") else "right")
        for f in figures:
            limit = "" if f.limit_ms is None else f"{f.limit_ms:g}{' missed' if f.missed else ''}"
            table.add_row(f.language, f.what, f"{f.p50_ms:.4f}", f"{f.p99_ms:.4f}", limit)
        Console().print(table)
    return int(any(figure.missed for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
