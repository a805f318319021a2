"""What gateways and the drift watch tell each other comes through whole, however the socket cuts it."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.checks.base import Part
from guardrails.prompts import prompt_of
from serving.sightings import (
    MAX_FRAME_BYTES,
    MAX_TEXT_CHARACTERS,
    BrokenFrame,
    Frames,
    Scored,
    Sighting,
    asked_text,
    frame,
    scored_of,
    shortened,
    sighting_of,
)

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
sightings = st.builds(
    Sighting, model=texts, request_id=texts, at=st.floats(0, 2e9), tenant=texts, route=texts, prompt=texts,
    characters=st.integers(0, 10**6), answer=texts, samples=st.lists(texts, max_size=4).map(tuple), rollout=texts,
    canary=st.booleans(), weight_percent=st.integers(0, 100), token=st.integers(0, 2**40),
)  # fmt: skip
scores = st.builds(Scored, token=st.integers(0, 2**40), name=texts, score=st.floats(-1e9, 1e9))


@given(st.lists(sightings, max_size=5), st.data())
def test_sightings_come_through_any_cutting(said: list[Sighting], data: st.DataObject) -> None:
    stream, frames, heard = b"".join(map(frame, said)), Frames(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        heard += [sighting_of(body) for body in frames.feed(stream[:size])]
        stream = stream[size:]
    assert heard == said


@given(scores)
def test_scores_come_through(said: Scored) -> None:
    (body,) = Frames().feed(frame(said))
    assert scored_of(body) == said


@given(st.binary(max_size=200))
def test_anything_else_is_refused_and_nothing_breaks(data: bytes) -> None:
    for read in (sighting_of, scored_of):
        with pytest.raises(BrokenFrame):
            read(data + b"x")
    with pytest.raises(BrokenFrame, match="at most"):
        list(Frames().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big") + data))


@pytest.mark.parametrize(
    "wrong",
    [{"user": None}, {"tenant": 5}, {"at": "now"}, {"at": 1e30}, {"at": None}, {"characters": -5}, {"samples": [1]}],
)
def test_a_field_that_is_not_of_its_kind_ends_the_line_and_not_the_watch(wrong: dict[str, object]) -> None:
    whole = Sighting("chat", "req_1", 1e9, "default", "chat", "hello", 5)._asdict()
    assert sighting_of(orjson.dumps(whole)).user == ""
    with pytest.raises(BrokenFrame):
        sighting_of(orjson.dumps(whole | wrong))


@given(st.text(max_size=3 * MAX_TEXT_CHARACTERS))
def test_the_longest_sighting_fits_a_frame(text: str) -> None:
    text = shortened(text.encode("utf-8", "replace").decode())
    assert len(text) <= MAX_TEXT_CHARACTERS
    whole = Sighting("m", "r", 0.0, "t", "chat", text, 9, text, (text,) * 4)
    assert len(frame(whole)) <= MAX_FRAME_BYTES
    controls = "\x01" * MAX_TEXT_CHARACTERS
    assert len(frame(whole._replace(prompt=controls, answer=controls, samples=(controls,) * 4))) <= MAX_FRAME_BYTES


contents = st.none() | st.text(max_size=3) | st.just([{"type": "text", "text": "part"}]) | st.just(7)
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "tool", None]), "content": contents, "text": contents,
        "name": st.just("n"), "type": st.sampled_from(["message", "function_call_output"]),
    },
)  # fmt: skip
several = st.none() | st.text(max_size=3) | st.lists(messages | st.text(max_size=3) | st.integers(0, 3), max_size=3)
requests = st.fixed_dictionaries({}, optional=dict.fromkeys(["messages", "prompt"], several)) | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["messages", "prompt", "input", "instructions", "suffix"], several)
)


@given(requests)
def test_the_short_way_to_what_is_asked_finds_the_same(fields: dict[str, object]) -> None:
    texts = [t for t in prompt_of(fields).texts if t.role == "user" and t.part is Part.CONTENT]
    assert asked_text(fields) == "\n".join(t.text for t in texts if t.message == texts[-1].message)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]},
         "b"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, ""),
        ({"prompt": "p"}, "p"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "i"}]}], "instructions": "x"}, "i"),
        ({"prompt": [1, 2, 3]}, ""),
        ({"messages": "nonsense"}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_what_is_asked_is_the_users_last_message(fields: dict[str, object], text: str) -> None:
    assert asked_text(fields) == text
