"""What a cluster mounts: read and never made, refused with its path and without its content."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rollout.accounts.memory import MemoryAccountStore
from serving.keys import ControlRole, matches, write_key
from tidegate.control_plane import read_token
from tidegate.errors import WrongUse
from tidegate.mounted import book_gateway_key, open_store, read_gateway_key
from tidegate.settings import Settings

SECRET = "s" * 43
KEY = write_key("abcdefghijkl", SECRET)


def mounted(folder: Path, text: str) -> Path:
    file = folder / "mounted"
    file.write_text(text)
    file.chmod(0o440)
    return file


def test_a_mounted_token_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    file = mounted(tmp_path, SECRET + "\n")
    settings = Settings(home=tmp_path / "home", control_token_file=file)
    assert read_token(settings) == SECRET
    assert settings.credentials_file == file
    assert file.stat().st_mode & 0o777 == 0o440
    assert not settings.home.exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [("hunter2", "holds 7 characters, fewer than 32"), ("", "holds 0 characters"), (None, "no such file")],
    ids=["too short", "empty", "not there"],
)
def test_a_mounted_token_that_will_not_do_is_named_and_not_shown(tmp_path: Path, text: str | None, told: str) -> None:
    file = tmp_path / "absent" if text is None else mounted(tmp_path, text)
    with pytest.raises(WrongUse, match=told) as refused:
        read_token(Settings(home=tmp_path / "home", control_token_file=file))
    assert str(file) in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_the_gateways_key_lets_gateways_in_and_opens_nothing_else(tmp_path: Path) -> None:
    accounts = MemoryAccountStore()
    key = read_gateway_key(Settings(home=tmp_path, gateway_key_file=mounted(tmp_path, KEY + "\n")))
    assert key == ("abcdefghijkl", SECRET)
    book_gateway_key(accounts, key, now=1.0)
    (record,) = accounts.keys()
    assert record.roles == {ControlRole.GATEWAY}
    assert not record.scopes
    assert matches(record, SECRET)


def test_a_start_books_the_key_once_and_never_revives_a_revoked_one(tmp_path: Path) -> None:
    accounts = MemoryAccountStore()
    book_gateway_key(accounts, ("abcdefghijkl", SECRET), now=1.0)
    (record,) = accounts.keys()
    version = accounts.keys_version()
    book_gateway_key(accounts, ("abcdefghijkl", SECRET), now=2.0)
    assert accounts.keys_version() == version
    accounts.put_key(record.model_copy(update={"revoked_at": 3.0}))
    book_gateway_key(accounts, ("abcdefghijkl", SECRET), now=4.0)
    assert not accounts.keys()[0].valid(5.0)


@pytest.mark.parametrize("text", [SECRET, "tg-short-" + SECRET, "tg-abcdefghijkl-" + "s" * 31])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(WrongUse, match="holds no key") as refused:
        read_gateway_key(Settings(home=tmp_path, gateway_key_file=mounted(tmp_path, text)))
    assert text not in str(refused.value)


def test_the_stores_url_can_come_from_a_file_and_from_one_place_only(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    settings = Settings(home=tmp_path, store_url_file=mounted(tmp_path, url + "\n"))
    open_store(settings).close()
    assert (tmp_path / "elsewhere.db").exists()
    with pytest.raises(WrongUse, match=r"store_url_file .*absent: no such file"):
        open_store(Settings(home=tmp_path, store_url_file=tmp_path / "absent"))
    with pytest.raises(ValidationError, match="give one of them"):
        Settings(home=tmp_path, store_url=url, store_url_file=tmp_path / "mounted")
