"""Who may do what at the control plane, and where a request is said to come from."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.access import ROUTES, Right, client_address, manages, may, needed, parse_networks, right_of, sees
from serving.keys import ControlRole as Role

MATRIX = {
    #                     viewer operator admin  reader gateway
    Right.READ: (True, True, True, False, False),
    Right.OPERATE: (False, True, True, False, False),
    Right.MANAGE_KEYS: (False, False, True, False, False),
    Right.SET_QUOTAS: (False, False, True, False, False),
    Right.READ_TEXT: (False, False, True, True, False),
    Right.ERASE_TEXT: (False, False, True, False, False),
    Right.DIAL: (False, False, True, False, True),
}
ROLES = (Role.VIEWER, Role.OPERATOR, Role.ADMIN, Role.DATA_READER, Role.GATEWAY)


@pytest.mark.parametrize("right", MATRIX, ids=str)
def test_each_role_has_the_rights_of_the_table(right: Right) -> None:
    assert tuple(may({role}, right) for role in ROLES) == MATRIX[right]


def test_every_right_is_decided_about() -> None:
    assert set(MATRIX) | {Right.OPEN} == set(Right)
    assert set(ROLES) == set(Role)


def test_without_a_role_only_what_is_open_may_be_done() -> None:
    assert [right for right in Right if may((), right)] == [Right.OPEN]


def test_a_route_that_nobody_decided_about_is_closed_to_everybody() -> None:
    assert right_of("DELETE", "/api/v1/rollouts") is None
    assert not may(set(Role), right_of("DELETE", "/api/v1/rollouts"))


def test_head_is_as_free_as_get() -> None:
    assert right_of("HEAD", "/api/v1/usage") is right_of("GET", "/api/v1/usage") is Right.READ


BOUND = {
    # what a key of one namespace may not do, of what its role may
    Right.SET_QUOTAS: (False, False, False, False, False),
    Right.ERASE_TEXT: (False, False, False, False, False),
    Right.DIAL: (False, False, False, False, True),
}


@pytest.mark.parametrize("right", MATRIX, ids=str)
def test_a_namespace_takes_away_what_concerns_all_of_them_and_nothing_else(right: Right) -> None:
    assert tuple(may({role}, right, "shop") for role in ROLES) == BOUND.get(right, MATRIX[right])


# (bound to, the model's namespace) -> seen
@pytest.mark.parametrize(
    ("bound", "home", "seen"),
    [("", "", True), ("", "bank", True), ("shop", "shop", True), ("shop", "bank", False), ("shop", "", True)],
    ids=["outside a cluster", "bound to none", "its own", "another", "a model outside a cluster"],
)
def test_whose_models_are_seen(bound: str, home: str, seen: bool) -> None:
    assert sees(bound, home) is seen


@pytest.mark.parametrize(
    ("bound", "namespace", "roles", "may_manage"),
    [
        ("", "*", {Role.GATEWAY}, True),
        ("shop", "shop", {Role.ADMIN}, True),
        ("shop", "shop", set(), True),
        ("shop", "bank", set(), False),
        ("shop", "*", {Role.VIEWER}, False),
        ("shop", "shop", {Role.VIEWER, Role.GATEWAY}, False),
    ],
    ids=["bound to none", "an admin of its own", "a client of its own", "another's", "of all", "one that opens all"],
)
def test_which_keys_an_admin_manages(bound: str, namespace: str, roles: set[Role], may_manage: bool) -> None:
    assert manages(bound, namespace, roles) is may_manage


@given(st.sets(st.sampled_from(list(Role))), st.sampled_from(list(Role)), st.sampled_from(list(Right)))
def test_one_more_role_never_takes_a_right_away(roles: set[Role], more: Role, right: Right) -> None:
    assert not may(roles, right) or may(roles | {more}, right)


@given(st.sampled_from([r for r in Right if r is not Right.OPEN]))
def test_the_role_that_a_refusal_names_is_enough(right: Right) -> None:
    role = needed(right)
    assert role is not None
    assert may({role}, right)


def test_whatever_changes_something_needs_more_than_reading() -> None:
    writing = {right for (method, _), right in ROUTES.items() if method == "POST"}
    assert writing == {Right.OPERATE, Right.MANAGE_KEYS, Right.ERASE_TEXT}


TRUSTED = parse_networks(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "header", "said"),
    [
        ("203.0.113.9", "", "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.2.3.4, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "198.51.100.1, <script>", "10.0.0.1"),
        ("10.0.0.1", " , ,", "10.0.0.1"),
        ("fd00::1", "2001:db8::7", "2001:db8::7"),
        ("unix", "198.51.100.1", "unix"),
    ],
    ids=[
        "nobody in between",
        "a header that a client made up",
        "behind one proxy",
        "what a client made up before the proxy",
        "behind two proxies",
        "nothing but proxies",
        "no address in the header",
        "an empty header",
        "version 6",
        "no address at all",
    ],
)
def test_where_a_request_came_from(peer: str, header: str, said: str) -> None:
    assert client_address(peer, header, TRUSTED) == said


@given(st.lists(st.ip_addresses().map(str), max_size=5), st.ip_addresses().map(str))
def test_nobody_outside_can_choose_what_is_logged(made_up: list[str], peer: str) -> None:
    """A client behind one trusted proxy: the proxy appends the client's address, whatever the client had sent."""
    if any(ipaddress.ip_address(peer) in n for n in TRUSTED):
        return
    assert client_address("10.0.0.1", ", ".join([*made_up, peer]), TRUSTED) == peer


def test_a_proxy_that_is_no_address_is_named() -> None:
    with pytest.raises(ValueError, match=r"proxy\.example"):
        parse_networks(["10.0.0.1", "proxy.example"])
