"""The smoke suite, as far as it is pure: what is asked, and whether an answer is as expected."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import jsonschema

from rollout.strategy_specs import Expectation, SmokeCase

_FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)
"""Many models wrap JSON in a code fence; that is a habit, not a fault."""


def request_body(case: SmokeCase, model: str) -> dict[str, Any]:
    """The chat completion that asks one case. `model` names a version: `chat@1.3.0`.

    Temperature 0 and a fixed seed, so that the suite says the same twice as far as the engine allows.
    """
    if case.messages is not None:
        messages = [m.model_dump() for m in case.messages]
    else:
        messages = [{"role": "user", "content": case.prompt}]
    return {
        "model": model,
        "messages": messages,
        "max_tokens": case.max_tokens,
        "temperature": 0,
        "seed": 0,
        "stream": False,
    }


def fault(case: SmokeCase, answer: str) -> str | None:
    """What is wrong with the answer to a case, without quoting the answer; None when it is as expected."""
    expect = case.expect
    if expect.contains is not None and expect.contains not in answer:
        return f"does not contain {expect.contains!r}"
    if expect.matches is not None and not re.search(expect.matches, answer):
        return f"does not match {expect.matches!r}"
    if expect.not_matches is not None and re.search(expect.not_matches, answer):
        return f"matches {expect.not_matches!r}"
    return _json_fault(expect, answer)


def _json_fault(expect: Expectation, answer: str) -> str | None:
    if expect.json_form is None:
        return None
    text = answer.strip()
    fenced = _FENCE.match(text)
    try:
        found = json.loads(fenced[1] if fenced else text)
    except ValueError:
        return "is not JSON"
    except RecursionError:
        return "is JSON nested too deeply"
    if isinstance(expect.json_form, Mapping):
        error = jsonschema.exceptions.best_match(
            jsonschema.Draft202012Validator(dict(expect.json_form)).iter_errors(found)
        )
        if error is not None:
            where = "/".join(str(part) for part in error.absolute_path)
            return f"is JSON, but {where or 'its root'} breaks the schema's {error.validator!r}"
    return None
