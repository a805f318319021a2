from __future__ import annotations

import pytest

from guardrails.checks.base import Context, NoOptions
from guardrails.checks.credentials import CredentialsCheck, entropy_bits
from guardrails.normalise import View
from guardrails.verdicts import Direction, Hit
from tests.unit.guardrails.texts import SECRETS

CHECK = CredentialsCheck(NoOptions())
OUTPUT = Context(Direction.OUTPUT)


def found(text: str) -> list[Hit]:
    return [hit for hit in CHECK.examine(View(text), OUTPUT) if hit.score >= 0.5]


@pytest.mark.parametrize("sentence", ["{}", "Use {} for that.", "密钥如下：{}", "```\n{}\n```"])
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_secrets_are_found(sentence: str, secret: str) -> None:
    assert found(sentence.format(secret))


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("postgres://app:s3cr3tPassw0rd@db:5432/app", "s3cr3tPassw0rd"),
        ("password = 'Xk9$mQ2vLp7z'", "Xk9$mQ2vLp7z"),
        ("token sk-ant-api03-Ab3dEf6hIj9kLm2nOp5qRs8t end", "sk-ant-api03-Ab3dEf6hIj9kLm2nOp5qRs8t"),
    ],
)
def test_the_secret_alone_is_covered(text: str, covered: str) -> None:
    (start, end), *_ = sorted((hit.start, hit.end) for hit in found(text))
    assert text[start:end] == covered


NO_SECRETS = {
    "a rule about passwords": "Your password must have at least 8 characters.",
    "placeholder": "api_key = 'YOUR_API_KEY_HERE'",
    "placeholder of x": "export OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "from the environment": "api_key=os.environ['API_KEY']",
    "template": "password: ${DB_PASSWORD}",
    "tokens of a model": "The token count is 12345678 tokens.",
    "key of a dictionary": "the key is 'temperature'",
    "HTML after the word": "my Netflix password &#128175;&#128175;&#128175;",
    "a commit": "commit e3b0c44298fc1c149afbf4c8996fb92427ae41e4",
    "a skeleton": "sk-learn and sk-image are packages",
    "connection string without a password": "postgres://db.internal:5432/app",
    "Chinese talk": "请修改密码，密码长度为八位以上。",
    "public key": "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD9\n-----END PUBLIC KEY-----",
}


@pytest.mark.parametrize("text", NO_SECRETS.values(), ids=NO_SECRETS)
def test_talk_about_secrets_is_left_alone(text: str) -> None:
    assert found(text) == []


def test_nothing_of_a_secret_stays_in_its_replacement() -> None:
    lengths = {hit.replacement for secret in SECRETS.values() for hit in found(secret)}
    assert lengths == {"*" * 8}


def test_a_key_without_its_end_is_covered_as_far_as_it_goes() -> None:
    text = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nAoIBAQ"
    assert [(hit.start, hit.end) for hit in found(text)] == [(0, len(text))]


def test_entropy_tells_chance_from_words() -> None:
    assert entropy_bits("") == 0
    assert entropy_bits("f3Zk9QpL2xVb7Rt1") > 3.5 > entropy_bits("passpasspasspass")


@pytest.mark.parametrize(
    "text",
    [
        "sk-" * 20_000,
        "eyJ" + "a" * 60_000,
        "-----BEGIN PRIVATE KEY-----\n" * 2_000,
        "password=" * 8_000,
        "key " * 15_000,
    ],
)
def test_hostile_texts_take_time_in_proportion(text: str) -> None:
    CHECK.examine(View(text), OUTPUT)
    CHECK.unfinished_from(View(text))
