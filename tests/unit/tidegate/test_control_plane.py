"""The bootstrap token, what may be bound to, and the settings of webhooks and proxies."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from registry.stores.memory import MemoryStore
from tidegate import control_plane
from tidegate.control_plane import check_bind, read_token
from tidegate.errors import WrongUse
from tidegate.parts import platform_environment
from tidegate.settings import Settings, WebhookSettings

GOOD = "x" * 43


def test_a_token_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    token = read_token(settings)
    assert len(token) >= 32
    assert settings.credentials_file.stat().st_mode & 0o777 == 0o600
    assert read_token(settings) == token


def test_a_credentials_file_that_was_never_filled_gets_a_token(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    settings.credentials_file.write_text("\n")
    assert len(read_token(settings)) >= 32


def test_a_credentials_file_that_others_can_read_is_closed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    settings.credentials_file.write_text(GOOD)
    settings.credentials_file.chmod(0o644)
    assert read_token(settings) == GOOD
    assert settings.credentials_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_beyond_loopback_a_token_that_could_be_guessed_is_refused(host: str) -> None:
    check_bind(host, GOOD)
    for token in ("", "hunter2"):
        with pytest.raises(WrongUse, match="not loopback") as told:
            check_bind(host, token)
        assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_any_token_will_do(host: str) -> None:
    check_bind(host, "x")


@pytest.mark.parametrize(
    "changes",
    [
        {"trusted_proxies": ("proxy.example",)},
        {"webhooks": ({"name": "a", "url": "ftp://x", "secret_file": "s"},)},
        {"webhooks": ({"name": "a b", "url": "https://x", "secret_file": "s"},)},
        {"webhooks": ({"name": "a", "url": "https://x", "secret_file": "s", "events": ["lunch"]},)},
        {"webhooks": ({"name": "a", "url": "https://x", "secret_file": "s"},) * 2},
        {"webhooks": ({"name": "a", "url": "https://x", "secret_file": "s", "secret": "hunter2"},)},
    ],
    ids=[
        "a proxy's name",
        "no web address",
        "a name with a blank",
        "an unknown event",
        "a name twice",
        "a secret inline",
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**changes)  # type: ignore[arg-type]


def test_webhooks_can_come_from_the_environment_as_a_supervisor_hands_them_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hook = WebhookSettings(name="pager", url="https://pager.example/x", secret_file=Path("s"))
    given = Settings(home=tmp_path, webhooks=(hook,), trusted_proxies=("10.0.0.0/8",))
    monkeypatch.setenv("TIDEGATE_KEY", "tg-somebodys-own")
    env = platform_environment(given)
    assert "TIDEGATE_KEY" not in env
    for name, value in env.items():
        if name.startswith("TIDEGATE_"):
            monkeypatch.setenv(name, value)
    assert Settings() == given


def test_a_control_plane_that_stops_leaves_the_whole_store_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stopped(_server: object, leading: Coroutine[None, None, None], beside: Mapping[str, Any]) -> int:
        assert (tmp_path / "state.db-wal").exists(), "while it runs, what was written last is beside the file"
        for work in (leading, *beside.values()):
            work.close()
        return 0

    monkeypatch.setattr(control_plane, "_run", stopped)
    monkeypatch.setattr(control_plane, "build_registry", lambda _settings: MemoryStore())
    assert asyncio.run(control_plane.serve(Settings(home=tmp_path))) == 0
    assert [path.name for path in tmp_path.glob("state.db*")] == ["state.db"]
