"""Which requests are mirrored, what is copied of them, and what a pair says: decision tables."""

from __future__ import annotations

import pytest
from orjson import dumps, loads

from monitoring.quality import similarity
from serving.gateway.config import GatewayConfig, InvalidConfig
from serving.gateway.judging import signals_in
from serving.gateway.transcript import Transcript
from serving.mirroring import (
    Discordance,
    InvalidMirroring,
    MirrorSettings,
    Shown,
    discordances,
    drawn,
    has_room,
    mirrored_body,
    within_budget,
)
from serving.openai_protocol import Operation
from serving.outcomes import Cause, Signal
from serving.streaming import Answer
from serving.traffic import Role

FUNCTION = {"type": "function", "function": {"name": "f"}}

# (operation, fields, what the copy says): True for the client's own bytes, None for no copy
COPIES = {
    "ordinary": (Operation.CHAT, {"messages": [], "user": "ann", "prompt_cache_key": "k"}, True),
    "functions are run by the client": (Operation.CHAT, {"tools": [FUNCTION], "tool_choice": "required"}, True),
    "nothing is stored": (Operation.CHAT, {"store": True, "seed": 3}, {"seed": 3}),
    "not stored anyway": (Operation.CHAT, {"store": False}, True),
    "a response is stored unless it says no": (Operation.RESPONSES, {"input": "hi"}, {"input": "hi", "store": False}),
    "a response that says no": (Operation.RESPONSES, {"input": "hi", "store": False}, True),
    "a response that says yes": (
        Operation.RESPONSES, {"store": True, "input": "你好"}, {"store": False, "input": "你好"}),
    "tools of the client in a response": (
        Operation.RESPONSES, {"store": False, "tools": [{"type": "function", "name": "f"}, {"type": "custom"}]}, True),
    "no background after all": (Operation.RESPONSES, {"store": False, "background": False}, True),
    "no previous response after all": (Operation.RESPONSES, {"store": False, "previous_response_id": None}, True),
    "background job": (Operation.RESPONSES, {"background": True}, None),
    "goes on from a stored response": (Operation.RESPONSES, {"previous_response_id": "resp_1"}, None),
    "is added to a conversation": (Operation.RESPONSES, {"conversation": {"id": "conv_1"}}, None),
    "searches the web": (Operation.RESPONSES, {"tools": [{"type": "web_search"}]}, None),
    "searches files": (Operation.RESPONSES, {"tools": [FUNCTION, {"type": "file_search"}]}, None),
    "runs code": (Operation.RESPONSES, {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, None),
    "calls a server": (Operation.RESPONSES, {"tools": [{"type": "mcp", "server_url": "https://x"}]}, None),
    "a kind of tool that nobody knows": (Operation.RESPONSES, {"tools": [{"type": "new"}]}, None),
    "a tool that is none": (Operation.CHAT, {"tools": ["web_search"]}, None),
    "chat with a web search of its own": (Operation.CHAT, {"web_search_options": {}}, None),
    "moves an engine's cache": (Operation.COMPLETIONS, {"kv_transfer_params": {"do_remote_decode": True}}, None),
    "embeddings": (Operation.EMBEDDINGS, {"input": "hi"}, None),
    "something else": (Operation.OTHER, {"input": "hi"}, None),
}  # fmt: skip


@pytest.mark.parametrize(("operation", "fields", "expected"), COPIES.values(), ids=COPIES.keys())
def test_a_copy_has_no_effects_and_asks_the_same(operation: Operation, fields: dict, expected: object) -> None:
    body = dumps(fields) + b" "  # not as it would be written again
    copied = mirrored_body(operation, body, fields)
    if expected is True:
        assert copied is body
    elif expected is None:
        assert copied is None
    else:
        assert copied is not None
        assert loads(copied) == expected


@pytest.mark.parametrize(
    ("u", "percent", "expected"),
    [
        (0.0, 0, None),
        (0.0, 1, Role.STABLE),
        (0.0019, 1, Role.STABLE),
        (0.0021, 1, Role.CANARY),
        (0.0099, 1, Role.CANARY),
        (0.01, 1, None),
        (0.19, 100, Role.STABLE),
        (0.21, 100, Role.CANARY),
        (1 - 2**-53, 100, Role.CANARY),
    ],
)
def test_the_coin_is_tossed_among_the_drawn(u: float, percent: int, expected: Role | None) -> None:
    assert drawn(u, percent, 0.2) is expected


def test_the_budget_is_a_number_and_a_share_of_what_stable_has_with_a_floor() -> None:
    settings = MirrorSettings(most_in_flight=10, in_flight_share=0.5)
    assert within_budget(0, 0, 0, settings)
    assert within_budget(3, 3, 0, settings)
    assert not within_budget(4, 4, 8, settings)
    assert within_budget(4, 4, 10, settings)
    assert within_budget(9, 2, 0, settings)
    assert not within_budget(10, 0, 1000, settings)
    assert not within_budget(0, 0, 1000, MirrorSettings(most_in_flight=0))


def test_room_is_half_of_what_the_endpoints_may_have() -> None:
    assert has_room(3, 2, 4)
    assert not has_room(4, 2, 4)
    assert not has_room(0, 0, 4)
    assert has_room(10_000, 1, None)


GOOD = Shown(text="yes")
BROKEN = Shown((Signal.ERROR,))
HUNG = Shown((Signal.ERROR,), Cause.TIMEOUT)
REFUSED = Shown((Signal.ENGINE_4XX,))
CUT_SHORT = Shown((Signal.LENGTH_STOP,), text="y")
LOOP = Shown((Signal.LENGTH_STOP, Signal.REPETITION), text="y y y")
UNREADABLE = Shown()

# (stable's answer, the canary's, the events)
PAIRS = {
    "both good": (GOOD, GOOD, []),
    "both fail, each in its own way": (BROKEN, HUNG, []),
    "the canary fails": (GOOD, HUNG, [(Role.CANARY, Signal.ERROR, Cause.TIMEOUT)]),
    "stable fails": (BROKEN, GOOD, [(Role.STABLE, Signal.ERROR, Cause.VERSION)]),
    "the canary refuses": (GOOD, REFUSED, [(Role.CANARY, Signal.ENGINE_4XX, Cause.VERSION)]),
    "one refuses, the other fails": (
        REFUSED, BROKEN, [(Role.CANARY, Signal.ERROR, Cause.VERSION), (Role.STABLE, Signal.ENGINE_4XX, Cause.VERSION)]),
    "both reach the limit, one in a loop": (CUT_SHORT, LOOP, [(Role.CANARY, Signal.REPETITION, Cause.VERSION)]),
    "two signals": (LOOP, GOOD, [
        (Role.STABLE, Signal.LENGTH_STOP, Cause.VERSION), (Role.STABLE, Signal.REPETITION, Cause.VERSION)]),
    "a text beside an error is compared with nothing": (
        BROKEN, LOOP, [(Role.STABLE, Signal.ERROR, Cause.VERSION)]),
    "a text beside a refusal neither": (CUT_SHORT, REFUSED, [(Role.CANARY, Signal.ENGINE_4XX, Cause.VERSION)]),
    "a text beside one that can't be read neither": (UNREADABLE, LOOP, []),
    "an error beside one that can't be read": (UNREADABLE, BROKEN, [(Role.CANARY, Signal.ERROR, Cause.VERSION)]),
}  # fmt: skip


@pytest.mark.parametrize(("stable", "canary", "expected"), PAIRS.values(), ids=PAIRS.keys())
def test_an_event_is_what_exactly_one_answer_shows(stable: Shown, canary: Shown, expected: list) -> None:
    assert sorted(discordances(stable, canary)) == sorted(Discordance(*e) for e in expected)


def test_an_unfinished_body_is_an_error_and_a_compressed_one_is_not_judged() -> None:
    chat = Operation.CHAT
    assert signals_in(chat, Transcript(), Answer(ended=False), texts=True) == (Signal.ERROR,)
    assert signals_in(chat, Transcript(compressed=True), Answer(ended=False), texts=True) == ()
    assert signals_in(chat, Transcript(), Answer(ended=True), texts=True) == (Signal.EMPTY,)
    assert signals_in(chat, Transcript(), Answer(ended=True), texts=False) == ()
    assert signals_in(Operation.EMBEDDINGS, Transcript(), Answer(ended=False), texts=True) == ()


# (a text, another one, at least, at most)
ALIKE = {
    "the same": ("北京是中国的首都。", "北京是中国的首都。", 1.0, 1.0),
    "written in another way": ("Ｐａｒｉｓ  is\nthe capital", "paris IS the capital", 1.0, 1.0),
    "nothing at all": ("", " \n", 1.0, 1.0),
    "something and nothing": ("", "Paris", 0.0, 0.0),
    "one other character": ("a", "b", 0.0, 0.0),
    "two languages": ("The capital of France is Paris.", "法国的首都是巴黎。", 0.0, 0.05),
    "a small change in Chinese": (
        "北京是中国的首都，有三千多年的历史。",
        "北京是中国的首都，有三千年的历史。",
        0.75,
        0.95,
    ),
    "a small change": ("The capital of France is Paris.", "The capital of France is Lyon.", 0.7, 0.9),
    "other words": ("The capital of France is Paris.", "It was raining all day in our garden", 0.0, 0.25),
    "once and many times": ("no more ", "no more " * 50, 0.0, 0.1),
    "a garbled end": ("sense and " * 150 + "end " * 100, "sense and " * 150 + "xq!#" * 250, 0.3, 0.7),
}


@pytest.mark.parametrize(("a", "b", "least", "most"), ALIKE.values(), ids=ALIKE.keys())
def test_similarity_of_texts(a: str, b: str, least: float, most: float) -> None:
    assert least <= similarity(a, b) <= most


def test_settings_travel_with_the_gateways_configuration(tmp_path) -> None:
    settings = MirrorSettings(most_in_flight=7, timeout_s=5, baseline_share=0.5)
    config = GatewayConfig(home=tmp_path, mirror=settings)
    assert GatewayConfig.from_json(config.to_json()).mirror == settings
    for wrong in ({"most_in_flight": -1}, {"timeout_s": 0}, {"baseline_share": 1.5}):
        with pytest.raises(InvalidMirroring, match=str(next(iter(wrong.values())))):
            MirrorSettings(**wrong)
        text = config.to_json().replace('"most_in_flight": 7', '"most_in_flight": -1')
        with pytest.raises(InvalidConfig, match="mirror"):
            GatewayConfig.from_json(text)
