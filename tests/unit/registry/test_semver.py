import pytest

from registry.errors import InvalidVersion, NothingChanged, VersionExists
from registry.models import Bump, Facets
from registry.semver import SemVer, derive_bump, next_version, number_version

BASE = Facets(
    architecture="a", tokenizer="t", weights="w", prompt="p", generation={"temperature": "0.7"}, engine_args={}
)


@pytest.mark.parametrize(
    "text",
    ["1.2", "1", "", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3-a..b", "1.2.3+", "v1.2.3", "1.2.3 ", "1.2.3\n", "١.2.3"],
)
def test_refuses_what_semver_refuses(text: str) -> None:
    with pytest.raises(InvalidVersion, match=r"MAJOR\.MINOR\.PATCH"):
        SemVer.parse(text)


def test_refuses_a_version_that_no_object_name_could_hold() -> None:
    with pytest.raises(InvalidVersion, match="at most 64"):
        SemVer.parse("1.0.0-" + "a" * 60)


def test_precedence_is_that_of_semver_org_section_11() -> None:
    ordered = [
        "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
        "1.0.0-rc.1", "1.0.0", "1.0.1", "1.1.0", "2.0.0",
    ]  # fmt: skip
    parsed = [SemVer.parse(v) for v in ordered]
    shuffled = parsed[5:] + parsed[:5]
    assert sorted(shuffled) == parsed


def test_build_metadata_has_no_precedence_but_an_order() -> None:
    first, second = SemVer.parse("1.0.0+a"), SemVer.parse("1.0.0+b")
    assert first.precedence == second.precedence
    assert first < second
    assert first != second


@pytest.mark.parametrize(("bump", "expected"), [(Bump.PATCH, "1.0.2"), (Bump.MINOR, "1.2.0"), (Bump.MAJOR, "3.0.0")])
def test_next_version_skips_what_is_taken(bump: Bump, expected: str) -> None:
    taken = [SemVer.parse(v) for v in ("1.0.0", "1.0.1", "1.1.0", "2.0.0")]
    assert str(next_version(SemVer.parse("1.0.0"), bump, taken)) == expected


@pytest.mark.parametrize(
    ("change", "bump", "words"),
    [
        pytest.param({"prompt": "q"}, Bump.PATCH, "the prompt changed", id="prompt"),
        pytest.param({"prompt": ""}, Bump.PATCH, "the prompt was removed", id="prompt gone"),
        pytest.param({"policy": "x"}, Bump.PATCH, "the guardrail policy was added", id="policy"),
        pytest.param(
            {"generation": {"temperature": "0.2"}}, Bump.PATCH, "temperature: 0.7 -> 0.2", id="generation setting"
        ),
        pytest.param({"generation": {}}, Bump.PATCH, "temperature: 0.7 -> default", id="generation setting dropped"),
        pytest.param({"engine_args": {"dtype": "float16"}}, Bump.PATCH, "dtype: default -> float16", id="engine"),
        pytest.param({"weights": "v"}, Bump.MINOR, "the weights changed", id="weights"),
        pytest.param({"tokenizer": "u"}, Bump.MAJOR, "the tokenizer changed", id="tokenizer"),
        pytest.param({"architecture": "b"}, Bump.MAJOR, "the architecture changed", id="architecture"),
        pytest.param({"weights": "v", "prompt": "q"}, Bump.MINOR, "weights changed; the prompt", id="strongest wins"),
        pytest.param(
            {"policy": "x", "weights": "v", "architecture": "b"},
            Bump.MAJOR,
            "the architecture changed; the weights changed; the guardrail policy was added",
            id="all are named, strongest first",
        ),
    ],
)
def test_derive_bump(change: dict[str, object], bump: Bump, words: str) -> None:
    derived = derive_bump(BASE, BASE.model_copy(update=change))
    assert derived.bump is bump
    assert words in derived.reason


def test_nothing_changed_is_refused_with_a_way_out() -> None:
    with pytest.raises(NothingChanged, match="--version"):
        derive_bump(BASE, BASE)


V1, V2 = SemVer(1, 0, 0), SemVer(1, 1, 0)
CHANGED = BASE.model_copy(update={"prompt": "q"})


@pytest.mark.parametrize(
    ("version", "bump", "new", "parent", "expected", "recorded"),
    [
        pytest.param(None, None, BASE, None, "1.0.0", None, id="first"),
        pytest.param(SemVer(0, 1, 0), None, BASE, None, "0.1.0", None, id="first, by hand"),
        pytest.param(None, None, CHANGED, (V1, BASE), "1.0.1", Bump.PATCH, id="derived"),
        pytest.param(None, Bump.MAJOR, CHANGED, (V1, BASE), "2.0.0", Bump.MAJOR, id="bump by hand"),
        pytest.param(None, Bump.PATCH, BASE, (V1, BASE), "1.0.1", Bump.PATCH, id="bump by hand, nothing changed"),
        pytest.param(SemVer(3, 0, 0), None, CHANGED, (V1, BASE), "3.0.0", Bump.PATCH, id="number by hand"),
        pytest.param(SemVer(3, 0, 0), None, BASE, (V1, BASE), "3.0.0", None, id="number by hand, nothing changed"),
    ],
)
def test_number_version(
    version: SemVer | None,
    bump: Bump | None,
    new: Facets,
    parent: tuple[SemVer, Facets] | None,
    expected: str,
    recorded: Bump | None,
) -> None:
    numbered = number_version(
        model="chat", version=version, bump=bump, new=new, parent=parent, existing=[V1, V2] if parent else []
    )
    assert (str(numbered.version), numbered.bump) == (expected, recorded)


def test_a_taken_number_is_refused() -> None:
    with pytest.raises(VersionExists, match=r"chat@1\.1\.0 is registered already.*highest is 1\.1\.0"):
        number_version(model="chat", version=V2, bump=None, new=CHANGED, parent=(V1, BASE), existing=[V1, V2])
