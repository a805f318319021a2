"""Texts that the guardrails' tests share. Numbers and keys have valid checksums and forms, and belong to nobody."""

from __future__ import annotations

KEY_LETTERS = "Ab3dEf6hIj9kLm2nOp5qRs8tUv1wXyZ7cD4eFgH0"

PERSONAL = {
    "e-mail": "john.smith@example.com",
    "e-mail with a tag, two-part ending": "li.wei+news@mail.example.com.cn",
    "phone, international": "+44 20 7946 0958",
    "phone, international, compact": "+8613800138000",
    "phone, American": "(415) 555-2671",
    "phone, American, dashes": "415-555-2671",
    "phone, Chinese mobile": "13800138000",
    "phone, Chinese mobile, spaces": "138 0013 8000",
    "phone, Chinese mobile, country": "+86 138-0013-8000",
    "phone, Chinese landline": "010-62781234",
    "card, Visa": "4111 1111 1111 1111",
    "card, Visa, compact": "4111111111111111",
    "card, Amex": "3782 822463 10005",
    "card, UnionPay": "6212345678900000003",
    "card, full width": "４１１１１１１１１１１１１１１１",
    "IBAN": "GB82 WEST 1234 5698 7654 32",
    "IBAN, compact": "DE89370400440532013000",
    "IPv4": "203.0.113.77".replace("203.0.113", "93.184.216"),
    "IPv6": "2606:2800:220:1:248:1893:25c8:1946",
    "Chinese identity": "11010519491231002X",
    "Chinese identity, digit": "440524188001010014",
    "American social security": "536-90-4399",
}

SECRETS = {
    "AWS": "AKIA" + "IOSFODNN7EXAMPLE"[:9] + "ABCDEF2",
    "GitHub": "ghp_" + KEY_LETTERS[:36],
    "GitHub, fine-grained": "github_pat_" + KEY_LETTERS + KEY_LETTERS[:20],
    "GitLab": "glpat-" + KEY_LETTERS[:20],
    "Slack": "xoxb-" + "123456789012-" + KEY_LETTERS[:24],
    "Stripe": "sk_live_" + KEY_LETTERS[:24],
    "OpenAI": "sk-proj-" + KEY_LETTERS,
    "Anthropic": "sk-ant-api03-" + KEY_LETTERS,
    "Google": "AIza" + KEY_LETTERS[:35],
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9Cnz\n"
    "KUpRKfFLfRYC\n"
    "-----END RSA PRIVATE KEY-----",
    "connection string": "postgres://app:s3cr3tPassw0rd@db.internal:5432/app",
    "assigned password": "password = 'Xk9$mQ2vLp7z'",
    "assigned key": "api_key: 9f8e7d6c5b4a39281706f5e4d3c2b1a0",
    "assigned in Chinese": "密码是Xk9mQ2vLp7zR",
}
