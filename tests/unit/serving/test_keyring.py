"""Keys at a gateway: who is let in, and what the others are told."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from serving.admission import Reason, Rejection
from serving.gateway.http_parsing import Notes
from serving.gateway.keyring import Keyring, KeysUnreadable, load_keys, presented_key, save_keys
from serving.gateway.seams import Caller
from serving.keys import ControlRole, KeyRecord, Priority, Quota, Scope, hash_secret, write_key
from serving.outcomes import KeysPush

NOW = 1_700_000_000.0
ID = "0a1b2c3d4e5f"
SECRET = "s" * 43
KEY = write_key(ID, SECRET)


def record(key_id: str = ID, secret: str = SECRET, **rest: Any) -> KeyRecord:
    return KeyRecord(id=key_id, secret_sha256=hash_secret(secret), name="team", created_at=NOW, **rest)


def ring(*records: KeyRecord, max_age_s: float | None = None) -> Keyring:
    made = Keyring(os.urandom(32), max_age_s=max_age_s)
    made.replace(records, NOW)
    return made


def bearer(text: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", b"Bearer " + text.encode())]


def test_a_right_key_makes_its_caller() -> None:
    keys = ring(record(scopes=frozenset({Scope.INFERENCE, Scope.PIN_VERSION}), priority=Priority.BATCH, namespace="a"))
    for _ in range(2):  # the second time it is known
        assert keys.authenticate(bearer(KEY), NOW) == Caller(
            key_id=ID, name="team", namespace="a", scopes=frozenset({Scope.INFERENCE, Scope.PIN_VERSION}),
            may_see_version=False, may_pin=True, priority=Priority.BATCH,
            homes=frozenset({"", "a"}),
        )  # fmt: skip


# how it is sent -> the key that is read
SENT = {
    "bearer": ([(b"authorization", b"Bearer k")], b"k"),
    "bearer in any case, with blanks": ([(b"authorization", b"bEARER   k  ")], b"k"),
    "as to Azure": ([(b"api-key", b"k")], b"k"),
    "as to Anthropic": ([(b"x-api-key", b"k")], b"k"),
    "bearer wins": ([(b"x-api-key", b"other"), (b"authorization", b"Bearer k")], b"k"),
    "another scheme is passed over": ([(b"authorization", b"Basic eDp5"), (b"api-key", b"k")], b"k"),
    "nothing": ([(b"host", b"x")], None),
    "an empty bearer": ([(b"authorization", b"Bearer ")], None),
    "an empty header": ([(b"api-key", b"  ")], None),
}


@pytest.mark.parametrize(("headers", "key"), SENT.values(), ids=SENT)
def test_keys_are_read_where_sdks_put_them(headers, key) -> None:
    assert presented_key(headers) == key


# what is presented -> what the message may show of it
WRONG = {
    "a wrong secret": (f"tg-{ID}-nope", f"tg-{ID}-..."),
    "an unknown id": ("tg-aaaaaaaaaaaa-secret", "tg-aaaaaaaaaaaa-..."),
    "a key of another house": ("sk-proj-abcdef", "not of the form"),
    "an id that is none": ("tg-<script>/abc-secret", "not of the form"),
    "nothing after the id": (f"tg-{ID}-", "not of the form"),
    "Chinese": ("密钥" * 20, "not of the form"),
    "endless": ("tg-" + "a" * 100_000, "not of the form"),
}


@pytest.mark.parametrize(("presented", "shown"), WRONG.values(), ids=WRONG)
def test_a_wrong_key_is_refused_without_being_repeated(presented: str, shown: str) -> None:
    rejection = ring(record()).authenticate(bearer(presented), NOW)
    assert isinstance(rejection, Rejection)
    assert rejection.reason is Reason.INVALID_API_KEY
    assert shown in rejection.message
    assert presented not in rejection.message
    assert dict(rejection.headers)[b"www-authenticate"].startswith(b"Bearer")


def test_a_missing_key_is_said_to_be_missing() -> None:
    rejection = ring(record()).authenticate([], NOW)
    assert isinstance(rejection, Rejection)
    assert rejection.reason is Reason.INVALID_API_KEY
    assert "didn't provide an API key" in rejection.message


# the key's record, seconds from now -> accepted
LIFE = {
    "without an end": ({}, 1e9, True),
    "before its end": ({"expires_at": NOW + 10}, 9.9, True),
    "at its end": ({"expires_at": NOW + 10}, 10, False),
    "revoked": ({"revoked_at": NOW - 5}, 0, False),
    "of the control plane only": ({"scopes": frozenset(), "roles": frozenset({ControlRole.ADMIN})}, 0, False),
}


@pytest.mark.parametrize(("fields", "after_s", "accepted"), LIFE.values(), ids=LIFE)
def test_keys_live_as_long_as_their_record_says(fields, after_s, accepted) -> None:
    keys = ring(record(**fields))
    keys.authenticate(bearer(KEY), NOW)  # being known already changes nothing
    assert isinstance(keys.authenticate(bearer(KEY), NOW + after_s), Caller) == accepted


def test_a_key_without_the_scope_is_not_permitted_rather_than_wrong() -> None:
    rejection = ring(record(scopes=frozenset({Scope.SEE_VERSION}))).authenticate(bearer(KEY), NOW)
    assert isinstance(rejection, Rejection)
    assert rejection.reason is Reason.NOT_PERMITTED
    assert "`inference`" in rejection.message


def test_a_push_counts_from_the_next_request_on() -> None:
    keys = ring(record(), record("b" * 12, "t" * 43))
    assert isinstance(keys.authenticate(bearer(KEY), NOW), Caller)
    assert keys.replace([record("b" * 12, "t" * 43)], NOW) == {ID}
    assert isinstance(keys.authenticate(bearer(KEY), NOW), Rejection)
    assert isinstance(keys.authenticate(bearer(write_key("b" * 12, "t" * 43)), NOW), Caller)
    assert keys.replace([record("b" * 12, "t" * 43, revoked_at=NOW)], NOW) == {"b" * 12}


def test_a_key_whose_secret_was_changed_is_refused_with_the_old_one() -> None:
    keys = ring(record())
    keys.authenticate(bearer(KEY), NOW)
    keys.replace([record(secret="other")], NOW)
    assert isinstance(keys.authenticate(bearer(KEY), NOW), Rejection)


@pytest.mark.parametrize(("scopes", "sees"), [({Scope.INFERENCE}, False), ({Scope.INFERENCE, Scope.SEE_VERSION}, True)])
def test_versions_are_seen_by_keys_with_the_scope(scopes: set[Scope], sees: bool) -> None:
    caller = ring(record(scopes=frozenset(scopes))).authenticate(bearer(KEY), NOW)
    assert isinstance(caller, Caller)
    assert caller.may_see_version is sees


def test_without_any_push_the_gateway_says_that_it_is_at_fault() -> None:
    keys = Keyring(os.urandom(32))
    rejection = keys.authenticate(bearer(KEY), NOW)
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, rejection.retry_after_s) == (Reason.KEYS_UNAVAILABLE, 1)
    assert not keys.usable(NOW)


def test_keys_of_a_gateway_that_is_cut_off_hold_as_long_as_allowed() -> None:
    for_ever, limited = ring(record()), ring(record(), max_age_s=60)
    later = NOW + 61
    assert isinstance(for_ever.authenticate(bearer(KEY), later), Caller)
    rejection = limited.authenticate(bearer(KEY), later)
    assert isinstance(rejection, Rejection)
    assert rejection.reason is Reason.KEYS_UNAVAILABLE
    limited.confirm(NOW + 30)
    assert isinstance(limited.authenticate(bearer(KEY), later), Caller)


class TestFile:
    def test_hashes_survive_a_restart_and_secrets_are_nowhere(self, tmp_path: Path) -> None:
        path = tmp_path / "gateway" / "keys.json"
        pushed = KeysPush(keys=(record(),), quotas=(Quota(namespace="shop", concurrency=2, set_at=NOW),))
        save_keys(path, pushed)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert SECRET not in path.read_text()
        found = load_keys(path)
        assert found is not None
        assert found == (pushed, path.stat().st_mtime)

    def test_no_file_is_no_keys(self, tmp_path: Path) -> None:
        assert load_keys(tmp_path / "keys.json") is None

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"type":"keys"}', '{"type":"keys","keys":[{}]}'])
    def test_a_spoilt_file_is_told_apart_from_none(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "keys.json"
        path.write_text(text)
        with pytest.raises(KeysUnreadable, match="remove it"):
            load_keys(path)


def test_what_one_ring_has_noted_of_a_head_is_nothing_to_another() -> None:
    notes, caller = Notes(), ring(record())
    assert caller.authenticate(bearer(KEY), NOW, notes) == caller.recall(notes, NOW)
    assert ring(record(), record("1" * 12)).recall(notes, NOW) is None
