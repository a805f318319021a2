"""Gateway and drift watch prove one key to each other; whoever has another one learns nothing and tells nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.introduction import NONCE_BYTES, GatewaySide, WatchSide, proof
from serving.sightings import BrokenFrame, Frames, framed

KEY = "k" * 40
NONCES = ("a" * 2 * NONCE_BYTES, "b" * 2 * NONCE_BYTES)


def body(frame: bytes) -> bytes:
    (found,) = Frames().feed(frame)
    return found


def introduce(watch: WatchSide, gateway: GatewaySide) -> None:
    reply = gateway.answer(body(watch.greeting))
    assert gateway.answer(body(watch.answer(body(reply)))) == b""


def test_one_key_on_both_sides_and_it_never_travels() -> None:
    watch, gateway = WatchSide(KEY, NONCES[0]), GatewaySide(KEY, NONCES[1])
    assert not gateway.proved
    reply = gateway.answer(body(watch.greeting))
    last = watch.answer(body(reply))
    assert not gateway.proved, "a watch that has only greeted has proved nothing"
    gateway.answer(body(last))
    assert gateway.proved
    assert KEY.encode() not in watch.greeting + reply + last


def test_another_key_is_refused_by_both_sides() -> None:
    with pytest.raises(BrokenFrame, match="another key"):
        introduce(WatchSide(KEY, NONCES[0]), GatewaySide("x" * 40, NONCES[1]))
    gateway = GatewaySide(KEY, NONCES[1])
    gateway.answer(body(framed({"nonce": NONCES[0]})))
    with pytest.raises(BrokenFrame, match="another key"):
        gateway.answer(body(framed({"proof": proof("x" * 40, "watch", *NONCES)})))
    assert not gateway.proved


def test_what_the_gateway_said_is_no_proof_of_the_watch_and_an_old_proof_none_of_the_gateway() -> None:
    gateway = GatewaySide(KEY, NONCES[1])
    gateway.answer(body(framed({"nonce": NONCES[0]})))
    with pytest.raises(BrokenFrame):
        gateway.answer(body(framed({"proof": proof(KEY, "gateway", *NONCES)})))
    old = GatewaySide(KEY, NONCES[1]).answer(body(WatchSide(KEY, NONCES[0]).greeting))
    with pytest.raises(BrokenFrame):
        WatchSide(KEY, "c" * 2 * NONCE_BYTES).answer(body(old))


@given(st.one_of(st.binary(max_size=80), st.dictionaries(st.sampled_from(["nonce", "proof"]), st.text()).map(repr)))
def test_anything_else_ends_the_line(said: bytes | str) -> None:
    given_bytes = said if isinstance(said, bytes) else said.replace("'", '"').encode("utf-8", "replace")
    with pytest.raises(BrokenFrame):
        WatchSide(KEY, NONCES[0]).answer(given_bytes)
    with pytest.raises(BrokenFrame):
        GatewaySide(KEY, NONCES[1]).answer(given_bytes[: 2 * NONCE_BYTES])
