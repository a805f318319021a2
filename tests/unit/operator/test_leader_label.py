"""Where the leader's label belongs, and that an API server in trouble is only waited for."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client.exceptions import ApiException

from rollout.operator.leader_label import Changes, LeaderLabel, changes


class FakePods:
    def __init__(self, labelled: Collection[str] = ()) -> None:
        self.names = set(labelled)
        self.error: Exception | None = None
        self.order: list[str] = []

    def labelled(self) -> Collection[str]:
        if self.error is not None:
            raise self.error
        return tuple(self.names)

    def label(self, name: str, *, leads: bool) -> None:
        self.order.append(f"{'+' if leads else '-'}{name}")
        (self.names.add if leads else self.names.discard)(name)


@pytest.mark.parametrize(
    ("labelled", "leads", "expected"),
    [
        ((), True, Changes(on=("me",), off=())),
        (("me",), True, Changes(on=(), off=())),
        (("dead",), True, Changes(on=("me",), off=("dead",))),
        (("me", "other"), True, Changes(on=(), off=("other",))),
        (("me",), False, Changes(on=(), off=("me",))),
        (("other",), False, Changes(on=(), off=())),
    ],
    ids=["new", "kept", "after a dead leader", "two", "deposed and started again", "a follower leaves others alone"],
)
def test_who_changes_what(labelled: tuple[str, ...], leads: bool, expected: Changes) -> None:
    assert changes(labelled, "me", leads=leads) == expected


@given(st.sets(st.sampled_from(["me", "a", "b", "c"])))
def test_after_the_leader_has_settled_the_label_is_its_own_alone(labelled: set[str]) -> None:
    pods = FakePods(labelled)
    assert LeaderLabel(pods, "me", lambda: True).settle(leads=True)
    assert pods.names == {"me"}
    pods.order.clear()
    assert LeaderLabel(pods, "me", lambda: True).settle(leads=True)
    assert not pods.order, "settled labels are not written again"


def test_there_is_never_a_moment_without_a_label_on_a_handover() -> None:
    pods = FakePods({"old"})
    LeaderLabel(pods, "me", lambda: True).settle(leads=True)
    assert pods.order == ["+me", "-old"]


@pytest.mark.parametrize(
    ("error", "rights"),
    [
        (ApiException(status=403, reason="Forbidden"), True),
        (ApiException(status=503, reason="Service Unavailable"), False),
        (ConnectionRefusedError(), False),
    ],
)
def test_an_api_server_that_refuses_is_told_of_once(
    error: Exception, rights: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pods = FakePods()
    pods.error = error
    label = LeaderLabel(pods, "me", lambda: True)
    assert not label.settle(leads=True)
    assert not label.settle(leads=True)
    assert len(caplog.records) == 1
    assert ("list and patch on pods" in caplog.text) is rights, "a right is missed only where it was refused"
    pods.error = None
    assert label.settle(leads=True)
    assert pods.names == {"me"}
