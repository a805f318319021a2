"""How found things are covered so that their form stays: separators, lengths, the last digits. Pure."""

from __future__ import annotations


def mask_email(address: str) -> str:
    """First letters, length and top-level domain stay.

    >>> mask_email("john@example.com"), mask_email("li@mail.corp.cn")
    ('j***@e******.com', 'l*@m***.c***.cn')
    """
    local, _, domain = address.rpartition("@")
    labels = domain.split(".")
    hidden = [label[:1] + "*" * (len(label) - 1) for label in labels[:-1]]
    return f"{local[:1]}{'*' * max(1, len(local) - 1)}@{'.'.join([*hidden, labels[-1]])}"


def mask_number(text: str, keep_last: int) -> str:
    """Digits and letters become `*`, separators stay, and so do the last `keep_last` of them (never more than half).

    >>> mask_number("4111 1111 1111 1111", 4), mask_number("+86 138-0013-8000", 4), mask_number("123-45", 4)
    ('**** **** **** 1111', '+** ***-****-8000', '***-45')
    """
    total = sum(char.isalnum() for char in text)
    hidden = total - min(keep_last, total // 2)
    out = []
    for char in text:
        if char.isalnum() and hidden > 0:
            out.append("*")
            hidden -= 1
        else:
            out.append(char)
    return "".join(out)


def mask_secret(text: str) -> str:
    """Eight stars: neither the length nor any character of a secret stays."""
    return "*" * 8
