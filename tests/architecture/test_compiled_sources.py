"""What compiled sources must keep to beyond what the interpreter asks of them (docs/adr/0008)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.gateway.compiled import MODULES, ROOT

WAITS = (ast.Await, ast.Yield, ast.YieldFrom, ast.AsyncFor)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def waits(source: str) -> list[int]:
    """Lines inside an `except` or a `finally` where something is awaited: compiled, it stays in the thread."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Try | ast.TryStar):
            handling = [*node.finalbody, *(s for h in node.handlers for s in h.body)]
            found += [n.lineno for s in handling for n in inside(s) if isinstance(n, WAITS)]
    return sorted(set(found))


def inside(node: ast.AST) -> Iterator[ast.AST]:
    """A statement's parts without the functions that it only defines."""
    if isinstance(node, FUNCTIONS):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from inside(child)


@pytest.mark.parametrize("module", MODULES)
def test_no_handler_of_an_exception_waits(module: str) -> None:
    path = Path(ROOT, module.replace(".", "/") + ".py")
    assert waits(path.read_text()) == [], f"{module}: note what was caught and wait after the handler"


def test_a_handler_that_waits_is_found() -> None:
    source = """
async def f():
    try:
        await a()
    except ValueError:
        if b:
            await c()
        async def d():
            await e()
    else:
        await g()
    finally:
        async for _ in h():
            pass
"""
    assert waits(source) == [7, 13]
