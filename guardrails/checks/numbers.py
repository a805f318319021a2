"""Which digits are numbers of people and accounts: checksums, prefixes, dates. Pure."""

from __future__ import annotations

import datetime
import ipaddress

_LUHN_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B).

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        total += _LUHN_DOUBLED[value] if place % 2 else value
    return total % 10 == 0


def card_scheme(digits: str) -> str | None:
    """Whose card a number is, by its first digits and its length; the check digit is not looked at."""
    count, two, three, four = len(digits), int(digits[:2]), int(digits[:3]), int(digits[:4])
    schemes = (
        ("visa", digits[0] == "4" and count in (13, 16, 19)),
        ("mastercard", (51 <= two <= 55 or 2221 <= four <= 2720) and count == 16),
        ("american express", two in (34, 37) and count == 15),
        ("unionpay", two == 62 and 16 <= count <= 19),
        ("discover", (four == 6011 or two == 65 or 644 <= three <= 649) and 16 <= count <= 19),
        ("jcb", 3528 <= four <= 3589 and 16 <= count <= 19),
        ("diners club", (300 <= three <= 305 or two in (36, 38, 39)) and 14 <= count <= 19),
        ("chinese bank", four in (9558, 9559, 6013, 6058, 6282) and count in (16, 18, 19)),
    )
    return next((name for name, fits in schemes if fits), None)


IBAN_LENGTH = {
    code: int(length)
    for code, length in (
        entry.split(":")
        for entry in [
            "AD:24",
            "AE:23",
            "AL:28",
            "AT:20",
            "AZ:28",
            "BA:20",
            "BE:16",
            "BG:22",
            "BH:22",
            "BR:29",
            "BY:28",
            "CH:21",
            "CR:22",
            "CY:28",
            "CZ:24",
            "DE:22",
            "DK:18",
            "DO:28",
            "EE:20",
            "EG:29",
            "ES:24",
            "FI:18",
            "FO:18",
            "FR:27",
            "GB:22",
            "GE:22",
            "GI:23",
            "GL:18",
            "GR:27",
            "GT:28",
            "HR:21",
            "HU:28",
            "IE:22",
            "IL:23",
            "IQ:23",
            "IS:26",
            "IT:27",
            "JO:30",
            "KW:30",
            "KZ:20",
            "LB:28",
            "LC:32",
            "LI:21",
            "LT:20",
            "LU:20",
            "LV:21",
            "LY:25",
            "MC:27",
            "MD:24",
            "ME:22",
            "MK:19",
            "MR:27",
            "MT:31",
            "MU:30",
            "NL:18",
            "NO:15",
            "PK:24",
            "PL:28",
            "PS:29",
            "PT:25",
            "QA:29",
            "RO:24",
            "RS:22",
            "SA:24",
            "SC:31",
            "SE:24",
            "SI:19",
            "SK:24",
            "SM:27",
            "ST:25",
            "SV:28",
            "TL:23",
            "TN:24",
            "TR:26",
            "UA:29",
            "VA:22",
            "VG:24",
            "XK:20",
        ]
    )
}
"""Characters of an account number by country (SWIFT's IBAN registry)."""


def iban(compact: str) -> bool:
    """Whether letters and digits without spaces are an international bank account number (ISO 13616, mod 97).

    >>> iban("GB82WEST12345698765432"), iban("GB82WEST12345698765433")
    (True, False)
    """
    if IBAN_LENGTH.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1


_PROVINCES = frozenset(
    [
        "11",
        "12",
        "13",
        "14",
        "15",
        "21",
        "22",
        "23",
        "31",
        "32",
        "33",
        "34",
        "35",
        "36",
        "37",
        "41",
        "42",
        "43",
        "44",
        "45",
        "46",
        "50",
        "51",
        "52",
        "53",
        "54",
        "61",
        "62",
        "63",
        "64",
        "65",
        "71",
        "81",
        "82",
        "83",
    ]
)
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def resident_identity(compact: str) -> bool:
    """Whether 18 characters are a number of a Chinese resident identity card (GB 11643-1999): place, date, checksum.

    >>> resident_identity("11010519491231002X"), resident_identity("110105194913310026")
    (True, False)
    """
    if len(compact) != 18 or compact[:2] not in _PROVINCES:
        return False
    try:
        born = datetime.date(int(compact[6:10]), int(compact[10:12]), int(compact[12:14]))
    except ValueError:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_ID_WEIGHTS, compact, strict=False))
    return 1850 <= born.year <= 2099 and "10X98765432"[total % 11] == compact[17].upper()


_MOBILE = frozenset(
    [
        "130",
        "131",
        "132",
        "133",
        "134",
        "135",
        "136",
        "137",
        "138",
        "139",
        "145",
        "146",
        "147",
        "148",
        "149",
        "150",
        "151",
        "152",
        "153",
        "155",
        "156",
        "157",
        "158",
        "159",
        "162",
        "165",
        "166",
        "167",
        "170",
        "171",
        "172",
        "173",
        "174",
        "175",
        "176",
        "177",
        "178",
        "180",
        "181",
        "182",
        "183",
        "184",
        "185",
        "186",
        "187",
        "188",
        "189",
        "190",
        "191",
        "192",
        "193",
        "195",
        "196",
        "197",
        "198",
        "199",
    ]
)


def chinese_mobile(digits: str) -> bool:
    """Whether 11 digits are a mobile number of mainland China, by the prefixes that are in use."""
    return len(digits) == 11 and digits[:3] in _MOBILE


def social_security(digits: str) -> bool:
    """Whether 9 digits could be a social security number of the United States (none begins with 000, 666 or 9)."""
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def public_address(text: str) -> bool | None:
    """Whether an IP address belongs to somebody; False for private ones, None for those that mean nobody."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.is_loopback or address.is_unspecified or address.is_multicast or text.startswith("255."):
        return None
    return not (address.is_private or address.is_link_local or address.is_reserved)
