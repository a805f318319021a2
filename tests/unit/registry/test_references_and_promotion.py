import pytest

from registry.errors import InvalidRequest, InvalidVersion
from registry.promotion import Moment, alias_moves
from registry.references import check_alias, parse_reference


@pytest.mark.parametrize(
    ("text", "version", "alias"),
    [("chat", None, None), ("chat@1.3.0", "1.3.0", None), ("chat@1.3.0-rc.1", "1.3.0-rc.1", None), ("a@b", None, "b")],
)
def test_reference(text: str, version: str | None, alias: str | None) -> None:
    reference = parse_reference(text)
    assert (reference.version, reference.alias) == (version, alias)


@pytest.mark.parametrize("text", ["", "@1.0.0", "Chat@1.0.0", "chat@", "chat@1.0", "chat@a b", "chat@a@b", "-a@1.0.0"])
def test_bad_reference(text: str) -> None:
    with pytest.raises(InvalidVersion):
        parse_reference(text)


@pytest.mark.parametrize("alias", ["", "v1", "latest", "1.0.0", "a b", "a" * 64])
def test_bad_alias(alias: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be used"):
        check_alias(alias)


@pytest.mark.parametrize(
    ("moment", "before", "after"),
    [
        pytest.param(Moment.DEPLOYED, {}, {"candidate": "2"}, id="first deploy"),
        pytest.param(
            Moment.DEPLOYED, {"production": "1"}, {"production": "1", "candidate": "2"}, id="deploy over another"
        ),
        pytest.param(Moment.DEPLOYED, {"production": "2"}, {"production": "2"}, id="what serves is no candidate"),
        pytest.param(Moment.HEALTHY, {"production": "1", "candidate": "2"}, {"production": "2"}, id="promoted"),
        pytest.param(
            Moment.HEALTHY, {"candidate": "3"}, {"production": "2", "candidate": "3"}, id="another's candidate stays"
        ),
        pytest.param(Moment.ABANDONED, {"production": "1", "candidate": "2"}, {"production": "1"}, id="taken back"),
        pytest.param(Moment.ABANDONED, {"candidate": "3"}, {"candidate": "3"}, id="another's candidate"),
        pytest.param(Moment.RESTORED, {"production": "3"}, {"production": "2"}, id="rolled back to it"),
    ],
)
def test_alias_moves(moment: Moment, before: dict[str, str], after: dict[str, str]) -> None:
    aliases = dict(before)
    for move in alias_moves(moment, "2", aliases):
        if move.version is None:
            del aliases[move.alias]
        else:
            aliases[move.alias] = move.version
    assert aliases == after
    assert alias_moves(moment, "2", aliases) == (), "made moves must not be asked for again"
